"""The network: the attributes of words -> word vectors that know their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.engine import layers
from annotator.engine.structure import Floats, MaxoutWeights, Tok2VecWeights


class Network:
    """One word-vector network, with its buffers.

    The first convolution of a word is a sum of three products: of its left neighbour, of itself and of its right
    neighbour, each with another third of the weight. A product depends on one word alone. So ``embed`` makes all three
    products of a word once, and ``convolve_first`` picks and sums: for "Ada wrote letters" and the word "wrote", the
    left product of "Ada", the own product of "wrote" and the right product of "letters".

    Use: ``begin``, then ``convolve_first`` over all rows, then ``finish``.

    Args:
        weights: the weights.
        hash_keys: thinc's hash of 64-bit keys.
        usual: number of rows that buffers are kept for.
    """

    def __init__(self, weights: Tok2VecWeights, hash_keys: Any, usual: int) -> None:
        self.width = weights.width
        self._tables = weights.tables
        self._hash = hash_keys
        first, *others = weights.convolutions
        self._mixer = _lay_out(weights.mixer)
        # [3 * width, 3 * width] -> [width, 3 * 3 * width]: the thirds of the weight for the left neighbour, the word
        # itself and the right neighbour stood one below another, and now stand side by side.
        self._products = layers.linear(np.hstack(np.split(first.weight, 3)))
        self._first = (first.bias, first.gain, first.shift)
        self._others = [_lay_out(layer) for layer in others]
        self._usual = usual
        self._buffers = np.zeros((2, usual + 2, self.width), dtype=np.float32)

    def embed(self, features: NDArray[np.uint64]) -> tuple[Floats, Floats]:
        """Embed n words.

        Args:
            features: uint64 [n, columns], values of the attributes.

        Returns:
            The embeddings, float32 [n, width], and their products with the first convolution, float32
            [n, 3 * 3 * width]: as left neighbour, as the word itself, and as right neighbour.
        """
        n = len(features)
        rows = layers.whole_tiles(n)
        looked_up = np.zeros((rows, len(self._tables) * self.width), dtype=np.float32)
        for place, table in enumerate(self._tables):
            # uint32 [n, 4]: a value is hashed to four rows, and their sum is its embedding. So two values that share
            # one row differ in the others.
            keys = self._hash(np.ascontiguousarray(features[:, table.column]), table.seed) % np.uint32(len(table.rows))
            layers.gather(table.rows, keys, looked_up, place * self.width)
        embedded = np.empty((rows, self.width), dtype=np.float32)
        layers.mix(looked_up, *self._mixer, embedded)
        products = layers.apply(self._products, embedded)
        return embedded[:n], products[:n, : 9 * self.width]

    def begin(self, rows: int) -> None:
        """Make room for the vectors of ``rows`` rows, a multiple of ``layers.ROWS``, between two rows of zeros."""
        size = max(rows, self._usual) + 2
        if self._buffers.shape[1] != size:  # a long text gets buffers of its own, which the next text replaces
            self._buffers = np.zeros((2, size, self.width), dtype=np.float32)
        self._buffers[:, rows + 1] = 0  # row 0 is never written to

    def convolve_first(self, slots: NDArray[np.int32], start: int, embedded: Floats, products: Floats) -> None:
        """Compute the first convolution of n rows.

        Args:
            slots: int32 [n + 2], the slots of the row before, of each row, and of the row after. Slot 0 holds the zeros
                of the padding.
            start: the first of the rows.
            embedded, products: tables of all slots, see ``embed``.
        """
        out = self._buffers[0, start + 1 : start + len(slots) - 1]
        layers.sum_products(slots, embedded, products, *self._first, out)

    def finish(self, rows: int) -> Floats:
        """Compute the other convolutions.

        Returns:
            The word vectors, float32 [rows, width], which are overwritten after the next ``begin``.
        """
        source, target = self._buffers[:, : rows + 2]
        for layer in self._others:
            layers.convolve(source, *layer, target)
            source, target = target, source
        return source[1:-1]


def _lay_out(layer: MaxoutWeights) -> tuple[Floats, Floats, Floats, Floats]:
    """Panels, bias, gain and shift, as ``layers.mix`` takes them."""
    panels, bias = layers.linear(layer.weight, layer.bias)
    return panels, bias, layer.gain, layer.shift
