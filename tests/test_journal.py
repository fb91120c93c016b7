"""The journal of results: nothing is lost, nothing is mixed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lacy_stream.evaluate.models import labels, labels_of_both
from lacy_stream.files import file_fingerprint as fingerprint
from lacy_stream.journal import Journal, JournalError


def test_results_come_back(tmp_path: Path):
    """A journal that is opened again holds what was added, and takes more."""
    path, settings = tmp_path / "a" / "j.jsonl", {"model": "x", "rate": 0.1}
    first = Journal(path, settings)
    first.add({"name": "Zoë\u2028Ö"})
    first.add([1, None])
    first.add("a\ud800")  # JSON can spell a lone surrogate, and UTF-8 cannot
    del first  # as a process that dies
    with Journal(path, settings) as second:
        assert second.results == [{"name": "Zoë\u2028Ö"}, [1, None], "a\ud800"]
        second.add("fourth")
    with Journal(path, settings) as third:
        assert third.results[3] == "fourth"
    assert "Zoë" in path.read_text(encoding="utf-8") and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 5, 30, -4])
def test_half_a_line_is_dropped(tmp_path: Path, kept: int):
    """A process that was killed while it wrote costs the last line only, wherever it was cut, the head included."""
    with Journal(tmp_path / "j.jsonl", {"model": "x"}) as journal:
        journal.add("one")
        journal.add("two")
    data = (tmp_path / "j.jsonl").read_bytes()
    (tmp_path / "j.jsonl").write_bytes(data[:kept])
    with Journal(tmp_path / "j.jsonl", {"model": "x"}) as again:
        assert again.results == {0: [], 5: [], 30: ["one", "two"][: data[:30].count(b"\n") - 1], -4: ["one"]}[kept]
        again.add("new")
    with Journal(tmp_path / "j.jsonl", {"model": "x"}) as last:
        assert last.results[-1] == "new"


def test_other_settings_are_refused(tmp_path: Path):
    """Results of another model or another way of making them are not mixed in; the message says what differs."""
    with Journal(tmp_path / "j.jsonl", {"model": "x", "rate": 0.1}) as journal:
        journal.add(1)
    with pytest.raises(JournalError, match="rate was 0.1, is 0.2; remove it"):
        Journal(tmp_path / "j.jsonl", {"model": "x", "rate": 0.2})
    (tmp_path / "j.jsonl").write_text("no json\n")
    with pytest.raises(JournalError, match="damaged"):
        Journal(tmp_path / "j.jsonl", {"model": "x"})


@pytest.mark.parametrize("content", ['{"prompt": "a"}\n', "Ada Lovelace was", "[1]\n[2]\n", '"a"\n'])
def test_other_files_are_left_alone(content: str, tmp_path: Path):
    """A file that is no journal, also of one line or without its end, is refused and stays as it is."""
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(JournalError):
        Journal(tmp_path / "prompts.jsonl", {"model": "x"})
    assert (tmp_path / "prompts.jsonl").read_text() == content


def test_settings_that_may_be_unknown(tmp_path: Path):
    """They are compared where both are known. A file without results takes over what is known now."""
    path, both = tmp_path / "j.jsonl", {"if_known": ("partner",)}
    for known in (None, "p"):
        Journal(path, {"model": "x", "partner": known}, **both).close()
    with Journal(path, {"model": "x", "partner": "p"}, **both) as journal:
        journal.add(1)
    for settings in ({"model": "x", "partner": None}, {"model": "x"}, {"model": "x", "partner": "p"}):
        with Journal(path, settings, **both) as journal:
            assert journal.results == [1]
    with pytest.raises(JournalError, match="partner was 'p', is 'q'"):
        Journal(path, {"model": "x", "partner": "q"}, **both)
    with pytest.raises(JournalError, match="model was 'x', is None"):
        Journal(path, {"model": None, "partner": "p"}, **both)


@pytest.mark.process
def test_one_process_at_a_time_writes(tmp_path: Path):
    """A second process is told who writes the file. One that was killed does not stand in the way."""
    code = f"""
from lacy_stream.journal import Journal
journal = Journal({os.fspath(tmp_path / "j.jsonl")!r}, {{"model": "x"}})
journal.add(1)
print("ready", flush=True)
input()"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        before = (tmp_path / "j.jsonl").read_bytes()
        with pytest.raises(JournalError, match=f"is being written by process {other.pid} on .*, since .*another --out"):
            Journal(tmp_path / "j.jsonl", {"model": "x"})
        assert (tmp_path / "j.jsonl").read_bytes() == before
        other.kill()
    with Journal(tmp_path / "j.jsonl", {"model": "x"}) as journal:
        assert journal.results == [1]


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
    with pytest.raises(ValueError, match="given twice"):
        labels([paths[2], os.path.relpath(paths[2])])
    before = [fingerprint(path) for path in paths]
    assert len(set(before)) == 3 and before == [fingerprint(path) for path in paths]
    (tmp_path / "exported" / "model.safetensors").write_text("other weights")
    assert fingerprint(paths[2]) != before[2] and fingerprint(paths[0]) == before[0]


def test_every_model_has_a_label_of_its_own(tmp_path: Path):
    """Models of one name in two lists, and labels that others have already, are told apart; none is lost."""
    for path in ("a/m", "b/m"):
        (tmp_path / path).mkdir(parents=True)
    one, other = str(tmp_path / "a" / "m"), str(tmp_path / "b" / "m")
    models, baselines = labels_of_both([one], [other, one])
    assert models == {"m": one} and set(baselines.values()) == {one, other} and baselines["m"] == one
    taken = [str(tmp_path / "c" / name) for name in ("m", "m-m", "-".join(Path(one).parts[1:]))]
    for path in taken:
        Path(path).mkdir(parents=True)
    assert set(labels([*taken, one]).values()) == {*taken, one}
