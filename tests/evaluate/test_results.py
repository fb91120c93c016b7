"""What evaluations leave behind, and how they say how long they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lacy_stream import progress as progress_module
from lacy_stream.evaluate.results import Table, bars, publish
from lacy_stream.progress import duration, progress

TABLE = Table(
    title="Scores (%)",
    columns=["model", "a", "b"],
    rows=[["mine|yours", 12.345, None]],
    paper=[["LaCy", 1.0, "x"]],
    source="table 1",
    notes=["One thing.", "Another."],
)


def test_markdown_has_ours_then_the_papers():
    """One decimal, a dash for what is not there, bars escaped, and where the paper's figures stand."""
    assert TABLE.markdown() == (
        "# Scores (%)\n\n| model | a | b |\n| --- | --- | --- |\n| mine\\|yours | 12.3 | – |\n"
        "| *LaCy* (paper) | 1.0 | x |\n\nThe paper's figures: table 1.\n\nOne thing.\n\nAnother.\n"
    )


def test_publish_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """JSON and page are whole, with no half file beside them; the terminal shows what the page holds, made safe."""
    table = Table("T", ["model", "a"], [["[red]x\x1b[31m", 1.0]])
    publish(tmp_path / "out", "name", {"items": ["Zoë"]}, TABLE, table)
    assert json.loads((tmp_path / "out" / "name.json").read_text()) == {"items": ["Zoë"]}
    assert (tmp_path / "out" / "name.md").read_text() == f"{TABLE.markdown()}\n{table.markdown()}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["name.json", "name.md"]
    printed = capsys.readouterr().out
    assert "12.3" in printed and "Another." in printed and "[red]x" in printed and "\x1b[31m" not in printed


def test_bars_are_a_picture(tmp_path: Path):
    """A PNG of some size, whatever the names hold, and also if no model was measured."""
    for ours in ({"a$b_": 3.0, "c": 50.0}, {}):
        bars(tmp_path / "x" / "b.png", "T", "y", ours, {"LaCy": 22.7})
        data = (tmp_path / "x" / "b.png").read_bytes()
        assert data[:4] == b"\x89PNG" and len(data) > 2000


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A log gets a line at the first item, every ten seconds and at the end; what was done before takes no time."""
    clock = iter([0, 60, 65, 120, 180, 240])
    monkeypatch.setattr(progress_module, "monotonic", lambda: next(clock))
    with progress("texts", 9, done=4) as advance:
        for _ in range(5):
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "texts: 5 of 9, 4 min left",
        "texts: 7 of 9, 80 s left",
        "texts: 8 of 9, 45 s left",
        "texts: 9 of 9, 0 s left",
    ]


def test_durations():
    """Seconds, then minutes, then hours."""
    assert [duration(s) for s in (0.4, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]
