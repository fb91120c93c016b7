"""A worker that is a process of this machine: its main function, and the handle through which the pool talks to it.

The processes are `multiprocess` children, started with spawn, with one duplex pipe each. They import neither torch nor
composer, which saves 0.7 GB and most of a minute. They use one thread, and leave nothing in /dev/shm. They die with
their parent, by the parent-death signal or at the end of file on the pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from multiprocess import spawn
from multiprocess.connection import Connection
from multiprocess.context import SpawnContext

from lacy_stream.stream.workers.protocol import Answer, WorkerCannotStart, WorkerDied

if TYPE_CHECKING:  # numpy must not be loaded before a worker has limited its threads
    from annotator import Annotator, AnnotatorSettings, Document, LabelledTokens

START_TIMEOUT_S = 300.0

_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


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
        context = SpawnContext()
        self._pipe, child_pipe = context.Pipe(duplex=True)
        self._killing = threading.Lock()
        self._closed = False
        # The settings are sent as bytes, and `_work` unpickles them. That imports numpy, whose threads must be
        # limited before.
        self._process = context.Process(
            target=_work, args=(child_pipe, pickle.dumps(settings), os.getpid()), name=name, daemon=True
        )
        with _without_main_script():
            self._process.start()
        child_pipe.close()
        self.pid: int = self._process.pid  # type: ignore[assignment]  # a started process has one
        with self._limited(START_TIMEOUT_S):
            kind, payload = pickle.loads(self._pipe.recv_bytes())
        if kind == "failed":
            self.close()
            raise WorkerCannotStart(payload)
        self.identity: dict[str, str] = payload

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


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Keep spawn from running the user's main script again in every worker: that took 9 s and loaded torch."""
    with _starting:
        original = spawn.get_preparation_data
        spawn.get_preparation_data = lambda name: {
            key: value for key, value in original(name).items() if not key.startswith("init_main_from")
        }
        try:
            yield
        finally:
            spawn.get_preparation_data = original


_starting = threading.Lock()  # one start at a time, because each replaces a function of the module


# --- in the process ----------------------------------------------------------------------------------------


def _work(pipe: Connection, pickled_settings: bytes, parent_pid: int) -> None:
    """Main function of a worker process. It reads batches of documents, and answers with one result or error text for
    each document."""
    _die_with(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the trainer decides
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    settings: AnnotatorSettings = pickle.loads(pickled_settings)
    if settings.labeller is None and (settings.model is None or not settings.model.endswith("_trf")):
        sys.modules["torch"] = None  # type: ignore[assignment]  # thinc would import it without use: 4 s, 0.4 GB
    with contextlib.suppress(EOFError, OSError):  # the parent closes the pipe to end the worker
        try:
            annotator = settings.build()
        except Exception as error:
            _send(pipe, "failed", f"{type(error).__name__}: {error}")
            return
        _send(pipe, "ready", annotator.identity)
        while True:
            documents = pickle.loads(pipe.recv_bytes())
            start = time.process_time()
            results, fallbacks = _annotate_and_name(annotator, documents)
            _send(pipe, "done", (results, time.process_time() - start, annotator.stats(), fallbacks))


def _annotate_and_name(
    annotator: Annotator, documents: list[Document]
) -> tuple[list[LabelledTokens | str], dict[str, str]]:
    """Annotate a batch, and find the documents on which the engine failed.

    The parser only counts its failures. If the count has risen, which is rare, the documents are annotated once more,
    each alone. This gives the same labels, and the count then tells which documents it was.

    Returns:
        The results, and document id -> reason.
    """
    before = _fallbacks(annotator)
    results = _annotate(annotator, documents)
    if _fallbacks(annotator) == before:
        return results, {}
    named: dict[str, str] = {}
    for document in documents:
        before = _fallbacks(annotator)
        _annotate(annotator, [document])
        if count := _fallbacks(annotator) - before:
            named[document.id] = f"the engine failed on {count:.0f} text(s) of it (see the log); spaCy annotated them"
    return results, named


def _fallbacks(annotator: Annotator) -> float:
    return annotator.stats().get("fallbacks", 0)


def _annotate(annotator: Annotator, documents: list[Document]) -> list[LabelledTokens | str]:
    """Annotate a batch. If it fails, annotate document by document, so that only the right one gets the error."""
    try:
        return [*annotator.label(documents)]
    except Exception as error:
        if len(documents) == 1:
            return ["".join(traceback.format_exception_only(error)).strip()]
        return [result for document in documents for result in _annotate(annotator, [document])]


def _send(pipe: Connection, kind: str, payload: object) -> None:
    pipe.send_bytes(pickle.dumps((kind, payload), protocol=pickle.HIGHEST_PROTOCOL))


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the parent dies, and exit at once if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
