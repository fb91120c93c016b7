"""Document -> LabelledTokens in N worker processes, whatever happens to them.

    submit(document) -> Future          the caller keeps the futures in its own order: order is not the pool's
                                        business, and any number of streams can share one pool
    queue --batch--> thread --pipe--> worker process; the thread sets the futures

One thread serves one process: it takes a batch, sends it, waits for the answer. A process that dies or does not
answer is replaced; the documents that it held are tried again, each alone, so the labels are those of an undisturbed
run. A document that ends two processes, or that raises an error, is put in quarantine: its tokens are kept, it gets no
fact labels, and it is named.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lacy_stream.worker import Worker, WorkerCannotStart, WorkerDied

if TYPE_CHECKING:
    from annotator import Document, LabelledTokens

log = logging.getLogger(__name__)

BATCH_DOCUMENTS = 16
BATCH_CHARACTERS = 32_000
"""A batch ends at either limit: large enough that messages cost nothing, small enough that a worker answers within
about two seconds at the speed of stock spaCy."""

TRIES = 2
STARTS = 3
SLOWEST_CHARACTERS_PER_S = 1_000
"""Added to the time limit of a batch: a fortieth of stock spaCy's speed."""


class AnnotationError(RuntimeError):
    """The pool cannot annotate: no worker starts, too many documents fail, or it was closed."""


@dataclass(frozen=True)
class PoolStats:
    """Counters since the pool started. ``cpu_s``: CPU time of the annotator, summed over workers; on cores of
    their own it is their working time. ``queued``: documents that wait for a worker; ``in_flight``: those that
    workers have; ``restarts``: of workers; ``quarantined``: documents without fact labels."""

    documents: int = 0
    tokens: int = 0
    cpu_s: float = 0.0
    queued: int = 0
    in_flight: int = 0
    restarts: int = 0
    quarantined: int = 0

    @property
    def tokens_per_s_per_core(self) -> float:
        return self.tokens / self.cpu_s if self.cpu_s else 0.0


@dataclass(eq=False)
class _Job:
    document: Document
    future: Future[LabelledTokens]
    deaths: int = 0  # of workers that held it


