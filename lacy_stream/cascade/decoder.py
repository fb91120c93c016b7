"""A causal language model that reads a growing row of ids and never reads the same prefix twice."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, RepetitionPenaltyLogitsProcessor


class Decoder:
    """Logits behind a row of ids, by a key-value cache: it is cropped to what the row has in common with the last one,
    and only the rest is read.

    Args:
        model: in eval mode.
        reuse: False reads the whole row each time, for comparison.
    """

    def __init__(self, model: PreTrainedModel, *, reuse: bool = True) -> None:
        self._model, self._reuse = model, reuse
        self._cache, self._ids = DynamicCache(), []
        self._last_V: Tensor | None = None
        self.tokens_read = 0

    def logits(self, ids: Sequence[int]) -> Tensor:
        """float32 [V]: of the token behind the row.

        Args:
            ids: at least one.
        """
        return self.all_logits(ids)[-1]

    @torch.inference_mode()
    def all_logits(self, ids: Sequence[int]) -> Tensor:
        """float32 [n, V]: behind each of the n >= 1 ids at the end of the row that were not read before."""
        ids = list(ids)
        keep = _common(self._ids, ids) if self._reuse else 0
        if keep == len(ids):
            if len(ids) == len(self._ids) and self._last_V is not None:
                return self._last_V[None]
            keep -= 1
        if keep == 0:
            self._cache = DynamicCache()
        elif keep < len(self._ids):
            self._cache.crop(keep)
        new = torch.tensor([ids[keep:]], device=self._model.device)
        out = self._model(input_ids=new, past_key_values=self._cache, use_cache=True)
        self._ids, self.tokens_read = ids, self.tokens_read + len(ids) - keep
        logits_TV = out.logits[0].float()
        self._last_V = logits_TV[-1]
        return logits_TV


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return len(os.path.commonprefix([a, b]))  # type: ignore[list-item]  # works on any sequences


def penalised(logits_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """The logits with the repetition penalty of transformers on the ids that stand already; 1 is none."""
    if penalty == 1:
        return logits_V
    row = torch.tensor([list(ids)], device=logits_V.device)
    return RepetitionPenaltyLogitsProcessor(penalty)(row, logits_V[None].clone())[0]  # type: ignore[arg-type]
