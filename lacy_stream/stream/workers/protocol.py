"""What the pool asks of a worker, wherever it runs: start, annotate, end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # a worker process imports this before it has limited numpy's threads
    from annotator import AnnotatorSettings, Document, LabelledTokens


class WorkerDied(Exception):
    """The worker ended or was ended; the text says how, as a predicate: "died with exit code -9"."""


class WorkerCannotStart(Exception):
    """The worker cannot load its tokenizer, parser or labeller, and no other will; the text says why."""


class Answer(NamedTuple):
    """What a worker says about one batch.

    results: for each document its labels, or the text of the error that it raised. cpu_s: CPU seconds used.
    engine: ``Annotator.stats()``, since the worker started. fallbacks: document id -> why spaCy had to do a document
    that made the engine fail.
    """

    results: list[LabelledTokens | str]
    cpu_s: float
    engine: dict[str, float]
    fallbacks: dict[str, str]


class Worker(Protocol):
    """One annotator that runs somewhere else, and annotates one batch at a time.

    The pool starts and uses a worker from one thread, which lives as long as the worker. Only ``kill`` may be called
    from any thread, at any time.
    """

    @property
    def identity(self) -> dict[str, str]:
        """The ``Annotator.identity`` of the annotator that the worker has loaded."""
        ...

    def is_alive(self) -> bool:
        """Whether the worker can still be asked."""
        ...

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        """Annotate a batch.

        Raises:
            WorkerDied: the worker ended, or gave no answer in time and was ended.
        """
        ...

    def kill(self) -> None:
        """End the worker, which wakes the thread that waits for its answer with ``WorkerDied``."""
        ...

    def close(self) -> None:
        """End the worker and give back what it holds. Safe to call twice."""
        ...


StartWorker = Callable[[str, "AnnotatorSettings"], Worker]
"""Name for people, settings -> a worker that has loaded its annotator. Raises WorkerCannotStart or WorkerDied."""
