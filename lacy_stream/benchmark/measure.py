"""The pool's workers, each on a core of its own, annotate texts in turns -> measurements.

    schedule --Group--> PinnedWorker --Turn--> Measurement

In each round every number of workers has its turn, so that a machine whose speed drifts does so for all of them.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from annotator import Annotator, AnnotatorSettings, Document, LabelledTokens
from lacy_stream.benchmark.settings import BenchmarkError
from lacy_stream.benchmark.texts import Texts
from lacy_stream.stream.jobs import BATCH_CHARACTERS, BATCH_DOCUMENTS
from lacy_stream.stream.pool import SLOWEST_CHARACTERS_PER_S
from lacy_stream.stream.workers.local import LocalWorker
from lacy_stream.stream.workers.protocol import WorkerCannotStart, WorkerDied

TIMEOUT_S = 60.0
STAGE = "seconds/"
"""Prefix of the entries of ``Annotator.stats`` that are the CPU seconds of a stage."""


class Group(NamedTuple):
    """Workers that work at the same time."""

    round: int
    """Number of the round, from 0."""
    count: int
    """Number of workers."""
    members: tuple[int, ...]
    """Which of the workers it is."""


@dataclass(frozen=True)
class Turn:
    """What one annotator did with the texts of one turn."""

    tokens: int
    """Tokens that it labelled."""
    words: int
    """Words that its pipeline found; 0 if it has none."""
    cpu_s: float
    """CPU seconds that it took."""
    wall_s: float
    """Seconds that it took by the clock."""
    stages: dict[str, float]
    """CPU seconds of each stage, see ``Annotator.stats``."""

    @property
    def us_by_stage(self) -> dict[str, float]:
        """Microseconds of CPU time of each stage for each word; for each token, if there are no words."""
        items = max(self.words or self.tokens, 1)
        return {stage: 1e6 * seconds / items for stage, seconds in self.stages.items()}


@dataclass(frozen=True)
class Measurement:
    """A turn, and when it was."""

    group: Group
    """The group in which the worker worked."""
    worker: int
    """Number of the worker."""
    text: str
    """"new" if the worker had not seen the texts, "known" if it had annotated them just before, "against" if it is the
    other annotator, on the new texts of worker 0."""
    turn: Turn


@dataclass(frozen=True)
class Measurements:
    """All that was measured in a benchmark."""

    turns: list[Measurement]
    identity: dict[str, str]
    """``Annotator.identity`` of the workers."""
    start_s: list[float]
    """Seconds until each worker had loaded its annotator. The first starts alone, the others together."""
    memory_mb: list[int]
    """Largest resident memory of each worker, in MiB."""


# ---------------------------------------------------------------- when who works


def schedule(counts: Sequence[int], rounds: int) -> list[Group]:
    """The groups in the order in which they work. In each round, every worker works at least once with every number of
    workers."""
    most = max(counts)
    return [
        Group(number, count, tuple((first + n) % most for n in range(count)))
        for number in range(rounds)
        for count in counts
        for first in range(0, most, count)
    ]


def turns_of_a_worker(groups: Sequence[Group]) -> int:
    """The largest number of groups that one worker is in."""
    members = [member for group in groups for member in group.members]
    return max(map(members.count, set(members)))


# ---------------------------------------------------------------- one annotator


def annotate_here(annotator: Annotator, texts: list[str]) -> Turn:
    """Annotate texts in this process."""
    before, wall, cpu = annotator.stats(), time.perf_counter(), time.process_time()
    labelled = annotator.annotate(texts)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return _turn(sum(map(len, labelled)), *spent, before, annotator.stats())


def _turn(tokens: int, cpu_s: float, wall_s: float, before: dict[str, float], after: dict[str, float]) -> Turn:
    """A turn, by the ``Annotator.stats`` before and after it."""
    stages = {name.removeprefix(STAGE): after[name] - before.get(name, 0) for name in after if name.startswith(STAGE)}
    words = after.get("parsed_words", 0) - before.get("parsed_words", 0)
    return Turn(tokens, int(words), cpu_s, wall_s, stages)


class PinnedWorker:
    """A worker process of the pool on one core. It starts in the background.

    Args:
        name: its name in messages.
        settings: the annotator that it loads.
        core: the core on which it works once it has started.
    """

    def __init__(self, name: str, settings: AnnotatorSettings, core: int) -> None:
        self._name = name
        self._stats: dict[str, float] = {}
        # The kernel ends the process when the thread that has started it ends: so it is one thread for all.
        self._thread = ThreadPoolExecutor(1, name)
        self._started = self._thread.submit(self._start, settings, core)

    @property
    def start_s(self) -> float:
        """Seconds until it had loaded its annotator. Waits for that.

        Raises:
            BenchmarkError: the annotator cannot be loaded, or the process has ended.
        """
        return self._started.result()[1]

    @property
    def identity(self) -> dict[str, str]:
        """``Annotator.identity`` of its annotator."""
        return self._worker.identity

    @property
    def memory_mb(self) -> int:
        """Its largest resident memory so far, in MiB."""
        status = Path(f"/proc/{self._worker.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return 0 if found is None else int(found[1]) >> 10

    def annotate(self, texts: list[str]) -> Future[Turn]:
        """Annotate texts, in batches as those of the pool. The future raises ``BenchmarkError`` if a text cannot be
        annotated, or the process has ended."""
        return self._thread.submit(self._annotate, texts)

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if not self._started.cancelled() and self._started.exception() is None:
            self._worker.kill()
            self._thread.shutdown()
            self._worker.close()

    @property
    def _worker(self) -> LocalWorker:
        return self._started.result()[0]

    def _start(self, settings: AnnotatorSettings, core: int) -> tuple[LocalWorker, float]:
        start = time.perf_counter()
        try:
            worker = LocalWorker(self._name, settings)
        except WorkerCannotStart as error:
            raise BenchmarkError(f"the annotator cannot be loaded: {error}") from None
        except WorkerDied as death:
            raise self._death(death) from None
        os.sched_setaffinity(worker.pid, {core})
        return worker, time.perf_counter() - start

    def _annotate(self, texts: list[str]) -> Turn:
        before, start = self._stats, time.perf_counter()
        labelled: list[LabelledTokens | str] = []
        cpu_s = 0.0
        for batch in _batches(texts):
            limit = TIMEOUT_S + sum(document.characters for document in batch) / SLOWEST_CHARACTERS_PER_S
            try:
                answer = self._worker.annotate(batch, limit)
            except WorkerDied as death:
                raise self._death(death) from None
            labelled += answer.results
            cpu_s += answer.cpu_s
            self._stats = answer.engine
        wall_s = time.perf_counter() - start
        for text, result in zip(texts, labelled, strict=True):
            if isinstance(result, str):
                raise BenchmarkError(f"the text that begins {text[:40]!r} cannot be annotated: {result}")
        return _turn(sum(map(len, labelled)), cpu_s, wall_s, before, self._stats)

    def _death(self, death: WorkerDied) -> BenchmarkError:
        return BenchmarkError(f"{self._name} {death}. If the memory was too small, measure fewer --workers at once")


def _batches(texts: list[str]) -> Iterator[list[Document]]:
    """Documents in batches of the size of the pool's."""
    batch: list[Document] = []
    characters = 0
    for number, text in enumerate(texts):
        batch.append(Document(str(number), text))
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


