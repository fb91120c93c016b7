"""The documents of a pool that have no labels yet: which a worker gets next, and what happens to those that it held.

    put --> queue --take--> batch with a worker --answered--> finish
              ^                   |
              +---- lost ---------+      the worker died: its documents are tried again, each alone
              +---- copy_overdue -+      the worker is silent: a second one gets them too, and the first answer counts

Batches are bounded by documents, by characters, and by the time that they should take at the speed that was measured.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotator import Document, LabelledTokens

BATCH_DOCUMENTS = 16
BATCH_CHARACTERS = 32_000
BATCH_S = 2.0
"""A batch ends at the first of these limits; a longer document is a batch of its own. A batch is large enough that
messages cost nothing, and small enough that a worker answers within seconds, whatever its labeller is."""

DOCUMENT_WEIGHT = 500
"""The time that a batch should take grows with its weight: the characters of its documents, and this for each."""

TRIES = 2
"""Number of workers that a document may end before it goes into quarantine."""

OVERDUE_FACTOR = 3.0
OVERDUE_S = 5.0
"""A batch is overdue after this multiple of the time that it should take, but not before these seconds."""

_DECAY = 0.8  # weight of the speed so far, against that of the batch that was answered last


@dataclass(eq=False)
class Job:
    """A document on its way to its labels."""

    document: Document
    future: Future[LabelledTokens]
    deaths: int = 0
    """Workers that died while they held it, for a cause that may be the document."""
    queued: bool = True
    """Whether it stands in the queue."""
    holders: int = 0
    """Workers that hold it."""
    claimed: bool = False
    """Whether its labels are decided. Later answers for it are ignored."""


@dataclass(eq=False)
class Batch:
    """What one worker was given at once."""

    jobs: list[Job]
    taken: float
    """When, by the monotonic clock."""
    copied: bool = False
    """Whether its documents were queued for a second worker, because it is overdue."""

    @property
    def documents(self) -> list[Document]:
        return [job.document for job in self.jobs]

    @property
    def characters(self) -> int:
        return sum(job.document.characters for job in self.jobs)

    @property
    def weight(self) -> int:
        return sum(weight(job.document) for job in self.jobs)


def weight(document: Document) -> int:
    """See ``DOCUMENT_WEIGHT``."""
    return document.characters + DOCUMENT_WEIGHT


class JobQueue:
    """The unfinished jobs of a pool. Safe to use from several threads."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """Why the queue was closed; None while it is open."""
        self._closed = threading.Event()
        self._changed = threading.Condition()  # guards all fields below, and those of jobs and batches
        self._queue: deque[Job] = deque()
        self._started: set[Job] = set()  # jobs whose futures are marked as running, and not set
        self._batches: set[Batch] = set()
        # Decayed sums over the batches that were answered; their quotient is the speed of a worker.
        self._seconds = self._weight = 0.0

    def put(self, document: Document) -> Future[LabelledTokens]:
        """Queue a document.

        Raises:
            Exception: ``error``, if the queue is closed.
        """
        future: Future[LabelledTokens] = Future()
        with self._changed:
            if self.error is not None:
                raise self.error
            self._queue.append(Job(document, future))
            self._changed.notify()
        return future

    def take(self, workers: int) -> Batch | None:
        """Wait for the next batch.

        A document that a dead worker held comes alone, so that the next death tells which document is to blame. Other
        batches are small when the queue is short: with 8 queued documents and 4 workers, a batch has 2.

        Args:
            workers: number of workers that share the queue.

        Returns:
            The batch; None when the queue is closed.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self.error is not None)
                if self.error is not None:
                    return None
                if jobs := self._next_jobs(-(-len(self._queue) // max(workers, 1))):
                    batch = Batch(jobs, time.monotonic())
                    self._batches.add(batch)
                    return batch

    def _next_jobs(self, share: int) -> list[Job]:
        jobs: list[Job] = []
        characters = heavy = 0
        heaviest = self._heaviest()
        while self._queue and len(jobs) < min(BATCH_DOCUMENTS, share):
            job = self._queue[0]
            characters, heavy = characters + job.document.characters, heavy + weight(job.document)
            if jobs and (job.deaths or characters > BATCH_CHARACTERS or heavy > heaviest):
                break
            self._queue.popleft()
            job.queued = False
            if job.claimed or not self._mark_started(job):  # answered by the worker that was overdue, or cancelled
                characters, heavy = characters - job.document.characters, heavy - weight(job.document)
                continue
            job.holders += 1
            jobs.append(job)
            if job.deaths:
                break
        return jobs

    def _mark_started(self, job: Job) -> bool:
        """Mark the future of a job as running, once; False if it was cancelled before."""
        if job not in self._started and job.future.set_running_or_notify_cancel():
            self._started.add(job)
        return job in self._started

    def _heaviest(self) -> float:
        """The weight that a batch may have: 0, which is a single document, until a speed is known."""
        return BATCH_S / self._cost_s if self._cost_s else 0.0

    @property
    def _cost_s(self) -> float:
        """Seconds that a weight of 1 takes a worker; 0 until one has answered."""
        return self._seconds / self._weight if self._weight else 0.0

    def expected_s(self, batch: Batch) -> float:
        """Seconds that a batch should take; 0 until a speed is known."""
        with self._changed:
            return self._cost_s * batch.weight

    def answered(self, batch: Batch, elapsed_s: float) -> list[Job]:
        """Take note that a worker has answered a batch.

        Returns:
            The jobs whose labels this answer decides. For the others, a second worker was faster.
        """
        with self._changed:
            self._batches.discard(batch)
            if self._cost_s:  # a machine that slept is no measure
                elapsed_s = min(elapsed_s, self._overdue_s(batch))
            self._seconds = _DECAY * self._seconds + elapsed_s
            self._weight = _DECAY * self._weight + batch.weight
            decided = []
            for job in batch.jobs:
                job.holders -= 1
                if not job.claimed and job in self._started:
                    job.claimed = True
                    decided.append(job)
            return decided

    def finish(self, jobs: list[Job]) -> list[Job]:
        """Let go of jobs, whose futures the caller sets next.

        Returns:
            Those whose futures are still to be set: none if the queue was closed in the meantime.
        """
        with self._changed:
            unset = [job for job in jobs if job in self._started]
            self._started.difference_update(unset)
            return unset

    def lost(self, batch: Batch, blame: bool) -> Job | None:
        """Put the documents of a dead worker back at the head of the queue, in their order, unless another worker holds
        them too.

        Args:
            blame: whether one of the documents may be the cause.

        Returns:
            A document that came alone and has now ended ``TRIES`` workers. It is not queued again; the caller decides
            its labels.
        """
        with self._changed:
            self._batches.discard(batch)
            if self.error is not None:
                return None
            for job in batch.jobs:
                job.holders -= 1
                job.deaths += blame
            first = batch.jobs[0]
            if len(batch.jobs) == 1 and blame and first.deaths >= TRIES and not first.claimed:
                first.claimed = True
                return first
            self._queue_again([job for job in batch.jobs if not job.holders])
            return None

    def copy_overdue(self) -> list[Batch]:
        """Queue the documents of overdue batches for a second worker, once for each batch.

        Returns:
            The batches.
        """
        now, overdue = time.monotonic(), []
        with self._changed:
            for batch in self._batches:
                if self._cost_s and not batch.copied and now - batch.taken > self._overdue_s(batch):
                    batch.copied = True
                    overdue.append(batch)
                    self._queue_again([job for job in batch.jobs if job.holders == 1])
        return overdue

    def _overdue_s(self, batch: Batch) -> float:
        return max(OVERDUE_S, OVERDUE_FACTOR * self._cost_s * batch.weight)

    def _queue_again(self, jobs: list[Job]) -> None:
        again = [job for job in jobs if not job.claimed and not job.queued]
        for job in again:
            job.queued = True
        self._queue.extendleft(reversed(again))
        self._changed.notify_all()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the queue is closed, or for some seconds; returns whether it is closed."""
        return self._closed.wait(timeout_s)

    def counts(self) -> tuple[int, int]:
        """The number of documents that wait for a worker, and of those that workers hold."""
        with self._changed:
            return len(self._queue), sum(job.holders > 0 for job in self._started)

    def close(self, error: Exception) -> list[Job] | None:
        """Close the queue. Every later ``put`` raises the error.

        Returns:
            The jobs whose futures are still to be set, by the caller; None if the queue was closed before.
        """
        with self._changed:
            if self.error is not None:
                return None
            self.error = error
            self._closed.set()
            jobs = [job for job in self._queue if not job.claimed and self._mark_started(job)]
            jobs = [*dict.fromkeys([*jobs, *self._started])]
            self._queue.clear()
            self._started.clear()
            self._batches.clear()
            self._changed.notify_all()
            return jobs
