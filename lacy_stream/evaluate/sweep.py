"""FActScore by call rate (table 8) and by the way of delegating at inference time (table 9)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lacy_stream.evaluate.biographies import Biography, CascadeSettings
from lacy_stream.evaluate.factscore import (
    FactChecker,
    FactScore,
    aggregate,
    check_scored,
    checker_settings,
    judge_biographies,
    judge_note,
    notes,
)
from lacy_stream.evaluate.results import Cell, Table, publish

# The call rates that the paper measured for the targets in `SweepOptions.rates`.
PAPER_RATES = [
    ["LaCy 334M", 0.0, 15.22],
    ["LaCy 334M", 22.40, 22.71],
    ["LaCy 334M", 40.35, 23.07],
    ["LaCy 334M", 60.20, 23.77],
    ["LaCy 334M", 79.73, 25.56],
    ["Llama 3.2 1B alone", 100.0, 34.21],
]
PAPER_METHODS = [
    ["334M", "random", None, 19.00],
    ["334M", "i-LaCy (log prob)", None, 20.51],
    ["334M", "i-LaCy (entropy)", None, 20.17],
]


@dataclass(frozen=True)
class SweepEntry:
    """One entry of a table: a model, how it wrote, and its texts."""

    model: str
    cascade: CascadeSettings
    biographies: Sequence[Biography]

    @property
    def label(self) -> str:
        return run_label(self.model, self.cascade)


def run_label(model: str, cascade: CascadeSettings) -> str:
    """The name of a run in tables, and of its journal."""
    return f"{model}-{cascade.delegation.method}-{cascade.delegation.call_rate:g}"


def evaluate_sweep(
    rates: Sequence[SweepEntry],
    methods: Sequence[SweepEntry],
    checker: FactChecker,
    out: str | os.PathLike[str],
    training: Sequence[str] = (),
) -> None:
    """Judge all runs and write sweep.json and sweep.md.

    Args:
        rates: runs of table 8; may be empty.
        methods: runs of table 9; may be empty.
        checker: judges the texts.
        out: folder for the files.
        training: sentences for the page about how the models were trained to call.

    Raises:
        JudgeError: the endpoint cannot be used; the answers so far are kept in its cache.
        NothingScoredError: no biography of a run has a score. The files were written.
    """
    runs = [*rates, *methods]
    judged = [judge_biographies(run.label, run.biographies, checker) for run in runs]
    scores = [aggregate(items, checker.gamma) for items in judged]
    tables = [
        *([_rates_table(rates, scores[: len(rates)])] if rates else []),
        *([_methods_table(methods, scores[len(rates) :])] if methods else []),
    ]
    tables[-1] = _with_notes(
        tables[-1],
        [
            *training,
            *(note for run, score in zip(runs, scores, strict=True) for note in notes(run.label, score)),
            judge_note(checker),
        ],
    )
    content = [
        {"model": run.model, **run.cascade.record(), "score": asdict(score), "items": [asdict(item) for item in items]}
        for run, score, items in zip(runs, scores, judged, strict=True)
    ]
    publish(Path(out), "sweep", {"jury": checker_settings(checker), "runs": content}, *tables)
    check_scored({run.label: score for run, score in zip(runs, scores, strict=True)}, checker.judge)


def _rates_table(runs: Sequence[SweepEntry], scores: Sequence[FactScore]) -> Table:
    rows: list[list[Cell]] = [
        [run.model, s.call_rate, s.score, s.unpenalised] for run, s in zip(runs, scores, strict=True)
    ]
    return Table(
        title="FActScore by call rate (%)",
        columns=["model", "calls", "FActScore", "unpenalised"],
        rows=rows,
        paper=[[*row, None] for row in PAPER_RATES],
        source="table 8",
    )


def _methods_table(runs: Sequence[SweepEntry], scores: Sequence[FactScore]) -> Table:
    rows: list[list[Cell]] = [
        [run.model, run.cascade.delegation.method, s.call_rate, s.score, s.unpenalised]
        for run, s in zip(runs, scores, strict=True)
    ]
    return Table(
        title="FActScore by delegation at inference time only (%)",
        columns=["model", "delegation", "calls", "FActScore", "unpenalised"],
        rows=rows,
        paper=[[*row, None] for row in PAPER_METHODS],
        source="table 9",
    )


def _with_notes(table: Table, said: Sequence[str]) -> Table:
    return Table(table.title, table.columns, table.rows, table.paper, table.source, said)
