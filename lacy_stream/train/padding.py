"""Rows that only pad a vocabulary, so that the matrix products of the output layer have sizes that GPUs are fast at.

The rows after that of <CALL> are padding: no text holds their ids. In training, the output layer computes their logits
and leaves them out, so that they have no part in any loss. A model that is loaded for anything else has no such rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lacy_stream.errors import UsageError


class PaddedOutput(nn.Linear):
    """An output layer, some of whose rows pad the vocabulary: it computes all logits, and returns a view of the others.

    Args:
        layer: whose weight and bias it shares.
        entries: of the vocabulary; the rows after them are padding.
    """

    def __init__(self, layer: nn.Linear, entries: int) -> None:
        rows, width = layer.weight.shape
        super().__init__(width, rows, bias=layer.bias is not None, device="meta")
        self.weight, self.bias, self.entries = layer.weight, layer.bias, entries

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states)[..., : self.entries]


def leave_out_padding(model: PreTrainedModel, entries: int) -> None:
    """Have a model's logits end after those of the first ``entries`` ids. A model is left as it is if it has no rows
    after them, or no plain linear output layer."""
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or layer.weight.shape[0] <= entries:
        return
    model.set_output_embeddings(PaddedOutput(layer, entries))
    model.loss_function = functools.partial(_own_loss, model.loss_function)


def _own_loss(theirs: Callable[..., Tensor], logits: Tensor, labels: Tensor, vocab_size: int, **rest: Any) -> Tensor:
    """The loss of a model that sees labels. It would take the rows of the embedding for the number of its logits."""
    return theirs(logits, labels, vocab_size=logits.shape[-1], **rest)


def remove_padding(model: PreTrainedModel, entries: int) -> None:
    """Cut the embeddings of a model after their first ``entries`` rows. One that cannot be resized is left as it is."""
    embeddings: Any = model.get_input_embeddings()
    if embeddings.weight.shape[0] <= entries:
        return
    try:
        resize_vocabulary(model, entries)
    except UsageError:
        return


@torch.no_grad()
def pad_vocabulary(model: PreTrainedModel, multiple: int) -> None:
    """Round the rows of the embeddings up to a multiple; the new ones are zero.

    Raises:
        UsageError: the model does not let its embeddings be resized.
    """
    inputs: Any = model.get_input_embeddings()
    before = inputs.weight.shape[0]
    resize_vocabulary(model, round_up(before, multiple))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for part in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if part is not None:
                part[before:] = 0


def resize_vocabulary(model: PreTrainedModel, rows: int) -> None:
    """Give the embeddings that many rows. The output of the ids that remain stays as it was.

    Raises:
        UsageError: the model does not let its embeddings be resized.
    """
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise UsageError(f"the vocabulary of {type(model).__name__} cannot be resized: {error}") from None


def round_up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple
