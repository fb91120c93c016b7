"""Causal language models with a key-value cache: a row of ids that grows is never read again from its start."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, RepetitionPenaltyLogitsProcessor


class RowDecoder(Protocol):
    """A model that reads several rows of ids, which begin, grow and end at different times."""

    def logits(self, rows: Mapping[int, Sequence[int]], every: Collection[int] = ()) -> dict[int, Tensor]:
        """Read what is new in some rows.

        Args:
            rows: number -> row, at least one id. Rows that are missing are kept as they are. A row may differ from
                what was read under its number before: it is read again from where it differs.
            every: numbers of the rows whose logits are wanted after each id that is read now.

        Returns:
            Number -> float32 [n, V]: the logits after each of the n ids that were read, or after the last one, n = 1.
        """
        ...

    def end(self, number: int) -> None:
        """Forget a row. Its number may be used again."""
        ...


class Decoder:
    """The logits after a row of ids. The cache is cropped to the prefix that the row shares with the last row, and the
    model reads only the rest. A model whose state cannot be cropped (Mamba, hybrids) reads the whole row each time.

    Args:
        model: the model, in eval mode.
        reuse: False reads the whole row each time and computes the logits after each id, for comparison.
    """

    def __init__(self, model: PreTrainedModel, *, reuse: bool = True) -> None:
        self._model, self._reuse, self._has_cache = model, reuse and can_crop(model), can_crop(model)
        # Only the logits of the last token are wanted. For 49,000 pieces they are a fifth of SmolLM2's work on a token.
        self._last_only = last_logits_only(model) if reuse else {}
        self._cache, self._ids = DynamicCache(), []
        self._last_V: Tensor | None = None
        self.tokens_read = 0

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits of the token that follows a row.

        Args:
            ids: the row, at least one id.

        Returns:
            float32 [V].
        """
        if len(ids) == len(self._ids) and self._reuse and list(ids) == self._ids and self._last_V is not None:
            return self._last_V
        return self._read(list(ids), self._last_only)[-1]

    def logits_of_all(self, ids: Sequence[int]) -> Tensor:
        """The logits after each id of a row that is not in the cache, float32 [n, V]."""
        return self._read(list(ids), {})

    @torch.inference_mode()
    def _read(self, ids: list[int], wanted: dict[str, int]) -> Tensor:
        keep = common_prefix(self._ids, ids) if self._reuse else 0
        if keep == len(ids):
            keep -= 1  # nothing is new, but the model must read at least one id to give logits
        if keep == 0:
            self._cache = DynamicCache()
        elif keep < len(self._ids):
            self._cache.crop(keep)
        new = torch.tensor([ids[keep:]], device=self._model.device)
        cache = {"past_key_values": self._cache, "use_cache": True} if self._has_cache else {"use_cache": False}
        logits_TV = self._model(input_ids=new, **cache, **wanted).logits[0, -new.shape[1] :].float()
        self._ids, self.tokens_read = ids, self.tokens_read + len(ids) - keep
        self._last_V = logits_TV[-1]
        # Without a cache, ids that were read before are read again. Their logits are not new.
        return logits_TV


class SeparateDecoders:
    """A ``RowDecoder`` with a ``Decoder`` for each row: for one text at a time, and for models that cannot read rows of
    different lengths together."""

    def __init__(self, model: PreTrainedModel, *, reuse: bool = True) -> None:
        self._model, self._reuse = model, reuse
        self._decoders: dict[int, Decoder] = {}

    def logits(self, rows: Mapping[int, Sequence[int]], every: Collection[int] = ()) -> dict[int, Tensor]:
        """See ``RowDecoder``."""
        found = {}
        for number, row in rows.items():
            if number not in self._decoders:
                self._decoders[number] = Decoder(self._model, reuse=self._reuse)
            decoder = self._decoders[number]
            found[number] = decoder.logits_of_all(row) if number in every else decoder.logits(row)[None]
        return found

    def end(self, number: int) -> None:
        """See ``RowDecoder``."""
        self._decoders.pop(number, None)


CROPPED = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose cache holds keys and values of each position."""


def can_crop(model: PreTrainedModel) -> bool:
    """Whether what a model keeps of a row can be cropped to a prefix: keys and values of each position, and no state of
    recurrent layers or convolutions."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    # In transformers 4.51, GPT-2 and Gemma have caches of other forms.
    has_our_cache = getattr(model, "_supports_cache_class", True) and not hasattr(config, "cache_implementation")
    has_keys_only = not model._is_stateful and "past_key_values" in _parameters(model) and kinds <= CROPPED
    return has_our_cache and has_keys_only


def no_batches(model: PreTrainedModel) -> str:
    """Why a model cannot read several rows in one pass; "" if nothing is known against it. It must accept the positions
    of the ids as an argument, and keep nothing of a row but keys and values."""
    if "position_ids" not in _parameters(model):
        return "takes no position ids"
    if not can_crop(model):
        return "has a recurrent state, which is that of one row"
    return ""


def last_logits_only(model: PreTrainedModel) -> dict[str, int]:
    """The argument that lets a model compute the logits of the last position only; none if it has no such argument."""
    return {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}


def _parameters(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def common_prefix(a: list[int], b: list[int]) -> int:
    """The number of ids with which both lists begin."""
    if b[: len(a)] == a:
        return len(a)
    return len(os.path.commonprefix([a, b]))  # type: ignore[list-item]  # works on any sequences


def apply_repetition_penalty(logits_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Apply the repetition penalty of transformers.

    Args:
        logits_V: logits of the next token, float32 [V].
        ids: ids that are penalised, because they are in the text already.
        penalty: 1 for none; more makes these ids less likely.

    Returns:
        float32 [V]; ``logits_V`` itself if there is no penalty.
    """
    if penalty == 1:
        return logits_V
    row = torch.tensor([list(ids)], device=logits_V.device)
    return RepetitionPenaltyLogitsProcessor(penalty)(row, logits_V[None].clone())[0]  # type: ignore[arg-type]
