"""Several rows of ids in one padded pass of the model, with one cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lacy_stream.cascade.decoder import (
    Decoder,
    RowDecoder,
    SeparateDecoders,
    common_prefix,
    last_logits_only,
    no_batches,
)
from lacy_stream.cascade.row_cache import RowCache

PASS_COST = {"cpu": 16, "cuda": 256}
"""What a pass costs beside the work on its ids, as a number of ids: the weights are read once more."""
PASS_IDS, PASS_LOGITS = 4096, 512
"""Largest number of ids in a pass, with the padding, unless a single row has more: it bounds the memory of a pass. The
second one is for passes in which the logits after every id are wanted."""


class BatchDecoder:
    """A ``RowDecoder`` that reads the new ids of several rows in one pass.

    A row with fewer new ids than the longest gets padding before them, so that the last id of each row is in the last
    column, and only the logits of that column are computed. Padding is not kept in the cache. For the rows a b c and d,
    of which b c and d are new:

        ids    positions   visible columns of the cache
        b c    1 2         0 1    0 1 2
        - d    0 0         0      0

    Args:
        model: the model, in eval mode, with no reason in ``no_batches``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._last_only = model, last_logits_only(model)
        self._cache = RowCache()
        self._places: dict[int, int] = {}
        """Number of a row -> its row in the cache."""
        self._read: dict[int, list[int]] = {}
        """Number of a row -> its ids that the cache holds."""

    def logits(self, rows: Mapping[int, Sequence[int]], every: Collection[int] = ()) -> dict[int, Tensor]:
        """See ``RowDecoder``."""
        new: dict[int, list[int]] = {}
        for number, row in rows.items():
            ids = list(row)
            # At least one id must be read to give logits.
            keep = min(common_prefix(self._read.get(number, []), ids), len(ids) - 1)
            self._read[number], new[number] = ids[:keep], ids[keep:]
            if number not in self._places:
                self._places[number] = _lowest_free(self._places.values())
        cost = PASS_COST.get(self._model.device.type, PASS_COST["cuda"])
        lengths = {number: len(ids) for number, ids in new.items()}
        scored = {number: length for number, length in lengths.items() if number in every}
        others = {number: length for number, length in lengths.items() if number not in every}
        found: dict[int, Tensor] = {}
        for group in [*groups(scored, cost, PASS_LOGITS), *groups(others, cost, PASS_IDS)]:
            group.sort(key=self._places.__getitem__)
            found |= self._pass({number: new[number] for number in group}, every)
        return {number: found[number] for number in rows}

    def end(self, number: int) -> None:
        """See ``RowDecoder``."""
        self._places.pop(number, None)
        self._read.pop(number, None)
        if not self._places:
            self._cache.release()

    @torch.inference_mode()
    def _pass(self, new: Mapping[int, list[int]], every: Collection[int]) -> dict[int, Tensor]:
        """Read the new ids of some rows. Returns number -> logits, as ``RowDecoder.logits``."""
        device, steps = self._model.device, max(map(len, new.values()))
        width = max(len(self._read[number]) + len(ids) for number, ids in new.items())
        self._cache.reserve(max(self._places.values()) + 1, width)
        spare = self._cache.spare_column
        ids_BT, positions_BT, columns_BT = [], [], []
        for number, ids in new.items():
            padding, start = steps - len(ids), len(self._read[number])
            positions = list(range(start, start + len(ids)))
            ids_BT.append([0] * padding + ids)
            positions_BT.append([0] * padding + positions)
            columns_BT.append([spare] * padding + positions)
        positions = torch.tensor(positions_BT, device=device)
        self._cache.begin_pass([self._places[n] for n in new], torch.tensor(columns_BT, device=device), width)
        last_only = {} if any(number in every for number in new) else self._last_only
        out = self._model(
            input_ids=torch.tensor(ids_BT, device=device),
            attention_mask=_causal_mask(positions, width, self._model.dtype),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **last_only,
        )
        for number, ids in new.items():
            self._read[number] += ids
        return {
            number: logits_TV[-len(ids) if number in every else -1 :].float()
            for (number, ids), logits_TV in zip(new.items(), out.logits, strict=True)
        }


def _causal_mask(positions_BT: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """What each id sees: the columns up to its position. Added to the attention's scores, [B, 1, T, width]."""
    visible = torch.arange(width, device=positions_BT.device) <= positions_BT[:, None, :, None]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def _lowest_free(used: Collection[int]) -> int:
    return next(place for place in range(len(used) + 1) if place not in used)


def groups(lengths: Mapping[int, int], cost: int, most: int) -> list[list[int]]:
    """Divide rows into passes, so that padding and passes together cost least.

    Args:
        lengths: number of a row -> number of its new ids.
        cost: what a pass costs beside the work on its ids, as a number of ids.
        most: largest number of ids in a pass, with the padding. A single row may have more.

    Returns:
        The rows of each pass.
    """
    order = sorted(lengths, key=lambda number: -lengths[number])
    # Rows of similar lengths belong together, so a pass takes adjacent rows of the order. best[end] is the least cost
    # of the first rows, and the place where the last of their passes begins.
    best = [(0, 0)]
    for end in range(1, len(order) + 1):
        starts = (start for start in range(end) if start == end - 1 or lengths[order[start]] * (end - start) <= most)
        best.append(min((best[start][0] + cost + lengths[order[start]] * (end - start), start) for start in starts))
    found, end = [], len(order)
    while end:
        start = best[end][1]
        found.append(order[start:end])
        end = start
    return found


def open_decoder(model: PreTrainedModel, *, many: bool, reuse: bool = True) -> RowDecoder:
    """Make the decoder for a model.

    Args:
        model: the model, in eval mode.
        many: whether there will be several rows at a time. A model that cannot read them together reads one after the
            other.
        reuse: False reads whole rows each time, for comparison.
    """
    if many and reuse and not no_batches(model) and _reads_rows_together(model):
        return BatchDecoder(model)
    return SeparateDecoders(model, reuse=reuse)


def _reads_rows_together(model: PreTrainedModel) -> bool:
    """Try it: whether rows that are read together have the logits that each has alone. Architectures differ in what
    they do with positions, masks and caches, and a wrong text would go unnoticed."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = [3 + (7 * n) % max(vocabulary - 3, 1) for n in range(9)]
    stages: list[dict[int, list[int]]] = [
        {0: ids[:4], 1: ids[4:6]},
        {1: ids[4:9]},
        {0: ids[:5], 1: [*ids[4:6], *ids[:2]]},
    ]
    together = BatchDecoder(model)
    try:
        for rows in stages:
            for number, logits_1V in together.logits(rows).items():
                alone_V: Any = Decoder(model).logits(rows[number])
                spread = float(alone_V.max() - alone_V.min())
                allowed = (0.01 if model.dtype == torch.float32 else 0.1) * spread + 1e-6
                if not float((logits_1V[0] - alone_V).abs().max()) <= allowed:
                    return False
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a model that takes no such mask
        return False
    return True
