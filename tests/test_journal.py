"""The journal of results: nothing is lost, nothing is mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lacy_stream.evaluate.models import labels
from lacy_stream.files import file_fingerprint as fingerprint
from lacy_stream.journal import Journal, JournalError


def test_results_come_back(tmp_path: Path):
    """A journal that is opened again holds what was added, and takes more."""
    first = Journal(tmp_path / "a" / "j.jsonl", {"model": "x", "rate": 0.1})
    first.add({"name": "Zoë\u2028Ö"})
    first.add([1, None])
    del first  # as a process that dies
    second = Journal(tmp_path / "a" / "j.jsonl", {"model": "x", "rate": 0.1})
    assert second.results == [{"name": "Zoë\u2028Ö"}, [1, None]]
    second.add("third")
    assert Journal(tmp_path / "a" / "j.jsonl", {"model": "x", "rate": 0.1}).results[2] == "third"


@pytest.mark.parametrize("kept", [0, 5, 30, -4])
def test_half_a_line_is_dropped(tmp_path: Path, kept: int):
    """A process that was killed while it wrote costs the last line only, wherever it was cut, the head included."""
    journal = Journal(tmp_path / "j.jsonl", {"model": "x"})
    journal.add("one")
    journal.add("two")
    data = (tmp_path / "j.jsonl").read_bytes()
    (tmp_path / "j.jsonl").write_bytes(data[:kept])
    again = Journal(tmp_path / "j.jsonl", {"model": "x"})
    assert again.results == {0: [], 5: [], 30: ["one", "two"][: data[:30].count(b"\n") - 1], -4: ["one"]}[kept]
    again.add("new")
    assert Journal(tmp_path / "j.jsonl", {"model": "x"}).results[-1] == "new"


def test_other_settings_are_refused(tmp_path: Path):
    """Results of another model or another way of making them are not mixed in; the message says what differs."""
    Journal(tmp_path / "j.jsonl", {"model": "x", "rate": 0.1}).add(1)
    with pytest.raises(JournalError, match="rate was 0.1, is 0.2; remove it"):
        Journal(tmp_path / "j.jsonl", {"model": "x", "rate": 0.2})
    (tmp_path / "j.jsonl").write_text("no json\n")
    with pytest.raises(JournalError, match="damaged"):
        Journal(tmp_path / "j.jsonl", {"model": "x"})


def test_models_have_names_and_fingerprints(tmp_path: Path):
    """Models are called by their run or folder; a file that changes is another model."""
    for path in ("run/latest-rank0.pt", "run/ep0-ba9-rank0.pt", "exported/model.safetensors"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("weights")
    paths = [str(tmp_path / path) for path in ("run/latest-rank0.pt", "run/ep0-ba9-rank0.pt", "exported")]
    assert list(labels(paths)) == ["run", "run-ep0-ba9-rank0", "exported"]
    with pytest.raises(ValueError, match="does not exist"):
        labels([str(tmp_path / "nowhere")])
    assert labels(["owner/Name-1B"]) == {"Name-1B": "owner/Name-1B"}
    assert fingerprint("owner/Name-1B") != fingerprint("owner/Name-2B")
    with pytest.raises(ValueError, match="given twice"):
        labels(paths[:1] * 2)
    before = [fingerprint(path) for path in paths]
    assert len(set(before)) == 3 and before == [fingerprint(path) for path in paths]
    (tmp_path / "exported" / "model.safetensors").write_text("other weights")
    assert fingerprint(paths[2]) != before[2] and fingerprint(paths[0]) == before[0]
