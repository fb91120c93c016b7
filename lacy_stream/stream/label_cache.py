"""Labels that were made before, on disk: from the second epoch on nothing is parsed.

    folder/
      stores.lock             held while a store is opened or evicted
      5f0c…(16 hex digits)/   one store for each annotator, named by its fingerprint: tokenizer, parser, rules
        data.mdb, lock.mdb    LMDB
        in_use.lock           held (flock, shared) by every process that has the store open
        broken                there if LMDB could not read the store: who next opens it alone makes it anew

A store has two databases: ``chunks`` holds the values of many documents one behind the other, in pieces of about
64 KB, and ``index`` says for each key (a hash of the document's content) where its value is. Values of their own
would lie on pages of 4 KB with random keys: a quarter to a third more bytes, measured.

Safe against crashes: what is put is buffered, and written in one LMDB transaction with fsync at 1 MB, or with the
first ``put`` after a second. A process that is killed loses its buffer, and nothing else. A value that has changed
on disk does not fit its checksum and is a miss; damage to LMDB's own pages is found by LMDB, in all but rare cases.

Bounded: a full cache stops adding and keeps what it has. It is read in epochs, and in a scan that comes round again
the least recently used document is the one needed soonest: evicting it would gain nothing. Stores of other
fingerprints are evicted where room is needed, least recently used first, but none that a living process has open.

Several processes of a node may share a folder on a local disk (LMDB's locks do not work across nodes). They need
one PID namespace: containers in which both have the same pid cannot. Children made by fork must not use a cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np

from annotator.records import Document, LabelledTokens
from annotator.spans import SPANS_VERSION
from lacy_stream.errors import UsageError
from lacy_stream.stream.report import Report

COMMIT_BYTES = 1 << 20
COMMIT_S = 1.0
CHUNK_BYTES = 1 << 16

_FORMAT = "1"
_MAP_SIZE = 1 << 40  # address space, not memory: the same in all processes, so that no map is outgrown by another's
_LOCK_FILE_BYTES = 1 << 16  # of lock.mdb: room for 1,000 readers
_BROKEN = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.VersionMismatchError)

_PLACE = struct.Struct("<III")  # value of the index: chunk, first byte in it, bytes
_CHUNK = struct.Struct(">I")  # key of a chunk; big endian, so that numbers sort
_HEADER = struct.Struct("<II")  # CRC-32 of key and all that follows it; tokens << 2 | how their ids are stored
_IDS_OF_DOCUMENT, _IDS_16, _IDS_32 = range(3)
_IDS_TYPE = {_IDS_16: np.dtype("<u2"), _IDS_32: np.dtype("<i4")}

_NO_OFFSETS = np.zeros((0, 2), dtype=np.int32)
_CLASSES_OF_BYTE = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.uint8)


@dataclass(frozen=True)
class CacheStats:
    """Counters of one cache since it was opened, and the state of its folder.

    hits, misses: of ``get``. damaged: values that were not served, since they had changed on disk; they are misses.
    added: documents written. bytes_used: of the folder as a whole. full: nothing more is added.
    """

    hits: int
    misses: int
    damaged: int
    added: int
    bytes_used: int
    full: bool


class LabelCache:
    """The labels of one annotator. Safe to use from several threads; several in one process share a store.

    Args:
        folder: is made if it is not there. On a local disk.
        fingerprint: ``Annotator.fingerprint``.
        size_limit: bytes that the folder as a whole may take.
        report: is told of damaged values, and when the cache is full.

    Raises:
        UsageError: the folder cannot be written, or the store not opened; names it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], fingerprint: str, size_limit: int, report: Report | None = None
    ) -> None:
        if not re.fullmatch("[0-9a-f]{16,}", fingerprint):
            raise UsageError(f"fingerprint: {fingerprint!r} is not 16 or more hex digits. Give Annotator.fingerprint.")
        if size_limit < 1:
            raise UsageError(f"size_limit is {size_limit}: give the bytes that the label cache may take")
        self._folder, self._size_limit = Path(folder).absolute(), size_limit
        self._report = Report() if report is None else report
        self._commit_bytes = min(COMMIT_BYTES, size_limit // 8)
        self._writing = threading.Lock()  # one transaction at a time
        self._changed = threading.Condition()  # guards all below
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes, self._pending_since = 0, 0.0
        self._committing: dict[bytes, bytes] = {}
        self._rewrite: set[bytes] = set()  # keys whose value on disk is damaged
        self._hits = self._misses = self._damaged = self._added = self._readers = 0
        self._full = self._unreadable = False
        try:
            self._store: _Store | None = _shared_store(self._folder, fingerprint)
            self._make_room(0)  # now that the own store is held
        except (OSError, lmdb.Error) as error:
            hint = " Does a process in another container use it?" if isinstance(error, lmdb.LockError) else ""
            raise UsageError(
                f"the label cache {self._folder} cannot be used: {error}.{hint} Give a folder on a local disk that "
                "this process may write, or none."
            ) from error

    def get(self, document: Document) -> LabelledTokens | None:
        """The labels of a document with this content, None if there are none.

        ``offsets`` are not kept, since nothing in the stream reads them: they are int32 [0, 2].
        """
        key = _key(document)
        with self._changed:
            value = None if key is None else self._pending.get(key) or self._committing.get(key)
            store = None if value is not None or key is None or self._unreadable else self._store
            self._readers += store is not None  # while it is not 0, the store stays open
        labelled = None
        try:
            if key is not None and value is not None:
                labelled = _decoded(key, value, document)
            elif key is not None and store is not None:
                labelled = self._read(store, key, document)
        finally:
            with self._changed:
                self._readers -= store is not None
                self._hits += labelled is not None
                self._misses += labelled is None
                self._changed.notify_all()
        return labelled

    def put(self, document: Document, labelled: LabelledTokens) -> None:
        """Keep the labels of a document; not those of one that went without fact labels for once. They may be
        written at once, in this thread, together with what others have put. Does nothing when the cache is full or
        closed, and for a text with lone surrogates, which no annotator takes."""
        key = _key(document)
        if key is None or self._full:
            return
        value = _encoded(key, document, labelled)
        with self._changed:
            if self._store is None:
                return
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending[key] = value
            self._pending_bytes += len(value)
            due = self._due()
        if due:
            self._commit()

    def flush(self) -> None:
        """Write what is buffered."""
        self._commit(all_there_is=True)

    def close(self) -> None:
        """Write what is buffered, and let go of the store. After that every ``get`` misses. Safe to call twice."""
        self.flush()
        with self._writing, self._changed:
            store, self._store = self._store, None
            if store is not None and self._changed.wait_for(lambda: self._readers == 0, timeout=10):
                _release(store)

    def stats(self) -> CacheStats:
        used = _bytes_used(self._folder)
        with self._changed:
            return CacheStats(self._hits, self._misses, self._damaged, self._added, used, self._full)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self, store: _Store, key: bytes, document: Document) -> LabelledTokens | None:
        try:
            with store.env.begin(buffers=True) as txn:
                place = txn.get(key, db=store.index)
                if place is None:
                    return None
                chunk, first, size = _PLACE.unpack(place) if len(place) == _PLACE.size else (0, 0, 0)
                labelled = _decoded(key, (txn.get(_CHUNK.pack(chunk), db=store.chunks) or b"")[first:][:size], document)
        except lmdb.Error as error:  # of a page that is not a value: what lies below it cannot be trusted
            self._give_up_reading(store, error)
            return None
        if labelled is None:
            with self._changed:
                self._damaged += 1
                self._rewrite.add(key)
            self._report.add("cache_entry_damaged", document.id, "its checksum does not fit; it is annotated anew")
        return labelled

    def _give_up_reading(self, store: _Store, error: lmdb.Error) -> None:
        store.condemn(error)
        with self._changed:
            first, self._unreadable = not self._unreadable, True
            self._damaged += first
        if first:
            why = f"it is not read any more, its documents are annotated anew: {error}"
            self._report.add("cache_entry_damaged", str(store.path), why)

    # --- writing --------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        return self._pending_bytes >= self._commit_bytes or (
            bool(self._pending) and time.monotonic() - self._pending_since >= COMMIT_S
        )

    def _commit(self, all_there_is: bool = False) -> None:
        """Write the buffer, unless another thread has just done it. No error of the disk leaves this."""
        with self._writing:
            with self._changed:
                store = self._store
                if store is None or not (all_there_is or self._due()):
                    return
                self._committing, self._pending, self._pending_bytes = self._pending, {}, 0
            try:
                added = self._write(store, self._committing) if self._committing and not self._full else 0
            except (lmdb.Error, OSError) as error:
                store.condemn(error)
                added = 0
                self._stop_adding(f"it cannot be written: {error}")
            with self._changed:
                self._added += added
                self._rewrite.difference_update(self._committing)
                self._committing = {}

    def _write(self, store: _Store, values: dict[bytes, bytes]) -> int:
        """Add values in one transaction; returns how many were not there."""
        if not self._make_room(store.growth(values)):
            self._stop_adding(f"its size limit is {self._size_limit:,} bytes")
            return 0
        with store.env.begin(write=True) as txn:
            new = [key for key in values if key in self._rewrite or txn.get(key, db=store.index) is None]
            cursor = txn.cursor(db=store.chunks)
            free = _CHUNK.unpack(cursor.key())[0] + 1 if cursor.last() else 0
            cursor.close()
            for number, keys in enumerate(_chunks(new, values), start=free):
                first = 0
                for key in keys:
                    txn.put(key, _PLACE.pack(number, first, len(values[key])), db=store.index)
                    first += len(values[key])
                txn.put(_CHUNK.pack(number), b"".join([values[key] for key in keys]), db=store.chunks, append=True)
        return len(new)

    def _make_room(self, growth: int) -> bool:
        """Whether so many bytes may be added, once idle stores of other fingerprints are gone where need be."""
        excess = _bytes_used(self._folder) + growth - self._size_limit
        if excess > 0:
            with _locked_folder(self._folder):
                excess -= _evict(self._folder, excess)
        return excess <= 0

    def _stop_adding(self, reason: str) -> None:
        with self._changed:
            self._full = True
            self._pending, self._pending_bytes = {}, 0
        self._report.add("cache_full", str(self._folder), f"{reason}; it adds nothing more, and is still read")


