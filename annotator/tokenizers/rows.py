"""Rows of token ids that another tool has made: what is no row is refused, and a row is cut into its documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.errors import AnnotatorError


def as_row(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """A row of ids in its own integer type, so that an id out of range is seen.

    Raises:
        AnnotatorError: not a row of integers.
    """
    row = np.asarray(ids)
    if row.ndim != 1 or (len(row) and row.dtype.kind not in "iu"):
        raise AnnotatorError(
            f"{row.dtype} of shape {row.shape} instead of a row of token ids. Give one-dimensional arrays of integers."
        )
    return row if len(row) else row.astype(np.int32)


def padding(ids: NDArray[np.int32], unknown: int, control: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which unknown ids only fill a segment up: two or more before its first, or after its last, id that spells text;
    bool [n]. One alone may be a character that the tokenizer does not know.

    Args:
        ids: int32 [n], one segment of a row.
        unknown: the id of the unknown piece, -1 for none.
        control: bool [n], the ids of control pieces.
    """
    spelled = np.flatnonzero((ids != unknown) & ~control)
    first, last = (spelled[0], spelled[-1]) if len(spelled) else (len(ids), len(ids))
    filling = ids == unknown
    filling[first:last] = False
    for end in (filling[:first], filling[last:]):
        if np.count_nonzero(end) < 2:
            end[:] = False
    return filling


def cut(row: NDArray[np.int32], after: int, before: int = -1) -> list[NDArray[np.int32]]:
    """Cut a row after each id ``after`` and before each id ``before``; -1 stands for no id.

    Returns:
        At least one part; only the part of an empty row is empty.
    """
    cuts = (row[:-1] == after) & (after >= 0)
    if before >= 0:
        cuts |= row[1:] == before
    return np.split(row, np.flatnonzero(cuts) + 1)
