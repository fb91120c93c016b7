"""Compiled functions: where numba keeps them between runs, and the first compile, by one process for all."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout
from numba.core import config

_log = logging.getLogger(__name__)
_KERNELS: list[Any] = []
_PATIENCE_S = 240
"""How long to wait for another process that compiles. Then this one compiles, too."""

# LLVM may reorder a sum over the numbers of one row, so that it adds in the lanes of a vector. Every row goes through
# the same instructions, so that its result does not depend on its place or on other rows. NaN and infinity keep their
# meaning.
_VECTOR_SUMS = {"reassoc", "contract", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call; later processes load it from the cache.

    The cache is a folder in ``NUMBA_CACHE_DIR`` if that is set, else in ``__pycache__`` beside the source, else in the
    user's cache, else among the temporary files: the first that can be written. Its name holds a digest of the engine's
    sources. Numba itself looks at the file of a function only, and would load what was compiled from another version
    of the functions and types that this one uses. Numba replaces its files atomically, so that processes which start at
    once do not break one another.
    """
    return _register(function, fastmath=False)


def vector_kernel(function: Callable[..., Any]) -> Any:
    """Like ``kernel``, for loops over the numbers of one row, whose sums may be reordered (``_VECTOR_SUMS``)."""
    return _register(function, fastmath=_VECTOR_SUMS)


def _register(function: Callable[..., Any], fastmath: bool | set[str]) -> Any:
    folder = _cache_folder(config.CACHE_DIR)  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        compiled = numba.njit(nogil=True, fastmath=fastmath)(function)
    else:
        with _numbas_folder(folder):
            compiled = numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
    _KERNELS.append(compiled)
    return compiled


@contextmanager
def _numbas_folder(folder: str) -> Iterator[None]:
    """A function that is decorated within this context is kept in a folder. Numba has no argument for it."""
    before = config.CACHE_DIR  # pyright: ignore[reportAttributeAccessIssue]
    config.CACHE_DIR = folder  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        config.CACHE_DIR = before  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _cache_folder(wanted: str) -> str | None:
    """The folder of this version's compiled functions; None if none can be written.

    Args:
        wanted: by the user, "" for no wish.
    """
    name = f"lacy-stream-{_digest()}"
    for parent in _parents(wanted):
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return str(folder)
    return None


def _parents(wanted: str) -> Iterator[Path]:
    if wanted:
        yield Path(wanted)
    yield Path(__file__).parent / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(home):
        yield Path(home)
    if (temporary := _temporary_folder()) is not None:
        yield temporary


def _digest() -> str:
    """Of numba's version and of every source file of the engine."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _temporary_folder() -> Path | None:
    """A folder for compiled functions that only this user can write, since what lies in it is run; None if it cannot be
    made."""
    path = Path(tempfile.gettempdir(), f"lacy-stream-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return path if ours else None


@contextmanager
def compile_once() -> Iterator[None]:
    """The context of the first calls of all functions.

    If some are not in the cache, one process compiles them, and says so. Others that come meanwhile wait until it is
    done, and read them from the cache.
    """
    if _is_cold():
        with _one_at_a_time():
            if _is_cold():  # still, after the wait
                _announce()
                yield
                return
    yield


def _is_cold() -> bool:
    """Whether some function is not in the cache."""
    return not all(_is_cached(compiled) for compiled in _KERNELS)


def _announce() -> None:
    if all(_can_be_kept(compiled) for compiled in _KERNELS):
        _log.warning("compiling the annotation engine: about half a minute, once; later starts read it from disk")
    else:
        _log.warning(
            "compiling the annotation engine: about half a minute, at each start, since no folder can be written in "
            "which it could be kept. Set NUMBA_CACHE_DIR to a folder that this user can write"
        )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait until no other process holds the lock of the cache, if there is a cache and its file system has locks. The
    kernel frees the lock of a process that dies."""
    folder = _cache_folder(config.CACHE_DIR)  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        yield
        return
    lock = FileLock(os.path.join(folder, "compiling.lock"))
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process is compiling the annotation engine: waiting for it")
            lock.acquire(timeout=_PATIENCE_S)
    try:
        yield
    finally:
        lock.release()


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
