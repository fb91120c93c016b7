"""A bounded table of word vectors: word -> its embedding and its products with the first convolution, for each network.

Both depend on the spelling of the word alone, and make up two of the five layers. They are large (7.7 kB a word), so
that fewer words have them than the lexicon holds. What is missing is computed again.

A *slot* is a row of the tables. Slot 0 holds zeros and stands for padding. With the word "the" (number 5) in slot 2 and
"of" (number 9) in none, the rows [-1, 5, 9, 5] have the slots [0, 2, new, 2].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.network import Network
from annotator.engine.spelling import Lexicon


class VectorTable:
    """Slots of vectors. When they are full, the less used half is emptied.

    embedded: for each network float32 [limit + 1, width], the embedding of the word in each slot.
    products: for each network float32 [limit + 1, 9 * width], its products with the first convolution, see
              ``Network.embed``.
    run:      the largest number of rows, without their two neighbours, that ``slots`` may be asked for at once.

    Args:
        networks: the networks.
        columns: for each network, which columns of ``Lexicon.features`` it reads.
        limit: number of slots, at least 16.
    """

    def __init__(self, networks: list[Network], columns: list[list[int]], limit: int) -> None:
        if limit < 16:
            raise ValueError(f"limit: got {limit} slots of vectors. Give at least 16.")
        self._networks, self._columns = networks, columns
        self._limit = limit
        # Such a run and its neighbours need at most half of the slots, which is what an eviction leaves free.
        self.run = limit // 2 - 2
        # The operating system allocates a page of zeros when it is first written to, so that unused slots cost nothing.
        self.embedded = [np.zeros((limit + 1, network.width), dtype=np.float32) for network in networks]
        self.products = [np.zeros((limit + 1, 9 * network.width), dtype=np.float32) for network in networks]
        self.computed = self.looked_up = self.evictions = 0
        self._changes = -1

    def slots(self, lexicon: Lexicon, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """The slot of each row's word; vectors that are missing are computed.

        Args:
            lexicon: the lexicon that numbers the words.
            rows: int32 [n], the number of each row's word, -1 for padding.

        Returns:
            int32 [n].
        """
        # Only ``Lexicon.spell`` renumbers words, so that the slots of one group hold from run to run.
        if lexicon.changes != self._changes:
            self._forget(lexicon)
        if len(self._slot) < len(lexicon.flags):
            self._slot = _enlarge(self._slot, len(lexicon.flags), -1)
            self._uses = _enlarge(self._uses, len(lexicon.flags), 0)
        missing = np.empty(len(rows), dtype=np.int32)
        words, count = _find_missing(rows, self._slot, self._uses, missing)
        # Either there are enough free slots, or an eviction frees at least half of them, which is enough for one run.
        if count and self._filled + count > self._limit:
            self._evict()
            # Slots that these rows use may be among those that were emptied.
            _, count = _find_missing(rows, self._slot, self._uses, missing)
        self.looked_up += words
        if count:
            self._compute(lexicon, missing[:count])
        out = np.empty(len(rows), dtype=np.int32)
        _read_slots(rows, self._slot, out)
        return out

    def _forget(self, lexicon: Lexicon) -> None:
        """Empty all slots, since the lexicon has renumbered its words."""
        self._changes = lexicon.changes
        self._slot = np.full(len(lexicon.flags), -1, dtype=np.int32)  # word -> slot
        self._uses = np.zeros(len(lexicon.flags), dtype=np.int32)
        self._word = np.full(self._limit + 1, -1, dtype=np.int32)  # slot -> word
        self._filled = 0
        self._free = np.arange(1, self._limit + 1, dtype=np.int32)

    def _compute(self, lexicon: Lexicon, words: NDArray[np.int32]) -> None:
        """Compute the vectors of words, each named once, and put them into free slots."""
        slots = self._free[: len(words)]
        self._free = self._free[len(words) :]
        features = lexicon.features[words]
        for network, columns, embedded, products in zip(
            self._networks, self._columns, self.embedded, self.products, strict=True
        ):
            embedded[slots], products[slots] = network.embed(features[:, columns])
        self._slot[words] = slots
        self._word[slots] = words
        self._filled += len(words)
        self.computed += len(words)

    def _evict(self) -> None:
        """Empty the less used slots down to half of the limit, and halve the counts of uses, so that old uses fade."""
        used = np.flatnonzero(self._word >= 0)
        # Uses are counted by word and not by slot: a word that comes back has kept its count.
        order = used[np.argsort(self._uses[self._word[used]], kind="stable")]
        dropped = order[: max(len(order) - self._limit // 2, 0)]
        self._slot[self._word[dropped]] = -1
        self._word[dropped] = -1
        self._free = np.concatenate([self._free, dropped.astype(np.int32)])
        self._filled -= len(dropped)
        self._uses //= 2
        self.evictions += 1


def _enlarge(values: NDArray[np.int32], size: int, fill: int) -> NDArray[np.int32]:
    """[n] -> [size], with ``fill`` at the end."""
    enlarged = np.full(size, fill, dtype=np.int32)
    enlarged[: len(values)] = values
    return enlarged


@kernel
def _find_missing(rows, slot, uses, missing):
    """Count the uses of the words in the rows, and list the words without a slot, each once.

    Args:
        rows: int32 [n], words, -1 for padding.
        slot: int32, word -> slot, -1 for none.
        uses: int32, word -> count; increased.
        missing: int32 [n]; filled.

    Returns:
        The number of rows that hold a word, and the number of words in ``missing``.
    """
    words = 0
    count = 0
    for i in range(len(rows)):
        w = rows[i]
        if w < 0:
            continue
        words += 1
        uses[w] += 1
        if slot[w] == -1:
            slot[w] = -2  # listed already, until the end of the call
            missing[count] = w
            count += 1
    # The marks of this call are taken away: -2 is seen by no other function.
    for i in range(count):
        slot[missing[i]] = -1
    return words, count


@kernel
def _read_slots(rows, slot, out):
    """Fill ``out`` int32 [n] with the slot of each row's word, 0 for padding."""
    for i in range(len(rows)):
        out[i] = slot[rows[i]] if rows[i] >= 0 else 0
