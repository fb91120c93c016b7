"""The spellings of a vocabulary: ids -> their text, and the place where each id ends in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.records import Pieces
from annotator.tokenizers.rows import padding

REPLACEMENT = "\ufffd"
"""Stands for an unknown piece, and for a byte that belongs to no character."""


@dataclass(frozen=True, slots=True, eq=False)
class Spellings:
    """The spelling of each id of a vocabulary of V ids.

    spelling: object [V], UTF-8; a piece may be a part of a character. Empty for control pieces.
    size:     int64 [V], bytes of each spelling.
    control:  bool [V], the piece is a control piece.
    spaced:   bool [V], the piece begins with a space that is dropped at the beginning of a text.
    """

    spelling: NDArray[np.object_]
    size: NDArray[np.int64]
    control: NDArray[np.bool_]
    spaced: NDArray[np.bool_]

    @staticmethod
    def of(spelling: list[bytes], control: NDArray[np.bool_], spaced: NDArray[np.bool_]) -> Spellings:
        objects = np.empty(len(spelling), np.object_)
        objects[:] = spelling
        return Spellings(objects, np.array([len(s) for s in spelling], np.int64), control, spaced)

    def read(self, ids: NDArray[np.int32]) -> tuple[str, NDArray[np.int64]]:
        """The text that ids spell, and the code point at which each ends: int64 [n], monotone, from zero.

        The last byte of a character has its width, and a byte that belongs to no character is one U+FFFD.
        """
        data = b"".join(self.spelling[ids].tolist())
        end = np.cumsum(self.size[ids])
        # Only the first id that spells something counts. ``[:1]`` is empty where there is none.
        if self.spaced[ids[~self.control[ids]][:1]].any():
            data = data[1:]
            end = np.maximum(end - 1, 0)
        return _decode(data, end)

    def read_segment(self, ids: NDArray[np.int32], unknown: int) -> Pieces:
        """The pieces of one segment of a row. Unknown ids that only fill it up spell nothing, as control pieces do."""
        control = self.control[ids]
        filling = padding(ids, unknown, control)
        text, spelled_end = self.read(ids[~filling])
        end = np.zeros(len(ids), np.int64)
        end[~filling] = spelled_end
        return Pieces(text, ids, offsets_of(np.maximum.accumulate(end)), control | filling)


def offsets_of(end: NDArray[np.integer]) -> NDArray[np.int32]:
    """Start and end of pieces without gaps, int32 [n, 2], from the end of each."""
    offsets = np.zeros((len(end), 2), dtype=np.int32)
    offsets[:, 1] = end
    offsets[1:, 0] = end[:-1]
    return offsets


def _decode(data: bytes, places: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
    """UTF-8 -> text, each byte that is not part of a character as one U+FFFD; and for each place in the bytes the
    number of characters that end at or before it."""
    if data.isascii():
        return data.decode(), places
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _decode_with_strays(data, places)
    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # each byte but the second to fourth of a character
    begun = np.zeros(len(data) + 1, np.int64)  # characters that begin before each place
    np.cumsum(begins, out=begun[1:])
    # At a place inside a character, the character that has begun there has not ended.
    return text, begun[places] - ~np.append(begins, True)[places]


def _decode_with_strays(data: bytes, places: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
    text = data.decode("utf-8", "surrogateescape")
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    astray = (code_points >= 0xDC80) & (code_points <= 0xDCFF)  # bytes; a surrogate itself is no valid UTF-8
    # Bytes of each character in UTF-8.
    size = np.where(astray, 1, 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000))
    text = np.where(astray, np.uint32(ord(REPLACEMENT)), code_points).tobytes().decode("utf-32-le")
    return text, np.searchsorted(np.cumsum(size), places, side="right")
