"""Workers without a process: those of one kind read words and die when they are told to, the others annotate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np

from annotator import Annotator, AnnotatorSettings, Document, FactClass, LabelledTokens
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.batch import annotate_and_name
from lacy_stream.stream.workers.protocol import Answer, WorkerDied
from lacy_stream.stream.workers.remote_settings import RemoteSettings


def words_as_tokens(text: str) -> LabelledTokens:
    """A token for each word of a text: its id is its length, and it is FACTUAL if it begins with a capital."""
    words = text.split()
    ends = np.cumsum([len(word) + 1 for word in words], dtype=np.int32) - 1
    starts = ends - np.array([len(word) for word in words], dtype=np.int32)
    return LabelledTokens(
        np.array([len(word) for word in words], np.int32),
        np.array([FactClass.FACTUAL if word[0].isupper() else FactClass.OTHER for word in words], np.uint8),
        np.stack([starts, ends], axis=1).astype(np.int32),
    )


class WordWorkers:
    """Starts ``WordWorker`` for a pool, and remembers what they did.

    Args:
        deaths: document id -> how many workers it ends.
        errors: document id -> the error that it raises.
        fallbacks: document id -> why spaCy had to do it.
        machine_deaths: document id -> how many workers are lost with their machine while they hold it.
        waits: ids of documents that the first worker that has one does not answer before it is killed.
        failed_starts: raised by the first starts, one each.
    """

    identity = {"tokenizer": "words", "rules": "capitals"}

    def __init__(
        self,
        deaths: Mapping[str, int] | None = None,
        errors: Mapping[str, str] | None = None,
        fallbacks: Mapping[str, str] | None = None,
        waits: Sequence[str] = (),
        failed_starts: Sequence[Exception] = (),
        machine_deaths: Mapping[str, int] | None = None,
    ) -> None:
        self.machine_deaths = dict(machine_deaths or {})
        self.deaths, self.errors, self.fallbacks = dict(deaths or {}), dict(errors or {}), dict(fallbacks or {})
        self.waits = set(waits)
        self.failed_starts = list(failed_starts)
        self.started: list[WordWorker] = []
        self.settings: list[AnnotatorSettings] = []

    def __call__(self, name: str, settings: AnnotatorSettings) -> WordWorker:
        self.settings.append(settings)
        if self.failed_starts:
            raise self.failed_starts.pop(0)
        self.started.append(WordWorker(name, self))
        return self.started[-1]

    @property
    def batches(self) -> list[list[str]]:
        """The ids of each batch that a worker was asked for."""
        return [batch for worker in self.started for batch in worker.batches]


class WordWorker:
    """A ``Worker`` in the thread of its pool. Each document takes it a second of CPU time, it says."""

    def __init__(self, name: str, workers: WordWorkers) -> None:
        self.name, self.identity, self.place = name, workers.identity, ""
        self.batches: list[list[str]] = []
        self.timeouts_s: list[float] = []
        self.closed = False
        self._workers, self._ended = workers, threading.Event()
        self._documents = 0

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        assert self.is_alive() and not self.closed
        told = self._workers
        ids = [document.id for document in documents]
        waits = told.waits.intersection(ids)
        told.waits -= waits
        self.batches.append(ids)
        self.timeouts_s.append(timeout_s)
        if waits:
            assert self._ended.wait(30), "nobody killed the worker"
        for id in ids:
            if told.deaths.get(id, 0):
                told.deaths[id] -= 1
                self._ended.set()
            if told.machine_deaths.get(id, 0):
                told.machine_deaths[id] -= 1
                self._ended.set()
                raise WorkerDied("was lost with its machine", blames_document=False)
        if self._ended.is_set():
            raise WorkerDied("died with exit code -9")
        self._documents += len(documents)
        return Answer(
            [told.errors.get(document.id, words_as_tokens(document.text)) for document in documents],
            float(len(documents)),
            {"table_hit_rate": 1 / self._documents},
            {id: why for id, why in told.fallbacks.items() if id in ids},
        )

    def kill(self) -> None:
        self._ended.set()

    def close(self) -> None:
        self._ended.set()
        self.closed = True


class WordSource:
    """A source of ``WordWorker``s on other machines, which do not exist.

    Args:
        places: for each start, the address of a machine; or what is raised.
    """

    def __init__(self, workers: WordWorkers, places: Sequence[str | Exception] = ()) -> None:
        self.workers, self.places = workers, list(places)
        self._changed, self._closed, self._waiting = threading.Condition(), False, 0

    def __call__(self, remote: RemoteSettings, settings: AnnotatorSettings, report: Report) -> WordSource:
        self.settings = settings
        return self

    def offer(self, place: str) -> None:
        """One more place is free."""
        with self._changed:
            self.places.append(place)
            self._changed.notify()

    def start(self, name: str, expected: Callable[[], dict[str, str]]) -> WordWorker:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self.places or self._closed)
            self._waiting -= 1
            if self._closed:
                raise WorkerDied("was closed", blames_document=False)
            place = self.places.pop(0)
        if isinstance(place, Exception):
            raise place
        assert expected() == self.workers.identity
        worker = self.workers(name, self.settings)
        worker.place = place
        return worker

    def waiting(self) -> str:
        return "there are no free CPUs" if self._waiting else ""

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ThreadWorkers:
    """Starts ``ThreadWorker``s for a pool, all with one annotator: what is tested with them is the pool's user.

    Args:
        annotator: as a rule the session's, which has its parser loaded already; without one, that of the pool's
            settings is built.
        longest_pause_s: each answer takes a random time up to this, so that answers come in any order.
    """

    def __init__(self, annotator: Annotator | None = None, longest_pause_s: float = 0, seed: int = 0) -> None:
        self.annotator, self.longest_pause_s = annotator, longest_pause_s
        self.random, self.annotating = Random(seed), threading.Lock()
        self.gate = threading.Event()
        """Answers are held back while it is not set."""
        self.gate.set()

    def __call__(self, name: str, settings: AnnotatorSettings) -> ThreadWorker:
        with self.annotating:
            if self.annotator is None:
                self.annotator = settings.build()
        return ThreadWorker(self, self.annotator)


class ThreadWorker:
    """A ``Worker`` in the thread of its pool that annotates as a process would."""

    def __init__(self, workers: ThreadWorkers, annotator: Annotator) -> None:
        self._workers, self._annotator, self._ended = workers, annotator, threading.Event()
        self.identity, self.place = annotator.identity, ""

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        workers = self._workers
        with workers.annotating:
            results, fallbacks = annotate_and_name(self._annotator, documents)
            pause_s = workers.random.uniform(0, workers.longest_pause_s)
        workers.gate.wait(30)
        if self._ended.wait(pause_s):
            raise WorkerDied("died with exit code -9")
        return Answer(results, 0.01, self._annotator.stats(), fallbacks)

    def kill(self) -> None:
        self._ended.set()

    close = kill
