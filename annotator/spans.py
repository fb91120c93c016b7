"""Spans of a text -> the tokens that are facts. The spans were made elsewhere, and are aligned like our own labels.

A span is a pair (start, end) of offsets in code points of a text, the end exclusive. The text that it covers is to be
delegated. Spans may overlap and come in any order. An empty span covers nothing.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import AnnotatorError

SPANS_VERSION = 1  # raise it with every change by which the same spans give other tokens

_WHITE_SPACE = np.array([ord(c) for c in map(chr, range(0x3001)) if c.isspace()], dtype=np.uint32)
_WAY_OUT = "Give [[start, end], …] in code points of the text."


def read_spans(value: Any, text: str) -> NDArray[np.int32]:
    """Read spans as a data set or a labeller gives them, and check them against their text.

    Args:
        value: pairs [[start, end], …], or one flat sequence [start, end, start, end, …]; a list, an array of integers,
            or JSON.
        text: the text of the spans.

    Returns:
        int32 [n, 2].

    Raises:
        AnnotatorError: the value is not in this form, or a span does not lie in the text. The message names it.
    """
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise AnnotatorError(f"spans: {_shorten(value)} is not JSON ({error}). {_WAY_OUT}") from None
    try:
        pairs = np.asarray(found)
    except (ValueError, TypeError, OverflowError):  # lists of unequal length
        pairs = np.array(None)
    if pairs.size == 0 and isinstance(found, list | tuple | np.ndarray):
        return np.zeros((0, 2), dtype=np.int32)
    flat = pairs.ndim == 1 and len(pairs) % 2 == 0
    if pairs.dtype.kind not in "iu" or not (flat or (pairs.ndim == 2 and pairs.shape[1] == 2)) or _has_bool(found):
        raise AnnotatorError(f"spans: {_shorten(value)} are not pairs of integers. {_WAY_OUT}")
    pairs = pairs.reshape(-1, 2)
    wrong = (pairs[:, 0] < 0) | (pairs[:, 1] < pairs[:, 0]) | (pairs[:, 1] > len(text))
    if wrong.any():
        start, end = pairs[np.argmax(wrong)].tolist()
        raise AnnotatorError(
            f"spans: ({start}, {end}) is no span of a text of {len(text)} code points. Offsets count code points, not "
            "bytes or UTF-16 units, and a span's end comes after its last one."
        )
    return pairs.astype(np.int32)


def factual_tokens(offsets: NDArray[np.int32], text: str, spans: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Find the tokens that spans cover.

    A token is a fact if a span covers at least one code point of it that is not white space. A token of spaces only, or
    of no code point, counts with the code point that follows it, as in ``align.classify``. If a span covers the year in
    "in 1867 .", cut into "in", " ", "1867", " " and ".", the first lone space is a fact and the second is not.

    Args:
        offsets: int32 [n, 2], as in ``Pieces``.
        text: the text of the tokens.
        spans: int32 [m, 2], spans of this text.

    Returns:
        bool [n].
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    # A span adds 1 at its start and takes 1 away at its end, so that the running sum counts the spans over a place.
    edges = np.zeros(len(text) + 1, dtype=np.int32)
    np.add.at(edges, spans[:, 0], 1)
    np.add.at(edges, spans[:, 1], -1)
    covered = (np.cumsum(edges)[:-1] > 0) & ~np.isin(code_points, _WHITE_SPACE)
    start, end = offsets[:, 0], offsets[:, 1]
    # Sums up to each place: a token has such a code point if the sum at its end is higher than that at its start.
    covered_before = np.append(0, np.cumsum(covered))
    inked_before = np.append(0, np.cumsum(code_points != 0x20))
    follows = np.append(covered, False)[end]
    return np.where(
        inked_before[end] > inked_before[start], covered_before[end] > covered_before[start], follows
    ).astype(np.bool_)


def _has_bool(value: Any) -> bool:
    """Tell whether the value holds True or False, which NumPy would take for 1 and 0."""
    parts = value if isinstance(value, list | tuple) else ()
    return any(isinstance(part, bool | np.bool_) or _has_bool(part) for part in parts)


def _shorten(value: Any) -> str:
    """The ``repr`` of a value for a message, at most 60 characters long."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
