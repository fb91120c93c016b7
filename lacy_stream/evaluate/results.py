"""Files of an evaluation: NAME.json with all items, NAME.md with a table beside the paper's figures, and NAME.png."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lacy_stream.files import is_unicode, write_text

Cell = str | float | None
OURS, PAPER = "#3b6ea5", "#c9c9c9"


@dataclass(frozen=True)
class Table:
    """A table of scores with the scores of the paper below."""

    title: str
    """Title of the page."""
    columns: Sequence[str]
    """Names of the columns. The first column names the models."""
    rows: Sequence[Sequence[Cell]]
    """The measured rows. Numbers are shown with one decimal, and None as a dash."""
    paper: Sequence[Sequence[Cell]] = ()
    """The rows of the paper, with the same columns."""
    source: str = ""
    """Where the paper has them, such as "table 1"."""
    notes: Sequence[str] = field(default=())
    """Sentences for the reader."""

    def markdown(self) -> str:
        """The table and the notes as a page in Markdown."""
        lines = [f"# {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line([cell_text(cell) for cell in row]) for row in self.rows]
        lines += [_line([f"*{row[0]}* (paper)", *map(cell_text, row[1:])]) for row in self.paper]
        if self.source:
            lines += ["", f"The paper's figures: {self.source}."]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def show(self) -> None:
        """Print the table, with the paper's rows dimmed, and the notes."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as Grid

        from annotator.terminal import printable

        grid = Grid(*self.columns, title=escape(self.title))
        for row in self.rows:
            grid.add_row(*(escape(printable(cell_text(cell))) for cell in row))
        if self.paper:
            grid.add_section()
        for row in self.paper:
            grid.add_row(f"{row[0]} (paper)", *(cell_text(cell) for cell in row[1:]), style="dim")
        console = Console(highlight=False)
        console.print(grid)
        for note in self.notes:
            console.print(printable(note), markup=False)


def cell_text(cell: Cell) -> str:
    """Format a cell for people."""
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else f"{cell:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def publish(out: str | os.PathLike[str], name: str, content: Mapping[str, Any], *tables: Table) -> None:
    """Write OUT/NAME.json (`content`) and OUT/NAME.md, and print the tables."""
    out = Path(out)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_text(out / f"{name}.json", (text if is_unicode(text) else json.dumps(content, indent=1)) + "\n")
    write_text(out / f"{name}.md", "\n".join(table.markdown() for table in tables), errors="replace")
    for table in tables:
        table.show()
    print(f"written: {out / name}.json, .md" + (", .png" if (out / f"{name}.png").exists() else ""))


def bars(path: Path, title: str, ylabel: str, ours: Mapping[str, float], paper: Mapping[str, float]) -> None:
    """Draw a bar for each measured model and then for each of the paper's, with the values above them."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    labels = [*ours, *(f"{name}\n(paper)" for name in paper)]
    values = [*ours.values(), *paper.values()]
    figure = Figure(figsize=(2 + 1.1 * len(labels), 4), layout="constrained")
    axes = figure.subplots()
    drawn = axes.bar(range(len(labels)), values, color=[OURS] * len(ours) + [PAPER] * len(paper))
    axes.bar_label(drawn, fmt="%.1f")
    axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 4 else 0)
    axes.set(title=title, ylabel=ylabel)
    axes.margins(y=0.12)  # room for the values above the bars
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
