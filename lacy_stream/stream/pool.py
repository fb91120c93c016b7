"""Documents -> labelled tokens, by N workers that are replaced when they fail.

    submit(document) -> Future           The caller keeps the futures in an order of its own, so any number of streams
                                         can share one pool.
    queue --batch--> thread --> worker   The thread of the worker sets the futures.

Each worker has a thread, which takes a batch, sends it and waits for the answer. A worker that dies or does not answer
in time is replaced. The documents that it held are tried again, each alone, so the labels are those of an undisturbed
run. A document that has ended two workers, or that raises an error, goes into quarantine: the report names it, its
tokens are kept, and it gets no fact labels. With a label cache, a document that was labelled before is not queued.
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
"""A batch ends at either limit. It is large enough that messages cost nothing, and small enough that a worker answers
within about two seconds at the speed of stock spaCy."""

TRIES = 2
"""Number of workers that a document may end before it goes into quarantine."""
STARTS = 3
"""Number of failed starts of one worker, one after another, after which the pool fails."""
SLOWEST_CHARACTERS_PER_S = 1_000
"""Speed from which the time limit of a batch is computed: a fortieth of stock spaCy's speed."""


class AnnotationError(LacyStreamError, RuntimeError):
    """The pool cannot annotate: no worker starts, too many documents fail, or it was closed."""


@dataclass(frozen=True)
class WorkerRate:
    """Tokens that one worker has annotated, and the time that they took. Its replacements count as the same worker."""

    tokens: int = 0
    """Tokens that it has annotated."""
    cpu_s: float = 0.0
    """Seconds of CPU time that this took. If the worker has a core of its own, this is its working time."""
    engine: dict[str, float] = field(default_factory=dict)
    """``Annotator.stats`` of the worker's present process."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of CPU time."""
        return self.tokens / self.cpu_s if self.cpu_s else 0.0


@dataclass(frozen=True)
class PoolStats:
    """Counters since the pool started."""

    documents: int = 0
    """Documents delivered."""
    cached: int = 0
    """Delivered documents whose labels came from the label cache."""
    workers: tuple[WorkerRate, ...] = ()
    """The rate of each worker."""
    queued: int = 0
    """Documents that wait for a worker."""
    in_flight: int = 0
    """Documents that workers are annotating."""

    @property
    def tokens(self) -> int:
        """Tokens that the workers have annotated."""
        return sum(worker.tokens for worker in self.workers)

    @property
    def tokens_per_s_per_core(self) -> float:
        """Tokens per second of CPU time, over all workers."""
        return WorkerRate(self.tokens, sum(worker.cpu_s for worker in self.workers)).tokens_per_s

    @property
    def hit_rates(self) -> dict[str, float]:
        """Mean hit rates of the engine's tables over the workers, by name; empty without an engine."""
        engines = [worker.engine for worker in self.workers if worker.engine]
        names = [name for name in engines[0] if name.endswith("_hit_rate")] if engines else []
        return {name: sum(engine[name] for engine in engines) / len(engines) for name in names}


@dataclass(eq=False)
class _Job:
    document: Document
    future: Future[LabelledTokens]
    deaths: int = 0  # number of workers that died while they held it


