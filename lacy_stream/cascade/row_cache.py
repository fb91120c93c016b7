"""The keys and values of many rows of ids that begin, grow and end at different times, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

COLUMNS = 256
"""The number of columns grows by multiples of this, because each growth copies everything."""


class RowCache(DynamicCache):
    """A cache in which each row has a place of its own, and an id stands in the column of its position.

    A pass of the model reads new ids of some of the rows. Their keys and values are written where they belong:

        rows before   new ids   rows after
        a b c         d         a b c d
        x             -         x
        p q           r s       p q r s

    A row is cropped by writing over its end. So nothing is ever padded in the cache, and nothing has to be compacted.
    What stands to the right of a row is old, and the attention mask hides it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[Tensor] = []  # of each layer, [R, H, C, D]: row, head, column, width
        self._values: list[Tensor] = []
        self._sizes = (0, 0)  # rows and columns
        self._places = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for a number of rows and of ids in each of them."""
        have_rows, have_columns = self._sizes
        columns = -(-columns // COLUMNS) * COLUMNS
        if rows <= have_rows and columns <= have_columns:
            return
        self._sizes = max(rows, have_rows), max(columns, have_columns)
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(self._sizes[0], old.shape[1], self._sizes[1], old.shape[3])
                tensors[layer][:have_rows, :, :have_columns] = old

    def release(self) -> None:
        """Free all memory. No row is kept."""
        self._keys, self._values, self._sizes = [], [], (0, 0)

    def begin_pass(self, rows_N: Tensor, columns_N: Tensor) -> None:
        """Say where the keys of the ids of the next pass belong: their rows and columns, int64."""
        self._places = (rows_N, columns_N)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keep the keys and values of the new ids, [1, H, N, D], and return those of all rows, [R, H, C, D]."""
        rows_N, columns_N = self._places
        for tensors, new in ((self._keys, key_states), (self._values, value_states)):
            if layer_idx == len(tensors):
                # Zeros: what is masked counts with a weight of 0, and 0 times an arbitrary number must be 0.
                tensors.append(new.new_zeros(self._sizes[0], new.shape[1], self._sizes[1], new.shape[3]))
            tensors[layer_idx][rows_N, :, columns_N] = new[0].transpose(0, 1)
        return self._keys[layer_idx], self._values[layer_idx]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """0: the rows have lengths of their own. A model is always given the positions of a pass."""
        return 0
