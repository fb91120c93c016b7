"""The network: words -> vectors. One matrix product and one row-wise loop per layer.

All rows go through products of one fixed shape, ``BLOCK`` rows: the rounding of a row's result then depends on
nothing but the row, so that a text has the same labels alone and among others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import vector_kernel
from annotator.engine.structure import Floats, Tok2Vec

BLOCK = 256
# New lexemes come in small numbers: a product of their own shape wastes less.
LEXEME_BLOCK = 128


class Network:
    """One word-vector network, with its buffers.

    The first convolution of a word is a sum of three products, of its left neighbour, itself and its right
    neighbour, each of which depends on one lexeme: ``products`` makes them, ``vectors`` sums them.
    """

    def __init__(self, weights: Tok2Vec, hash_keys) -> None:
        self.width = weights.width
        self._weights = weights
        self._hash = hash_keys
        first = weights.convolutions[0]
        # Rows of the weight are left, own and right neighbour in turn: three products side by side.
        self._first = np.ascontiguousarray(np.hstack(np.split(first.weight, 3)))
        self._windows = np.zeros((2, 0, 3 * self.width), dtype=np.float32)

    def lexeme(self, features: NDArray[np.uint64]) -> tuple[Floats, Floats]:
        """Embed n lexemes.

        Args:
            features: [n, columns] attribute values.

        Returns:
            Embedding [n, width], and its products with the first convolution [n, 3 * 3 * width].
        """
        embedded = np.empty((len(features), self.width), dtype=np.float32)
        products = np.empty((len(features), 9 * self.width), dtype=np.float32)
        mixer = self._weights.mixer
        block = np.zeros((LEXEME_BLOCK, len(self._weights.tables) * self.width), dtype=np.float32)
        vectors = np.zeros((LEXEME_BLOCK, self.width), dtype=np.float32)
        for start in range(0, len(features), LEXEME_BLOCK):
            part = features[start : start + LEXEME_BLOCK]
            n = len(part)
            for place, table in enumerate(self._weights.tables):
                keys = self._hash(np.ascontiguousarray(part[:, table.column]), table.seed) % np.uint32(len(table.rows))
                _gather(table.rows, keys, block, place * self.width)
            _mix(block @ mixer.weight, mixer.bias, mixer.gain, mixer.shift, vectors)
            embedded[start : start + n] = vectors[:n]
            products[start : start + n] = (vectors @ self._first)[:n]
        return embedded, products

    def begin(self, rows: int) -> None:
        """Make room for the vectors of that many rows, a multiple of ``BLOCK``."""
        if self._windows.shape[1] < rows:
            self._windows = np.zeros((2, rows, 3 * self.width), dtype=np.float32)
        # Beyond the ends there is nothing.
        self._windows[:, 0, : self.width] = 0
        self._windows[:, rows - 1, 2 * self.width :] = 0

    def first(self, slots: NDArray[np.int32], start: int, rows: int, embedded: Floats, products: Floats) -> None:
        """The first convolution of the rows from ``start``.

        ``slots`` are those of the row before, of each row, and of the row behind; slot 0 holds the padding's zeros.
        """
        layer = self._weights.convolutions[0]
        _sum_products(slots, start, rows, embedded, products, layer.bias, layer.gain, layer.shift, self._windows[0])

    def finish(self, rows: int) -> Floats:
        """The other convolutions; returns the vectors [rows, width]."""
        layers = self._weights.convolutions[1:]
        out = np.empty((rows, self.width), dtype=np.float32)
        product = np.empty((BLOCK, 3 * self.width), dtype=np.float32)
        for number, layer in enumerate(layers):
            source, target = self._windows[number % 2], self._windows[1 - number % 2]
            last = number == len(layers) - 1
            for start in range(0, rows, BLOCK):
                np.dot(source[start : start + BLOCK], layer.weight, out=product)
                if last:
                    _last_rows(product, source, start, layer.bias, layer.gain, layer.shift, out)
                else:
                    _rows(product, source, start, rows, layer.bias, layer.gain, layer.shift, target)
        return out

    def trim(self, rows: int) -> None:
        """Give back what a long text has needed."""
        if self._windows.shape[1] > rows:
            self._windows = np.zeros((2, rows, 3 * self.width), dtype=np.float32)


def blockwise(vectors: Floats, weight: Floats, bias: Floats | None, out: Floats | None = None) -> Floats:
    """``vectors @ weight + bias`` in products of ``BLOCK`` rows."""
    if out is None:
        out = np.empty((len(vectors), weight.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        np.dot(vectors[start : start + BLOCK], weight, out=out[start : start + BLOCK])
        if bias is not None:
            out[start : start + BLOCK] += bias
    return out


@vector_kernel
def _gather(table, keys, out, column):
    width = table.shape[1]
    for i in range(len(keys)):
        a, b, c, d = keys[i, 0], keys[i, 1], keys[i, 2], keys[i, 3]
        for j in range(width):
            out[i, column + j] = table[a, j] + table[b, j] + table[c, j] + table[d, j]


@vector_kernel
def _normalised(row, width, gain, shift, best):
    """Maxout of the three pieces in ``row``, layer norm: into ``best``."""
    total = np.float32(0)
    for j in range(width):
        value = max(max(row[j], row[width + j]), row[2 * width + j])
        best[j] = value
        total += value
    mean = total / np.float32(width)
    square = np.float32(0)
    for j in range(width):
        square += (best[j] - mean) * (best[j] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(1e-8))
    for j in range(width):
        best[j] = (best[j] - mean) * scale * gain[j] + shift[j]


@vector_kernel
def _mix(product, bias, gain, shift, out):
    width = out.shape[1]
    row = np.empty(3 * width, dtype=np.float32)
    for i in range(len(product)):
        for j in range(3 * width):
            row[j] = product[i, j] + bias[j]
        _normalised(row, width, gain, shift, out[i])


@vector_kernel
def _spread(vector, i, rows, windows):
    """Write the vector of row i into the windows of its left neighbour, itself and its right neighbour."""
    width = len(vector)
    for j in range(width):
        windows[i, width + j] = vector[j]
    if i > 0:
        for j in range(width):
            windows[i - 1, 2 * width + j] = vector[j]
    if i + 1 < rows:
        for j in range(width):
            windows[i + 1, j] = vector[j]


@vector_kernel
def _sum_products(slots, start, rows, embedded, products, bias, gain, shift, windows):
    width = embedded.shape[1]
    third = 3 * width
    row = np.empty(third, dtype=np.float32)
    best = np.empty(width, dtype=np.float32)
    for k in range(1, len(slots) - 1):
        left, own, right = slots[k - 1], slots[k], slots[k + 1]
        for j in range(third):
            row[j] = products[left, j] + products[own, third + j] + products[right, 2 * third + j] + bias[j]
        _normalised(row, width, gain, shift, best)
        for j in range(width):
            best[j] += embedded[own, j]
        _spread(best, start + k - 1, rows, windows)


@vector_kernel
def _rows(product, source, start, rows, bias, gain, shift, target):
    width = len(gain)
    row = np.empty(3 * width, dtype=np.float32)
    best = np.empty(width, dtype=np.float32)
    for k in range(len(product)):
        for j in range(3 * width):
            row[j] = product[k, j] + bias[j]
        _normalised(row, width, gain, shift, best)
        i = start + k
        for j in range(width):
            best[j] += source[i, width + j]
        _spread(best, i, rows, target)


@vector_kernel
def _last_rows(product, source, start, bias, gain, shift, out):
    width = len(gain)
    row = np.empty(3 * width, dtype=np.float32)
    best = np.empty(width, dtype=np.float32)
    for k in range(len(product)):
        for j in range(3 * width):
            row[j] = product[k, j] + bias[j]
        _normalised(row, width, gain, shift, best)
        i = start + k
        for j in range(width):
            out[i, j] = best[j] + source[i, width + j]
