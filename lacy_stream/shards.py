"""MDS shards -> samples, read at random; every sample that the index promises, or an error that names the shard.

    index.json --_parse_index--> readers        nothing of it is believed before all of it was checked
    read(sample) -> is the shard's raw file here and whole? --no--> lock, download, check, decompress, rename -> sample

MosaicML Streaming brings the downloaders, the compressions, the hashes and the reader of samples. Its ``Stream`` and
``StreamingDataset`` are not used: they count samples where a packing stream needs documents and tokens, end an epoch
silently at a missing shard, write where a hostile index tells them to, and bound no download by the clock.

In the folder of a shard lie, beside it, ``.NAME.lock`` (held by whoever fetches it) and for a while ``.NAME.*.part``
(what is being fetched). Only a file that was checked is renamed to a shard's name, so what a killed process leaves
is never taken for a shard; the next one that fetches the same shard removes it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import queue
import random
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from streaming.base.compression import decompress, is_compression
from streaming.base.format.base.reader import FileInfo
from streaming.base.format.mds.encodings import is_mds_encoding
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash, is_hash
from streaming.base.storage.download import CloudDownloader, S3Downloader

from lacy_stream.report import Report

log = logging.getLogger(__name__)

INDEX = "index.json"
PREFERRED_HASHES = ("xxh64", "xxh3_64", "sha1", "md5")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a download is tried again; doubled each time, up to the longest, give or take a quarter."""

FETCH_AHEAD_THREADS = 2
LARGEST_SHARD = 2**32 - 1
"""Bytes; MDS counts them in 32 bits."""

FINAL_STATUS = (401, 403, 404, 410)
FINAL_ERRORS = ("NoCredentialsError", "AuthenticationException", "BadHostKeyException")


class DataError(ValueError):
    """The data folder or a shard cannot be used; the message names it and says what to do."""


class _Damaged(ValueError):
    """A file is not what the index says, or the index itself is none."""


