"""The thread in which the engine runs: texts are admitted, queued and cancelled, and their progress is delivered."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from lacy_stream.cascade.engine import Engine, Progress
from lacy_stream.cascade.partner import PromptError
from lacy_stream.cascade.texts import Prompt, TextSettings
from lacy_stream.errors import LacyStreamError
from lacy_stream.serve.metrics import Metrics
from lacy_stream.serve.partner_watch import PartnerWatch

_log = logging.getLogger(__name__)

Event = Progress | LacyStreamError
"""What happens to a text: progress, or the error that ends it."""


class QueueFullError(LacyStreamError):
    """There is no place in the queue.

    Args:
        retry_after_s: seconds after which there may be one.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClosingError(LacyStreamError):
    """The server is shutting down."""


class EngineError(LacyStreamError):
    """The engine has failed; the log has the traceback."""


class Job:
    """One text that a request asks for.

    Args:
        prompt: what is continued.
        settings: how it is written.
        deliver: called with each event, in the runner's thread.
    """

    def __init__(self, prompt: Prompt, settings: TextSettings, deliver: Callable[[Event], None]) -> None:
        self.prompt, self.settings, self.deliver = prompt, settings, deliver
        self.number = -1
        self.came_at = time.monotonic()
        self.has_tokens = False


class Runner:
    """Runs an engine in a thread.

    Args:
        make_engine: makes the engine; it is called again if the engine fails.
        metrics: counts what happens.
        max_batch: number of texts that are written at once.
        max_queue: number of texts that wait for a place.
        watch: the partner; None if there is none.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        metrics: Metrics,
        *,
        max_batch: int,
        max_queue: int,
        watch: PartnerWatch | None,
    ) -> None:
        self._make_engine, self._metrics, self._watch = make_engine, metrics, watch
        self._engine = make_engine()
        self.vocabulary, self.max_batch, self.capacity = self._engine.vocabulary, max_batch, max_batch + max_queue
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._cancelled: set[Job] = set()
        self._numbers = itertools.count()
        self._seconds_per_text = 1.0
        self._closes = False
        self._written = {"model": 0, "partner": 0}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.observe("lacy_texts_running", "Texts that are being written", lambda: len(self._running))
        metrics.observe("lacy_texts_queued", "Texts that wait for a place", lambda: len(self._queue))
        metrics.observe("lacy_call_rate", "Share of the tokens that the partner wrote", lambda: self.call_rate)
        metrics.observe("lacy_partner_up", "1 if the partner is there", lambda: float(self.has_partner))
        self._thread.start()

    # ------------------------------------------------------------ from other threads

    @property
    def call_rate(self) -> float:
        """The partner's share of all tokens since the server started, 0 to 1."""
        return self._written["partner"] / max(sum(self._written.values()), 1)

    @property
    def has_partner(self) -> bool:
        """Whether the partner is there."""
        return self._watch is not None and self._watch.partner is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def load(self) -> tuple[int, int]:
        """The number of texts that are being written, and of those that wait."""
        return len(self._running), len(self._queue)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all texts of a request, or none.

        Raises:
            QueueFullError: there are too many texts.
            ClosingError: the server is shutting down.
            EngineError: the thread has ended.
        """
        with self._changed:
            if self._closes:
                raise ClosingError("the server is shutting down")
            if not self.is_alive:
                raise EngineError("the engine has failed for good: see the log")
            if len(self._running) + len(self._queue) + len(jobs) > self.capacity:
                wait_s = len(self._queue) * self._seconds_per_text / self.max_batch
                raise QueueFullError(
                    f"{len(self._queue)} texts wait already: try again later", max(1, min(60, round(wait_s)))
                )
            self._queue += jobs
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Give up texts. Those that are finished are left alone."""
        with self._changed:
            self._cancelled.update(jobs)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish what was submitted, then end the thread. Nothing more is taken."""
        with self._changed:
            self._closes = True
            self._changed.notify_all()
        self._thread.join()

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                self._step()
            except Exception as error:  # the other requests must not be lost with this one
                _log.exception("the engine failed")
                self._restart(EngineError(f"the engine failed: {type(error).__name__}"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._queue or self._running or self._cancelled):
                if self._closes:
                    return False
                self._changed.wait()
            return True

    def _admit(self) -> None:
        """Remove what was cancelled, and fill the places."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            self._queue = deque(job for job in self._queue if job not in cancelled)
            free = self.max_batch - len(self._running) + sum(job.number in self._running for job in cancelled)
            entrants = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
            for job in cancelled:
                if self._running.pop(job.number, None) is not None:
                    self._engine.remove(job.number)
                    self._metrics.texts.labels("cancelled").inc()
            for job in entrants:
                job.number = next(self._numbers)
                self._running[job.number] = job
        for job in entrants:
            try:
                self._engine.add(job.number, job.prompt, job.settings)
            except PromptError as error:
                self._leave(job, error)

    def _step(self) -> None:
        if self._watch is not None and self._engine.partner is not self._watch.partner:
            self._engine.partner = self._watch.partner
        had_partner = self._engine.partner is not None
        start = time.monotonic()
        steps = self._engine.step()
        self._metrics.step_seconds.observe(time.monotonic() - start)
        if had_partner and self._engine.partner is None and self._watch is not None:
            assert self._engine.partner_error is not None, "the engine says why it has lost the partner"
            self._watch.lose(self._engine.partner_error)
        for progress in steps:
            self._count(progress)
            job = self._running[progress.number]
            if progress.generation is None:
                job.deliver(progress)
            else:
                self._leave(job, progress)

    def _leave(self, job: Job, event: Event) -> None:
        """Deliver the last event of a text, whose place is free from now on."""
        with self._changed:
            del self._running[job.number]
        self._seconds_per_text += 0.1 * (time.monotonic() - job.came_at - self._seconds_per_text)
        job.deliver(event)

    def _count(self, progress: Progress) -> None:
        job, metrics = self._running[progress.number], self._metrics
        if progress.tokens and not job.has_tokens:
            job.has_tokens = True
            metrics.first_token_seconds.observe(time.monotonic() - job.came_at)
        for token in progress.tokens:
            self._written[token.writer] += 1
            metrics.tokens.labels(token.writer).inc()
        if progress.generation is not None:
            metrics.texts.labels(progress.generation.finish).inc()
            metrics.prompt_tokens.inc(len(progress.generation.prompt_ids))
            metrics.fallbacks.inc(progress.generation.fallbacks)
            metrics.unanswered.inc(progress.generation.unanswered)

    def _restart(self, error: EngineError) -> None:
        """End all texts that were being written, and begin with another engine."""
        with self._changed:
            jobs, self._running = list(self._running.values()), {}
        for job in jobs:
            self._metrics.texts.labels("failed").inc()
            job.deliver(error)
        for number in list(self._engine.texts):  # the partner outlives the engine, and must forget its texts
            self._engine.remove(number)
        self._engine = self._make_engine()
