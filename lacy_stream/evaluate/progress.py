"""How far an evaluation is, and how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

SECONDS = 10


@contextmanager
def progress(what: str, total: int, done: int = 0, *, together: int = 1) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told of items as they are finished. On a terminal a bar with the time that is left;
    elsewhere a line on stderr at the first items and every ten seconds.

    Args:
        what: is being done, in the plural: "biographies".
        total: items in all; done: those of an earlier run.
        together: how many are finished at once; a part of them would promise too long a time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, done, together)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.update(task, advance=count)


def _lines(what: str, total: int, before: int, together: int) -> Callable[[int], None]:
    start, said, done = monotonic(), -float("inf"), before

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        now = monotonic()
        if done < total and (done % together or now - said < SECONDS):
            return
        said = now
        left = (now - start) / max(done - before, 1) * (total - done)
        print(f"{what}: {done:,} of {total:,}, {duration(left)} left", file=sys.stderr, flush=True)

    return advance


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
