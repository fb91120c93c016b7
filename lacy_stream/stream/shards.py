"""MDS shards -> samples in any order. Every sample of the index can be read, or an error names the shard.

    index.json --parse_index--> readers         the whole index is checked before any of it is used
    read(sample) -> is the shard's raw file here and undamaged? --no--> lock, download, check, decompress, rename

MosaicML Streaming provides the downloaders, the compressions, the hashes and the reader of samples. Its ``Stream`` and
``StreamingDataset`` are not used, for four reasons: they count samples where a packing stream needs documents and
tokens, they end an epoch silently at a missing shard, they write wherever a hostile index tells them to, and their
downloads have no time limit.

Two kinds of helper files lie beside a shard: ``.NAME.lock``, which a process holds while it fetches the shard, and
``.NAME.*.part``, the folder of a download in progress. Only a file that was checked is renamed to the shard's name, so
what a killed process leaves is never taken for a shard. The next process that fetches the same shard removes it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from filelock import FileLock
from streaming.base.compression import decompress
from streaming.base.format.base.reader import FileInfo
from streaming.base.format.mds.reader import MDSReader

from lacy_stream.errors import UsageError
from lacy_stream.files import scratch_folder
from lacy_stream.stream.download import Remote, disk_is_full
from lacy_stream.stream.mds_index import (
    INDEX,
    DamageError,
    DataError,
    check_file,
    check_raw,
    check_table,
    describe_error,
    known_hash,
    parse_index,
)
from lacy_stream.stream.report import Report
from lacy_stream.stream.source import missing_index

log = logging.getLogger(__name__)

FETCH_AHEAD_THREADS = 2


class Shards:
    """The samples of one MDS split. Safe to use from several threads, and with other processes on the same cache.

    Downloads. Each file of a remote is tried ``1 + download_retry`` times, with growing pauses. After a failure that
    looks final (not found, no access, damaged), there is one more attempt, at once. The report counts the failures that
    are followed by another attempt. A file takes at most ``(1 + download_retry) * download_timeout`` seconds and the
    pauses, or twice that if another process holds the lock and makes no progress.

    Checks. A shard is checked once per process, at its first use: its size, its table of samples, and its hash if the
    index has one of the uncompressed file. A damaged copy is fetched again.

    Args:
        local: folder with the shards, or the cache of ``remote``. It must be writable if shards are compressed or
            remote.
        remote: anything that Streaming can download from (``s3://…``, ``sftp://…``, ``gs://…``, a mounted path), or
            None.
        split: sub-folder, for example ``train``.
        download_retry: further attempts after the first.
        download_timeout: seconds for one attempt to fetch one file, from the first byte sent to the last received.
        report: gets the events; by default, they are only counted and logged.

    Raises:
        DataError: the index is missing, empty, corrupt or unsafe, or Streaming does not know the remote.
        UsageError: ``download_retry`` is negative, or ``download_timeout`` is not positive.
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        split: str | None = None,
        *,
        download_retry: int = 3,
        download_timeout: float = 60.0,
        report: Report | None = None,
    ) -> None:
        if download_retry < 0:
            raise UsageError(f"download_retry is {download_retry}; set it to 0 or more")
        if not download_timeout > 0:
            raise UsageError(f"download_timeout is {download_timeout}; set it to a number of seconds above 0")
        self._local, self._split = str(local), split or ""
        self._folder = _join(self._local, self._split)
        self._report = report or Report()
        self._remote: Remote | None = None
        if remote is not None and os.path.abspath(remote) != os.path.abspath(self._local):
            url = _join(remote, self._split)
            self._remote = Remote(url, download_retry, download_timeout, self._report)
        self.where = self._remote.where if self._remote else self._folder
        """Name of the data for messages: the URL without its password, or the folder."""
        self._readers = self._load_index()
        self.columns: list[str] = list(self._readers[0].column_names)
        self.sizes = np.array([reader.samples for reader in self._readers], np.int64)
        """int64 [shards]: number of samples in each shard."""
        self._ends = np.cumsum(self.sizes)
        self._ready: set[int] = set()  # shards whose raw file was checked
        self._warn_of_missing_hashes()
        self._guard = threading.Lock()  # guards the three fields below
        self._asked: set[int] = set()  # shards that were ever put into `_ahead`
        self._ahead: deque[int] = deque()  # shards to fetch in the background, in order
        self._fetchers = 0  # threads that fetch them

    @property
    def digest(self) -> str:
        """Hex digest that identifies the samples: it covers the number of samples, size and hashes of each shard."""
        parts = [
            [
                reader.samples,
                [[file.basename, file.bytes, file.hashes] for pair in reader.file_pairs for file in pair if file],
            ]
            for reader in self._readers
        ]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    def read(self, sample: int) -> dict[str, Any]:
        """Read one sample, after fetching its shard if necessary.

        Args:
            sample: 0 <= sample < len(self), counted through all shards.

        Returns:
            Column -> value.

        Raises:
            DataError: the shard is missing or damaged, it cannot be written to the cache, or the sample cannot be
                decoded.
            IndexError: there is no such sample.
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"no sample {sample} in {self.where}: it has {len(self)}")
        # For shards of 3 and 2 samples, _ends is [3, 5]: sample 2 is in shard 0, and sample 3 is the first of shard 1.
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        reader, index = self._readers[shard], sample - int(self._ends[shard] - self.sizes[shard])
        try:
            self._ensure(shard)
            try:
                return reader.get_item(index)
            except FileNotFoundError:  # somebody has emptied the cache during the run
                self._ready.discard(shard)
                self._ensure(shard)
                return reader.get_item(index)
        except Exception as error:
            what = f"sample {index} of shard {reader.raw_data.basename} of {self.where}"
            raise DataError(f"{what} cannot be read: {self._reason(error)}") from error

    def prefetch(self, samples: Iterable[int]) -> None:
        """Start to fetch the shards of these samples in the background, in the order of the samples. Returns at once.

        A shard is fetched ahead at most once in the life of this object. A local, uncompressed shard needs no fetching.
        A failure is logged; ``read`` tries again, and raises the error. The threads are daemons, so they do not keep
        the process alive.
        """
        shards = np.searchsorted(self._ends, np.fromiter(samples, np.int64), side="right")
        with self._guard:
            for shard in dict.fromkeys(shards.tolist()):
                fetched = self._remote is not None or self._readers[shard].zip_data is not None
                if fetched and shard not in self._ready and shard not in self._asked:
                    self._asked.add(shard)
                    self._ahead.append(shard)
            for _ in range(min(FETCH_AHEAD_THREADS - self._fetchers, len(self._ahead))):
                self._fetchers += 1
                threading.Thread(target=self._fetch_ahead, name="fetch-ahead", daemon=True).start()

    def _fetch_ahead(self) -> None:
        while True:
            with self._guard:
                if not self._ahead:
                    self._fetchers -= 1
                    return
                shard = self._ahead.popleft()
            try:
                self._ensure(shard)
            except Exception as error:
                name = self._readers[shard].raw_data.basename
                log.warning("shard %s could not be fetched ahead: %s", name, self._reason(error))

    def _load_index(self) -> list[MDSReader]:
        path = os.path.join(self._folder, INDEX)
        try:
            if self._remote is None:
                return self._parse(path)
            readers = self._cached_index(path)
            if readers is None:
                with self._fetch_lock(INDEX):
                    readers = self._cached_index(path)  # another process may have been first
                    if readers is None:
                        if os.path.exists(path):
                            self._report.add("shard_fetched_again", INDEX, "its copy in the cache is corrupt")
                        self._remote.fetch(INDEX, INDEX, self._folder, partial(self._install_index, path))
            return readers or self._parse(path)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and (problem := missing_index(self._local, self._split)):
                raise DataError(problem) from error
            raise DataError(
                f"no usable MDS index at {self.where}: {self._reason(error)}. "
                "Make one with `lacy-stream prepare SOURCE --out DIR`."
            ) from error

    def _cached_index(self, path: str) -> list[MDSReader] | None:
        try:
            return self._parse(path)
        except (FileNotFoundError, DamageError):
            return None

    def _parse(self, path: str) -> list[MDSReader]:
        with open(path, "rb") as file:
            return parse_index(file.read(), self._local, self._split)

    def _install_index(self, path: str, fetched: str) -> None:
        self._parse(fetched)
        os.replace(fetched, path)

    def _warn_of_missing_hashes(self) -> None:
        bare = sum(known_hash(reader.zip_data or reader.raw_data) is None for reader in self._readers)
        if bare:
            log.warning(
                "%s: the index has no hash of %d of %d shards: damage inside such a shard, other than to its size, "
                "cannot be detected. `lacy-stream prepare` writes hashes.",
                self.where, bare, len(self._readers),
            )  # fmt: skip

    def _ensure(self, shard: int) -> None:
        """Make sure that the raw file of a shard is in the local folder, and check it once per process."""
        if shard in self._ready:
            return
        # Two threads may check one shard at the same time. That costs time, and does no harm.
        reader = self._readers[shard]
        if self._problem(reader) is not None:
            self._fetch(reader)
        self._ready.add(shard)

    def _problem(self, reader: MDSReader) -> str | None:
        """Say why the raw file of a shard cannot be used as it is, or return None. Nothing is written, so this works on
        a read-only mount."""
        raw = reader.raw_data
        try:
            with open(os.path.join(self._folder, raw.basename), "rb") as file:
                # The whole file is read for its hash, or to name its size. Otherwise the table is enough.
                if os.fstat(file.fileno()).st_size != raw.bytes or known_hash(raw):
                    data = file.read()
                    check_file(data, raw)
                else:
                    data = file.read(4 * (reader.samples + 2))
                check_table(data, reader)
        except FileNotFoundError:
            return "it is missing"
        except DamageError as error:
            return str(error)
        return None

    def _fetch(self, reader: MDSReader) -> None:
        """Make the raw file of a shard from the compressed file beside it, or from the remote.

        Raises:
            DamageError: there is no other copy, or the compressed file is damaged and there is no remote.
            DataError: it cannot be downloaded.
            OSError: it cannot be written.
        """
        raw, zipped = reader.raw_data, reader.zip_data
        if self._remote is None and zipped is None:
            raise DamageError(f"{self._problem(reader)}, and there is no remote to fetch it from")
        with self._fetch_lock(raw.basename):
            problem = self._problem(reader)
            if problem is None:  # another process was first
                return
            if os.path.exists(os.path.join(self._folder, raw.basename)):
                self._report.add("shard_fetched_again", raw.basename, problem)
            if zipped is not None and self._unpack_local(reader, zipped):
                return
            if self._remote is None:
                raise DamageError(f"{problem}, there is no compressed copy, and there is no remote to fetch it from")
            self._remote.fetch(
                raw.basename, (zipped or raw).basename, self._folder, partial(self._install_shard, reader)
            )

    def _unpack_local(self, reader: MDSReader, zipped: FileInfo) -> bool:
        """Make the raw file of a shard from the compressed file in the local folder.

        Returns:
            False if there is no such file, or if it is damaged and there is a remote.
        """
        path = os.path.join(self._folder, zipped.basename)
        if not os.path.exists(path):
            return False
        try:
            self._install_shard(reader, path)
        except DamageError as error:
            if self._remote is None:
                raise
            self._report.add("shard_fetched_again", zipped.basename, str(error))
            return False
        return True

    def _install_shard(self, reader: MDSReader, path: str) -> None:
        """Check a file, decompress it if necessary, and rename it to the shard's raw file.

        Raises:
            DamageError: it differs from what the index says.
            OSError: it cannot be written.
        """
        raw, zipped = reader.raw_data, reader.zip_data
        with open(path, "rb") as file:
            data = file.read()
        if zipped is None:
            check_raw(data, reader)
            os.replace(path, os.path.join(self._folder, raw.basename))
            return
        check_file(data, zipped)
        try:
            data = decompress(reader.compression, data)
        except Exception as error:
            raise DamageError(f"it cannot be decompressed: {describe_error(error)}") from error
        check_raw(data, reader)
        folder, name = os.path.split(os.path.join(self._folder, raw.basename))
        with scratch_folder(folder, name) as scratch:
            part = scratch / "raw"
            part.write_bytes(data)
            os.replace(part, os.path.join(folder, name))

    @contextmanager
    def _fetch_lock(self, name: str) -> Iterator[None]:
        """Let one process or thread at a time fetch a file; the others then find it in the cache. The kernel releases
        the lock of a dead process.

        The lock only saves downloads, and nothing depends on it. So a process continues without it if the file system
        has no locks, or if it has waited as long as fetching can take: then the other process was probably stopped.
        """
        path = os.path.join(self._folder, os.path.dirname(name), f".{os.path.basename(name)}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=self._remote.patience if self._remote else 60.0)
        except (OSError, NotImplementedError):  # Timeout is an OSError
            pass
        else:
            for left in glob.glob(f"{glob.escape(path)}.????????.part"):
                shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            lock.release()

    def _reason(self, error: BaseException) -> str:
        if disk_is_full(error):
            return f"the disk is full, there is no room in {self._folder}: {describe_error(error)}"
        return describe_error(error)


def _join(folder: str, split: str) -> str:
    return os.path.join(folder, split) if split else folder