# ---------------------------------------------------------------- all of them


def measure(
    settings: AnnotatorSettings,
    texts: Texts,
    groups: Sequence[Group],
    *,
    against: AnnotatorSettings | None = None,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> Measurements:
    """Let workers annotate in groups, each group new texts and then the same texts again.

    Args:
        settings: the annotator of the workers.
        texts: what they annotate. There must be a turn for each group of a worker.
        groups: the order, see ``schedule``.
        against: another annotator. In each round, it annotates the texts of the first group after worker 0.
        on_progress: called with the number of steps that are done, of ``steps``.

    Raises:
        BenchmarkError: the annotator cannot be loaded, a text cannot be annotated, or a worker has ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:

        def start(number: int, annotator: AnnotatorSettings, name: str = "") -> PinnedWorker:
            worker = PinnedWorker(name or f"worker {number}", annotator, cores[number % len(cores)])
            return stack.enter_context(closing(worker))

        workers = [start(0, settings)]
        _ = workers[0].start_s  # it may have to compile the engine, for which the others would wait
        workers += [start(number, settings) for number in range(1, max(group.count for group in groups))]
        start_s = [worker.start_s for worker in workers]
        other = None if against is None else start(0, against, "the worker to compare with")
        on_progress(1)
        for warm_up in [worker.annotate(texts.warm_up) for worker in workers]:
            warm_up.result()
        if other is not None:
            other.annotate(texts.warm_up[: -(-len(texts.warm_up) // 10)]).result()  # it has no tables to fill
        on_progress(1)
        turns = list(_take_turns(workers, other, texts, groups, on_progress))
        return Measurements(turns, workers[0].identity, start_s, [worker.memory_mb for worker in workers])


def _take_turns(
    workers: Sequence[PinnedWorker],
    other: PinnedWorker | None,
    texts: Texts,
    groups: Sequence[Group],
    on_progress: Callable[[int], None],
) -> Iterator[Measurement]:
    """Yield the turns of all groups, in their order, and those of the other annotator."""
    done = [0] * len(workers)
    compared = set()
    for group in groups:
        chosen = [texts.turns[done[member]] for member in group.members]
        for text in ("new", "known"):
            futures = [workers[m].annotate(mine) for m, mine in zip(group.members, chosen, strict=True)]
            for member, future in zip(group.members, futures, strict=True):
                yield Measurement(group, member, text, future.result())
            on_progress(1)
        for member in group.members:
            done[member] += 1
        if other is not None and group.round not in compared:  # the first group of a round begins with worker 0
            compared.add(group.round)
            yield Measurement(group, 0, "against", other.annotate(chosen[0]).result())
            on_progress(1)


def steps(groups: Sequence[Group], against: bool) -> int:
    """The number of steps of ``measure``."""
    return 2 + 2 * len(groups) + against * len({group.round for group in groups})


def machine() -> str:
    """The processor, the number of cores and the version of Python, for people."""
    names = re.findall(r"^model name\s*: (.+)$", _cpu_info(), re.MULTILINE)
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
