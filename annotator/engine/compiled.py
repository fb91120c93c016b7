"""Compiled functions: where numba keeps them between runs, and the notice before the first compile."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_log = logging.getLogger(__name__)
_KERNELS: list[Any] = []

# LLVM may reorder a sum over the numbers of one row, so that it adds in the lanes of a vector. Every row goes through
# the same instructions, so that its result does not depend on its place or on other rows. NaN and infinity keep their
# meaning.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call; later processes load it from the cache.

    The cache is ``NUMBA_CACHE_DIR`` if that is set, else ``__pycache__`` beside the source, else a folder in the user's
    home, else one of this user's in the folder for temporary files: the first that can be written. Numba replaces its
    files atomically, so that processes which start at once do not break one another.

    Numba compiles a function again when the file of the function changes. It does not notice a change of what the
    function calls in another file: ``parser`` and ``entities`` call kernels of ``scorer`` and ``layers``. After such a
    change, remove the cache by hand.
    """
    return _register(function, fastmath=False)


def vector_kernel(function: Callable[..., Any]) -> Any:
    """Like ``kernel``, for loops over the numbers of one row, whose sums may be reordered (``_VECTOR_SUMS``)."""
    return _register(function, fastmath=_VECTOR_SUMS)


def _register(function: Callable[..., Any], fastmath: bool | set[str]) -> Any:
    compiled = _jit(function, fastmath)
    if compiled is None and (folder := _temporary_folder()) is not None:
        numba.config.CACHE_DIR = folder  # pyright: ignore  # numba looks there first, in this process, from now on
        compiled = _jit(function, fastmath)
    if compiled is None:  # no folder can be written
        compiled = numba.njit(nogil=True, fastmath=fastmath)(function)
    _KERNELS.append(compiled)
    return compiled


def _jit(function: Callable[..., Any], fastmath: bool | set[str]) -> Any:
    """The function, to be compiled on its first call and kept in a cache; None if no folder of numba's can be
    written."""
    try:
        return numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:
        return None


def _temporary_folder() -> str | None:
    """A folder for compiled functions that only this user can write, since what lies in it is run; None if it cannot be
    made."""
    path = Path(tempfile.gettempdir(), f"lacy-stream-numba-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return str(path) if ours else None


def announce_compile() -> bool:
    """Log a warning if some function is not in the cache. Returns whether one is not."""
    cold = not all(_is_cached(compiled) for compiled in _KERNELS)
    if cold and all(_can_be_kept(compiled) for compiled in _KERNELS):
        _log.warning("compiling the annotation engine: about half a minute, once; later starts read it from disk")
    elif cold:
        _log.warning(
            "compiling the annotation engine: about half a minute, at each start, since no folder can be written in "
            "which it could be kept. Set NUMBA_CACHE_DIR to a folder that this user can write"
        )
    return cold


def _can_be_kept(compiled: Any) -> bool:
    """Try whether the cache of a function can be written now."""
    folder = compiled.stats.cache_path
    if folder is None:
        return False
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _is_cached(compiled: Any) -> bool:
    """Tell whether the cache has a file of the function, perhaps one for another version of its source."""
    folder = compiled.stats.cache_path
    if folder is None:
        return False
    name = compiled.py_func.__qualname__
    module = compiled.py_func.__module__.rsplit(".", 1)[-1]
    return os.path.isdir(folder) and any(Path(folder).glob(f"{module}.{name}-*.nbc"))
