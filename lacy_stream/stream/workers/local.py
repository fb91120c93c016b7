"""One annotation process: its main function, and the handle that its parent holds.

The processes are `multiprocess` children started with spawn, with one duplex pipe each. They import neither torch
nor composer (0.1 GB instead of 0.8 GB, seconds instead of a minute), use one thread, die with their parent
(parent-death signal, end of file on the pipe) and leave nothing in /dev/shm.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
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
    """A ``Worker`` that is a process of this machine: the parent's end of it.

    Use it from one thread, which must live as long as the worker: the kernel ties a child's parent-death signal to
    the thread that started it. ``kill`` may be called from any thread, at any time.

    Raises:
        WorkerCannotStart, WorkerDied: from the constructor, which waits until the parser is loaded.
    """

    def __init__(self, name: str, settings: AnnotatorSettings) -> None:
        context = SpawnContext()
        self._pipe, child_pipe = context.Pipe(duplex=True)
        self._killing = threading.Lock()
        self._closed = False
        # The settings travel as bytes: to unpickle them imports numpy, which has to wait until `_work` has limited its
        # threads.
        self._process = context.Process(
            target=_work, args=(child_pipe, pickle.dumps(settings), os.getpid()), name=name, daemon=True
        )
        with _without_main_script():
            self._process.start()
        child_pipe.close()
        self.pid: int = self._process.pid  # type: ignore[assignment]  # it has one once it was started
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
            WorkerDied: the process ended, or gave no answer in time and was killed.
        """
        with self._limited(timeout_s):
            self._pipe.send_bytes(pickle.dumps(documents, protocol=pickle.HIGHEST_PROTOCOL))
            _, payload = pickle.loads(self._pipe.recv_bytes())
        return Answer(*payload)

    @contextlib.contextmanager
    def _limited(self, timeout_s: float) -> Iterator[None]:
        """Talk to the process for a limited time. A watchdog kills it at the deadline, which ends the wait: also
        where it was stopped in the middle of a message, in either direction."""
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
        """End the process, which wakes the thread that waits for it."""
        with self._killing:
            if not self._closed:
                self._process.kill()

    def close(self) -> None:
        """End the process and give back its descriptors. Safe to call twice."""
        if self._closed:
            return
        self._pipe.close()
        self.kill()
        self._process.join()
        with self._killing:  # a watchdog may be about to kill it
            self._closed = True
            with contextlib.suppress(ValueError):  # somebody else's waitpid took its exit code
                self._process.close()


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Keep spawn from running the user's main script again in every worker (9 s and torch, measured)."""
    with _starting:
        original = spawn.get_preparation_data
        spawn.get_preparation_data = lambda name: {
            key: value for key, value in original(name).items() if not key.startswith("init_main_from")
        }
        try:
            yield
        finally:
            spawn.get_preparation_data = original


_starting = threading.Lock()  # one start at a time, since it changes a function of the module


# --- in the process ----------------------------------------------------------------------------------------


def _work(pipe: Connection, pickled_settings: bytes, parent_pid: int) -> None:
    """Main function of a worker: batches of documents in, one result or error text per document out."""
    _die_with(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = "1"
    logging.getLogger("annotator.tokenizers").setLevel(logging.ERROR)  # the parent says it once for all workers
    settings: AnnotatorSettings = pickle.loads(pickled_settings)
    if settings.labeller is None and (settings.model is None or not settings.model.endswith("_trf")):
        sys.modules["torch"] = None  # type: ignore[assignment]  # thinc would import it, unused: 4 s, 0.4 GB
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe: the end, not an error
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
    """Annotate a batch, and name the documents that spaCy had to do: document id -> reason.

    The parser only counts them. Where the count has risen, which is rare, the documents are annotated once more, each
    alone: the same labels, and the count tells whose they are.
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
            named[document.id] = f"the engine could not annotate {count:.0f} text(s) of it, see the log; spaCy did"
    return results, named


def _fallbacks(annotator: Annotator) -> float:
    return annotator.stats().get("fallbacks", 0)


def _annotate(annotator: Annotator, documents: list[Document]) -> list[LabelledTokens | str]:
    """Annotate a batch; where it fails, document by document, so that the error names the right one."""
    try:
        return [*annotator.label(documents)]
    except Exception as error:
        if len(documents) == 1:
            return ["".join(traceback.format_exception_only(error)).strip()]
        return [result for document in documents for result in _annotate(annotator, [document])]


def _send(pipe: Connection, kind: str, payload: object) -> None:
    pipe.send_bytes(pickle.dumps((kind, payload), protocol=pickle.HIGHEST_PROTOCOL))


def _die_with(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies, and leave at once if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
