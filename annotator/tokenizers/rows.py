"""Rows of token ids that another tool has made: they are checked, and cut into their documents.

A document ends where a control id stands: see ``cut_row``."""

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


def cut_row(row: NDArray[np.int32], control: NDArray[np.bool_], eos_id: int, bos_id: int) -> list[NDArray[np.int32]]:
    """Cut a row where a document ends: after each end-of-sequence id, before each beginning-of-sequence id, and after
    any other control ids, which no text has.

    Args:
        row: int32 [n].
        control: bool [V], which ids of the vocabulary are control pieces.
        eos_id, bos_id: -1 for none. Where both are the same id, it ends a document.

    Returns:
        At least one part; only the part of an empty row is empty.
    """
    ends, begins = row == eos_id, (row == bos_id) & (bos_id != eos_id)
    is_control = control[row]
    other = is_control & ~ends & ~begins
    cuts = ends[:-1] | begins[1:] | (other[:-1] & ~is_control[1:])
    return np.split(row, np.flatnonzero(cuts) + 1)


def describe_outside(row: NDArray[np.integer], outside: NDArray[np.intp], vocab_size: int) -> str:
    """Say what a row with ids that the tokenizer does not have is likely to be, and the way out.

    Args:
        row: ids in the integer type in which they were read.
        outside: positions of the ids that the tokenizer does not have, at least one.
        vocab_size: one more than the highest id of the tokenizer.
    """
    id, first = row[outside[0]], outside[0]
    place = f"token id {id} at position {first}"
    have = f"but the tokenizer has the ids 0 to {vocab_size - 1}"
    other = None if 0 <= id < vocab_size else _fitting_type(row, vocab_size)
    if other is not None:
        return (
            f"{place}, {have}. Read as {other}, all ids of the row are among them: they were written in that type, and "
            f"read as {row.dtype}. Set token_encoding_type: {other}."
        )
    if (id < 0 and (row[outside] == id).all()) or (len(outside) > 1 and (row[first:] == id).all()):
        hint = " (-100 is what labels hold where nothing is predicted: is this the column of the labels?)"
        return (
            f"{place}, as padding: it is no token of the tokenizer{hint if id == -100 else ''}. Write the "
            "end-of-document id in its place, or make rows without padding."
        )
    if 0 <= id < vocab_size:
        return (
            f"{place} is a hole in the vocabulary: ids go up to {vocab_size - 1}, but no piece has this one. "
            "The data were made with another version of the tokenizer: give that one."
        )
    if row.max() < vocab_size + ADDED_TOKENS and len(outside) < len(row) // 2:
        return (
            f"{place}, {have}. The ids of the row that it lacks follow upon its own, as those of added tokens do: give "
            "the tokenizer of the data with its added tokens (the folder with tokenizer.json and what lies beside it), "
            "or that of another model if it is not the one that made this data."
        )
    return f"{place}, {have}. It is not the one that made this data: give the tokenizer of the data."


ADDED_TOKENS = 256
"""Ids above a vocabulary that are taken for those of added tokens."""


def _fitting_type(row: NDArray[np.integer], vocab_size: int) -> str | None:
    """Another integer type in which the bytes of a row are ids of the tokenizer; -100 may stand between them."""
    data = row.tobytes()
    for name in ("int64", "int32", "uint32", "uint16"):
        dtype = np.dtype(name)
        if dtype == row.dtype or len(data) % dtype.itemsize:
            continue
        ids = np.frombuffer(data, dtype).astype(np.int64)
        known = (ids >= 0) & (ids < vocab_size)
        # Half of the numbers are 0 where wider ones are read as this type.
        if (known | (ids == -100)).all() and 2 * np.count_nonzero(ids) > len(ids):
            return name
    return None


def wider_type(ids: NDArray[np.integer]) -> str | None:
    """The wider integer type in which ids were written, if they were read in too narrow a one: then each id is followed
    by the high parts of the number, which are 0, or all ones for a negative number. None if this does not show.

    >>> wider_type(np.arange(5, 15, dtype=np.int64).view(np.int32))
    'int64'
    """
    ones = -1 if ids.dtype.kind == "i" else np.iinfo(ids.dtype).max
    for parts in (4, 2):
        width = parts * ids.dtype.itemsize
        if width > 8 or len(ids) % parts:
            continue
        low, *high = ids.reshape(-1, parts).T
        if np.count_nonzero(low) >= ENOUGH_IDS and all(((part == 0) | (part == ones)).all() for part in high):
            return f"int{8 * width}"
    return None


ENOUGH_IDS = 8
"""Ids, other than 0, after which it is no chance that each is followed by 0."""
