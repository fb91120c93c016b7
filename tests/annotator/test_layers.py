"""The compiled layers against NumPy: the same numbers, whatever stands beside a row."""

from __future__ import annotations

import numpy as np
import pytest

from annotator.engine import layers

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Random numbers, float32."""
    return RANDOM.standard_normal(shape, dtype=np.float32)


def maxout(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Maxout of three pieces with layer norm, in double precision."""
    pieces = rows.astype(np.float64) @ weight + bias
    best = pieces.reshape(len(rows), 3, -1).max(axis=1)
    centred = best - best.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-8) * gain + shift


@pytest.mark.parametrize("columns", [1, 50, layers.COLUMNS, 7 * layers.COLUMNS + 5])
@pytest.mark.parametrize("depth", [1, 64, 96])
def test_apply(depth: int, columns: int) -> None:
    """A product with bias is NumPy's, and the columns beyond are zeros."""
    vectors, weight, bias = floats(2 * layers.ROWS, depth), floats(depth, columns), floats(columns)
    out = layers.apply(layers.linear(weight, bias), vectors)
    assert np.allclose(out[:, :columns], vectors @ weight + bias, atol=1e-4)
    assert not out[:, columns:].any() and out.shape[1] % layers.COLUMNS == 0
    out = layers.apply(layers.linear(weight), vectors)
    assert np.allclose(out[:, :columns], vectors @ weight, atol=1e-4)


def test_apply_reads_the_first_columns_of_wider_rows() -> None:
    """A layer takes the padded result of the layer before."""
    vectors, weight = floats(layers.ROWS, 96), floats(64, 10)
    assert np.allclose(layers.apply(layers.linear(weight), vectors)[:, :10], vectors[:, :64] @ weight, atol=1e-4)


@pytest.mark.parametrize("moves", [3, layers.WIDE_COLUMNS, layers.WIDE_COLUMNS + 1])
def test_apply_to_one(moves: int) -> None:
    """The product of one row is NumPy's."""
    row, weight, bias = floats(64), floats(64, moves), floats(moves)
    layer = layers.linear(weight, bias, layers.WIDE_COLUMNS)
    out = np.empty((1, layer.width), dtype=np.float32)
    layers.apply_to_one(row, *layer, out)
    assert np.allclose(out[0, :moves], row @ weight + bias, atol=1e-4)


def test_convolve() -> None:
    """Each word gets maxout and norm of its window of three, on top of itself; beyond the ends there is nothing."""
    n, width = 3 * layers.ROWS, 32
    source = floats(n + 2, width)
    source[[0, -1]] = 0
    weight, bias, gain, shift = floats(3 * width, 3 * width), floats(3 * width), floats(width), floats(width)
    target = np.zeros_like(source)
    layers.convolve(source, *layers.linear(weight, bias), gain, shift, target)
    windows = np.hstack([source[:-2], source[1:-1], source[2:]])
    assert np.allclose(target[1:-1], source[1:-1] + maxout(windows, weight, bias, gain, shift), atol=1e-4)
    assert not target[[0, -1]].any()


def test_rows_do_not_depend_on_their_place() -> None:
    """A row has bit-identical results alone, in any place, and among any others."""
    vectors, layer = floats(10 * layers.ROWS, 96), layers.linear(floats(96, 288), floats(288))
    whole = layers.apply(layer, vectors)
    order = RANDOM.permutation(len(vectors))
    assert layers.apply(layer, vectors[order]).tobytes() == whole[order].tobytes()
    alone = np.zeros((layers.ROWS, 96), dtype=np.float32)
    alone[3] = vectors[17]
    assert layers.apply(layer, alone)[3].tobytes() == whole[17].tobytes()
