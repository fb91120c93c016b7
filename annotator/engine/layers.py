"""The layers as compiled loops: matrix products on the processor's vector registers, each with what follows it.

BLAS could do the products. These loops replace it for three reasons:

- Each number of a result is one sum in the order of the weight's rows, whatever else is multiplied. BLAS rounds a row
  by the shape of the whole product, so that the labels of a text could depend on its neighbours.
- A row may overlap the next. The window of three words of width w is the 3 * w numbers that begin at the left
  neighbour, and the next window begins w numbers later, so that no window is copied.
- Maxout and layer norm take the products of six rows while these are still in the nearest cache.

A product is computed in *tiles* of ``ROWS`` rows and ``COLUMNS`` columns, whose sums stay in registers:

    out[i : i + ROWS, c : c + COLUMNS] = sum over k of  rows[i : i + ROWS, k] (one number a row)
                                                      x panel[k, :]           (COLUMNS numbers)

Numbers of rows are multiples of ``ROWS``, and weights are padded with zeros to multiples of ``COLUMNS``. ``_emit_tile``
writes this loop in LLVM's intermediate language, which decides what stays in registers.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from annotator.engine.compiled import kernel, vector_kernel

Floats = NDArray[np.float32]

_FEATURES = llvmlite.binding.get_host_cpu_features()
_FUSED = bool(_FEATURES.get("fma")) or platform.machine() in ("aarch64", "arm64")
# The sums of a tile stay in registers: 6 x 3 of 32 registers of 16 numbers (AVX-512), or 6 x 2 of 16 registers of 8
# (AVX2). The others hold the row of the panel and the number of the row. docs/LOG.md has what other sizes took.
_LANES = 16 if _FEATURES.get("avx512f") else 8
_VECTORS = 3 if _FEATURES.get("avx512f") else 2
ROWS = 6
COLUMNS = _LANES * _VECTORS

# A product of a single row has a wider tile. With few sums, each addition would have to wait for the one before it.
_WIDE = 7
WIDE_COLUMNS = _LANES * _WIDE


class LinearLayer(NamedTuple):
    """A weight [nI, nO] and its bias, laid out for the products and padded with zeros.

    panels: float32 [panels, nI, columns]; panel p holds the columns of the weight from p * columns on, so that a tile
            reads neighbouring numbers.
    bias:   float32 [panels * columns], or [0] for no bias.
    """

    panels: Floats
    bias: Floats

    @property
    def width(self) -> int:
        """Number of columns of the result, with the padding."""
        return len(self.panels) * self.panels.shape[2]


def linear(weight: Floats, bias: Floats | None = None, columns: int = COLUMNS) -> LinearLayer:
    """Lay out a weight float32 [nI, nO] and its bias float32 [nO] in panels of ``columns`` columns."""
    extra = -weight.shape[1] % columns
    padded = np.pad(weight, ((0, 0), (0, extra)))
    panels = padded.reshape(len(weight), -1, columns).transpose(1, 0, 2)
    bias = np.zeros(0, dtype=np.float32) if bias is None else np.pad(bias, (0, extra))
    return LinearLayer(np.ascontiguousarray(panels), bias)


def whole_tiles(rows: int) -> int:
    """The number of rows, rounded up to a multiple of ``ROWS``."""
    return -(-rows // ROWS) * ROWS


def apply(layer: LinearLayer, vectors: Floats, out: Floats | None = None) -> Floats:
    """``vectors @ weight + bias``.

    Args:
        layer: with panels of ``COLUMNS`` columns.
        vectors: float32 [n, at least nI], n a multiple of ``ROWS``. Numbers after the first nI of a row are not read.
        out: float32 [n, layer.width] to fill; None for a new array.
    """
    if out is None:
        out = np.empty((len(vectors), layer.width), dtype=np.float32)
    _apply(vectors, layer.panels, layer.bias, out)
    return out


def _declare_tile(typing_context, rows, first, stride, panels, panel, out, out_row, out_column):
    """For i < ROWS: ``out[out_row + i, out_column :][:COLUMNS] = flat[first + i * stride :][:nI] @ panels[panel]``.

    ``flat`` is ``rows`` read as one run of numbers. All three arrays are contiguous. Nothing checks the bounds.
    """
    return _signature(rows, panels, out), partial(_emit_tile, ROWS, _VECTORS)


def _declare_wide_tile(typing_context, rows, first, stride, panels, panel, out, out_row, out_column):
    """Like ``_declare_tile``, for one row and panels of ``WIDE_COLUMNS`` columns."""
    return _signature(rows, panels, out), partial(_emit_tile, 1, _WIDE)


_tile: Any = intrinsic(_declare_tile)
_wide_tile: Any = intrinsic(_declare_wide_tile)


def _signature(rows: Any, panels: Any, out: Any) -> Any:
    return types.void(rows, types.int64, types.int64, panels, types.int64, out, types.int64, types.int64)


def _emit_tile(n_rows: int, n_vectors: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the loop of a tile of ``n_rows`` rows and ``n_vectors`` vectors of ``_LANES`` columns.

    In pseudocode, where a sum is a vector of lanes:

        for k in range(nI):
            weights = panel[k, :]                      # n_vectors loads
            for row in range(n_rows):
                number = rows[row, k] in every lane    # one load and a shuffle
                for v in range(n_vectors):
                    sums[row][v] = number * weights[v] + sums[row][v]
        store all sums

    The loops over rows and vectors are unrolled here, in Python. The sums are phi nodes: values that come either from
    before the loop (zeros) or from its last round, which is what makes LLVM keep them in registers.
    """
    _, first, stride, _, panel, _, out_row, out_column = arguments
    int64, int32 = ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(ir.FloatType(), _LANES)
    # Offsets of ``gep`` are in float32 numbers and not in bytes.
    undefined = ir.Constant(vector, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(int32, _LANES), [0] * _LANES)
    source, weight, target = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 5))
    depth = builder.extract_value(weight.shape, 1)
    width = builder.extract_value(target.shape, 1)
    columns = int64(n_vectors * _LANES)
    # One pointer to the first number of each row, and one to the first number of the panel: panels [panels, nI,
    # columns] are contiguous, so that panel p begins p * nI * columns numbers after the first.
    starts = [builder.gep(source.data, [builder.add(first, builder.mul(stride, int64(row)))]) for row in range(n_rows)]
    weights = builder.gep(weight.data, [builder.mul(panel, builder.mul(depth, columns))])

    # The loop tests its condition at the end: nI is at least 1.
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(int64)
    k.add_incoming(int64(0), before)
    sums = [[builder.phi(vector) for _ in range(n_vectors)] for _ in range(n_rows)]
    row_of_weight = builder.gep(weights, [builder.mul(k, columns)])
    weights_of_k = [_load(builder, row_of_weight, v * _LANES, vector) for v in range(n_vectors)]
    # A number of the row is put into lane 0, and a shuffle with an index of zeros copies it to all lanes.
    added = []
    for start, row in zip(starts, sums, strict=True):
        one = builder.load(builder.gep(start, [k]), align=4)
        all_lanes = builder.shuffle_vector(builder.insert_element(undefined, one, int32(0)), undefined, zeros)
        added.append([_add_product(builder, all_lanes, w, s) for w, s in zip(weights_of_k, row, strict=True)])
    following = builder.add(k, int64(1))
    k.add_incoming(following, loop)
    for row, new in zip(sums, added, strict=True):
        for phi, value in zip(row, new, strict=True):
            phi.add_incoming(ir.Constant(vector, [0.0] * _LANES), before)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

    builder.position_at_end(after)
    # Columns of the padding are written like the others, so that ``out`` must be as wide as the padded weight.
    for number, row in enumerate(added):
        place = builder.add(builder.mul(builder.add(out_row, int64(number)), width), out_column)
        for v, value in enumerate(row):
            pointer = builder.gep(target.data, [builder.add(place, int64(v * _LANES))])
            builder.store(value, builder.bitcast(pointer, vector.as_pointer()), align=4)
    return context.get_dummy_value()


