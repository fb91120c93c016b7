"""Causal language models with a key-value cache: a row of ids that grows is never read again from its start."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, RepetitionPenaltyLogitsProcessor


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
        self._last_only = {"logits_to_keep": 1} if reuse and "logits_to_keep" in _parameters(model) else {}
        self._cache, self._ids = DynamicCache(), []
        self._last_V: Tensor | None = None
        self.tokens_read = 0

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits of the token that follows a row.

        Args:
            ids: the row, at least one id.

        Returns:
            float32 [V].
        """
        ids = list(ids)
        keep = _common(self._ids, ids) if self._reuse else 0
        if keep == len(ids):
            if len(ids) == len(self._ids) and self._last_V is not None:
                return self._last_V
            keep -= 1  # nothing is new, but the model must read at least one id to give logits
        if keep == 0:
            self._cache = DynamicCache()
        elif keep < len(self._ids):
            self._cache.crop(keep)
        new = torch.tensor([ids[keep:]], device=self._model.device)
        cache = {"past_key_values": self._cache, "use_cache": True} if self._has_cache else {"use_cache": False}
        out = self._model(input_ids=new, **cache, **self._last_only)
        self._ids, self.tokens_read = ids, self.tokens_read + len(ids) - keep
        self._last_V = last_V = out.logits[0, -1].float()
        return last_V


class BatchDecoder:
    """The logits after several rows that grow and end at different times. One pass of the model reads all new ids.

    The new ids of a row are put to the right of what was read before. A row with fewer new ids than the longest gets
    padding before them, which stays masked from then on. For the rows a b c and d e, which then grow by f, and by g h:

        pass 1   pass 2   mask            positions of pass 2
        a b c    - f      1 1 1  0 1      3 (of f)
        - d e    g h      0 1 1  1 1      2 3 (of g and h)

    Args:
        model: the model, in eval mode. One whose state cannot be cropped reads the whole row each time, as ``Decoder``.
        rows: numbers of the rows. There may be several if there is no reason in ``no_batches``.
        reuse: False reads the whole rows each time, for comparison.
    """

    def __init__(self, model: PreTrainedModel, rows: Collection[int], *, reuse: bool = True) -> None:
        self._model, self._many, self._has_cache = model, len(rows) > 1, can_crop(model)
        self._reuse = reuse and self._has_cache
        self._begin(rows)

    def _begin(self, rows: Collection[int]) -> None:
        self._cache, self._read = DynamicCache(), dict.fromkeys(rows, 0)
        self._mask_BT = torch.ones(len(self._read), 0, dtype=torch.long, device=self._model.device)

    @torch.inference_mode()
    def logits(self, rows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Read what is new in the rows.

        Args:
            rows: number -> row. Each row is longer than at the last call. A row that is missing has ended, and must not
                come again.

        Returns:
            Number -> float32 [n, V]: the logits after each of the n ids at the end of the row that are new.
        """
        if not self._reuse:
            self._begin(rows)
        self._drop([number for number in self._read if number not in rows])
        new = {number: rows[number][read:] for number, read in self._read.items()}
        device, width = self._model.device, max(map(len, new.values()))
        ids_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in new.values()], device=device)
        places: dict[str, Tensor] = {}
        if self._many:
            padding_B1 = torch.tensor([[width - len(ids)] for ids in new.values()], device=device)
            steps_T, read_B1 = torch.arange(width, device=device), torch.tensor([[n] for n in self._read.values()])
            self._mask_BT = torch.cat([self._mask_BT, (steps_T >= padding_B1).long()], dim=1)
            # The first new id of a row has the position after those that were read. Padding comes before it, and is
            # masked.
            positions_BT = (read_B1.to(device) + steps_T - padding_B1).clamp(min=0)
            places = {"attention_mask": self._mask_BT, "position_ids": positions_BT}
        cache = {"past_key_values": self._cache, "use_cache": True} if self._has_cache else {"use_cache": False}
        out = self._model(input_ids=ids_BT, **cache, **places)
        self._read = {number: len(rows[number]) for number in self._read}
        return {
            number: logits_TV[width - len(ids) :].float()
            for (number, ids), logits_TV in zip(new.items(), out.logits, strict=True)
        }

    def _drop(self, ended: Sequence[int]) -> None:
        """Take rows out of the cache and the mask."""
        if not ended:
            return
        left_B = torch.tensor(
            [i for i, number in enumerate(self._read) if number not in ended], device=self._model.device
        )
        self._read = {number: read for number, read in self._read.items() if number not in ended}
        self._mask_BT = self._mask_BT[left_B]
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(left_B)


CROPPED = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose cache holds keys and values of each position."""


def can_crop(model: PreTrainedModel) -> bool:
    """Whether what a model keeps of a row can be cropped to a prefix: keys and values of each position, and no state of
    recurrent layers or convolutions."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    return not model._is_stateful and "past_key_values" in _parameters(model) and kinds <= CROPPED


def no_batches(model: PreTrainedModel) -> str:
    """Why a model cannot read rows of different lengths together; "" if it can. It must accept their positions as an
    argument, and the padding between their ids must not count as a position anywhere."""
    if "position_ids" not in _parameters(model):
        return "takes no position ids"
    if not can_crop(model):
        return "has a recurrent state, which padding would change"
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if window and (kinds is None or set(kinds) != {"full_attention"}):
        return f"has a sliding window of {window} tokens, in which padding would count"
    return ""


def _parameters(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def _common(a: Sequence[int], b: Sequence[int]) -> int:
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