# --- a document and its value -------------------------------------------------------------------------------------


def _key(document: Document) -> bytes | None:
    """16 bytes that stand for all that the labels depend on beside the annotator; None where the text is no text."""
    if document.ids is None:
        kind = b"T" if document.annotate else b"t"
        try:
            content = document.text.encode()
            if document.annotate and document.spans is not None:
                kind, content = b"S", _with_spans(content, document.spans)
        except UnicodeEncodeError:
            return None
    else:
        kind = b"I" if document.annotate else b"i"
        content = np.ascontiguousarray(document.ids, dtype="<i8").tobytes()
    return hashlib.blake2b(kind + content, digest_size=16).digest()


def _with_spans(text: bytes, spans: str | np.ndarray) -> bytes:
    """A text and its spans as they came; the length of the text tells where the one ends and the other begins."""
    if isinstance(spans, str):
        written = spans.encode()
    else:
        written = f"{spans.dtype.str} {spans.shape} ".encode() + np.ascontiguousarray(spans).tobytes()
    return struct.pack("<IQ", SPANS_VERSION, len(text)) + text + written


def _encoded(key: bytes, document: Document, labelled: LabelledTokens) -> bytes:
    """Header, ids (16 bits each where they fit; none where the document came with them), classes (2 bits each)."""
    ids, classes = labelled.ids, labelled.classes
    assert len(ids) == len(classes) and classes.max(initial=0) < 4
    if document.ids is not None and np.array_equal(ids, document.ids):
        kind, stored = _IDS_OF_DOCUMENT, b""
    else:
        kind = _IDS_16 if ids.min(initial=0) >= 0 and ids.max(initial=0) < 1 << 16 else _IDS_32
        stored = ids.astype(_IDS_TYPE[kind]).tobytes()
    fours = np.zeros((-(-len(classes) // 4), 4), dtype=np.uint8)
    fours.reshape(-1)[: len(classes)] = classes
    packed = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    size = len(ids) << 2 | kind
    body = stored + packed.tobytes()
    return _HEADER.pack(zlib.crc32(body, zlib.crc32(size.to_bytes(4, "little"), zlib.crc32(key))), size) + body


def _decoded(key: bytes, value: bytes | memoryview, document: Document) -> LabelledTokens | None:
    """The labels in a value; None where it is not the one that was written for this key."""
    value = memoryview(value)
    if len(value) < _HEADER.size or zlib.crc32(value[4:], zlib.crc32(key)) != _HEADER.unpack_from(value)[0]:
        return None
    size = _HEADER.unpack_from(value)[1]
    count, kind = size >> 2, size & 3
    first = _HEADER.size
    if kind == _IDS_OF_DOCUMENT:
        ids = np.array(document.ids, dtype=np.int32)
    else:
        ids = np.frombuffer(value, dtype=_IDS_TYPE[kind], count=count, offset=first).astype(np.int32)
        first += count * _IDS_TYPE[kind].itemsize
    classes = _CLASSES_OF_BYTE[np.frombuffer(value, dtype=np.uint8, offset=first)].reshape(-1)[:count]
    return LabelledTokens(ids, classes, _NO_OFFSETS)


def _chunks(keys: list[bytes], values: dict[bytes, bytes]) -> Iterator[list[bytes]]:
    """Keys in groups whose values are about ``CHUNK_BYTES`` together."""
    group: list[bytes] = []
    size = 0
    for key in keys:
        group.append(key)
        size += len(values[key])
        if size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


# --- stores: one LMDB environment each, open once in a process ----------------------------------------------------


@dataclass(eq=False)
class _Store:
    path: Path
    fingerprint: str
    env: lmdb.Environment
    index: lmdb._Database
    chunks: lmdb._Database
    in_use: int  # file descriptor, holds the lock
    users: int = 0

    def growth(self, values: dict[bytes, bytes]) -> int:
        """Bytes by which writing these makes the file longer, at most: the chunks, and for each key a page of the
        index that is copied, if there are as many."""
        with self.env.begin() as txn:
            stat = txn.stat(self.index)
        page = stat["psize"]
        pages = stat["branch_pages"] + stat["leaf_pages"]
        copied = min(pages, (stat["depth"] + 1) * len(values)) + len(values) // 50
        size = sum(map(len, values.values()))
        return size + page * (2 * (size // CHUNK_BYTES + 1) + copied + 16)

    def condemn(self, error: Exception) -> None:
        """Have a store that LMDB finds broken thrown away by the next process that opens it alone."""
        if isinstance(error, _BROKEN):
            with contextlib.suppress(OSError):
                (self.path / "broken").touch()


_stores: dict[tuple[Path, str], _Store] = {}
_stores_lock = threading.Lock()


def _shared_store(folder: Path, fingerprint: str) -> _Store:
    """LMDB forbids opening an environment twice in one process: its locks belong to the process."""
    with _stores_lock:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / fingerprint[:16]
        store = _stores.get((path, fingerprint))
        if store is None:
            with _locked_folder(folder):
                _remove_leftovers(folder)
                store = _stores[path, fingerprint] = _opened(path, fingerprint)
        store.users += 1
        return store


def _release(store: _Store) -> None:
    with _stores_lock:
        store.users -= 1
        if store.users:
            return
        del _stores[store.path, store.fingerprint]
        store.env.close()
        with contextlib.suppress(OSError):
            os.utime(store.in_use)  # its age decides about eviction
        os.close(store.in_use)


def _opened(path: Path, fingerprint: str) -> _Store:
    """Open a store; the folder is locked. One that is broken or another's is made anew, unless it is in use."""
    for last_try in (False, True):
        path.mkdir(exist_ok=True)
        in_use = os.open(path / "in_use.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            alone = _lock_now(in_use, fcntl.LOCK_EX)
            if not (alone and (path / "broken").exists()):
                try:
                    store = _environment(path, fingerprint, alone, in_use)
                except _BROKEN:
                    if last_try or not alone:
                        raise
                else:
                    fcntl.flock(in_use, fcntl.LOCK_SH)  # at once: who holds the other kind holds the folder's lock
                    os.utime(in_use)
                    return store
            _remove(path)
        except BaseException:
            os.close(in_use)
            raise
        os.close(in_use)
    raise AssertionError("the second try returns or raises")


def _environment(path: Path, fingerprint: str, alone: bool, in_use: int) -> _Store:
    """Open the LMDB environment of a store, and check whose it is.

    Raises:
        lmdb.Error: one of ``_BROKEN`` where it is no environment of this format and fingerprint.
    """
    if alone:
        # lock.mdb is written through a map: without blocks of its own, a full disk would mean SIGBUS.
        with open(path / "lock.mdb", "ab") as file:
            os.posix_fallocate(file.fileno(), 0, _LOCK_FILE_BYTES)
    try:
        env = lmdb.open(str(path), map_size=_MAP_SIZE, max_dbs=2, max_spare_txns=16)
    except lmdb.InvalidParameterError as error:  # of some files that are no environment
        raise lmdb.InvalidError(str(error)) from error
    try:
        env.reader_check()  # slots of processes that were killed would keep old pages from being used again
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if alone and os.path.getsize(path / "data.mdb") < needed:
            raise lmdb.InvalidError(f"{path} was cut off")  # reading on would end in SIGBUS
        whose = f"{_FORMAT} {fingerprint}".encode()
        with env.begin() as txn:
            found, new = txn.get(b"fingerprint"), txn.stat()["entries"] == 0
        if new and alone:
            with env.begin(write=True) as txn:
                txn.put(b"fingerprint", found := whose)
        if found != whose:
            raise lmdb.InvalidError(f"{path} is of another version or annotator")
        return _Store(path, fingerprint, env, env.open_db(b"index"), env.open_db(b"chunks"), in_use)
    except BaseException:
        env.close()
        raise


# --- the folder ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "stores.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock_now(lock: int, kind: int) -> bool:
    """Lock a file, or, where others hold it, do not wait. The kernel lets go of the locks of dead processes."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _store_paths(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name) and path.is_dir()]


def _bytes_used(folder: Path) -> int:
    """Of all stores; those that vanish meanwhile do not count."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in _store_paths(folder):
            total += _bytes_of(path)
    return total


def _bytes_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in os.scandir(path))
    return 0


def _evict(folder: Path, excess: int) -> int:
    """Remove stores that no living process has open, least recently used first, until so many bytes are free;
    returns how many are. The folder is locked."""
    freed = 0
    for path in sorted(_store_paths(folder), key=_last_used):
        if freed >= excess:
            break
        try:
            in_use = os.open(path / "in_use.lock", os.O_RDWR)
        except OSError:
            continue  # not one of ours
        try:
            if _lock_now(in_use, fcntl.LOCK_EX):
                size = _bytes_of(path)
                with contextlib.suppress(OSError):
                    _remove(path)
                    freed += size
        finally:
            os.close(in_use)
    return freed


def _last_used(path: Path) -> float:
    times = [0.0]
    for name in ("in_use.lock", "data.mdb"):
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def _remove(path: Path) -> None:
    """Remove a store that is locked; killed half-way, it leaves nothing that looks like a store."""
    gone = path.with_name(f"{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob("*.removed"):
        if re.fullmatch(r"[0-9a-f]{16}\.removed", path.name):
            shutil.rmtree(path, ignore_errors=True)