class Shards:
    """The samples of one MDS split. Safe to use from several threads, and with other processes on the same cache.

    Each file of a remote is tried ``1 + download_retry`` times, with growing pauses; what looks final (not found, no
    access, damaged) is tried once more, at once. Failures that are followed by another attempt are counted in the
    report. The time for a file is bounded by ``(1 + download_retry) * download_timeout`` and the pauses, twice that
    where another process holds the lock and does not get on.

    A shard is checked once per process, when it is first used: its size, its hash where the index has one of the
    uncompressed file, and its table of samples. A damaged copy is fetched once more.

    Args:
        local: folder with the shards, or the cache of ``remote``. Needs to be writable where shards are
            compressed or remote.
        remote: anything that Streaming can download from (``s3://…``, ``sftp://…``, ``gs://…``, a mounted path), or
            None.
        split: sub-folder, for example ``train``.
        download_retry: further attempts after the first.
        download_timeout: seconds for one attempt to fetch one file, from the first byte sent to the last received.
        report: collects what was tried again; default, one that counts and logs.

    Raises:
        DataError: no index, an empty, corrupt or unsafe one, or a remote that Streaming does not know.
        ValueError: a negative ``download_retry``, or a ``download_timeout`` that is not positive.
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
            raise ValueError(f"download_retry is {download_retry}; set it to 0 or more")
        if not download_timeout > 0:
            raise ValueError(f"download_timeout is {download_timeout}; set it to a number of seconds above 0")
        self._local, self._split = str(local), split or ""
        self._folder = _join(self._local, self._split)
        self._report = report or Report()
        self._remote: _Remote | None = None
        if remote is not None and os.path.abspath(remote) != os.path.abspath(self._local):
            url = _join(remote, self._split)
            self._remote = _Remote(url, download_retry, download_timeout, self._report)
        self.where = self._remote.where if self._remote else self._folder
        self._readers = self._load_index()
        self.columns: list[str] = list(self._readers[0].column_names)
        self.sizes = np.array([reader.samples for reader in self._readers], np.int64)
        """Samples of each shard."""
        self._ends = np.cumsum(self.sizes)
        self._ready: set[int] = set()
        self._warn_of_missing_hashes()
        self._guard = threading.Lock()  # of the three that follow
        self._asked: set[int] = set()
        self._ahead: deque[int] = deque()
        self._fetchers = 0

    @property
    def digest(self) -> str:
        """Hex digest of what the samples are: the number, sizes and hashes of each shard."""
        parts = [
            [
                reader.samples,
                [[file.basename, file.bytes, file.hashes] for pair in reader.file_pairs for file in pair if file],
            ]
            for reader in self._readers
        ]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        """Samples."""
        return int(self._ends[-1])

    def read(self, sample: int) -> dict[str, Any]:
        """The columns of a sample, 0 <= sample < len(self).

        Raises:
            DataError: its shard is missing, damaged, or cannot be written to the cache; or the sample cannot be
                decoded.
            IndexError: no such sample.
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"no sample {sample} in {self.where}: it has {len(self)}")
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        reader, index = self._readers[shard], sample - int(self._ends[shard] - self.sizes[shard])
        try:
            self._have(shard)
            try:
                return reader.get_item(index)
            except FileNotFoundError:  # someone has emptied the cache
                self._ready.discard(shard)
                self._have(shard)
                return reader.get_item(index)
        except Exception as error:
            what = f"sample {index} of shard {reader.raw_data.basename} of {self.where}"
            raise DataError(f"{what} cannot be read: {self._reason(error)}") from error

    def prefetch(self, samples: Iterable[int]) -> None:
        """Have the shards of samples fetched in the background, in the order of the samples.

        Returns at once. A shard is asked for once; one that lies there uncompressed, without a remote, is left
        alone. What fails is logged, and ``read`` tries it again and raises the error. The threads are daemons:
        they keep no process alive.
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
                self._have(shard)
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
                with self._turn(INDEX):
                    readers = self._cached_index(path)  # another process may have been first
                    if readers is None:
                        if os.path.exists(path):
                            self._report.add("shard_fetched_again", INDEX, "its copy in the cache is corrupt")
                        self._remote.fetch(INDEX, INDEX, self._folder, partial(self._install_index, path))
            return readers or self._parse(path)
        except Exception as error:
            raise DataError(
                f"no usable MDS index at {self.where}: {self._reason(error)}. "
                "Make one with `lacy-stream prepare SOURCE --out DIR`."
            ) from error

    def _cached_index(self, path: str) -> list[MDSReader] | None:
        try:
            return self._parse(path)
        except (FileNotFoundError, _Damaged):
            return None

    def _parse(self, path: str) -> list[MDSReader]:
        with open(path, "rb") as file:
            return _parse_index(file.read(), self._local, self._split)

    def _install_index(self, path: str, fetched: str) -> None:
        self._parse(fetched)
        os.replace(fetched, path)

    def _warn_of_missing_hashes(self) -> None:
        bare = sum(_known_hash(reader.zip_data or reader.raw_data) is None for reader in self._readers)
        if bare:
            log.warning(
                "%s: the index has no hash of %d of %d shards: damage inside such a shard, other than to its size, "
                "cannot be detected. `lacy-stream prepare` writes hashes.",
                self.where, bare, len(self._readers),
            )  # fmt: skip

    def _have(self, shard: int) -> None:
        """Have the raw file of a shard whole in the local folder, checked once per process."""
        if shard in self._ready:
            return
        reader = self._readers[shard]
        if self._problem(reader) is not None:
            self._fetch(reader)
        self._ready.add(shard)

    def _problem(self, reader: MDSReader) -> str | None:
        """Why the raw file of a shard cannot be used as it lies there, or None. Writes nothing: works on a read-only
        mount."""
        raw = reader.raw_data
        try:
            with open(os.path.join(self._folder, raw.basename), "rb") as file:
                if os.fstat(file.fileno()).st_size != raw.bytes or _known_hash(raw):
                    data = file.read()
                    _check_file(data, raw)
                else:
                    data = file.read(4 * (reader.samples + 2))
                _check_table(data, reader)
        except FileNotFoundError:
            return "it is missing"
        except _Damaged as error:
            return str(error)
        return None

    def _fetch(self, reader: MDSReader) -> None:
        """Make the raw file of a shard from the compressed one beside it or from the remote.

        Raises:
            DataError, _Damaged, OSError: there is none, or it is damaged too, or there is no room.
        """
        raw, zipped = reader.raw_data, reader.zip_data
        if self._remote is None and zipped is None:
            raise _Damaged(f"{self._problem(reader)}, and there is no remote to fetch it from")
        with self._turn(raw.basename):
            problem = self._problem(reader)
            if problem is None:  # another process was first
                return
            if os.path.exists(os.path.join(self._folder, raw.basename)):
                self._report.add("shard_fetched_again", raw.basename, problem)
            if zipped is not None and self._unpack_local(reader, zipped):
                return
            if self._remote is None:
                raise _Damaged(f"{problem}, nor is there a compressed one, and no remote to fetch it from")
            self._remote.fetch(
                raw.basename, (zipped or raw).basename, self._folder, partial(self._install_shard, reader)
            )

    def _unpack_local(self, reader: MDSReader, zipped: FileInfo) -> bool:
        """Make the raw file of a shard from the compressed one in the local folder, if it is there and whole."""
        path = os.path.join(self._folder, zipped.basename)
        if not os.path.exists(path):
            return False
        try:
            self._install_shard(reader, path)
        except _Damaged as error:
            if self._remote is None:
                raise
            self._report.add("shard_fetched_again", zipped.basename, str(error))
            return False
        return True

    def _install_shard(self, reader: MDSReader, path: str) -> None:
        """Check a file, decompress it if need be, and give it the name of the shard's raw file.

        Raises:
            _Damaged: it is not what the index says.
            OSError: it cannot be written.
        """
        raw, zipped = reader.raw_data, reader.zip_data
        with open(path, "rb") as file:
            data = file.read()
        if zipped is None:
            _check_raw(data, reader)
            os.replace(path, os.path.join(self._folder, raw.basename))
            return
        _check_file(data, zipped)
        try:
            data = decompress(reader.compression, data)
        except Exception as error:
            raise _Damaged(f"it cannot be decompressed: {_describe(error)}") from error
        _check_raw(data, reader)
        with _scratch(self._folder, raw.basename) as folder:
            part = os.path.join(folder, "raw")
            with open(part, "wb") as file:
                file.write(data)
            os.replace(part, os.path.join(self._folder, raw.basename))

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One process or thread at a time fetches a file, and the others find it there; the kernel frees the lock
        of a dead one.

        The lock saves downloads, and nothing else depends on it. So whoever has waited as long as fetching can take
        (the other was stopped), or is on a file system without locks, goes on without it."""
        path = os.path.join(self._folder, os.path.dirname(name), f".{os.path.basename(name)}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.lock", "w") as lock:
            if _lock(lock, self._remote.patience if self._remote else 60.0):
                for left in glob.glob(f"{glob.escape(path)}.????????.part"):
                    shutil.rmtree(left, ignore_errors=True)
            yield

    def _reason(self, error: BaseException) -> str:
        if _disk_is_full(error):
            return f"the disk is full, there is no room in {self._folder}: {_describe(error)}"
        return _describe(error)


