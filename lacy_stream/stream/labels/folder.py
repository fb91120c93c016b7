"""The folder of a label cache: which stores it holds, who uses them, and which ones are evicted.

    folder/
      stores.lock             held while a store is opened or evicted
      5f0c…(16 hex digits)/   one store for each annotator, named by its fingerprint (tokenizer, parser, rules)
        data.mdb, lock.mdb    LMDB
        in_use.lock           held (flock, shared) by every process that has the store open
        broken                present if LMDB could not read the store; the next process that opens it alone replaces it

The kernel releases the locks of a process that dies. So a store whose ``in_use.lock`` can be locked exclusively has no
living user, and may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

IN_USE = "in_use.lock"


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, after waiting for it."""
    lock = os.open(folder / "stores.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def lock_at_once(lock: int, kind: int) -> bool:
    """Lock an open file without waiting.

    Args:
        lock: file descriptor.
        kind: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.

    Returns:
        False where another process holds a lock that excludes this one.
    """
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def bytes_used(folder: Path) -> int:
    """The bytes of all stores. Stores that another process removes in the meantime do not count."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in _store_paths(folder):
            total += _bytes_of(path)
    return total


def evict(folder: Path, excess: int) -> int:
    """Remove stores that no living process has open, the least recently used first, until enough bytes are free.

    Args:
        folder: the caller holds its lock.
        excess: bytes to free.

    Returns:
        The bytes that were freed; fewer than ``excess`` where the other stores are in use.
    """
    freed = 0
    for path in sorted(_store_paths(folder), key=_last_used):
        if freed >= excess:
            break
        try:
            in_use = os.open(path / IN_USE, os.O_RDWR)
        except OSError:
            continue  # not a store of a label cache
        try:
            if lock_at_once(in_use, fcntl.LOCK_EX):
                size = _bytes_of(path)
                with contextlib.suppress(OSError):
                    remove(path)
                    freed += size
        finally:
            os.close(in_use)
    return freed


def remove(path: Path) -> None:
    """Remove a store. The caller has locked it. A process killed half-way leaves nothing that looks like a store."""
    gone = path.with_name(f"{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    # The rename is one step: from then on, no process takes the folder for a store.
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed during ``remove`` has left. The caller holds the folder's lock."""
    for path in folder.glob("*.removed"):
        if re.fullmatch(r"[0-9a-f]{16}\.removed", path.name):
            shutil.rmtree(path, ignore_errors=True)


def _store_paths(folder: Path) -> list[Path]:
    # Other folders, which may be anybody's, are neither counted nor evicted.
    return [path for path in folder.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name) and path.is_dir()]


def _bytes_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in os.scandir(path))
    return 0


def _last_used(path: Path) -> float:
    times = [0.0]
    for name in (IN_USE, "data.mdb"):
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)
