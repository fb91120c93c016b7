"""Files of a remote data set -> a cache folder, by Streaming's downloaders, bounded in time and number.

Streaming's own retries are off: they would multiply with ours, and nobody would count them.
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
from lacy_stream.stream.mds_index import Damaged, DataError, describe
from lacy_stream.stream.report import Report

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a download is tried again; doubled each time, up to the longest, give or take a quarter."""

FINAL_STATUS = (401, 403, 404, 410)
FINAL_ERRORS = ("NoCredentialsError", "AuthenticationException", "BadHostKeyException")


class Remote:
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
            raise DataError(f"remote {url!r} cannot be used: {describe(error)}") from error
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
                with scratch_folder(os.path.join(folder, os.path.dirname(name)), os.path.basename(name)) as scratch:
                    path = str(scratch / os.path.basename(basename))
                    self._download(url, path)
                    accept(path)
                return
            except Exception as error:
                if disk_is_full(error):
                    raise
                reason = self._hide(f"{url}: {describe(error)}")
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
    if isinstance(error, Damaged | FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    response = getattr(error, "response", error)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(response, "code", None))
    return status in FINAL_STATUS or any(kind.__name__ in FINAL_ERRORS for kind in type(error).__mro__)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