def _load(builder: Any, pointer: Any, offset: int, vector: Any) -> Any:
    """Load a vector of numbers, which need not be aligned to the size of a vector."""
    place = builder.gep(pointer, [ir.IntType(64)(offset)])
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)


def _add_product(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the processor can do so (fused multiply-add)."""
    if not _FUSED:
        return builder.fadd(builder.fmul(a, b), c)
    name = f"llvm.fma.v{_LANES}f32"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(fused, [a, b, c])


@kernel
def _apply(vectors, panels, bias, out):
    """See ``apply``; the bias may have no entries."""
    width = vectors.shape[1]
    for i in range(0, len(vectors), ROWS):
        for p in range(len(panels)):
            _tile(vectors, i * width, width, panels, p, out, i, p * COLUMNS)
        for k in range(i, i + ROWS):
            row = out[k, : len(bias)]
            for j in range(len(bias)):
                row[j] += bias[j]


@vector_kernel
def _maxout_and_norm(row, bias, gain, shift, out):
    """Maxout of three pieces, then layer norm: ``row`` [at least 3 * width] -> ``out`` [width].

    Number j of the maxout is the highest of row[j], row[width + j] and row[2 * width + j], each with its bias.
    """
    # LLVM vectorises loops over slices. It gives up on row[width + j], since a Numba index may count from the end.
    width = len(out)
    one, two, three = row[:width], row[width : 2 * width], row[2 * width : 3 * width]
    bias_one, bias_two, bias_three = bias[:width], bias[width : 2 * width], bias[2 * width : 3 * width]
    total = np.float32(0)
    for j in range(width):
        value = max(max(one[j] + bias_one[j], two[j] + bias_two[j]), three[j] + bias_three[j])
        out[j] = value
        total += value
    mean = total / np.float32(width)
    square = np.float32(0)
    for j in range(width):
        square += (out[j] - mean) * (out[j] - mean)
    # Thinc adds the same 1e-8 to the variance.
    scale = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(1e-8))
    for j in range(width):
        out[j] = (out[j] - mean) * scale * gain[j] + shift[j]


@vector_kernel
def mix(vectors, panels, bias, gain, shift, out):
    """Maxout and layer norm of ``vectors`` [n, nI], n a multiple of ``ROWS``, into ``out`` [n, width]."""
    width = vectors.shape[1]
    product = np.empty((ROWS, len(bias)), dtype=np.float32)
    for i in range(0, len(vectors), ROWS):
        for p in range(len(panels)):
            _tile(vectors, i * width, width, panels, p, product, 0, p * COLUMNS)
        for k in range(ROWS):
            _maxout_and_norm(product[k], bias, gain, shift, out[i + k])


@vector_kernel
def convolve(source, panels, bias, gain, shift, target):
    """``x + norm(maxout(W [left, x, right]))`` for each word x and its neighbours.

    ``source`` and ``target`` are [n + 2, width], n a multiple of ``ROWS``. Their first and last row are zeros. They
    are not written to.
    """
    width = source.shape[1]
    product = np.empty((ROWS, len(bias)), dtype=np.float32)
    for i in range(0, len(source) - 2, ROWS):
        for p in range(len(panels)):
            # Word i is row i + 1, so that its window begins at row i, its left neighbour.
            _tile(source, i * width, width, panels, p, product, 0, p * COLUMNS)
        for k in range(ROWS):
            # The convolution reads neighbours that it also has to replace. So it cannot be done in place, and there are
            # two buffers.
            former, vector = source[i + k + 1], target[i + k + 1]
            _maxout_and_norm(product[k], bias, gain, shift, vector)
            for j in range(width):
                vector[j] += former[j]


@vector_kernel
def sum_products(slots, embedded, products, bias, gain, shift, out):
    """The first convolution, from products that were made beforehand.

    Args:
        slots: int32 [n + 2], the slots of the row before, of each row, and of the row after.
        embedded: float32 [slots, width], the embedding in each slot.
        products: float32 [slots, 9 * width], for each slot its products as left neighbour, as the word itself and as
            right neighbour, 3 * width numbers each.
        bias, gain, shift: of the maxout and the layer norm.
        out: float32 [n, width]; filled.
    """
    width = embedded.shape[1]
    third = 3 * width
    row = np.empty(third, dtype=np.float32)
    for i in range(len(slots) - 2):
        # A word's row of products is [as left neighbour | as itself | as right neighbour]. Of the word on the left its
        # first third counts, and so on.
        left, own, right = products[slots[i]], products[slots[i + 1]], products[slots[i + 2]]
        left, own, right = left[:third], own[third : 2 * third], right[2 * third :]
        for j in range(third):
            row[j] = left[j] + own[j] + right[j]
        target, vector = out[i], embedded[slots[i + 1]]
        _maxout_and_norm(row, bias, gain, shift, target)
        for j in range(width):
            target[j] += vector[j]


@vector_kernel
def gather(table, keys, out, column):
    """Embed one attribute of each word: the sum of four rows of the table, into ``out[:, column : column + width]``.

    ``table`` is float32 [rows, width], ``keys`` uint32 [n, 4].
    """
    width = table.shape[1]
    for i in range(len(keys)):
        a, b, c, d = table[keys[i, 0]], table[keys[i, 1]], table[keys[i, 2]], table[keys[i, 3]]
        target = out[i, column : column + width]
        for j in range(width):
            target[j] = a[j] + b[j] + c[j] + d[j]


@kernel
def apply_to_one(row, panels, bias, out):
    """``row @ weight + bias`` of one row [nI], into ``out`` [1, panels * WIDE_COLUMNS]."""
    for p in range(len(panels)):
        _wide_tile(row, 0, 0, panels, p, out, 0, p * WIDE_COLUMNS)
    for j in range(len(bias)):
        out[0, j] += bias[j]
