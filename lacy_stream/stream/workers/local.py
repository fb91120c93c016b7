"""A worker that is a process of this machine: its main function, and the handle through which the pool talks to it.

The processes are `multiprocess` children, started with spawn, with one duplex pipe each. They import neither torch nor
composer, which saves 0.7 GB and most of a minute. They use one thread, and leave nothing in /dev/shm. They die with
their parent, by the parent-death signal or at the end of file on the pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from multiprocess.connection import Connection

from lacy_stream.stream.workers.batch import annotate_and_name, build_annotator
from lacy_stream.stream.workers.process import THREAD_VARIABLES, end_with, start_process
from lacy_stream.stream.workers.protocol import Answer, WorkerCannotStart, WorkerDied

if TYPE_CHECKING:  # numpy must not be loaded before a worker has limited its threads
    from annotator import AnnotatorSettings, Document

START_TIMEOUT_S = 300.0


class LocalWorker:
    """The parent's handle of a worker process; a ``Worker``. The constructor waits until the parser is loaded.

    Use it from one thread, which must live as long as the worker: the kernel ties the parent-death signal of a child to
    the thread that started it. ``kill`` may be called from any thread, at any time.

    Args:
        name: name of the process.
        settings: the annotator that it loads.

    Raises:
        WorkerCannotStart: the annotator cannot be loaded.
        WorkerDied: the process ended, or did not load its annotator in time.
    """

    def __init__(self, name: str, settings: AnnotatorSettings) -> None:
        self._killing = threading.Lock()
        self._closed = False
        # The settings are sent as bytes, and `_work` unpickles them. That imports numpy, whose threads must be
        # limited before.
        self._process, self._pipe = start_process(name, _work, pickle.dumps(settings))
        self.pid: int = self._process.pid  # type: ignore[assignment]  # a started process has one
        with self._limited(START_TIMEOUT_S):
            kind, payload = pickle.loads(self._pipe.recv_bytes())
        if kind == "failed":
            self.close()
            raise WorkerCannotStart(payload)
        self.identity: dict[str, str] = payload
        self.place = ""

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        """Annotate a batch.

        Raises:
            WorkerDied: the process has ended, or was killed because it did not answer in time.
        """
        with self._limited(timeout_s):
            self._pipe.send_bytes(pickle.dumps(documents, protocol=pickle.HIGHEST_PROTOCOL))
            _, payload = pickle.loads(self._pipe.recv_bytes())
        return Answer(*payload)

    @contextlib.contextmanager
    def _limited(self, timeout_s: float) -> Iterator[None]:
        """Limit the time of the ``with`` block, which talks to the process.

        At the deadline a watchdog kills the process. This ends the wait even if the process was stopped in the middle
        of a message, in either direction.

        Raises:
            WorkerDied: the process has ended, or was killed.
        """
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            self.kill()

        watchdog = threading.Timer(timeout_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        except (EOFError, OSError):
            self._raise_death(timeout_s if overdue.is_set() else None)
        finally:
            watchdog.cancel()

    def _raise_death(self, timeout_s: float | None) -> NoReturn:
        self._process.join(timeout=5)
        code = self._process.exitcode
        self.close()
        if timeout_s is not None:
            raise WorkerDied(f"gave no answer within {timeout_s:.0f} s and was killed") from None
        raise WorkerDied(f"died with exit code {code}") from None

    def kill(self) -> None:
        """End the process. A thread that waits for its answer then gets ``WorkerDied``."""
        with self._killing:
            if not self._closed:
                self._process.kill()

    def close(self) -> None:
        """End the process and close its descriptors. Safe to call twice."""
        if self._closed:
            return
        self._pipe.close()
        self.kill()
        self._process.join()
        with self._killing:  # a watchdog may be about to kill the process
            self._closed = True
            with contextlib.suppress(ValueError):  # somebody else's waitpid took its exit code
                self._process.close()


# --- in the process ----------------------------------------------------------------------------------------


def _work(pipe: Connection, pickled_settings: bytes, parent_pid: int) -> None:
    """Main function of a worker process. It reads batches of documents, and answers with one result or error text for
    each document."""
    end_with(parent_pid)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    logging.getLogger("annotator.tokenizers").setLevel(logging.ERROR)  # the parent says it once for all workers
    settings: AnnotatorSettings = pickle.loads(pickled_settings)
    with contextlib.suppress(EOFError, OSError):  # the parent closes the pipe to end the worker
        try:
            annotator = build_annotator(settings)
        except Exception as error:
            _send(pipe, "failed", f"{type(error).__name__}: {error}")
            return
        _send(pipe, "ready", annotator.identity)
        while True:
            documents = pickle.loads(pipe.recv_bytes())
            start = time.process_time()
            results, fallbacks = annotate_and_name(annotator, documents)
            _send(pipe, "done", (results, time.process_time() - start, annotator.stats(), fallbacks))


def _send(pipe: Connection, kind: str, payload: object) -> None:
    pipe.send_bytes(pickle.dumps((kind, payload), protocol=pickle.HIGHEST_PROTOCOL))
