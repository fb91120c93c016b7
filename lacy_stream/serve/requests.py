"""A request while it is answered: its texts are submitted, their events are awaited, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from lacy_stream.cascade.engine import Progress
from lacy_stream.cascade.partner import PromptError
from lacy_stream.cascade.texts import Generation, Prompt, TextSettings
from lacy_stream.errors import LacyStreamError
from lacy_stream.serve.runner import Event, Job, Runner


class PartnerFailedError(LacyStreamError):
    """The partner does not answer, and the answer ends for that."""


class TimeLimitError(LacyStreamError):
    """The request took too long."""


class RunningRequest:
    """The texts of one request. It is a context manager, which gives up the texts that are not finished.

    Args:
        runner: writes the texts.
        texts: prompt and settings of each text.
        time_limit_s: longest time from now on, in seconds.

    Raises:
        QueueFullError, ClosingError, EngineError: see ``Runner.submit``.
    """

    def __init__(self, runner: Runner, texts: Sequence[tuple[Prompt, TextSettings]], time_limit_s: float) -> None:
        self._runner, self._time_limit_s = runner, time_limit_s
        self._ends_at = time.monotonic() + time_limit_s
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver_to(choice: int) -> Callable[[Event], None]:
            def deliver(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for the text
                    loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

            return deliver

        self._jobs = [Job(prompt, settings, deliver_to(at)) for at, (prompt, settings) in enumerate(texts)]
        self._unfinished = set(range(len(self._jobs)))
        runner.submit(self._jobs)

    def __enter__(self) -> RunningRequest:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self._runner.cancel([self._jobs[choice] for choice in self._unfinished])

    async def progress(self) -> AsyncIterator[tuple[int, Progress]]:
        """What is written, with the number of the text.

        Raises:
            PromptError: a prompt cannot be continued.
            PartnerFailedError, TimeLimitError, EngineError: a text ends with an error.
        """
        while self._unfinished:
            try:
                left_s = self._ends_at - time.monotonic()
                choice, event = await asyncio.wait_for(self._events.get(), max(left_s, 0))
            except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
                message = f"the request took longer than {self._time_limit_s:g} s: ask for fewer tokens"
                raise TimeLimitError(message) from None
            if isinstance(event, Exception):
                self._unfinished.discard(choice)
                raise event
            if (generation := event.generation) is not None:
                self._unfinished.discard(choice)
                if generation.finish == "partner":
                    raise PartnerFailedError(generation.skipped)
                if generation.finish == "skipped":
                    raise PromptError(generation.skipped)
            yield choice, event

    async def generations(self) -> list[Generation]:
        """All texts, in the order in which they were asked for. Errors are those of ``progress``."""
        found: dict[int, Generation] = {}
        async for choice, progress in self.progress():
            if progress.generation is not None:
                found[choice] = progress.generation
        return [found[choice] for choice in range(len(self._jobs))]
