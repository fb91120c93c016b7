"""The label cache that the pool uses: labels made in an earlier epoch or run, by the content of the document.

Crashes. Labels are buffered. They are written in one LMDB transaction with fsync when 1 MB has gathered, or with the
first ``put`` after a second. A process that is killed loses its buffer and nothing else. A record that has changed on
disk does not fit its checksum, and counts as a miss.

Size. A full cache stops adding and keeps what it has. It is read in epochs, and in a scan that repeats, the least
recently used document is the one needed soonest: evicting it would gain nothing. Stores of other annotators are evicted
where room is needed, least recently used first, but never one that a living process has open.

Sharing. Several processes of a node may share a folder on a local disk: LMDB's locks do not work across nodes. The
processes need one PID namespace, because two containers may each have a process of the same pid. A child made by
``fork`` must not use its parent's cache.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import lmdb

from annotator.records import Document, LabelledTokens
from lacy_stream.errors import UsageError
from lacy_stream.stream.labels.codec import decode_record, document_key, encode_record
from lacy_stream.stream.labels.folder import bytes_used, evict, hold_lock
from lacy_stream.stream.labels.store import Store, close_store, open_store
from lacy_stream.stream.report import Report

COMMIT_BYTES = 1 << 20
"""The buffer is written when it holds this many bytes."""
COMMIT_S = 1.0
"""The buffer is written with the first ``put`` after this many seconds."""


@dataclass(frozen=True)
class CacheStats:
    """Counters of one cache since it was opened, and the state of its folder."""

    hits: int
    """Calls of ``get`` that found labels."""
    misses: int
    """Calls of ``get`` that found none."""
    damaged: int
    """Records that had changed on disk. Each one was also a miss."""
    added: int
    """Documents written."""
    bytes_used: int
    """Bytes of all stores in the folder."""
    full: bool
    """Whether the cache has stopped adding."""


class LabelCache:
    """The labels of one annotator. Safe to use from several threads; caches of one process share a store.

    Args:
        folder: folder on a local disk; made if missing.
        fingerprint: ``Annotator.fingerprint``.
        size_limit: bytes that all stores of the folder may take together.
        report: gets an event for each damaged record, and one when the cache is full.

    Raises:
        UsageError: the arguments make no sense, the folder cannot be written, or the store cannot be opened.
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
        self._changed = threading.Condition()  # guards all fields below
        self._pending: dict[bytes, bytes] = {}  # the buffer: key -> record
        self._pending_bytes, self._pending_since = 0, 0.0
        self._committing: dict[bytes, bytes] = {}  # records that a transaction is writing
        self._rewrite: set[bytes] = set()  # keys whose record on disk is damaged
        self._hits = self._misses = self._damaged = self._added = self._readers = 0
        self._full = self._unreadable = False
        try:
            self._store: Store | None = open_store(self._folder, fingerprint)
            self._make_room(0)  # after opening: the own store is in use now, and so is not evicted
        except (OSError, lmdb.Error) as error:
            hint = " Does a process in another container use it?" if isinstance(error, lmdb.LockError) else ""
            raise UsageError(
                f"the label cache {self._folder} cannot be used: {error}.{hint} Give a folder on a local disk that "
                "this process may write, or none."
            ) from error

    def get(self, document: Document) -> LabelledTokens | None:
        """Look up the labels of a document by its content.

        Returns:
            The labels, or None. Their ``offsets`` are int32 [0, 2]: offsets are not kept, since nothing in the stream
            reads them.
        """
        key = document_key(document)
        with self._changed:
            record = None if key is None else self._pending.get(key) or self._committing.get(key)
            store = None if record is not None or key is None or self._unreadable else self._store
            self._readers += store is not None  # the store stays open while there are readers
        labelled = None
        try:
            if key is not None and record is not None:
                labelled = decode_record(key, record, document)
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
        """Keep the labels of a document. The caller leaves out documents that went into quarantine: their labels are
        not those of the annotator.

        When the buffer is due, this thread writes it, with what other threads have put. Nothing happens if the cache is
        full or closed, or if the text has lone surrogates, which no annotator takes.
        """
        key = document_key(document)
        if key is None or self._full:
            return
        record = encode_record(key, document, labelled)
        with self._changed:
            if self._store is None:
                return
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending[key] = record
            self._pending_bytes += len(record)
            due = self._due()
        if due:
            self._commit()

    def flush(self) -> None:
        """Write what is buffered."""
        self._commit(even_if_not_due=True)

    def close(self) -> None:
        """Write what is buffered, and close the store. After that every ``get`` misses. Safe to call twice."""
        self.flush()
        with self._writing, self._changed:
            store, self._store = self._store, None
            if store is not None and self._changed.wait_for(lambda: self._readers == 0, timeout=10):
                close_store(store)

    def stats(self) -> CacheStats:
        """The counters of this cache, and the present size of its folder."""
        used = bytes_used(self._folder)
        with self._changed:
            return CacheStats(self._hits, self._misses, self._damaged, self._added, used, self._full)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self, store: Store, key: bytes, document: Document) -> LabelledTokens | None:
        try:
            with store.record(key) as record:
                if record is None:
                    return None
                labelled = decode_record(key, record, document)
        except lmdb.Error as error:  # one of LMDB's own pages is damaged: nothing below it can be trusted
            self._give_up_reading(store, error)
            return None
        if labelled is None:
            with self._changed:
                self._damaged += 1
                self._rewrite.add(key)
            why = "its checksum does not fit, so the document is annotated again"
            self._report.add("cache_entry_damaged", document.id, why)
        return labelled

    def _give_up_reading(self, store: Store, error: lmdb.Error) -> None:
        store.condemn(error)
        with self._changed:
            first, self._unreadable = not self._unreadable, True
            self._damaged += first
        if first:
            why = f"it cannot be read any more, so its documents are annotated again: {error}"
            self._report.add("cache_entry_damaged", str(store.path), why)

    # --- writing --------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        return self._pending_bytes >= self._commit_bytes or (
            bool(self._pending) and time.monotonic() - self._pending_since >= COMMIT_S
        )

    def _commit(self, even_if_not_due: bool = False) -> None:
        """Write the buffer, unless another thread has just done so. Errors of the disk stop the adding, and are not
        raised."""
        with self._writing:
            with self._changed:
                store = self._store
                if store is None or not (even_if_not_due or self._due()):
                    return
                # While the transaction runs, ``get`` finds these records in `_committing`, and ``put`` fills a new
                # buffer.
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

    def _write(self, store: Store, records: dict[bytes, bytes]) -> int:
        """Add records if there is room; returns how many were new."""
        if not self._make_room(store.growth(records)):
            self._stop_adding(f"its size limit is {self._size_limit:,} bytes")
            return 0
        return store.add(records, self._rewrite)

    def _make_room(self, growth: int) -> bool:
        """Evict idle stores of other annotators if that is needed; returns whether ``growth`` bytes may be added."""
        excess = bytes_used(self._folder) + growth - self._size_limit
        if excess > 0:
            with hold_lock(self._folder):
                excess -= evict(self._folder, excess)
        return excess <= 0

    def _stop_adding(self, reason: str) -> None:
        with self._changed:
            self._full = True
            self._pending, self._pending_bytes = {}, 0
        self._report.add("cache_full", str(self._folder), f"{reason}; it adds nothing more, but it is still read")