def default_num_workers(ranks_on_node: int = 1) -> int:
    """The cores that this process may use, shared among the ranks of the node; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, ranks_on_node))


class AnnotationPool:
    """N processes that run ``annotator.Annotator`` on documents.

    Args:
        tokenizer: path of a SentencePiece model.
        model: spaCy pipeline, or None to tokenise only (every class is OTHER).
        num_workers: processes; default, the cores that this process may use. They start in the background.
        quarantine_limit: documents that may go without fact labels before the pool fails; 0: fail at the first.
        timeout_s: a batch may take this long, and a second more per 1,000 characters, before its worker is
            replaced.
    """

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        model: str | None = "en_core_web_sm",
        num_workers: int | None = None,
        *,
        quarantine_limit: int = 100,
        timeout_s: float = 60.0,
    ) -> None:
        num_workers = default_num_workers() if num_workers is None else num_workers
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}: the pool needs at least one worker")
        self.num_workers = num_workers
        self.tokenizer, self._model = str(tokenizer), model
        self._quarantine_limit, self._timeout_s = quarantine_limit, timeout_s
        self.quarantine: dict[str, str] = {}
        """Document id -> why it has no fact labels."""
        self._fingerprint: Future[str] = Future()
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._workers: dict[int, Worker] = {}
        self._error: AnnotationError | None = None
        self._documents, self._tokens, self._cpu_s, self._restarts = 0, 0, 0.0, 0
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"annotation-{index}", daemon=True)
            for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # before multiprocess ends its children, which would look like deaths

    def submit(self, document: Document) -> Future[LabelledTokens]:
        """Queue one document. The future raises ``AnnotationError`` where the pool failed or was closed."""
        if not isinstance(document.text, str):
            raise TypeError(f"document {document.id!r}: its text is {type(document.text).__name__}, not str")
        future: Future[LabelledTokens] = Future()
        with self._changed:
            if self._error is not None:
                raise self._error
            self._queue.append(_Job(document, future))
            self._changed.notify()
        return future

    def fingerprint(self) -> str:
        """The annotator's fingerprint (tokenizer, parser, rules); waits until a worker has loaded them."""
        return self._fingerprint.result()

    def stats(self) -> PoolStats:
        with self._changed:
            return PoolStats(
                documents=self._documents,
                tokens=self._tokens,
                cpu_s=self._cpu_s,
                queued=len(self._queue),
                in_flight=len(self._running),
                restarts=self._restarts,
                quarantined=len(self.quarantine),
            )

    def close(self) -> None:
        """End the workers. Open futures raise ``AnnotationError``. Safe to call twice."""
        self._fail(AnnotationError("the annotation pool is closed"))
        for thread in self._threads:
            thread.join(timeout=10)
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
                characters = sum(len(job.document.text) for job in batch)
                timeout_s = self._timeout_s + characters / SLOWEST_CHARACTERS_PER_S
                try:
                    results, cpu_s = worker.annotate([job.document for job in batch], timeout_s)
                except WorkerDied as death:
                    self._try_again(batch, f"annotation worker {index} {death}")
                    worker = self._start(index)
                else:
                    self._deliver(batch, results, cpu_s)
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
                worker = Worker(f"annotator-{index}", self.tokenizer, self._model)
            except WorkerCannotStart as error:
                raise AnnotationError(f"annotation worker {index} could not start: {error}") from None
            except WorkerDied as death:
                deaths.append(str(death))
                continue
            with self._changed:
                self._workers[index] = worker
                if not self._fingerprint.done():
                    self._fingerprint.set_result(worker.fingerprint)
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
                        characters += BATCH_CHARACTERS if alone else len(job.document.text)
        return batch

    def _deliver(self, batch: list[_Job], results: list[LabelledTokens | str], cpu_s: float) -> None:
        labels = [
            self._quarantined(job, result) if isinstance(result, str) else result
            for job, result in zip(batch, results, strict=True)
        ]
        with self._changed:
            if batch[0] not in self._running:
                return  # the pool has ended, and the futures with it
            self._running.difference_update(batch)
            self._cpu_s += cpu_s
            self._documents += len(batch)
            self._tokens += sum(len(label) for label in labels)
        for job, label in zip(batch, labels, strict=True):
            job.future.set_result(label)

    def _try_again(self, batch: list[_Job], death: str) -> None:
        """Put the documents of a dead worker back, or in quarantine the one that has now ended two."""
        with self._changed:
            if self._error is not None:
                return  # close() ended the worker
            self._restarts += 1
            for job in batch:
                job.deaths += 1
            culprit = batch[0] if len(batch) == 1 and batch[0].deaths >= TRIES else None
            if culprit is None:
                self._running.difference_update(batch)
                self._queue.extendleft(reversed(batch))
                self._changed.notify_all()
        log.warning("%s; its %d documents are tried again", death, len(batch))
        if culprit is not None:
            self._deliver([culprit], [f"it ended {culprit.deaths} workers; the last one {death}"], 0.0)

    def _quarantined(self, job: _Job, reason: str) -> LabelledTokens:
        """The tokens of a document that cannot be annotated, without facts; none where even that fails."""
        from annotator import Annotator

        plain = Annotator(self.tokenizer, model=None)
        try:
            labels = plain.annotate([job.document.text])[0]
        except ValueError:
            labels, reason = plain.annotate([""])[0], f"left out, since it cannot be tokenised either: {reason}"
        with self._changed:
            self.quarantine[job.document.id] = reason
            count = len(self.quarantine)
        log.warning("document %r has no fact labels: %s", job.document.id, reason)
        if count > self._quarantine_limit:
            raise AnnotationError(
                f"{count} documents could not be annotated, and quarantine_limit is {self._quarantine_limit}: "
                + "; ".join(f"{name!r}: {why}" for name, why in list(self.quarantine.items())[:5])
            )
        return labels

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
            if not self._fingerprint.done():
                self._fingerprint.set_exception(error)
            self._changed.notify_all()
        for worker in workers:
            worker.kill()
        for job in jobs:
            job.future.set_exception(error)