class _Remote:
    """Streaming's downloaders, bounded in time and number. Safe to use from several threads.

    Streaming hands ``timeout`` to S3 alone, as the longest wait for the next bytes; slow bytes, and every wait of the
    other clients, have no bound. So each attempt runs in a thread of its own, and is left alone when its time is up:
    a thread cannot be ended. It writes into a folder that is gone by then, and what it does has no effect. It ends
    when its client gives up (S3: after ``timeout`` without a byte, five times at most; SFTP: its connection is closed
    under it) or with the process.
    """

    def __init__(self, url: str, retry: int, timeout: float, report: Report) -> None:
        self._url, self._retry, self._timeout, self._report = url, retry, timeout, report
        self._idle: queue.SimpleQueue[CloudDownloader] = queue.SimpleQueue()
        try:
            self._password = urlsplit(url).password
            self._idle.put(_downloader(url))
        except Exception as error:
            raise DataError(f"remote {url!r} cannot be used: {_describe(error)}") from error
        self.where = self._hide(url)
        """The URL without its password."""
        self.patience = (1 + retry) * timeout + sum(1.25 * _pause(failed) for failed in range(retry))
        """Seconds that fetching a file can take, about."""

    def fetch(self, name: str, basename: str, folder: str, accept: Callable[[str], None]) -> None:
        """Download a file into a cache folder.

        Args:
            name: for the report.
            accept: gets the path of the file, and moves it away or raises.

        Raises:
            DataError: every attempt failed; names the URL and the last failure.
            OSError: the disk is full.
        """
        url = os.path.join(self._url, basename)
        final = 0
        for failed in range(1 + self._retry):
            try:
                with _scratch(folder, name) as scratch:
                    path = os.path.join(scratch, os.path.basename(basename))
                    self._download(url, path)
                    accept(path)
                return
            except Exception as error:
                if _disk_is_full(error):
                    raise
                reason = self._hide(f"{url}: {_describe(error)}")
                final += _is_final(error)
                if failed == self._retry or final == 2:
                    raise DataError(f"given up after {failed + 1} attempts: {reason}") from error
                self._report.add("download_retried", name, reason)
                if not _is_final(error):
                    time.sleep(_pause(failed) * random.uniform(0.75, 1.25))

    def _download(self, url: str, path: str) -> None:
        """One attempt. A client that failed is not used again: its connection may be the reason."""
        try:
            downloader = self._idle.get_nowait()
        except queue.Empty:
            downloader = _downloader(url)
        attempt = _in_background(partial(downloader.download, url, path, self._timeout))
        if not wait([attempt], self._timeout).done:
            _in_background(downloader.clean_up)
            raise TimeoutError(f"not there after {self._timeout:g} s")
        if attempt.exception() is not None:
            _in_background(downloader.clean_up)
        attempt.result()
        self._idle.put(downloader)

    def _hide(self, text: str) -> str:
        return text.replace(f":{self._password}@", ":***@") if self._password else text


