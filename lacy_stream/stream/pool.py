"""Document -> LabelledTokens by N workers, whatever happens to them.

    submit(document) -> Future          the caller keeps the futures in its own order: order is not the pool's
                                        business, and any number of streams can share one pool
    queue --batch--> thread --> worker, in a process of its own; the thread sets the futures

One thread serves one worker: it takes a batch, sends it, waits for the answer. A worker that dies or does not
answer is replaced; the documents that it held are tried again, each alone, so the labels are those of an undisturbed
run. A document that ends two workers, or that raises an error, is put in quarantine: its tokens are kept, it gets no
fact labels, and it is named. With a label cache, a document that was labelled before does not enter the queue.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lacy_stream.errors import LacyStreamError, UsageError
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.local import LocalWorker
from lacy_stream.stream.workers.protocol import Answer, StartWorker, Worker, WorkerCannotStart, WorkerDied

if TYPE_CHECKING:
    from annotator import AnnotatorSettings, Document, LabelledTokens
    from lacy_stream.stream.labels.cache import LabelCache

log = logging.getLogger(__name__)

BATCH_DOCUMENTS = 16
BATCH_CHARACTERS = 32_000
"""A batch ends at either limit: large enough that messages cost nothing, small enough that a worker answers within
about two seconds at the speed of stock spaCy."""

TRIES = 2
STARTS = 3
SLOWEST_CHARACTERS_PER_S = 1_000
"""Added to the time limit of a batch: a fortieth of stock spaCy's speed."""


class AnnotationError(LacyStreamError, RuntimeError):
    """The pool cannot annotate: no worker starts, too many documents fail, or it was closed."""


@dataclass(frozen=True)
class WorkerRate:
    """What one worker has annotated, and the CPU time that it took; on a core of its own that is its working time.
    ``engine``: what ``Annotator.stats`` says in the process that is this worker now."""

    tokens: int = 0
    cpu_s: float = 0.0
    engine: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.cpu_s if self.cpu_s else 0.0


@dataclass(frozen=True)
class PoolStats:
    """Counters since the pool started. ``documents`` and ``cached``: delivered in all, and of these from the label
    cache. ``workers``: one rate for each. ``queued``: documents that wait for a worker; ``in_flight``: those that
    workers have."""

    documents: int = 0
    cached: int = 0
    workers: tuple[WorkerRate, ...] = ()
    queued: int = 0
    in_flight: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the workers have annotated."""
        return sum(worker.tokens for worker in self.workers)

    @property
    def tokens_per_s_per_core(self) -> float:
        return WorkerRate(self.tokens, sum(worker.cpu_s for worker in self.workers)).tokens_per_s

    @property
    def hit_rates(self) -> dict[str, float]:
        """The hit rates of the engine's tables by name, each the mean over the workers; none where there is no
        engine."""
        engines = [worker.engine for worker in self.workers if worker.engine]
        names = [name for name in engines[0] if name.endswith("_hit_rate")] if engines else []
        return {name: sum(engine[name] for engine in engines) / len(engines) for name in names}


@dataclass(eq=False)
class _Job:
    document: Document
    future: Future[LabelledTokens]
    deaths: int = 0  # of workers that held it


def default_num_workers(ranks_on_node: int = 1) -> int:
    """The cores that this process may use, shared among the ranks of the node; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, ranks_on_node))


