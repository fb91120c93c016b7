"""The interface between the pool and its workers, wherever they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # a worker process imports this before it has limited numpy's threads
    from annotator import AnnotatorSettings, Document, LabelledTokens
    from lacy_stream.stream.report import Report
    from lacy_stream.stream.workers.remote_settings import RemoteSettings


class WorkerDied(Exception):
    """The worker has ended, or was ended. The text is a predicate, such as "died with exit code -9".

    Args:
        text: the predicate.
        blames_document: False if the cause lies elsewhere than in the documents that the worker held, such as in its
            machine. The death then does not count against them.
    """

    def __init__(self, text: str, blames_document: bool = True) -> None:
        super().__init__(text)
        self.blames_document = blames_document


class WorkerCannotStart(Exception):
    """The worker cannot load its tokenizer, parser or labeller, so no other worker can. The text says why."""


class WorkerRefused(Exception):
    """A worker on another machine cannot load its annotator, or would label otherwise than the run.

    Args:
        place: address of the machine.
        reason: what is wrong there.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


class Answer(NamedTuple):
    """The answer of a worker to one batch."""

    results: list[LabelledTokens | str]
    """For each document its labels, or the text of the error that it raised."""
    cpu_s: float
    """Seconds of CPU time that the batch took."""
    engine: dict[str, float]
    """``Annotator.stats()``, counted since the worker started."""
    fallbacks: dict[str, str]
    """Document id -> reason, for documents that made the engine fail and that spaCy annotated instead."""


class Worker(Protocol):
    """One annotator that runs elsewhere, and annotates one batch at a time.

    The pool starts and uses a worker from one thread, which lives as long as the worker. Only ``kill`` may be called
    from any thread, at any time.
    """

    @property
    def identity(self) -> dict[str, str]:
        """The ``Annotator.identity`` of the annotator that the worker has loaded."""
        ...

    @property
    def place(self) -> str:
        """The address of the machine on which the worker runs; "" for this one."""
        ...

    def is_alive(self) -> bool:
        """Whether the worker can take another batch."""
        ...

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        """Annotate a batch.

        Raises:
            WorkerDied: the worker has ended, or was ended because it did not answer in time.
        """
        ...

    def kill(self) -> None:
        """End the worker. A thread that waits for its answer then gets ``WorkerDied``."""
        ...

    def close(self) -> None:
        """End the worker and release its resources. Safe to call twice."""
        ...


StartWorker = Callable[[str, "AnnotatorSettings"], Worker]
"""Function of a name (for messages) and settings. It returns a worker that has loaded its annotator, or raises
WorkerCannotStart or WorkerDied."""


class WorkerSource(Protocol):
    """Starts workers on other machines, as far as there is a place for them. Every method may be called from any
    thread."""

    def start(self, name: str, expected: Callable[[], dict[str, str]]) -> Worker:
        """Start one worker. Waits for a place without limit, until the source is closed.

        Args:
            name: for people.
            expected: gives the ``Annotator.identity`` that the worker must have. It may wait, and raise.

        Raises:
            WorkerDied: the worker died while it loaded its annotator, or the source was closed.
            WorkerRefused: the machine where it was placed cannot serve this run. The next worker gets another one.
            WorkerCannotStart: no worker of this source can ever start.
        """
        ...

    def waiting(self) -> str:
        """Why workers have no place, in words; "" if none waits for one."""
        ...

    def close(self) -> None:
        """End all workers. Threads that wait for one or in one get ``WorkerDied``. Safe to call twice."""
        ...


OpenSource = Callable[["RemoteSettings", "AnnotatorSettings", "Report"], WorkerSource]
"""Function that opens a source of workers."""


def describe_difference(identity: dict[str, str], expected: dict[str, str]) -> str:
    """Say by which keys a worker would label otherwise than expected; "" if it would not."""
    return "; ".join(
        f"{key}: {identity.get(key)!r} there, {expected.get(key)!r} in the others"
        for key in dict.fromkeys([*expected, *identity])
        if identity.get(key) != expected.get(key)
    )