class _S3(S3Downloader):
    """Streaming's, without botocore's own retries, which nobody would count, and without its asking anonymously for
    ever where the answer is 400."""

    _anonymous = False

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 60.0) -> None:
        if unsigned and self._anonymous:
            raise PermissionError(errno.EACCES, "the server answers 400, with credentials and without")
        self._anonymous = unsigned
        super()._create_s3_client(unsigned, timeout)
        assert self._s3_client is not None
        self._s3_client.meta.events.unregister("needs-retry.s3", unique_id="retry-config-s3")


def _downloader(url: str) -> CloudDownloader:
    downloader = CloudDownloader.get(url)
    return _S3() if type(downloader) is S3Downloader else downloader


def _in_background(call: Callable[[], object]) -> Future[None]:
    """Run a call in a daemon thread, which keeps no process alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="download", daemon=True).start()
    return future


def _pause(failed: int) -> float:
    """Seconds before the next attempt, after the first, second … that failed (0, 1 …)."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failed, 32))


def _is_final(error: BaseException) -> bool:
    """Whether another attempt will hardly help. S3 raises botocore's ClientError with the HTTP status, or
    NoCredentialsError; SFTP and mounted paths OSError, or paramiko's errors of authentication; Google, Azure and
    Hugging Face an error with a status."""
    if isinstance(error, _Damaged | FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    response = getattr(error, "response", error)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(response, "code", None))
    return status in FINAL_STATUS or any(kind.__name__ in FINAL_ERRORS for kind in type(error).__mro__)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe(error: BaseException) -> str:
    if isinstance(error, DataError | _Damaged):
        return str(error)
    cause = getattr(error, "last_exception", None)  # boto3's RetriesExceededError does not say it
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text} ({cause})" if cause else text


def _join(folder: str, split: str) -> str:
    return os.path.join(folder, split) if split else folder


def _lock(file: IO[str], patience: float) -> bool:
    """Whether the lock of a file was free within some seconds; False too where the file system has no locks."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        except OSError:
            return False


@contextmanager
def _scratch(folder: str, name: str) -> Iterator[str]:
    """A folder of one's own beside a shard, on the same disk, to make a file in."""
    folder, base = os.path.join(folder, os.path.dirname(name)), os.path.basename(name)
    path = tempfile.mkdtemp(dir=folder, prefix=f".{base}.", suffix=".part")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _known_hash(file: FileInfo) -> str | None:
    """The best hash that the index has of a file."""
    return next((name for name in (*PREFERRED_HASHES, *file.hashes) if name in file.hashes and is_hash(name)), None)


