"""Files of a remote data set -> a cache folder, by Streaming's downloaders, with bounded time and retries.

Streaming's own retries are off. They would multiply with ours, and they would not be counted.
"""

from __future__ import annotations

import errno
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from urllib.parse import urlsplit

from streaming.base.storage.download import CloudDownloader, S3Downloader

from lacy_stream.files import scratch_folder
from lacy_stream.stream.mds_index import DamageError, DataError, describe_error
from lacy_stream.stream.report import Report

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pauses before a download is tried again. They double each time up to the longest, and vary by a quarter."""

# After these a further attempt will hardly help.
FINAL_STATUS = (401, 403, 404, 410)
FINAL_ERRORS = ("NoCredentialsError", "AuthenticationException", "BadHostKeyException")


class Remote:
    """A remote folder, whose files are fetched with a time limit and retries. Safe to use from several threads.

    Streaming passes ``timeout`` to S3 only, as the longest wait for the next bytes. A slow transfer has no time limit,
    and neither have the other clients. So each attempt runs in a thread of its own. When its time is up the thread is
    abandoned, since threads cannot be killed. Its scratch folder has been removed by then, so it has no effect any
    more. It ends when its client gives up (S3: after ``timeout`` without a byte, five times at most; SFTP: when its
    connection is closed), or with the process.

    Args:
        url: anything that Streaming can download from.
        retry: further attempts after the first.
        timeout: seconds for one attempt.
        report: gets an event for each failed attempt that is followed by another.

    Raises:
        DataError: Streaming does not know the kind of URL.
    """

    def __init__(self, url: str, retry: int, timeout: float, report: Report) -> None:
        self._url, self._retry, self._timeout, self._report = url, retry, timeout, report
        self._idle: queue.SimpleQueue[CloudDownloader] = queue.SimpleQueue()
        try:
            self._password = urlsplit(url).password
            self._idle.put(_downloader(url))
        except Exception as error:
            raise DataError(f"remote {url!r} cannot be used: {describe_error(error)}") from error
        self.where = self._hide(url)
        """The URL without its password."""
        self.patience = (1 + retry) * timeout + sum(1.25 * _pause(failed) for failed in range(retry))
        """About how many seconds it can take to fetch a file, with all retries."""

    def fetch(self, name: str, basename: str, folder: str, accept: Callable[[str], None]) -> None:
        """Download a file into a cache folder.

        Args:
            name: path of the wanted file inside the folder, which the report names. A compressed shard is fetched under
                the name of its raw file.
            basename: path of the file on the remote, relative to the URL.
            folder: the cache.
            accept: gets the path of the downloaded file. It moves the file away, or raises if the file is not good.

        Raises:
            DataError: every attempt failed; the message names the URL and the last failure.
            OSError: the disk is full.
        """
        url = os.path.join(self._url, basename)
        final = 0  # attempts that failed in a way that looks final; such a failure gets one more attempt, at once
        for failed in range(1 + self._retry):
            try:
                with scratch_folder(os.path.join(folder, os.path.dirname(name)), os.path.basename(name)) as scratch:
                    path = str(scratch / os.path.basename(basename))
                    self._download(url, path)
                    accept(path)
                return
            except Exception as error:
                if disk_is_full(error):
                    raise
                reason = self._hide(f"{url}: {describe_error(error)}")
                final += _is_final(error)
                if failed == self._retry or final == 2:
                    raise DataError(f"given up after {failed + 1} attempts: {reason}") from error
                self._report.add("download_retried", name, reason)
                if not _is_final(error):
                    time.sleep(_pause(failed) * random.uniform(0.75, 1.25))

    def _download(self, url: str, path: str) -> None:
        """Make one attempt. A client that failed is not used again, since its connection may be the cause."""
        try:
            downloader = self._idle.get_nowait()
        except queue.Empty:
            downloader = _downloader(url)
        attempt = _in_background(partial(downloader.download, url, path, self._timeout))
        # Cleaning up may hang as the download does, so nobody waits for it.
        if not wait([attempt], self._timeout).done:
            _in_background(downloader.clean_up)
            raise TimeoutError(f"the download took more than {self._timeout:g} s")
        if attempt.exception() is not None:
            _in_background(downloader.clean_up)
        attempt.result()
        self._idle.put(downloader)

    def _hide(self, text: str) -> str:
        return text.replace(f":{self._password}@", ":***@") if self._password else text


class _S3(S3Downloader):
    """Streaming's downloader with two changes: botocore's own retries are off, since they would not be counted; and
    where every answer is 400, it does not repeat its request without credentials for ever."""

    _anonymous = False

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 60.0) -> None:
        # Streaming asks for a client without credentials after an answer of 400. A second time, that has not helped.
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
    """Run a call in a daemon thread, which does not keep the process alive."""
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
    """Seconds to wait after a failed attempt, where ``failed`` counts from 0: 0.5, 1, 2, ... up to the longest."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failed, 32))


def _is_final(error: BaseException) -> bool:
    """Whether another attempt will hardly help.

    S3 raises botocore's ClientError with the HTTP status, or NoCredentialsError. SFTP and mounted paths raise OSError
    or paramiko's errors of authentication. Google, Azure and Hugging Face raise errors with a status.
    """
    if isinstance(error, DamageError | FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    response = getattr(error, "response", error)
    # botocore's errors have a dict as response; those of other clients have an object, or are the response themselves.
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(response, "code", None))
    return status in FINAL_STATUS or any(kind.__name__ in FINAL_ERRORS for kind in type(error).__mro__)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
