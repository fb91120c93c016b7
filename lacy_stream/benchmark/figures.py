"""Measurements -> rates, and the number of cores that a trainer needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lacy_stream.benchmark.measure import Measurement, Measurements, Turn

PAPER_HOURS = 152
"""Hours in which the paper annotated a billion tokens."""
PAPER_TOKENS_PER_S = 1827
"""The same as a rate."""
CLOCKS = {"cpu": lambda turn: turn.cpu_s, "wall": lambda turn: turn.wall_s}


@dataclass(frozen=True)
class Scaling:
    """The rates with one number of workers at once. The keys are "new, cpu", "new, wall", "known, cpu", "known, wall":
    the kind of text, and the clock."""

    workers: int
    """Number of workers at once."""
    tokens_per_s: dict[str, int]
    """Tokens per second of all workers together, the median over the rounds."""
    efficiency_quartiles: dict[str, list[float]]
    """The share that a worker keeps of its rate with the smallest number of workers: quartiles over the rounds."""

    @property
    def per_core(self) -> int:
        """Tokens per second of CPU time on new text, of one of the workers."""
        return self.tokens_per_s["new, cpu"] // self.workers


@dataclass(frozen=True)
class Against:
    """Another annotator on the same new texts."""

    tokens_per_s: int
    """Its tokens per second of CPU time, the median over the rounds."""
    times: float
    """How many times as fast the measured annotator is: the median of the ratios within a round."""


@dataclass(frozen=True)
class Figures:
    """The result of a benchmark. Rates are medians over the rounds."""

    machine: str
    cores: int
    """Number of cores that this process may use."""
    annotator: dict[str, str]
    """What was measured: tokenizer, and model and engine or labeller, by name."""
    identity: dict[str, str]
    """``Annotator.identity``: the versions and files that the labels depend on."""
    tokens: int
    """Tokens of new text that were annotated in the turns."""
    tokens_per_s_per_core: dict[str, int]
    """Tokens per second of CPU time with the smallest number of workers: for "new" and "known" text."""
    hours_per_1B_tokens: dict[str, float]
    """Hours in which one core annotates a billion tokens: for "new" and "known" text, and in "the paper"."""
    us_by_stage: dict[str, dict[str, float]]
    """Microseconds of CPU time by stage, for "new" and "known" text. "words/NAME" is a part of "words"."""
    unit: str
    """What the microseconds are counted for: "word" or, without a pipeline, "token"."""
    start_s: float
    """Seconds until a worker is ready, the longest. The first one, which may have to compile the engine, is left out if
    there are others."""
    memory_mb: int
    """Largest resident memory of a worker, in MiB."""
    core_share: float
    """Share of its core that a worker had, CPU time by wall time, with the largest number of workers. Other processes
    and a CPU quota make it less than 1."""
    scaling: list[Scaling]
    """For each number of workers, ascending."""
    against: Against | None = None
    """Stock spaCy, if it was measured."""

    @property
    def sizing_rate(self) -> int:
        """Tokens per second of CPU time on new text, of one core while as many cores annotate as were measured at
        once: cores that share a cache or a memory are slower together."""
        return self.scaling[-1].per_core


def cores_needed(tokens_per_s: float, per_core: float) -> int:
    """The number of cores whose annotation keeps up with a trainer."""
    return math.ceil(tokens_per_s / per_core)


def summarise(found: Measurements, annotator: dict[str, str], machine: str, cores: int) -> Figures:
    """The figures of a benchmark, see ``Figures``."""
    counts = sorted({measurement.group.count for measurement in found.turns})
    alone = {text: _turns(found.turns, text, counts[0]) for text in ("new", "known")}
    scaling = scalings(found.turns, counts)
    rates = {text: scaling[0].tokens_per_s[f"{text}, cpu"] // counts[0] for text in alone}
    return Figures(
        machine,
        cores,
        annotator,
        found.identity,
        sum(measurement.turn.tokens for measurement in found.turns if measurement.text == "new"),
        rates,
        {text: round(1e9 / rate / 3600, 1) for text, rate in rates.items()} | {"the paper": PAPER_HOURS},
        {text: median_by_stage(turns) for text, turns in alone.items()},
        "word" if any(turn.words for turn in alone["new"]) else "token",
        round(max(found.start_s[1:] or found.start_s), 1),
        max(found.memory_mb),
        _core_share(found.turns, counts[-1]),
        scaling,
        _against(found.turns),
    )


def median_by_stage(turns: Iterable[Turn]) -> dict[str, float]:
    """Microseconds of CPU time by stage, each the median over the turns."""
    rows = [turn.us_by_stage for turn in turns]
    return {stage: round(statistics.median(row[stage] for row in rows), 2) for stage in rows[0]}


def scalings(found: Sequence[Measurement], counts: Sequence[int]) -> list[Scaling]:
    """The rates with each number of workers. The shares are of the rates with the first number."""
    rates = {(text, clock): _rates(found, text, clock) for text in ("new", "known") for clock in CLOCKS}
    result = []
    for count in counts:
        totals, shares = {}, {}
        for (text, clock), by_count in rates.items():
            totals[f"{text}, {clock}"] = round(count * statistics.median(by_count[count]))
            ratios = [now / first for now, first in zip(by_count[count], by_count[counts[0]], strict=True)]
            shares[f"{text}, {clock}"] = [round(share, 3) for share in _quartiles(ratios)]
        result.append(Scaling(count, totals, shares))
    return result


def _rates(found: Sequence[Measurement], text: str, clock: str) -> dict[int, list[float]]:
    """Number of workers -> the mean rate of one of them in each round."""
    rates: dict[int, dict[int, list[float]]] = {}
    for measurement in found:
        if measurement.text == text:
            rate = measurement.turn.tokens / max(CLOCKS[clock](measurement.turn), 1e-9)
            rates.setdefault(measurement.group.count, {}).setdefault(measurement.group.round, []).append(rate)
    return {count: [statistics.mean(rounds[n]) for n in sorted(rounds)] for count, rounds in rates.items()}


def _turns(found: Sequence[Measurement], text: str, count: int) -> list[Turn]:
    return [measurement.turn for measurement in found if (measurement.text, measurement.group.count) == (text, count)]


def _core_share(found: Sequence[Measurement], count: int) -> float:
    turns = _turns(found, "new", count)
    return round(sum(turn.cpu_s for turn in turns) / sum(turn.wall_s for turn in turns), 2)


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def _against(found: Sequence[Measurement]) -> Against | None:
    """The other annotator beside worker 0 on the same texts."""
    others = [measurement for measurement in found if measurement.text == "against"]
    if not others:
        return None
    ours = {(m.group, m.worker): m.turn for m in found if m.text == "new"}
    times = [other.turn.cpu_s / ours[other.group, other.worker].cpu_s for other in others]
    rate = statistics.median(other.turn.tokens / other.turn.cpu_s for other in others)
    return Against(round(rate), round(statistics.median(times), 2))
