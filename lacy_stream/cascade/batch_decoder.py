"""Several rows of ids in one pass of the model, with one cache."""

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
from lacy_stream.cascade.packed_attention import NewIds, group_rows, length_class, packed_rows
from lacy_stream.cascade.row_cache import RowCache

PASS_IDS, PASS_LOGITS = 4096, 512
"""Largest number of ids in a pass, and of ids whose logits are computed, unless a single row has more: they bound the
memory of a pass."""


class BatchDecoder:
    """A ``RowDecoder`` that reads the new ids of several rows in one pass, one row after the other, without padding.

    For the rows a b c and d, of which b c and d are new:

        ids        b    c      d
        positions  1    2      0
        attend to  a b  a b c  d

    Only the logits that are wanted are computed.

    Args:
        model: the model, in eval mode, with no reason in ``no_batches``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._chooses_logits = model, bool(last_logits_only(model))
        self._cache = RowCache()
        self._places: dict[int, int] = {}
        """Number of a row -> its row in the cache."""
        self._read: dict[int, list[int]] = {}
        """Number of a row -> its ids that the cache holds."""

    def logits(self, rows: Mapping[int, Sequence[int]], every: Collection[int] = ()) -> dict[int, Tensor]:
        """See ``RowDecoder``."""
        new: dict[int, NewIds] = {}
        for number, row in rows.items():
            ids = list(row)
            # At least one id must be read to give logits.
            keep = min(common_prefix(self._read.get(number, []), ids), len(ids) - 1)
            self._read[number] = ids[:keep]
            if number not in self._places:
                self._places[number] = _lowest_free(self._places.values())
            new[number] = NewIds(self._places[number], keep, ids[keep:])
        found: dict[int, Tensor] = {}
        for numbers in passes({number: len(row.ids) for number, row in new.items()}, every):
            found |= self._pass({number: new[number] for number in numbers}, every)
        return {number: found[number] for number in rows}

    def end(self, number: int) -> None:
        """See ``RowDecoder``."""
        self._places.pop(number, None)
        self._read.pop(number, None)
        if not self._places:
            self._cache.release()

    @torch.inference_mode()
    def _pass(self, new: Mapping[int, NewIds], every: Collection[int]) -> dict[int, Tensor]:
        """Read the new ids of some rows. Returns number -> logits, as ``RowDecoder.logits``."""
        # Rows that attend together stand together, in the order of the cache.
        new = dict(sorted(new.items(), key=lambda item: (length_class(len(item[1].ids)), item[1].place)))
        device, rows = self._model.device, list(new.values())
        self._cache.reserve(max(self._places.values()) + 1, max(row.start + len(row.ids) for row in rows))
        places_N = [row.place for row in rows for _ in row.ids]
        positions_N = torch.tensor([row.start + step for row in rows for step in range(len(row.ids))], device=device)
        self._cache.begin_pass(torch.tensor(places_N, device=device), positions_N)
        wanted: list[int] = []
        counts = {number: len(row.ids) if number in every else 1 for number, row in new.items()}
        end = 0
        for number, row in new.items():
            end += len(row.ids)
            wanted += range(end - counts[number], end)
        wanted_L = torch.tensor(wanted, device=device)
        with packed_rows(self._model, group_rows(rows, self._model.dtype, device)):
            out = self._model(
                input_ids=torch.tensor([[id for row in rows for id in row.ids]], device=device),
                position_ids=positions_N[None],
                past_key_values=self._cache,
                use_cache=True,
                **({"logits_to_keep": wanted_L} if self._chooses_logits else {}),
            )
        logits_LV = (out.logits[0] if self._chooses_logits else out.logits[0, wanted_L]).float()
        for number, row in new.items():
            self._read[number] += row.ids
        return dict(zip(new, logits_LV.split(list(counts.values())), strict=True))


def _lowest_free(used: Collection[int]) -> int:
    return next(place for place in range(len(used) + 1) if place not in used)


def passes(lengths: Mapping[int, int], every: Collection[int]) -> list[list[int]]:
    """Divide rows into passes within the bounds.

    Args:
        lengths: number of a row -> number of its new ids.
        every: numbers of the rows whose logits are wanted after each new id.

    Returns:
        The rows of each pass.
    """
    found: list[list[int]] = []
    ids = logits = 0
    for number, length in lengths.items():
        ids, logits = ids + length, logits + (length if number in every else 1)
        if not found or ids > PASS_IDS or logits > PASS_LOGITS:
            found.append([])
            ids, logits = length, length if number in every else 1
        found[-1].append(number)
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
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # a model of other code
        return False
    return True