def default_num_workers(ranks_on_node: int = 1) -> int:
    """The number of cores that this process may use, divided by the ranks of the node, and at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, ranks_on_node))


class AnnotationPool:
    """N workers that annotate documents, each with an ``annotator.Annotator``. They start in the background.

    Args:
        settings: the annotator that every worker loads.
        num_workers: by default, the number of cores that this process may use.
        quarantine_limit: number of documents that may go into quarantine before the pool fails; with 0, the pool fails
            at the first.
        timeout_s: seconds that a batch may take before its worker is replaced. One second is added for every 1,000
            characters.
        report: gets an event for each restart and each document in quarantine.
        label_cache: folder of a ``LabelCache``; None for no cache.
        label_cache_limit: bytes that the folder may take.
        start_worker: starts a worker; by default, a process of this machine.

    Raises:
        UsageError: ``num_workers`` is below 1.
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
        """Document id -> reason why the document has no fact labels."""
        # All workers have the same identity. The first one that is ready sets it, and any thread may wait for it.
        self._identity: Future[dict[str, str]] = Future()
        self._changed = threading.Condition()  # guards all fields below
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._workers: dict[int, Worker] = {}
        self._error: AnnotationError | None = None
        self._documents = self._cached = 0
        self._rates = [WorkerRate()] * num_workers  # frozen values, so they may be shared
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"annotation-{index}", daemon=True)
            for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        # At exit, `close` must run before multiprocess ends its children: their end would look like deaths of workers.
        atexit.register(self.close)

    def submit(self, document: Document) -> Future[LabelledTokens]:
        """Queue one document, or answer from the label cache.

        With a label cache, the first call waits until a worker has loaded its annotator, because the annotator's
        fingerprint names the store.

        Returns:
            A future of the document's labels. It raises ``AnnotationError`` if the pool fails or is closed.

        Raises:
            AnnotationError: the pool has failed or was closed.
            TypeError: the document's text is not a str.
        """
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
        """The ``Annotator.identity`` of the workers. Waits until one of them has loaded its annotator."""
        return self._identity.result()

    @property
    def fingerprint(self) -> str:
        """The ``Annotator.fingerprint`` of the workers, a digest of ``identity``. Waits as ``identity`` does."""
        from annotator.annotate import fingerprint

        return fingerprint(self.identity)

    def stats(self) -> PoolStats:
        """The counters of this pool."""
        with self._changed:
            return PoolStats(
                documents=self._documents,
                cached=self._cached,
                workers=tuple(self._rates),
                queued=len(self._queue),
                in_flight=len(self._running),
            )

    def close(self) -> None:
        """End the workers. Futures without a result raise ``AnnotationError``. Safe to call twice."""
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
        """Give batches to one worker, and replace it when it dies, until the pool ends."""
        try:
            worker = self._start(index)
            while batch := self._take():
                if not worker.is_alive():  # it died while idle, so no document is to blame
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
        except Exception as error:  # a bug in this file must reach the consumer, who would otherwise wait for ever
            log.exception("the annotation pool failed")
            self._fail(AnnotationError(f"the annotation pool failed: {error!r}"))
        finally:
            with self._changed:
                last = self._workers.pop(index, None)
            if last is not None:
                last.close()

    def _start(self, index: int) -> Worker:
        """Start a worker and wait until it is ready."""
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
        """Wait for the next batch. It is empty when the pool ends.

        A document that a dead worker held comes alone, so that the next death tells which document is to blame. Other
        batches are kept small when the queue is short: with 8 queued documents and 4 workers, a batch has 2.
        """
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
                    # This marks the future as running, or drops the job if its future was cancelled. The future of a
                    # job that comes again is running already, and must not be marked twice.
                    if alone or job.future.set_running_or_notify_cancel():
                        self._running.add(job)
                        batch.append(job)
                        characters += BATCH_CHARACTERS if alone else job.document.characters
        return batch

    def _deliver(self, batch: list[_Job], answer: Answer, index: int) -> None:
        """Count a batch, and set its futures. They are set last and without the lock, because setting a future runs the
        caller's callbacks."""
        for document, reason in answer.fallbacks.items():
            self.report.add("engine_fallback", document, reason)
        labels = [self._labels(job, result) for job, result in zip(batch, answer.results, strict=True)]
        with self._changed:
            if batch[0] not in self._running:
                return  # the pool has ended in the meantime, and has set the futures itself
            self._running.difference_update(batch)
            self._documents += len(batch)
            rate = self._rates[index]
            tokens = sum(len(label) for label in labels)
            self._rates[index] = WorkerRate(rate.tokens + tokens, rate.cpu_s + answer.cpu_s, answer.engine)
        for job, label in zip(batch, labels, strict=True):
            job.future.set_result(label)

    def _try_again(self, batch: list[_Job], index: int, death: str) -> None:
        """Put the documents of a dead worker back at the head of the queue, in their order. A document that came alone
        and has now ended ``TRIES`` workers goes into quarantine instead."""
        with self._changed:
            if self._error is not None:
                return  # close() ended the worker
            for job in batch:
                job.deaths += 1
            # A culprit stays among the running documents, where ``_deliver`` looks for it.
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
        """Turn a worker's result into labels. After an error the document goes into quarantine, and its labels are its
        tokens without facts, or no tokens if it cannot even be tokenised.

        Raises:
            AnnotationError: too many documents are in quarantine.
        """
        if not isinstance(result, str):
            cache = self._open_cache()
            if cache is not None:
                cache.put(job.document, result)
            return result
        plain = replace(self.settings, model=None, labeller=None).build()
        try:
            unlabelled = replace(job.document, annotate=False)  # without its spans, which may be the cause
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
        """The cache, or None. It is opened at the first use, which waits for the fingerprint of the annotator."""
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
        """End the pool. Every future without a result gets the first error, so that nobody waits for ever."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            # As in `_take`: cancelled futures are left out, and those that ran before are not marked again.
            jobs = [job for job in self._queue if job.deaths or job.future.set_running_or_notify_cancel()]
            jobs += self._running
            self._queue.clear()
            self._running.clear()
            workers = list(self._workers.values())
            if not self._identity.done():
                self._identity.set_exception(error)
            self._changed.notify_all()
        # Without the lock: a thread whose worker dies takes the lock itself.
        for worker in workers:
            worker.kill()
        for job in jobs:
            job.future.set_exception(error)
