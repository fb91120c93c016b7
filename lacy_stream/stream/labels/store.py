"""The records of one annotator in one LMDB environment, which a process opens once.

A store has two databases. ``chunks`` holds the records of many documents one after another, in pieces of about 64 KB.
``index`` says for each key in which chunk its record is, and where. Separate LMDB values for each record would lie on
pages of 4 KB with random keys: a quarter to a third more bytes, measured.

LMDB detects damage to its own pages in all but rare cases. Then it raises one of ``BROKEN``. Damage inside a record is
found by the record's checksum, not here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import lmdb

from lacy_stream.stream.labels import codec
from lacy_stream.stream.labels.folder import IN_USE, hold_lock, lock_at_once, remove, remove_leftovers

CHUNK_BYTES = 1 << 16

BROKEN = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.VersionMismatchError)
"""Errors that LMDB raises when it cannot read a store."""

_MAP_SIZE = 1 << 40  # address space, not memory; the same in all processes, so that no store outgrows a reader's map
_LOCK_FILE_BYTES = 1 << 16  # size of lock.mdb: room for 1,000 readers
_LOCATION = struct.Struct("<III")  # value in the index: number of the chunk, first byte in it, number of bytes
_CHUNK = struct.Struct(">I")  # key of a chunk; big-endian, so that the keys sort like the numbers


@dataclass(eq=False)
class Store:
    """An open store. Get one with ``open_store``, and give it back with ``close_store``."""

    path: Path
    fingerprint: str
    env: lmdb.Environment
    index: lmdb._Database
    chunks: lmdb._Database
    in_use: int
    """File descriptor that holds the lock of ``in_use.lock``."""
    users: int = 0
    """Caches of this process that share the store."""

    @contextlib.contextmanager
    def record(self, key: bytes) -> Iterator[bytes | memoryview | None]:
        """Yield the record of a key, or None. It is a view of LMDB's map, valid inside the ``with`` block only. An
        index entry that points nowhere gives an empty record.

        Raises:
            lmdb.Error: LMDB cannot read its pages.
        """
        with self.env.begin(buffers=True) as txn:
            location = txn.get(key, db=self.index)
            if location is None:
                yield None
                return
            chunk, first, size = _LOCATION.unpack(location) if len(location) == _LOCATION.size else (0, 0, 0)
            yield (txn.get(_CHUNK.pack(chunk), db=self.chunks) or b"")[first:][:size]

    def add(self, records: Mapping[bytes, bytes], rewrite: Collection[bytes] = ()) -> int:
        """Write the records that are not there yet, in one transaction with fsync.

        Args:
            records: key -> record.
            rewrite: keys whose record is written even if there is one.

        Returns:
            The number of records written.
        """
        with self.env.begin(write=True) as txn:
            new = [key for key in records if key in rewrite or txn.get(key, db=self.index) is None]
            cursor = txn.cursor(db=self.chunks)
            free = _CHUNK.unpack(cursor.key())[0] + 1 if cursor.last() else 0
            cursor.close()
            for number, keys in enumerate(_chunks(new, records), start=free):
                first = 0
                for key in keys:
                    txn.put(key, _LOCATION.pack(number, first, len(records[key])), db=self.index)
                    first += len(records[key])
                txn.put(_CHUNK.pack(number), b"".join([records[key] for key in keys]), db=self.chunks, append=True)
        return len(new)

    def growth(self, records: Mapping[bytes, bytes]) -> int:
        """Upper bound of the bytes by which ``add`` makes the file longer: the chunks, and one copied page of the index
        for each key, but no more pages than the index has."""
        with self.env.begin() as txn:
            stat = txn.stat(self.index)
        page = stat["psize"]
        pages = stat["branch_pages"] + stat["leaf_pages"]
        copied = min(pages, (stat["depth"] + 1) * len(records)) + len(records) // 50
        size = sum(map(len, records.values()))
        return size + page * (2 * (size // CHUNK_BYTES + 1) + copied + 16)

    def condemn(self, error: Exception) -> None:
        """After one of ``BROKEN``: mark the store, so that the next process that opens it alone replaces it."""
        if isinstance(error, BROKEN):
            with contextlib.suppress(OSError):
                (self.path / "broken").touch()


def _chunks(keys: list[bytes], records: Mapping[bytes, bytes]) -> Iterator[list[bytes]]:
    """Group keys so that the records of a group are about ``CHUNK_BYTES`` together."""
    group: list[bytes] = []
    size = 0
    for key in keys:
        group.append(key)
        size += len(records[key])
        if size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


# --- opening and closing ------------------------------------------------------------------------------------------

_stores: dict[tuple[Path, str], Store] = {}
_stores_lock = threading.Lock()


def open_store(folder: Path, fingerprint: str) -> Store:
    """Open the store of an annotator, or share the one that this process has open: LMDB forbids opening an environment
    twice in one process, since its locks belong to the process.

    Raises:
        OSError: the folder or its files cannot be made.
        lmdb.Error: the store cannot be opened.
    """
    with _stores_lock:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / fingerprint[:16]
        store = _stores.get((path, fingerprint))
        if store is None:
            with hold_lock(folder):
                remove_leftovers(folder)
                store = _stores[path, fingerprint] = _opened(path, fingerprint)
        store.users += 1
        return store


def close_store(store: Store) -> None:
    """Give a store back. It is closed after its last user in this process."""
    with _stores_lock:
        store.users -= 1
        if store.users:
            return
        del _stores[store.path, store.fingerprint]
        store.env.close()
        with contextlib.suppress(OSError):
            os.utime(store.in_use)  # eviction goes by this time
        os.close(store.in_use)


def _opened(path: Path, fingerprint: str) -> Store:
    """Open a store; the folder is locked. A broken store, or one of another annotator, is replaced unless it is in
    use."""
    for last_try in (False, True):
        path.mkdir(exist_ok=True)
        in_use = os.open(path / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            alone = lock_at_once(in_use, fcntl.LOCK_EX)
            if not (alone and (path / "broken").exists()):
                try:
                    store = _environment(path, fingerprint, alone, in_use)
                except BROKEN:
                    if last_try or not alone:
                        raise
                else:
                    # This does not wait: an exclusive lock is only taken by a process that holds the folder's lock.
                    fcntl.flock(in_use, fcntl.LOCK_SH)
                    os.utime(in_use)
                    return store
            remove(path)
        except BaseException:
            os.close(in_use)
            raise
        os.close(in_use)
    raise AssertionError("the second try returns or raises")


def _environment(path: Path, fingerprint: str, alone: bool, in_use: int) -> Store:
    """Open the LMDB environment of a store, and check which annotator it belongs to.

    Raises:
        lmdb.Error: one of ``BROKEN`` if it is not an environment of this format and fingerprint.
    """
    if alone:
        # lock.mdb is written through a memory map. Without blocks of its own, a full disk would mean SIGBUS.
        with open(path / "lock.mdb", "ab") as file:
            os.posix_fallocate(file.fileno(), 0, _LOCK_FILE_BYTES)
    try:
        env = lmdb.open(str(path), map_size=_MAP_SIZE, max_dbs=2, max_spare_txns=16)
    except lmdb.InvalidParameterError as error:  # raised for some files that are not an environment
        raise lmdb.InvalidError(str(error)) from error
    try:
        env.reader_check()  # frees the slots of killed processes, which would keep old pages from being used again
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if alone and os.path.getsize(path / "data.mdb") < needed:
            raise lmdb.InvalidError(f"{path} was cut off")  # reading past the end would mean SIGBUS
        owner = f"{codec.FORMAT} {fingerprint}".encode()
        with env.begin() as txn:
            found, new = txn.get(b"fingerprint"), txn.stat()["entries"] == 0
        if new and alone:
            with env.begin(write=True) as txn:
                txn.put(b"fingerprint", found := owner)
        if found != owner:
            raise lmdb.InvalidError(f"{path} belongs to another version or annotator")
        return Store(path, fingerprint, env, env.open_db(b"index"), env.open_db(b"chunks"), in_use)
    except BaseException:
        env.close()
        raise