class AnnotationPool:
    """N workers that run ``annotator.Annotator`` on documents.

    Args:
        settings: the annotator that every worker loads.
        num_workers: default, the cores that this process may use. They start in the background.
        quarantine_limit: documents that may go without fact labels before the pool fails; 0: fail at the first.
        timeout_s: a batch may take this long, and a second more per 1,000 characters, before its worker is
            replaced.
        report: where restarts and quarantined documents are noted.
        label_cache: folder of a ``LabelCache``, and the bytes that it may take; None for no cache.
        start_worker: what starts a worker; default, a process of this machine.
    """

    def __init__(
        self,
        settings: AnnotatorSettings,
        num_workers: int | None = None,
        *,
        quarantine_limit: int = 100,
        timeout_s: float = 60.0,
        report: Report | None = None,
        label_cache: str | os.PathLike[str] | None = None,
        label_cache_limit: int = 20 << 30,
        start_worker: StartWorker = LocalWorker,
    ) -> None:
        num_workers = default_num_workers() if num_workers is None else num_workers
        if num_workers < 1:
            raise UsageError(f"num_workers is {num_workers}: the pool needs at least one worker")
        self.settings, self.num_workers = settings, num_workers
        self._start_worker = start_worker
        self._quarantine_limit, self._timeout_s = quarantine_limit, timeout_s
        self.report = Report() if report is None else report
        self._cache_settings = None if label_cache is None else (label_cache, label_cache_limit)
        self._cache: LabelCache | None = None
        self._cache_lock = threading.Lock()
        self.quarantine: dict[str, str] = {}
        """Document id -> why it has no fact labels."""
        self._identity: Future[dict[str, str]] = Future()
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._workers: dict[int, Worker] = {}
        self._error: AnnotationError | None = None
        self._documents = self._cached = 0
        self._rates = [WorkerRate()] * num_workers
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"annotation-{index}", daemon=True)
            for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # before multiprocess ends its children, which would look like deaths

    def submit(self, document: Document) -> Future[LabelledTokens]:
        """Queue one document. The future raises ``AnnotationError`` where the pool failed or was closed. With a label
        cache, the first call waits until a worker has loaded its annotator, whose fingerprint names the store."""
        if not isinstance(document.text, str):
            raise TypeError(f"document {document.id!r}: its text is {type(document.text).__name__}, not str")
        future: Future[LabelledTokens] = Future()
        labelled = self._from_cache(document)
        with self._changed:
            if self._error is not None:
                raise self._error
            if labelled is None:
                self._queue.append(_Job(document, future))
                self._changed.notify()
                return future
            self._documents += 1
            self._cached += 1
        future.set_result(labelled)
        return future

    @property
    def identity(self) -> dict[str, str]:
        """The ``Annotator.identity`` of the workers; waits until one of them has loaded its annotator."""
        return self._identity.result()

    @property
    def fingerprint(self) -> str:
        """``identity`` as one hex digest, the ``Annotator.fingerprint`` of the workers; waits as ``identity`` does."""
        from annotator.annotate import fingerprint

        return fingerprint(self.identity)

    def stats(self) -> PoolStats:
        with self._changed:
            return PoolStats(
                documents=self._documents,
                cached=self._cached,
                workers=tuple(self._rates),
                queued=len(self._queue),
                in_flight=len(self._running),
            )

    def close(self) -> None:
        """End the workers. Open futures raise ``AnnotationError``. Safe to call twice."""
        self._fail(AnnotationError("the annotation pool is closed"))
        for thread in self._threads:
            thread.join(timeout=10)
        with self._cache_lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = self._cache_settings = None
        atexit.unregister(self.close)

    def __enter__(self) -> AnnotationPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- one thread per worker --------------------------------------------------------------------------------

    def _serve(self, index: int) -> None:
        """Keep one worker busy, and replace it when it dies, until the pool ends."""
        try:
            worker = self._start(index)
            while batch := self._take():
                if not worker.is_alive():  # it died without work: no document is to blame
                    self.report.add("worker_restarted", f"annotation worker {index}", "it died while it had no work")
                    worker.close()
                    worker = self._start(index)
                characters = sum(job.document.characters for job in batch)
                timeout_s = self._timeout_s + characters / SLOWEST_CHARACTERS_PER_S
                try:
                    answer = worker.annotate([job.document for job in batch], timeout_s)
                except WorkerDied as death:
                    self._try_again(batch, index, str(death))
                    worker = self._start(index)
                else:
                    self._deliver(batch, answer, index)
        except AnnotationError as error:
            self._fail(error)
        except Exception as error:  # a bug of ours must reach the consumer, who would wait for ever
            log.exception("the annotation pool failed")
            self._fail(AnnotationError(f"the annotation pool failed: {error!r}"))
        finally:
            with self._changed:
                last = self._workers.pop(index, None)
            if last is not None:
                last.close()

    def _start(self, index: int) -> Worker:
        """A worker that is ready."""
        deaths = []
        while len(deaths) < STARTS and self._error is None:
            try:
                worker = self._start_worker(f"annotator-{index}", self.settings)
            except WorkerCannotStart as error:
                raise AnnotationError(f"annotation worker {index} could not start: {error}") from None
            except WorkerDied as death:
                deaths.append(str(death))
                continue
            with self._changed:
                self._workers[index] = worker
                if not self._identity.done():
                    self._identity.set_result(worker.identity)
            return worker
        raise self._error or AnnotationError(f"annotation worker {index} did not start: it {'; '.join(deaths)}")

    def _take(self) -> list[_Job]:
        """The next batch, waiting for one; empty when the pool ends. What a dead worker held comes alone."""
        batch: list[_Job] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._error is not None)
                if self._error is not None:
                    break
                size = min(BATCH_DOCUMENTS, -(-len(self._queue) // self.num_workers))
                characters = 0
                while self._queue and len(batch) < size and characters < BATCH_CHARACTERS:
                    alone = self._queue[0].deaths > 0
                    if alone and batch:
                        break
                    job = self._queue.popleft()
                    if alone or job.future.set_running_or_notify_cancel():
                        self._running.add(job)
                        batch.append(job)
                        characters += BATCH_CHARACTERS if alone else job.document.characters
        return batch

    def _deliver(self, batch: list[_Job], answer: Answer, index: int) -> None:
        for document, reason in answer.fallbacks.items():
            self.report.add("engine_fallback", document, reason)
        labels = [self._labels(job, result) for job, result in zip(batch, answer.results, strict=True)]
        with self._changed:
            if batch[0] not in self._running:
                return  # the pool has ended, and the futures with it
            self._running.difference_update(batch)
            self._documents += len(batch)
            rate = self._rates[index]
            tokens = sum(len(label) for label in labels)
            self._rates[index] = WorkerRate(rate.tokens + tokens, rate.cpu_s + answer.cpu_s, answer.engine)
        for job, label in zip(batch, labels, strict=True):
            job.future.set_result(label)

    def _try_again(self, batch: list[_Job], index: int, death: str) -> None:
        """Put the documents of a dead worker back, or in quarantine the one that has now ended two."""
        with self._changed:
            if self._error is not None:
                return  # close() ended the worker
            for job in batch:
                job.deaths += 1
            culprit = batch[0] if len(batch) == 1 and batch[0].deaths >= TRIES else None
            if culprit is None:
                self._running.difference_update(batch)
                self._queue.extendleft(reversed(batch))
                self._changed.notify_all()
        held = ", ".join(job.document.id for job in batch)
        self.report.add("worker_restarted", f"annotation worker {index}", f"it {death}; it held {held}")
        if culprit is not None:
            reason = f"it ended {culprit.deaths} workers; the last one {death}"
            self._deliver([culprit], Answer([reason], 0.0, {}, {}), index)

    def _labels(self, job: _Job, result: LabelledTokens | str) -> LabelledTokens:
        """The labels that a worker gave, or, where it gave an error, the document's tokens without facts; no tokens
        where even that fails."""
        if not isinstance(result, str):
            cache = self._open_cache()
            if cache is not None:
                cache.put(job.document, result)
            return result
        plain = replace(self.settings, model=None, labeller=None).build()
        try:
            unlabelled = replace(job.document, annotate=False)  # its spans may be what is wrong with it
            labels, event, reason = plain.label([unlabelled])[0], "document_quarantined", result
        except ValueError:
            labels, event, reason = plain.annotate([""])[0], "document_skipped", f"it cannot be tokenised: {result}"
        self.report.add(event, job.document.id, reason)
        with self._changed:
            self.quarantine[job.document.id] = reason
            count = len(self.quarantine)
        if count > self._quarantine_limit:
            raise AnnotationError(
                f"{count} documents could not be annotated, and quarantine_limit is {self._quarantine_limit}: "
                + "; ".join(f"{name!r}: {why}" for name, why in list(self.quarantine.items())[:5])
            )
        return labels

    # --- the label cache ------------------------------------------------------------------------------------------

    def _from_cache(self, document: Document) -> LabelledTokens | None:
        cache = self._open_cache()
        return None if cache is None else cache.get(document)

    def _open_cache(self) -> LabelCache | None:
        """The cache, opened as soon as a worker has said which annotator it runs: that names the store."""
        if self._cache is not None or self._cache_settings is None:
            return self._cache
        fingerprint = self.fingerprint
        with self._cache_lock:
            if self._cache is None and self._cache_settings is not None:
                from lacy_stream.stream.labels.cache import LabelCache

                folder, limit = self._cache_settings
                self._cache = LabelCache(folder, fingerprint, limit, self.report)
            return self._cache

    def _fail(self, error: AnnotationError) -> None:
        """End the pool: every open future gets the first error, so that nobody waits for ever."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            jobs = [job for job in self._queue if job.deaths or job.future.set_running_or_notify_cancel()]
            jobs += self._running
            self._queue.clear()
            self._running.clear()
            workers = list(self._workers.values())
            if not self._identity.done():
                self._identity.set_exception(error)
            self._changed.notify_all()
        for worker in workers:
            worker.kill()
        for job in jobs:
            job.future.set_exception(error)
