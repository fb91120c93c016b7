"""Compiled functions: where numba keeps them between runs, and word of the first compile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_log = logging.getLogger(__name__)
_KERNELS: list[Any] = []

# Sums of one row may be reordered into vector lanes. Every row goes through the same instructions, so that its
# result does not depend on where it stands.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call; later processes load it from the cache.

    The cache is ``NUMBA_CACHE_DIR`` if that is set, else ``__pycache__`` beside the source, else a folder of the
    user's. Numba replaces its files atomically, so processes that start at once do not break one another. It compiles
    again when the function's own file has changed, not for a change of what the function calls in another file
    (``transitions`` calls ``layers``): there, remove the cache by hand.
    """
    return _register(function, fastmath=False)


def vector_kernel(function: Callable[..., Any]) -> Any:
    """``kernel`` for loops over the numbers of one row, whose sums may be reordered."""
    return _register(function, fastmath=_VECTOR_SUMS)


def _register(function: Callable[..., Any], fastmath: bool | set[str]) -> Any:
    try:
        compiled = numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:  # no folder that can be written to
        compiled = numba.njit(nogil=True, fastmath=fastmath)(function)
    _KERNELS.append(compiled)
    return compiled


def announce_compile() -> bool:
    """Say so, once, if the cache is empty; returns whether it is."""
    cold = not all(_is_cached(compiled) for compiled in _KERNELS)
    if cold:
        _log.warning("compiling the annotation engine: about half a minute, once; later starts read it from disk")
    return cold


def _is_cached(compiled: Any) -> bool:
    folder = compiled.stats.cache_path
    if folder is None:
        return False
    name = compiled.py_func.__qualname__
    module = compiled.py_func.__module__.rsplit(".", 1)[-1]
    return os.path.isdir(folder) and any(Path(folder).glob(f"{module}.{name}-*.nbc"))
