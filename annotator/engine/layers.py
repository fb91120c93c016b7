"""The layers as compiled loops: matrix products on the processor's vectors, and maxout with layer norm behind them.

BLAS would serve for the products alone. Ours is here for three reasons. Each row of a result is one sum in the order of
the weight's rows, whatever else is multiplied, so that a text has the same labels alone and among others without
filling up blocks. A row may overlap the next, so that the window of three words is no copy. And the layer norm takes a
product out of the nearest cache, six rows at a time.
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
# A tile of the product is held in registers: of 32 vectors of 16 numbers (AVX-512), or of 16 of 8 (AVX2).
_LANES = 16 if _FEATURES.get("avx512f") else 8
_VECTORS = 3 if _FEATURES.get("avx512f") else 2
ROWS = 6
COLUMNS = _LANES * _VECTORS


# Of a single row, a tile is wider: its sums have to wait for one another otherwise.
_WIDE = 7
WIDE_COLUMNS = _LANES * _WIDE


class Linear(NamedTuple):
    """A weight in panels of some columns, [panels, nI, columns], and its bias, [panels * columns], which both end in
    zeros; or no bias, [0]."""

    panels: Floats
    bias: Floats

    @property
    def width(self) -> int:
        """Columns of the result."""
        return len(self.panels) * self.panels.shape[2]


def linear(weight: Floats, bias: Floats | None = None, columns: int = COLUMNS) -> Linear:
    """Lay out a weight [nI, nO] and its bias [nO] for the products."""
    extra = -weight.shape[1] % columns
    padded = np.pad(weight, ((0, 0), (0, extra)))
    panels = padded.reshape(len(weight), -1, columns).transpose(1, 0, 2)
    bias = np.zeros(0, dtype=np.float32) if bias is None else np.pad(bias, (0, extra))
    return Linear(np.ascontiguousarray(panels), bias)


def whole_tiles(rows: int) -> int:
    """The next number of rows that products can have: a multiple of ``ROWS``."""
    return -(-rows // ROWS) * ROWS


def apply(layer: Linear, vectors: Floats, out: Floats | None = None) -> Floats:
    """``vectors @ weight + bias``: [n, nI] -> [n, panels * COLUMNS], n a multiple of ``ROWS``."""
    if out is None:
        out = np.empty((len(vectors), layer.width), dtype=np.float32)
    _apply(vectors, layer.panels, layer.bias, out)
    return out


def _declare_tile(typing_context, rows, first, stride, panels, panel, out, out_row, out_column):
    """``out[row, column :][:COLUMNS] = rows[first + i * stride :][:nI] @ panels[panel]`` for i < ROWS.

    ``rows`` is read as one flat run of numbers. All three arrays are contiguous; nothing checks the bounds.
    """
    return _signature(rows, panels, out), partial(_emit_tile, ROWS, _VECTORS)


def _declare_wide_tile(typing_context, rows, first, stride, panels, panel, out, out_row, out_column):
    """The same of one row, and of panels of WIDE_COLUMNS."""
    return _signature(rows, panels, out), partial(_emit_tile, 1, _WIDE)


_tile: Any = intrinsic(_declare_tile)
_wide_tile: Any = intrinsic(_declare_wide_tile)


def _signature(rows: Any, panels: Any, out: Any) -> Any:
    return types.void(rows, types.int64, types.int64, panels, types.int64, out, types.int64, types.int64)


def _emit_tile(n_rows: int, n_vectors: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """One loop over nI: load a row of the panel, and add its products with the number of each row to rows x vectors
    sums that stay in registers."""
    _, first, stride, _, panel, _, out_row, out_column = arguments
    int64, int32 = ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(ir.FloatType(), _LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(int32, _LANES), [0] * _LANES)
    source, weight, target = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 5))
    depth = builder.extract_value(weight.shape, 1)
    width = builder.extract_value(target.shape, 1)
    columns = int64(n_vectors * _LANES)
    starts = [builder.gep(source.data, [builder.add(first, builder.mul(stride, int64(row)))]) for row in range(n_rows)]
    weights = builder.gep(weight.data, [builder.mul(panel, builder.mul(depth, columns))])

    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(int64)
    k.add_incoming(int64(0), before)
    sums = [[builder.phi(vector) for _ in range(n_vectors)] for _ in range(n_rows)]
    row_of_weight = builder.gep(weights, [builder.mul(k, columns)])
    weights_of_k = [_load(builder, row_of_weight, v * _LANES, vector) for v in range(n_vectors)]
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
    for number, row in enumerate(added):
        place = builder.add(builder.mul(builder.add(out_row, int64(number)), width), out_column)
        for v, value in enumerate(row):
            pointer = builder.gep(target.data, [builder.add(place, int64(v * _LANES))])
            builder.store(value, builder.bitcast(pointer, vector.as_pointer()), align=4)
    return context.get_dummy_value()


def _load(builder: Any, pointer: Any, offset: int, vector: Any) -> Any:
    place = builder.gep(pointer, [ir.IntType(64)(offset)])
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)


def _add_product(builder: Any, a: Any, b: Any, c: Any) -> Any:
    if not _FUSED:
        return builder.fadd(builder.fmul(a, b), c)
    name = f"llvm.fma.v{_LANES}f32"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(fused, [a, b, c])


@kernel
def _apply(vectors, panels, bias, out):
    width = vectors.shape[1]
    for i in range(0, len(vectors), ROWS):
        for p in range(len(panels)):
            _tile(vectors, i * width, width, panels, p, out, i, p * COLUMNS)
        for k in range(i, i + ROWS):
            row = out[k, : len(bias)]
            for j in range(len(bias)):
                row[j] += bias[j]


@vector_kernel
def _maxout(row, bias, gain, shift, out):
    """Maxout of three pieces that lie apart, layer norm: [>= 3 * width] -> [width]."""
    # Slices: the compiler knows of them that an index does not count from the end.
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
    scale = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(1e-8))
    for j in range(width):
        out[j] = (out[j] - mean) * scale * gain[j] + shift[j]


@vector_kernel
def mix(vectors, panels, bias, gain, shift, out):
    """Maxout of ``vectors`` [n, nI], n a multiple of ROWS, into ``out`` [n, width]."""
    width = vectors.shape[1]
    product = np.empty((ROWS, len(bias)), dtype=np.float32)
    for i in range(0, len(vectors), ROWS):
        for p in range(len(panels)):
            _tile(vectors, i * width, width, panels, p, product, 0, p * COLUMNS)
        for k in range(ROWS):
            _maxout(product[k], bias, gain, shift, out[i + k])


@vector_kernel
def convolve(source, panels, bias, gain, shift, target):
    """``x + maxout(W [left, own, right])`` of each word.

    ``source`` and ``target`` are [n + 2, width], n a multiple of ROWS; their first and last row are zeros, and stay so.
    """
    width = source.shape[1]
    product = np.empty((ROWS, len(bias)), dtype=np.float32)
    for i in range(0, len(source) - 2, ROWS):
        for p in range(len(panels)):
            # A word's window is what begins with its left neighbour.
            _tile(source, i * width, width, panels, p, product, 0, p * COLUMNS)
        for k in range(ROWS):
            former, vector = source[i + k + 1], target[i + k + 1]
            _maxout(product[k], bias, gain, shift, vector)
            for j in range(width):
                vector[j] += former[j]


@vector_kernel
def sum_products(slots, embedded, products, bias, gain, shift, out):
    """The first convolution, from the three products of each lexeme.

    ``slots`` are those of the row before, of each row, and of the row behind: [n + 2]; ``out`` is [n, width].
    """
    width = embedded.shape[1]
    third = 3 * width
    row = np.empty(third, dtype=np.float32)
    for i in range(len(slots) - 2):
        left, own, right = products[slots[i]], products[slots[i + 1]], products[slots[i + 2]]
        left, own, right = left[:third], own[third : 2 * third], right[2 * third :]
        for j in range(third):
            row[j] = left[j] + own[j] + right[j]
        target, vector = out[i], embedded[slots[i + 1]]
        _maxout(row, bias, gain, shift, target)
        for j in range(width):
            target[j] += vector[j]


@vector_kernel
def gather(table, keys, out, column):
    """Sum the four rows of a hash table that each lexeme has: into ``out[:, column :][:, :width]``."""
    width = table.shape[1]
    for i in range(len(keys)):
        a, b, c, d = table[keys[i, 0]], table[keys[i, 1]], table[keys[i, 2]], table[keys[i, 3]]
        target = out[i, column : column + width]
        for j in range(width):
            target[j] = a[j] + b[j] + c[j] + d[j]


@kernel
def apply_to_one(row, panels, bias, out):
    """``row @ weight + bias``: [nI] -> [1, panels * WIDE_COLUMNS]."""
    for p in range(len(panels)):
        _wide_tile(row, 0, 0, panels, p, out, 0, p * WIDE_COLUMNS)
    for j in range(len(bias)):
        out[0, j] += bias[j]
