"""The network: words -> vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.engine import layers
from annotator.engine.structure import Floats, Maxout, Tok2Vec


class Network:
    """One word-vector network, with its buffers.

    The first convolution of a word is a sum of three products, of its left neighbour, itself and its right
    neighbour, each of which depends on one lexeme: ``lexeme`` makes them, ``first`` sums them.

    Args:
        weights: see ``structure``.
        hash_keys: thinc's hash of 64-bit keys.
        usual: the number of rows that buffers are kept for.
    """

    def __init__(self, weights: Tok2Vec, hash_keys: Any, usual: int) -> None:
        self.width = weights.width
        self._tables = weights.tables
        self._hash = hash_keys
        first, *others = weights.convolutions
        self._mixer = _laid_out(weights.mixer)
        # Rows of the weight are left, own and right neighbour in turn: three products side by side.
        self._products = layers.linear(np.hstack(np.split(first.weight, 3)))
        self._first = (first.bias, first.gain, first.shift)
        self._others = [_laid_out(layer) for layer in others]
        self._usual = usual
        self._buffers = np.zeros((2, usual + 2, self.width), dtype=np.float32)

    def lexeme(self, features: NDArray[np.uint64]) -> tuple[Floats, Floats]:
        """Embed n lexemes.

        Args:
            features: [n, columns] attribute values.

        Returns:
            Embedding [n, width], and its products with the first convolution [n, 3 * 3 * width].
        """
        n = len(features)
        rows = layers.whole_tiles(n)
        looked_up = np.zeros((rows, len(self._tables) * self.width), dtype=np.float32)
        for place, table in enumerate(self._tables):
            keys = self._hash(np.ascontiguousarray(features[:, table.column]), table.seed) % np.uint32(len(table.rows))
            layers.gather(table.rows, keys, looked_up, place * self.width)
        embedded = np.empty((rows, self.width), dtype=np.float32)
        layers.mix(looked_up, *self._mixer, embedded)
        products = layers.apply(self._products, embedded)
        return embedded[:n], products[:n, : 9 * self.width]

    def begin(self, rows: int) -> None:
        """Make room for the vectors of that many rows, a multiple of ``layers.ROWS``, and a row of zeros around."""
        size = max(rows, self._usual) + 2
        if self._buffers.shape[1] != size:  # a long text gets its own, and they are gone with it
            self._buffers = np.zeros((2, size, self.width), dtype=np.float32)
        self._buffers[:, rows + 1] = 0  # the first is never written to

    def first(self, slots: NDArray[np.int32], start: int, embedded: Floats, products: Floats) -> None:
        """The first convolution of the rows from ``start``.

        ``slots`` are those of the row before, of each row, and of the row behind; slot 0 holds the padding's zeros.
        """
        out = self._buffers[0, start + 1 : start + len(slots) - 1]
        layers.sum_products(slots, embedded, products, *self._first, out)

    def finish(self, rows: int) -> Floats:
        """The other convolutions; returns the vectors [rows, width], which hold until the next ``begin``."""
        source, target = self._buffers[:, : rows + 2]
        for layer in self._others:
            layers.convolve(source, *layer, target)
            source, target = target, source
        return source[1:-1]


def _laid_out(layer: Maxout) -> tuple[Floats, Floats, Floats, Floats]:
    """Panels, bias, gain and shift."""
    panels, bias = layers.linear(layer.weight, layer.bias)
    return panels, bias, layer.gain, layer.shift
