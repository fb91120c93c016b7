"""Progress of a command: a bar on a terminal, and a line on stderr every ten seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

SECONDS = 10
"""Shortest time between two lines."""


class _State(NamedTuple):
    """The position and text of the bar, the text of a line at a given time, and whether the work has ended."""

    completed: float
    total: float | None
    text: str
    line: Callable[[float], str]
    ended: bool = False


@contextmanager
def progress(what: str, total: int, done: int = 0, *, together: int = 1) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; call it when n items are done. A log gets a line for the first items and one for the last.

    Args:
        what: name of the items, in the plural: "biographies".
        total: number of all items.
        done: number of items that an earlier run has finished.
        together: number of items that are finished at once. The time left is estimated after whole groups only, since
            it would come out too long within a group.
    """
    start, finished = monotonic(), done

    def line(now: float) -> str:
        left = (now - start) / max(finished - done, 1) * (total - finished)
        return f"{finished:,} of {total:,}, {duration(left)} left"

    # The last line counts as said long ago, so that the first items have a line at once.
    with _display(what, total, done, said=-float("inf")) as show:

        def advance(count: int) -> None:
            nonlocal finished
            finished += count
            if finished >= total or finished % together == 0:
                show(_State(finished, total, f"{finished:,} of {total:,}", line, finished >= total))

        yield advance


@dataclass(frozen=True)
class SourceProgress:
    """Progress in reading sources: the share of their bytes (None if unknown), and the rows so far."""

    source: str
    done: float | None
    documents: int
    refused: int


@contextmanager
def source_progress(program: str) -> Iterator[Callable[[SourceProgress], None]]:
    """Yield a function that shows a ``SourceProgress``. Without a terminal, work of less than ten seconds shows
    nothing."""
    from annotator.terminal import printable

    with _display(program, None, 0, said=monotonic()) as show:

        def show_source(state: SourceProgress) -> None:
            share = "" if state.done is None else f", {state.done:.0%} read"
            text = f"{state.documents:,} documents, {state.refused:,} refused{share}, at {printable(state.source)}"
            show(_State(state.done or 0.0, None if state.done is None else 1.0, text, lambda now: text))

        yield show_source


@contextmanager
def _display(what: str, total: float | None, done: float, said: float) -> Iterator[Callable[[_State], None]]:
    """Yield a function that shows a state.

    Args:
        total, done: length and position of the bar at the start.
        said: time at which the last line counts as printed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    def print_line(state: _State) -> None:
        nonlocal said
        now = monotonic()
        if state.ended or now - said >= SECONDS:
            said = now
            print(f"{what}: {state.line(now)}", file=sys.stderr, flush=True)

    console = Console(stderr=True)
    if not console.is_terminal:
        yield print_line
        return
    text = TextColumn("{task.fields[text]}", markup=False)
    with Progress(TextColumn(what, markup=False), BarColumn(), text, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=total, completed=done, text="")  # type: ignore[arg-type]
        yield lambda state: bar.update(task, completed=state.completed, total=state.total, text=state.text)


def duration(seconds: float) -> str:
    """Format seconds in the largest unit that fits: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
