"""The cache of lexemes: word -> its embedding and its products with the first convolution, for both networks.

Both depend on the spelling of the word alone, and are two of the five layers. They are large (7.7 kB a word), so
fewer words have them than have a spelling; what is missing is computed again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.lexicon import Lexicon
from annotator.engine.network import Network


class VectorTable:
    """Slots of vectors, at most ``limit``; when they are full, the less used half is emptied.

    ``embedded`` and ``products`` hold a table for each network, see ``Network.lexeme``.
    """

    def __init__(self, networks: list[Network], columns: list[list[int]], limit: int) -> None:
        if limit < 16:
            raise ValueError(f"limit: got {limit} slots of vectors. Give at least 16.")
        self._networks, self._columns = networks, columns
        self._limit = limit
        # A run of this many rows has at most half as many words as there are slots, with both neighbours.
        self.run = limit // 2 - 2
        # The operating system gives memory for what is written to.
        self.embedded = [np.zeros((limit + 1, network.width), dtype=np.float32) for network in networks]
        self.products = [np.zeros((limit + 1, 9 * network.width), dtype=np.float32) for network in networks]
        self.computed = self.looked_up = self.evictions = 0
        self._changes = -1

    def slots(self, lexicon: Lexicon, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Slot of each row's word, -1 in ``rows`` being padding; computes what is missing. int32 [n]."""
        if lexicon.changes != self._changes:
            self._forget(lexicon)
        if len(self._slot) < len(lexicon.flags):
            self._slot = _grown(self._slot, len(lexicon.flags), -1)
            self._uses = _grown(self._uses, len(lexicon.flags), 0)
        missing = np.empty(len(rows), dtype=np.int32)
        words, count = _find_missing(rows, self._slot, self._uses, missing)
        if count and self._filled + count > self._limit:
            self._evict()
            # Slots that these rows use may be among the emptied ones.
            _, count = _find_missing(rows, self._slot, self._uses, missing)
        self.looked_up += words
        if count:
            self._compute(lexicon, missing[:count])
        out = np.empty(len(rows), dtype=np.int32)
        _read_slots(rows, self._slot, out)
        return out

    def _forget(self, lexicon: Lexicon) -> None:
        self._changes = lexicon.changes
        self._slot = np.full(len(lexicon.flags), -1, dtype=np.int32)  # word -> slot
        self._uses = np.zeros(len(lexicon.flags), dtype=np.int32)
        self._word = np.full(self._limit + 1, -1, dtype=np.int32)  # slot -> word
        self._filled = 0
        self._free = np.arange(1, self._limit + 1, dtype=np.int32)

    def _compute(self, lexicon: Lexicon, words: NDArray[np.int32]) -> None:
        slots = self._free[: len(words)]
        self._free = self._free[len(words) :]
        features = lexicon.features[words]
        for network, columns, embedded, products in zip(
            self._networks, self._columns, self.embedded, self.products, strict=True
        ):
            embedded[slots], products[slots] = network.lexeme(features[:, columns])
        self._slot[words] = slots
        self._word[slots] = words
        self._filled += len(words)
        self.computed += len(words)

    def _evict(self) -> None:
        used = np.flatnonzero(self._word >= 0)
        order = used[np.argsort(self._uses[self._word[used]], kind="stable")]
        dropped = order[: max(len(order) - self._limit // 2, 0)]
        self._slot[self._word[dropped]] = -1
        self._word[dropped] = -1
        self._free = np.concatenate([self._free, dropped.astype(np.int32)])
        self._filled -= len(dropped)
        self._uses //= 2
        self.evictions += 1


def _grown(values: NDArray[np.int32], size: int, fill: int) -> NDArray[np.int32]:
    grown = np.full(size, fill, dtype=np.int32)
    grown[: len(values)] = values
    return grown


@kernel
def _find_missing(rows, slot, uses, missing):
    """Count the words among the rows, and list those without a slot, each once (marked with -2)."""
    words = 0
    count = 0
    for i in range(len(rows)):
        w = rows[i]
        if w < 0:
            continue
        words += 1
        uses[w] += 1
        if slot[w] == -1:
            slot[w] = -2
            missing[count] = w
            count += 1
    for i in range(count):
        slot[missing[i]] = -1
    return words, count


@kernel
def _read_slots(rows, slot, out):
    for i in range(len(rows)):
        out[i] = slot[rows[i]] if rows[i] >= 0 else 0
