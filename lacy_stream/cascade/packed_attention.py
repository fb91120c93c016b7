"""Attention for a pass in which the new ids of several rows stand one after the other.

All other layers treat each id alone, so they need neither padding nor the borders of rows. Only attention does:

    ids of the pass   a b c | d | e f     three rows, one after the other
    groups            [d]   [[a b c], [e f f]]

A group holds rows that have about the same number of new ids, and attends in one call. In it, rows of fewer ids repeat
their last one, which is left out of the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "lacy_packed_rows"
UNKNOWN_TO_SDPA = ("softcap", "s_aux", "position_bias")
"""Arguments of transformers' attention functions that are not supported here."""


@dataclass(frozen=True)
class NewIds:
    """The new ids of one row.

    Attributes:
        place: the row of the cache.
        start: position of the first new id.
        ids: the ids, at least one.
    """

    place: int
    start: int
    ids: Sequence[int]


@dataclass(frozen=True)
class RowGroup:
    """Rows of a pass that attend together."""

    rows_B: slice | Tensor
    """Rows of the cache; a slice, which needs no copy, where they are adjacent."""
    index_BT: Tensor
    """Where each id stands in the pass."""
    kept_N: Tensor | None
    """Which of the B times T ids are no repetition; None for all."""
    mask_B1TC: Tensor
    """What is added to the scores: 0 for the columns up to the position of an id, else the least number."""
    distance_B1TC: Tensor
    """How far a column stands before the position of an id."""

    def mask(self, window: int | None) -> Tensor:
        """The mask in which an id sees only itself and the ids before it in a window; None for all of them."""
        if window is None:
            return self.mask_B1TC
        return self.mask_B1TC.masked_fill(self.distance_B1TC >= window, torch.finfo(self.mask_B1TC.dtype).min)


def length_class(ids: int) -> int:
    """Rows whose numbers of new ids lie between the same powers of two attend together: 1, 2, 3 to 4, 5 to 8, ..."""
    return (ids - 1).bit_length()


def group_rows(rows: Sequence[NewIds], dtype: torch.dtype, device: torch.device) -> list[RowGroup]:
    """Divide the rows of a pass, whose ids stand in this order, into groups of adjacent rows."""
    groups: list[RowGroup] = []
    first = start = 0
    for end, row in enumerate(rows, 1):
        if end == len(rows) or length_class(len(rows[end].ids)) != length_class(len(row.ids)):
            groups.append(_group(rows[first:end], start, dtype, device))
            start += sum(len(row.ids) for row in rows[first:end])
            first = end
    return groups


def _group(rows: Sequence[NewIds], start: int, dtype: torch.dtype, device: torch.device) -> RowGroup:
    longest = max(len(row.ids) for row in rows)
    index_BT, positions_BT, kept_N = [], [], []
    for row in rows:
        steps = [min(step, len(row.ids) - 1) for step in range(longest)]
        kept_N += range(len(index_BT) * longest, len(index_BT) * longest + len(row.ids))
        index_BT.append([start + step for step in steps])
        positions_BT.append([row.start + step for step in steps])
        start += len(row.ids)
    places = [row.place for row in rows]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    width = max(row.start + len(row.ids) for row in rows)
    positions = torch.tensor(positions_BT, device=device)
    distance = positions[:, None, :, None] - torch.arange(width, device=device)
    mask = torch.zeros(distance.shape, dtype=dtype, device=device)
    return RowGroup(
        slice(places[0], places[0] + len(places)) if adjacent else torch.tensor(places, device=device),
        torch.tensor(index_BT, device=device),
        None if len(kept_N) == positions.numel() else torch.tensor(kept_N, device=device),
        mask.masked_fill_(distance < 0, torch.finfo(dtype).min),
        distance,
    )


_groups: ContextVar[Sequence[RowGroup]] = ContextVar("_groups")


@contextlib.contextmanager
def packed_rows(model: PreTrainedModel, groups: Sequence[RowGroup]) -> Iterator[None]:
    """Let a model attend in groups. Its attention must go through transformers' ``AttentionInterface``."""
    config = model.config.get_text_config(decoder=True)
    usual, token = config._attn_implementation, _groups.set(groups)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        _groups.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers.

    Args:
        query: of the new ids, [1, H, N, D].
        key: of all rows of the cache, [R, K, C, D]. The heads are K groups, each of which shares keys and values.
        value: likewise.
        attention_mask: unused, since each group of rows has its own.
        scaling: of the scores; None for 1 / sqrt(D).
        sliding_window: number of ids that an id sees; None for all before it.

    Returns:
        [1, N, H, D], and no weights.

    Raises:
        NotImplementedError: the model's attention needs what SDPA does not have.
    """
    for name in UNKNOWN_TO_SDPA:
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    if sliding_window is None and _has_window(module):
        raise NotImplementedError("attention with a window that its function is not told")
    sharing = query.shape[1] // key.shape[1]
    query_NHD = query[0].transpose(0, 1)
    found = []
    for group in _groups.get():
        query_BHTD = query_NHD[group.index_BT].transpose(1, 2)
        rows, width, mask = group.rows_B, group.mask_B1TC.shape[-1], group.mask(sliding_window)
        # The heads that share keys stand one after the other as further ids, so that no key is copied.
        out_BKTD = scaled_dot_product_attention(
            query_BHTD.reshape(len(query_BHTD), key.shape[1], -1, query.shape[-1]),
            key[:, :, :width][rows],
            value[:, :, :width][rows],
            attn_mask=mask.repeat(1, 1, sharing, 1),
            scale=scaling,
        )
        out_NHD = out_BKTD.reshape(*query_BHTD.shape[:-1], -1).transpose(1, 2).flatten(0, 1)
        found.append(out_NHD if group.kept_N is None else out_NHD[group.kept_N])
    return torch.cat(found)[None], None


def _has_window(module: Any) -> bool:
    """Whether a layer sees only the last ids."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds is None:
        has_window = getattr(module.config, "sliding_window", None) is not None
        return has_window and getattr(module.config, "use_sliding_window", True)
    return kinds[module.layer_idx] != "full_attention"


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
