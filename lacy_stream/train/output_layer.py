"""The last hidden states of a model in the place of its logits, so that a step of training never holds the logits.

With 32,000 entries and 16,384 tokens, logits and their gradient are 2 GB in bf16, more than anything else in the step
of a small model. ``objective.losses.HiddenStates`` computes them in chunks instead, from the input of the output layer.
So the output layer is asked to let its input through. Everything before it stays the model's own code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lacy_stream.errors import UsageError
from lacy_stream.objective.call_objective import evaluating
from lacy_stream.objective.losses import HiddenStates
from lacy_stream.train.padding import PaddedOutput

PROBE_IDS = 8
"""Ids 0, 1, … of the row by which the two ways to the logits are compared."""


class OutputLayer:
    """The output layer of a model of transformers, which can be told to pass its input through.

    Args:
        model: with logits that are those of its output layer, and nothing more.

    Raises:
        UsageError: its logits cannot be had from its hidden states; the message says why.
    """

    def __init__(self, model: nn.Module) -> None:
        name, find = type(model).__name__, getattr(model, "get_output_embeddings", None)
        layer = find() if callable(find) else None
        if type(layer) is not PaddedOutput and getattr(type(layer), "forward", None) is not nn.Linear.forward:
            raise UsageError(f"{name} has no plain linear output layer")
        assert isinstance(layer, nn.Linear)
        if type(layer.weight) not in (nn.Parameter, Tensor) or layer.weight.ndim != 2 or not layer.weight.numel():
            raise UsageError(f"the output layer of {name} is sharded")
        self.passes = False
        """Whether what the model calls its logits are its last hidden states."""
        self._layer = layer
        self._entries = layer.entries if isinstance(layer, PaddedOutput) else layer.weight.shape[0]
        layer.forward = self._forward  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self._check(model, name)
        except BaseException:
            self.close()
            raise

    def _forward(self, states: Tensor) -> Tensor:
        if self.passes:
            return states
        return F.linear(states, self._layer.weight, self._layer.bias)[..., : self._entries]

    def hidden_states(self, outputs: Any) -> dict[str, Any]:
        """The outputs of a forward with ``passes``, for ``CallObjective``."""
        states = HiddenStates(outputs["logits"], self._layer.weight, self._layer.bias, self._entries)
        return {"logits": states, "aux_loss": outputs.get("aux_loss")}

    def close(self) -> None:
        """Give the output layer its own forward again."""
        self._layer.__dict__.pop("forward", None)

    @torch.no_grad()
    def _check(self, model: nn.Module, name: str) -> None:
        """A model may cap or scale its logits, as Gemma 2 and Granite do: then they are not those of the layer."""
        ids_BT = torch.arange(PROBE_IDS, device=self._layer.weight.device)[None]
        with evaluating(model):
            logits = model(input_ids=ids_BT).logits
            self.passes = True
            try:
                states = model(input_ids=ids_BT).logits
            finally:
                self.passes = False
        if states.shape[-1] != self._layer.in_features:
            raise UsageError(f"{name} changes the input of its output layer")
        ours = self._forward(states).float()
        if not torch.allclose(ours, logits.float(), rtol=1e-3, atol=1e-3 * logits.abs().max().item()):
            raise UsageError(f"{name} changes the logits of its output layer")
