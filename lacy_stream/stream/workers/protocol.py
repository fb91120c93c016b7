"""The interface between the pool and a worker, wherever the worker runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # a worker process imports this before it has limited numpy's threads
    from annotator import AnnotatorSettings, Document, LabelledTokens


class WorkerDied(Exception):
    """The worker has ended, or was ended. The text is a predicate, such as "died with exit code -9"."""


class WorkerCannotStart(Exception):
    """The worker cannot load its tokenizer, parser or labeller, so no other worker can. The text says why."""


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
