"""What parts train: models of several sizes, batches that cost nothing, and a step without Composer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from composer.models import HuggingFaceModel
from composer.utils import reproducibility
from report import EOS, Check
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.recipe import GPT2
from lacy_stream.train.model import build_model
from lacy_stream.train.output_layer import OutputLayer

DENSE_MASK = "sdpa_with_dense_mask"


class Shape(NamedTuple):
    width: int
    layers: int
    heads: int


SIZES = {"toy": Shape(32, 2, 2), "42M": Shape(512, 8, 8), "334M": Shape(1024, 24, 16), "1.27B": Shape(2048, 24, 16)}


def make_model(size: str, pieces: int, length: int, pad_vocab_to: int = 1) -> HuggingFaceModel:
    """A GPT-2 with the same first weights at each call, on the device, made as that of a recipe.

    Args:
        size: a key of ``SIZES``.
        pieces: ids of the tokenizer. <CALL> is the id after them.
        length: tokens of a row.
        pad_vocab_to: the rows of the embedding are a multiple of this.
    """
    reproducibility.seed_all(7)
    width, layers, heads = SIZES[size]
    config = GPT2(name="gpt2", d_model=width, n_heads=heads, n_layers=layers, pad_vocab_to_multiple_of=pad_vocab_to)
    # On the device, since random weights of 1.27B parameters take a CPU half a minute.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return build_model(config, max_seq_len=length, call_token_id=pieces, eos_id=EOS)


def attend_with_dense_mask(model: PreTrainedModel) -> None:
    """Have the attention of a model take a dense mask wherever it can."""
    # Versions of transformers before 4.53 lack these.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def dense(*arguments: Any, **settings: Any) -> Any:
        return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, **settings | {"allow_is_causal_skip": False})

    if DENSE_MASK not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(DENSE_MASK, ALL_ATTENTION_FUNCTIONS["sdpa"])
        ALL_MASK_ATTENTION_FUNCTIONS.register(DENSE_MASK, dense)
    model.set_attn_implementation(DENSE_MASK)


def make_optimizer(model: torch.nn.Module, lr: float = 1e-4, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW as recipes have it: fused on a GPU, unless told otherwise."""
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=fused and torch.cuda.is_available()
    )


class RandomRows(IterableDataset):
    """Endless rows of random ids with classes, in the form of ``annotated_dataloader``. They cycle after ``rows``."""

    def __init__(self, rows: int, length: int, pieces: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids_BT = torch.randint(0, pieces, (rows, length), generator=generator)
        self.classes_BT = torch.randint(0, 3, (rows, length), generator=generator).to(torch.uint8)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            for ids_T, classes_T in zip(self.ids_BT, self.classes_BT, strict=True):
                yield {"input_ids": ids_T, "labels": ids_T.clone(), "token_class": classes_T}


def random_loader(rows: int, length: int, pieces: int, seed: int = 0) -> DataLoader:
    """Batches of ``rows`` random rows, without the cost of a stream."""
    return DataLoader(RandomRows(4 * rows, length, pieces, seed), batch_size=rows, pin_memory=torch.cuda.is_available())


class Learner:
    """A model with its optimizer and its objective, for a loop without Composer. The loss is computed from hidden
    states, so that the logits are never held.

    Args:
        model: of ``make_model``.
        settings: arguments of ``CallObjective`` after ``call_token_id``.
    """

    def __init__(self, check: Check, model: HuggingFaceModel, pieces: int, lr: float = 1e-4, **settings: Any) -> None:
        self.network: Any = model.model.train()
        self.optimizer = make_optimizer(self.network, lr)
        self.objective = CallObjective(pieces, **settings)
        self._check, self._layer, self._step = check, OutputLayer(self.network), 0

    def step(self, batch: dict[str, Tensor]) -> None:
        """One step on a batch that is on the device."""
        self.objective.begin_step(self._step, [batch])
        with self._check.autocast():
            self._layer.passes = True
            outputs = self._layer.hidden_states(self.network(input_ids=batch["input_ids"]))
            self._layer.passes = False
            loss = self.objective(outputs, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._step += 1
