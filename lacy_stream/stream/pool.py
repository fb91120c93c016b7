"""Documents -> labelled tokens, by N workers that are replaced when they fail.

    submit(document) -> Future           The caller keeps the futures in an order of its own, so any number of streams
                                         can share one pool.
    queue --batch--> thread --> worker   The thread of the worker sets the futures.

Each worker has a thread, which takes a batch, sends it and waits for the answer. A worker that dies or does not answer
in time is replaced. The documents that it held are tried again, each alone, so the labels are those of an undisturbed
run. If a worker takes much longer than expected, a second one gets its documents, too, and the first answer counts. A
document that has ended two workers, or that raises an error, goes into quarantine: the report names it, its tokens are
kept, and it gets no fact labels. With a label cache, a document that was labelled before is not queued.

Workers may be on this machine and on others. Those of this machine say what the labels of the run are: a remote worker
that would label otherwise is refused, and the others stay. A local worker that would is the end of the pool.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lacy_stream.errors import UsageError
from lacy_stream.stream.jobs import Batch, Job, JobQueue
from lacy_stream.stream.places import PlaceWatch, no_worker
from lacy_stream.stream.pool_stats import PoolStats, WorkerRate
from lacy_stream.stream.quarantine import AnnotationError, Quarantine
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.local import LocalWorker
from lacy_stream.stream.workers.protocol import (
    Answer,
    OpenSource,
    StartWorker,
    Worker,
    WorkerCannotStart,
    WorkerDied,
    WorkerRefused,
    WorkerSource,
    describe_difference,
)
from lacy_stream.stream.workers.remote import RemoteWorkers

if TYPE_CHECKING:
    from annotator import AnnotatorSettings, Document, LabelledTokens
    from lacy_stream.stream.labels.cache import LabelCache
    from lacy_stream.stream.workers.remote_settings import RemoteSettings

log = logging.getLogger(__name__)

STARTS = 3
"""Number of failed starts of one worker, one after another, after which the pool fails."""
LONGEST_PAUSE_S = 30.0
"""Seconds between two starts of a remote worker, at most, where each one fails."""
SLOWEST_CHARACTERS_PER_S = 1_000
SLOWEST_FACTOR = 10.0
"""The time limit of a batch allows for a fortieth of stock spaCy's speed, or for a tenth of the measured speed: for the
slower one."""
WATCH_S = 1.0
"""Seconds between two looks at what workers hold."""


@dataclass(eq=False)
class _Slot:
    """A place for one worker at a time, with a thread of its own."""

    index: int
    name: str
    remote: bool
    rate: WorkerRate = WorkerRate()


def default_num_workers(ranks_on_node: int = 1) -> int:
    """The number of cores that this process may use, divided by the ranks of the node, less one for the trainer, and at
    least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, ranks_on_node) - 1)