def _check_file(data: bytes, file: FileInfo) -> None:
    """Raises: _Damaged: not the size or the hash that the index says."""
    if len(data) != file.bytes:
        raise _Damaged(f"{file.basename} has {len(data)} bytes, the index says {file.bytes}")
    name = _known_hash(file)
    if name is not None and get_hash(name, data) != file.hashes[name]:
        raise _Damaged(f"{file.basename} is damaged: its {name} is not that of the index")


def _check_raw(data: bytes, reader: MDSReader) -> None:
    _check_file(data, reader.raw_data)
    _check_table(data, reader)


def _check_table(data: bytes, reader: MDSReader) -> None:
    """Check the table at the start of a shard: the number of samples, and where each one begins and ends.

    Raises:
        _Damaged: another number than in the index, or places that lie outside the file.
    """
    name, samples = reader.raw_data.basename, reader.samples
    table = np.frombuffer(data, "<u4", samples + 2)
    if table[0] != samples:
        raise _Damaged(f"{name} has {table[0]} samples, the index says {samples}")
    if table[1] < 4 * (samples + 2) or table[-1] > reader.raw_data.bytes or (table[2:] < table[1:-1]).any():
        raise _Damaged(f"{name} is damaged: its samples lie outside it")


def _parse_index(data: bytes, local: str, split: str) -> list[MDSReader]:
    """The shards of an index, of which every value was checked.

    Raises:
        _Damaged: the first thing that is wrong.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{INDEX} is empty or corrupt: {error}") from error
    if not isinstance(index, dict) or index.get("version") != 2 or not isinstance(index.get("shards"), list):
        raise _Damaged(f"{INDEX} is no MDS index of version 2")
    readers = []
    for number, entry in enumerate(index["shards"]):
        try:
            readers.append(_parse_entry(entry, local, split))
        except Exception as error:
            raise _Damaged(f"{INDEX} has an unsafe entry, number {number}: {_describe(error)}") from error
    if sum(reader.samples for reader in readers) < 1:
        raise _Damaged("the data set is empty")
    if any(reader.column_names != readers[0].column_names for reader in readers):
        raise _Damaged(f"the shards of {INDEX} have different columns")
    names = [file.basename for reader in readers for file in reader.file_pairs[0] if file]
    if len(set(names)) < len(names):
        raise _Damaged(f"{INDEX} has an unsafe entry: {max(names, key=names.count)!r} twice")
    return readers


def _parse_entry(entry: Any, local: str, split: str) -> MDSReader:
    """One shard of an index.

    Raises:
        Exception: of any kind, since Streaming's own checks are among these.
    """
    names, encodings, sizes = entry["column_names"], entry["column_encodings"], entry["column_sizes"]
    _require(_all(names, str) and len(set(names)) == len(names), "column_names", names)
    _require(_all(encodings, str) and len(encodings) == len(names), "column_encodings", encodings)
    for encoding in encodings:
        _require(encoding.split(":")[0] != "pkl" and is_mds_encoding(encoding), "column encoding", encoding)
    _require(isinstance(sizes, list) and len(sizes) == len(names), "column_sizes", sizes)
    for size in sizes:
        _require(size is None or _is_count(size, LARGEST_SHARD), "column size", size)
    _check_entry(entry["raw_data"])
    compression = entry["compression"] or None
    _require(compression is None or is_compression(compression), "compression", compression)
    _require((entry["zip_data"] is None) == (compression is None), "zip_data", entry["zip_data"])
    if compression is not None:
        _check_entry(entry["zip_data"])
    # The table at the start of a shard has a number of 4 bytes a sample, and two more.
    _require(_is_count(entry["samples"], entry["raw_data"]["bytes"] // 4 - 2), "samples", entry["samples"])
    return MDSReader.from_json(local, split, entry)


def _check_entry(file: Any) -> None:
    name, hashes = file["basename"], file["hashes"]
    parts = name.split("/")  # merged indices have sub-folders
    safe = all(part and not part.startswith(".") and part.isprintable() and len(part) < 200 for part in parts)
    _require(safe and parts[-1] != INDEX, "file name", name)
    _require(_is_count(file["bytes"], LARGEST_SHARD), "bytes", file["bytes"])
    _require(isinstance(hashes, dict) and _all([*hashes, *hashes.values()], str), "hashes", hashes)


def _require(holds: bool, field: str, value: Any) -> None:
    if not holds:
        raise _Damaged(f"{field} {str(value)[:200]!r}")


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit
