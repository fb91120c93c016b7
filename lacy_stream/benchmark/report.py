"""Figures -> tables and sentences, on the terminal, as a page, as JSON and as a picture."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lacy_stream.benchmark.figures import PAPER_HOURS, PAPER_TOKENS_PER_S, Figures, cores_needed
from lacy_stream.evaluate.results import OURS, PAPER, Table, publish

NAME = "benchmark"
LABELS = {"new": "new text", "known": "known text"}
STAGES = {
    "tokens": "the tokenizer, and the alignment of its pieces with the words",
    "words": "the pipeline; words/… are its parts",
    "facts": "the rules",
    "labeller": "the labeller",
}
"""Stage -> what it is, in the order in which they are shown."""
BUSY = 0.85
"""Share of its core below which a worker was disturbed."""


def report(figures: Figures, tokens_per_s: int | None, out: str | None) -> None:
    """Print the figures, and write them into a folder.

    Args:
        tokens_per_s: what the trainers take, or None.
        out: the folder, or None.

    Raises:
        FileError: a file cannot be written.
    """
    pages = tables(figures, tokens_per_s)
    if out is None:
        for page in pages:
            page.show()
        return
    if importlib.util.find_spec("matplotlib") is not None:
        draw(figures, Path(out) / f"{NAME}.png")
    else:
        print("no picture: pip install matplotlib")
    publish(out, NAME, content(figures, tokens_per_s), *pages)


def content(figures: Figures, tokens_per_s: int | None) -> dict[str, Any]:
    """What is written as JSON: the figures, and what follows from them for the trainers."""
    sizing = {
        "tokens_per_s_per_core": figures.sizing_rate,
        "rate_that_the_cores_feed": figures.sizing_rate * figures.cores,
        "trainers_tokens_per_s": tokens_per_s,
        "cores_needed": None if tokens_per_s is None else cores_needed(tokens_per_s, figures.sizing_rate),
    }
    return asdict(figures) | {"sizing": sizing}


def tables(figures: Figures, tokens_per_s: int | None) -> list[Table]:
    """The tables, with the answer in words below the last."""
    return [_rates(figures), _stages(figures), _scaling(figures, tokens_per_s)]


def sentences(figures: Figures, tokens_per_s: int | None) -> list[str]:
    """How many cores the trainers need or, if their rate is not known, what rate the cores feed."""
    rate, at_once = figures.sizing_rate, figures.scaling[-1].workers
    measured = f"with {_count(at_once, 'worker')} at once, a core annotates {rate:,} tokens/s of new text"
    if tokens_per_s is None:
        fed = f"{_count(figures.cores, 'core')} of this process feed{'s' * (figures.cores == 1)} trainers"
        answer = f"The {fed} of {rate * figures.cores:,} tokens/s"
        if figures.cores > 1:
            answer += f", or of {rate * (figures.cores - 1):,} tokens/s if one core is left for the trainer"
        return [f"{answer}: {measured}."]
    cores = cores_needed(tokens_per_s, rate)
    answer = f"Trainers of {tokens_per_s:,} tokens/s need {_count(cores, 'core')} for annotation: {measured}."
    if cores > figures.cores:
        return [answer, f"This process may use {_count(figures.cores, 'core')}, which is too few."]
    if cores == figures.cores:
        return [answer, f"This process may use {_count(figures.cores, 'core')}, so none is left for the trainer."]
    return [answer]


def draw(figures: Figures, path: Path) -> None:
    """Draw tokens/s by the number of workers, beside a line on which every worker keeps its rate."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.ticker import MaxNLocator

    counts = [row.workers for row in figures.scaling]
    picture = Figure(figsize=(5.5, 4), layout="constrained")
    axes = picture.subplots()
    for text, style in (("new", "o-"), ("known", "s--")):
        rates = [row.tokens_per_s[f"{text}, cpu"] for row in figures.scaling]
        axes.plot([0, counts[-1]], [0, rates[0] / counts[0] * counts[-1]], ":", color=PAPER)
        axes.plot(counts, rates, style, color=OURS, label=LABELS[text])
    axes.set(title="Annotation", xlabel="workers at once, each on a core", ylabel="tokens/s")
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)


def _rates(figures: Figures) -> Table:
    rows = [
        [LABELS[t], f"{rate:,}", figures.hours_per_1B_tokens[t]] for t, rate in figures.tokens_per_s_per_core.items()
    ]
    measured = f"{', '.join(f'{key} {value}' for key, value in figures.annotator.items())}; {figures.machine}"
    notes = [f"Measured: {measured}.", f"{figures.tokens:,} tokens of new text; CPU time, medians over the rounds."]
    if figures.against is not None:
        rows.append(["spaCy, new text", f"{figures.against.tokens_per_s:,}", _hours(figures.against.tokens_per_s)])
        notes.append(f"On the same new text, this annotator is {figures.against.times:.1f} times as fast as spaCy.")
    notes.append(f"A worker is ready after {figures.start_s:.1f} s, and takes up to {figures.memory_mb:,} MB.")
    columns = ["one core", "tokens/s", "hours per 1B tokens"]
    paper = [["LaCy", f"{PAPER_TOKENS_PER_S:,}", float(PAPER_HOURS)]]
    return Table("Annotation on one core", columns, rows, paper, "table 2", notes)


def _stages(figures: Figures) -> Table:
    new, known = figures.us_by_stage["new"], figures.us_by_stage["known"]
    order = [*STAGES]
    stages = sorted(new, key=lambda stage: (order.index(stage.partition("/")[0]), stage))
    rows = [[stage, f"{new[stage]:.2f}", f"{known[stage]:.2f}"] for stage in stages]
    note = "; ".join(f"{stage}: {what}" for stage, what in STAGES.items() if stage in new)
    columns = ["stage", *LABELS.values()]
    return Table(f"Microseconds per {figures.unit} by stage", columns, rows, notes=[f"{note}."])


def _scaling(figures: Figures, tokens_per_s: int | None) -> Table:
    first = figures.scaling[0].workers
    columns = ["workers", *(column for label in LABELS.values() for column in (f"{label}, tokens/s", "share"))]
    rows = []
    for row in figures.scaling:
        cells: list[str] = []
        for text in LABELS:
            share = row.efficiency_quartiles[f"{text}, cpu"][1]
            cells += [f"{row.tokens_per_s[f'{text}, cpu']:,}", f"{share:.0%}"]
        rows.append([str(row.workers), *cells])
    notes = [f"The share is what a worker keeps of its rate with {_count(first, 'worker')}."]
    if figures.core_share < BUSY:
        notes.append(
            f"The workers had only {figures.core_share:.0%} of their cores: other processes or a CPU quota took the "
            "rest. The rates are by CPU time, which busy neighbours also slow down: measure again on an idle machine."
        )
    return Table("Workers at once", columns, rows, notes=[*notes, *sentences(figures, tokens_per_s)])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _hours(tokens_per_s: int) -> float:
    return 1e9 / tokens_per_s / 3600