class AnnotationPool:
    """N workers that annotate documents, each with an ``annotator.Annotator``. They start in the background.

    Args:
        settings: the annotator that every worker loads.
        num_workers: workers of this machine; by default, the number of cores that this process may use, less one for
            the trainer. It may be 0 if there are remote ones.
        remote: workers of other machines, on a Ray cluster; None for none.
        quarantine_limit: number of documents that may go into quarantine before the pool fails; with 0, the pool fails
            at the first.
        timeout_s: seconds that a batch may take before its worker is replaced. One second is added for every 1,000
            characters, or more where the workers were measured to be slow.
        report: gets an event for each restart and each document in quarantine.
        label_cache: folder of a ``LabelCache``; None for no cache.
        label_cache_limit: bytes that the folder may take.
        start_worker: starts a worker of this machine; by default, a process.
        open_source: makes the source of remote workers; by default, a Ray cluster.

    Raises:
        UsageError: there is no worker, ``timeout_s`` is no number of seconds, or ``remote`` cannot be used.
    """

    def __init__(
        self,
        settings: AnnotatorSettings,
        num_workers: int | None = None,
        *,
        remote: RemoteSettings | None = None,
        quarantine_limit: int = 100,
        timeout_s: float = 60.0,
        report: Report | None = None,
        label_cache: str | os.PathLike[str] | None = None,
        label_cache_limit: int = 20 << 30,
        start_worker: StartWorker = LocalWorker,
        open_source: OpenSource = RemoteWorkers,
    ) -> None:
        num_workers = default_num_workers() if num_workers is None else num_workers
        if num_workers < (remote is None):
            raise UsageError(f"num_workers is {num_workers}: the pool needs at least one worker")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise UsageError(f"timeout_s is {timeout_s}: give a number of seconds above 0")
        self.settings, self.num_workers, self.remote = settings, num_workers, remote
        self._start_worker = start_worker
        self._timeout_s = timeout_s
        self.report = Report() if report is None else report
        self._cache_settings = None if label_cache is None else (label_cache, label_cache_limit)
        self._cache: LabelCache | None = None
        self._cache_lock = threading.Lock()
        self._quarantine = Quarantine(settings, quarantine_limit, self.report)
        # All workers have the same identity. The first local one that is ready sets it, and any thread may wait for it.
        self._identity: Future[dict[str, str]] = Future()
        self._jobs = JobQueue()
        self._lock = threading.Lock()  # guards all fields below
        self._workers: dict[int, Worker] = {}
        self._began = time.monotonic()
        self._documents = self._cached = 0
        self._places: dict[str, WorkerRate] = {}
        self._source: WorkerSource | None = None
        if remote is not None:
            self._source = open_source(remote, settings, self.report)
        self._slots = [_Slot(index, f"annotation worker {index}", False) for index in range(num_workers)]
        if remote is not None:
            numbers = range(remote.num_workers)
            self._slots += [_Slot(num_workers + number, f"remote worker {number}", True) for number in numbers]
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=slot.name.replace(" ", "-"), daemon=True)
            for slot in self._slots
        ]
        self._threads.append(threading.Thread(target=self._watch, name="annotation-watch", daemon=True))
        if not num_workers:
            self._threads.append(threading.Thread(target=self._find_identity, name="annotation-identity", daemon=True))
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
        labelled = self._from_cache(document)
        if labelled is None:
            return self._jobs.put(document)
        if self._jobs.error is not None:
            raise self._jobs.error
        with self._lock:
            self._documents += 1
            self._cached += 1
        future: Future[LabelledTokens] = Future()
        future.set_result(labelled)
        return future

    @property
    def quarantine(self) -> dict[str, str]:
        """Document id -> reason why the document has no fact labels."""
        return self._quarantine.reasons

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
        queued, in_flight = self._jobs.counts()
        waiting = "" if self._source is None else self._source.waiting()
        with self._lock:
            return PoolStats(
                documents=self._documents,
                cached=self._cached,
                workers=tuple(slot.rate for slot in self._slots),
                queued=queued,
                in_flight=in_flight,
                seconds=time.monotonic() - self._began,
                ready=len(self._workers),
                places=dict(self._places),
                remote=0 if self.remote is None else self.remote.num_workers,
                waiting=waiting,
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

    def _serve(self, slot: _Slot) -> None:
        """Give batches to one worker, and replace it when it dies, until the pool ends."""
        try:
            worker = self._start(slot)
            while (batch := self._jobs.take(len(self._workers))) is not None:
                if not worker.is_alive():  # it died while idle, so no document is to blame
                    self._jobs.lost(batch, blame=False)
                    self._report_restart(slot, "it died while it had no work")
                    worker = self._replace(worker, slot)
                    continue
                since = time.monotonic()
                try:
                    answer = worker.annotate(batch.documents, self._time_limit_s(batch))
                except WorkerDied as death:
                    self._try_again(batch, slot, death)
                    worker = self._replace(worker, slot)
                else:
                    self._deliver(batch, answer, slot, worker.place, time.monotonic() - since)
        except AnnotationError as error:
            self._fail(error)
        except Exception as error:  # a bug in this file must reach the consumer, who would otherwise wait for ever
            log.exception("the annotation pool failed")
            self._fail(AnnotationError(f"the annotation pool failed: {error!r}"))
        finally:
            with self._lock:
                last = self._workers.pop(slot.index, None)
            if last is not None:
                last.close()

    def _replace(self, worker: Worker, slot: _Slot) -> Worker:
        with self._lock:
            self._workers.pop(slot.index, None)
        worker.close()
        return self._start(slot)

    def _start(self, slot: _Slot) -> Worker:
        """Start a worker and wait until it is ready."""
        worker = self._start_remote(slot) if slot.remote else self._start_local(slot)
        with self._lock:
            self._workers[slot.index] = worker
            slot.rate = replace(slot.rate, place=worker.place)
        return worker

    def _start_local(self, slot: _Slot) -> Worker:
        deaths = []
        while len(deaths) < STARTS and self._jobs.error is None:
            try:
                worker = self._start_worker(f"annotator-{slot.index}", self.settings)
            except WorkerCannotStart as error:
                raise AnnotationError(f"{slot.name} could not start: {error}") from None
            except WorkerDied as death:
                deaths.append(str(death))
                continue
            self._check_identity(worker, slot)
            return worker
        raise self._jobs.error or AnnotationError(f"{slot.name} did not start: it {'; '.join(deaths)}")

    def _start_remote(self, slot: _Slot) -> Worker:
        """Start a worker on another machine, as soon as there is a place. Failed starts end neither the pool nor the
        slot: another machine may serve, or this one later."""
        assert self._source is not None
        pause_s = 1.0
        while self._jobs.error is None:
            try:
                return self._source.start(slot.name, lambda: self.identity)
            except WorkerCannotStart as error:
                raise AnnotationError(f"no remote worker can start: {error}") from None
            except WorkerRefused as refused:
                self.report.add("worker_refused", f"{slot.name} on {refused.place}", refused.reason)
                continue
            except WorkerDied as death:
                if self._jobs.error is None:
                    self._report_restart(slot, f"it {death} before it was ready")
            if self._jobs.wait_closed(pause_s):
                break
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise self._jobs.error or AnnotationError("the annotation pool is closed")

    def _find_identity(self) -> None:
        """Without local workers, start one to learn the identity of the run, and end it."""
        try:
            worker = self._start_local(_Slot(0, "the local worker that remote ones are compared with", False))
            worker.close()
        except AnnotationError as error:
            self._fail(error)

    def _check_identity(self, worker: Worker, slot: _Slot) -> None:
        """Let the first worker set the identity of the run, and refuse a local worker whose labels would differ from
        those of the others: after an update of a package during the run.

        Raises:
            AnnotationError: names what differs.
        """
        with self._lock:
            if not self._identity.done():
                self._identity.set_result(worker.identity)
        if self._identity.exception() is not None:  # the pool has ended
            return
        if differences := describe_difference(worker.identity, self._identity.result()):
            worker.close()
            raise AnnotationError(
                f"{slot.name} would label otherwise than the other workers: {differences}. "
                "Give all workers the same packages and files"
            )

    def _time_limit_s(self, batch: Batch) -> float:
        slow_s = SLOWEST_FACTOR * self._jobs.expected_s(batch)
        return self._timeout_s + max(batch.characters / SLOWEST_CHARACTERS_PER_S, slow_s)

    # --- answers and deaths ---------------------------------------------------------------------------------------

    def _deliver(self, batch: Batch, answer: Answer, slot: _Slot, place: str, elapsed_s: float) -> None:
        """Count an answer, and set the futures that it decides."""
        decided = set(self._jobs.answered(batch, elapsed_s))
        for document, reason in answer.fallbacks.items():
            self.report.add("engine_fallback", document, reason)
        tokens = sum(len(result) for result in answer.results if not isinstance(result, str))
        with self._lock:
            slot.rate = slot.rate.plus(tokens, answer.cpu_s, answer.engine, place)
            self._places[place] = self._places.get(place, WorkerRate()).plus(tokens, answer.cpu_s, {}, place)
        self._set([(job, result) for job, result in zip(batch.jobs, answer.results, strict=True) if job in decided])

    def _set(self, results: list[tuple[Job, LabelledTokens | str]]) -> None:
        """Set futures to their labels. This comes last and takes no lock, because it runs the caller's callbacks."""
        labels = {job: self._labels(job, result) for job, result in results}
        jobs = self._jobs.finish(list(labels))
        with self._lock:
            self._documents += len(jobs)
        for job in jobs:
            job.future.set_result(labels[job])

    def _try_again(self, batch: Batch, slot: _Slot, death: WorkerDied) -> None:
        """Queue the documents of a dead worker again. One that came alone and has now ended several goes into
        quarantine instead."""
        culprit = self._jobs.lost(batch, death.blames_document)
        if self._jobs.error is not None:
            return  # close() ended the worker
        held = ", ".join(document.id for document in batch.documents)
        self._report_restart(slot, f"it {death}; it held {held}")
        if culprit is not None:
            self._set([(culprit, f"it ended {culprit.deaths} workers; the last one {death}")])

    def _report_restart(self, slot: _Slot, why: str) -> None:
        where = f" on {slot.rate.place}" if slot.rate.place else ""
        self.report.add("worker_restarted", f"{slot.name}{where}", why)

    def _labels(self, job: Job, result: LabelledTokens | str) -> LabelledTokens:
        """Turn a worker's result into labels. After an error the document goes into quarantine.

        Raises:
            AnnotationError: too many documents are in quarantine.
        """
        if isinstance(result, str):
            return self._quarantine.add(job.document, result)
        cache = self._open_cache()
        if cache is not None:
            cache.put(job.document, result)
        return result

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

    # --- what no worker's thread can see ------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look after what workers hold, and after those that are not there, until the pool ends."""
        places = PlaceWatch(self._began)
        while not self._jobs.wait_closed(WATCH_S):
            if len(self._workers) > 1:
                self._copy_overdue()
            if self._source is not None and self.remote is not None:
                waiting, idle_s = self._source.waiting(), places.idle_s(bool(self._workers))
                if places.is_news(waiting):
                    self.report.add("workers_without_place", "remote workers", waiting)
                if not self.num_workers and idle_s > self.remote.wait_limit_s:
                    self._fail(no_worker(self.remote.wait_limit_s, waiting))

    def _copy_overdue(self) -> None:
        for batch in self._jobs.copy_overdue():
            held = ", ".join(document.id for document in batch.documents)
            why = f"no answer for {time.monotonic() - batch.taken:.0f} s; another worker annotates them, too"
            self.report.add("worker_overdue", held, why)

    def _fail(self, error: AnnotationError) -> None:
        """End the pool. Every future without a result gets the first error, so that nobody waits for ever."""
        jobs = self._jobs.close(error)
        if jobs is None:
            return
        with self._lock:
            local = [worker for index, worker in self._workers.items() if index < self.num_workers]
            if not self._identity.done():
                self._identity.set_exception(error)
        # Without the lock: a thread whose worker dies takes the lock itself.
        for worker in local:
            worker.kill()
        for job in jobs:
            job.future.set_exception(error)
        if self._source is not None:
            self._source.close()
