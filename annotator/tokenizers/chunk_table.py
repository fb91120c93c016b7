"""A bounded table of the pieces of chunks of text that were tokenised before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IdsAndEnds = tuple[NDArray[np.int32], NDArray[np.int32]]
"""The ids of a text, and the code point at which each ends: int32 [n] each."""

LONGEST = 40
"""Code points of the longest chunk that is kept. A longer one rarely comes twice."""


class ChunkTable:
    """Chunk -> row: int32 [n, 2] as bytes, each piece's id and how many code points it spells.

    Args:
        limit: chunks in each of two tables, a new one and an old one. When the new one is full, it replaces the old
            one. Chunks of the old one that are asked for move to the new one.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._new: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def recent(self, chunks: list[str]) -> list[bytes | None]:
        """The row of each chunk that the new table has, else None."""
        return list(map(self._new.get, chunks))

    def find(self, chunks: set[str], encode: Callable[[set[str]], dict[str, bytes] | None]) -> dict[str, bytes] | None:
        """The rows of chunks that the new table lacks; enters them.

        Args:
            encode: makes the rows of chunks that the old table lacks too, or gives None.

        Returns:
            None where ``encode`` gives None.
        """
        found = {chunk: self._old[chunk] for chunk in chunks if chunk in self._old}
        if unseen := chunks.difference(found):
            encoded = encode(unseen)
            if encoded is None:
                return None
            found |= encoded
        self._new.update((chunk, row) for chunk, row in found.items() if len(chunk) <= LONGEST)
        if len(self._new) > self._limit:
            self._old, self._new = self._new, {}
        return found


def cut_rows(chunks: list[str], ids: NDArray[np.int32], ends: NDArray[np.int32]) -> dict[str, bytes]:
    """The rows of chunks from the pieces of a text in which they stand one after the other, each after one space.

    Args:
        ends: counted from the first space.
    """
    row = np.stack([ids, np.diff(ends, prepend=np.int32(0))], axis=1).astype(np.int32).tobytes()
    last = np.cumsum([len(chunk) + 1 for chunk in chunks])
    # A piece takes 8 bytes of a row, two int32. The pieces of a chunk are those that end at or before its own end.
    cuts = (8 * np.searchsorted(ends, last, side="right")).tolist()
    return {chunk: row[a:b] for chunk, a, b in zip(chunks, [0, *cuts], cuts, strict=False)}


def join_rows(rows: list[bytes]) -> IdsAndEnds:
    """The pieces of a text from the rows of its chunks."""
    ids, widths = np.frombuffer(b"".join(rows), dtype=np.int32).reshape(-1, 2).T  # pyright: ignore
    return ids.copy(), np.cumsum(widths, dtype=np.int32)
