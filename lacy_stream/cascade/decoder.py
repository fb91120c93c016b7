"""Causal language models that read growing rows of ids and never read the same prefix twice."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, RepetitionPenaltyLogitsProcessor


class Decoder:
    """Logits behind a row of ids, by a key-value cache: it is cropped to what the row has in common with the last one,
    and only the rest is read.

    Args:
        model: in eval mode.
        reuse: False is the plain way, for comparison: the whole row each time, and logits behind each of its ids.
    """

    def __init__(self, model: PreTrainedModel, *, reuse: bool = True) -> None:
        self._model, self._reuse = model, reuse
        # A vocabulary of 49,000 is a fifth of SmolLM2's work on a token, and only the last one's logits are wanted.
        self._last_only = {"logits_to_keep": 1} if reuse and "logits_to_keep" in _parameters(model) else {}
        self._cache, self._ids = DynamicCache(), []
        self._last_V: Tensor | None = None
        self.tokens_read = 0

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """float32 [V]: of the token behind the row.

        Args:
            ids: at least one.
        """
        ids = list(ids)
        keep = _common(self._ids, ids) if self._reuse else 0
        if keep == len(ids):
            if len(ids) == len(self._ids) and self._last_V is not None:
                return self._last_V
            keep -= 1
        if keep == 0:
            self._cache = DynamicCache()
        elif keep < len(self._ids):
            self._cache.crop(keep)
        new = torch.tensor([ids[keep:]], device=self._model.device)
        out = self._model(input_ids=new, past_key_values=self._cache, use_cache=True, **self._last_only)
        self._ids, self.tokens_read = ids, self.tokens_read + len(ids) - keep
        self._last_V = last_V = out.logits[0, -1].float()
        return last_V


class BatchDecoder:
    """Logits behind several rows that only grow, and end at different times. All are read in one pass: the new ids of
    each to the right of what was read, padding before them where another row has more, masked for good.

    Args:
        model: in eval mode.
        rows: their numbers; more than one only where the model ``takes_batches``.
        reuse: False reads the whole rows each time, for comparison.
    """

    def __init__(self, model: PreTrainedModel, rows: Collection[int], *, reuse: bool = True) -> None:
        self._model, self._reuse, self._many = model, reuse, len(rows) > 1
        self._begin(rows)

    def _begin(self, rows: Collection[int]) -> None:
        self._cache, self._read = DynamicCache(), dict.fromkeys(rows, 0)
        self._mask_BT = torch.ones(len(self._read), 0, dtype=torch.long, device=self._model.device)

    @torch.inference_mode()
    def logits(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """float32 [n, V] for each row: behind each of the n ids at its end that were not read before.

        Args:
            rows: by number, each longer than last time. Those that are missing have ended, and do not come again.
        """
        if not self._reuse:
            self._begin(rows)
        self._drop([number for number in self._read if number not in rows])
        new = {number: rows[number][read:] for number, read in self._read.items()}
        device, width = self._model.device, max(map(len, new.values()))
        ids_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in new.values()], device=device)
        places: dict[str, Tensor] = {}
        if self._many:
            behind_B1 = torch.tensor([[width - len(ids)] for ids in new.values()], device=device)
            steps_T, read_B1 = torch.arange(width, device=device), torch.tensor([[n] for n in self._read.values()])
            self._mask_BT = torch.cat([self._mask_BT, (steps_T >= behind_B1).long()], dim=1)
            positions_BT = (read_B1.to(device) + steps_T - behind_B1).clamp(min=0)
            places = {"attention_mask": self._mask_BT, "position_ids": positions_BT}
        out = self._model(input_ids=ids_BT, past_key_values=self._cache, use_cache=True, **places)
        self._read = {number: len(rows[number]) for number in self._read}
        return {
            number: logits_TV[width - len(ids) :].float()
            for (number, ids), logits_TV in zip(new.items(), out.logits, strict=True)
        }

    def _drop(self, ended: Sequence[int]) -> None:
        if not ended:
            return
        left_B = torch.tensor(
            [i for i, number in enumerate(self._read) if number not in ended], device=self._model.device
        )
        self._read = {number: read for number, read in self._read.items() if number not in ended}
        self._mask_BT = self._mask_BT[left_B]
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(left_B)


def takes_batches(model: PreTrainedModel) -> bool:
    """Whether rows of different lengths can be read together: the model must be told their positions."""
    return "position_ids" in _parameters(model)


def _parameters(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return len(os.path.commonprefix([a, b]))  # type: ignore[list-item]  # works on any sequences


def penalised(logits_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """The logits with the repetition penalty of transformers on the ids that stand already; 1 is none."""
    if penalty == 1:
        return logits_V
    row = torch.tensor([list(ids)], device=logits_V.device)
    return RepetitionPenaltyLogitsProcessor(penalty)(row, logits_V[None].clone())[0]  # type: ignore[arg-type]
