"""What users are told is one line; a bug in the package keeps its traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import annotator.__main__
import lacy_stream.__main__
from annotator.errors import AnnotatorError, MissingFileError
from annotator.tokenizers import open_tokenizer
from lacy_stream.cli.main import main
from lacy_stream.errors import FileError, LacyStreamError
from lacy_stream.files import check_writable, file_errors, new_folder, replaced_file


def numpy_bug(*_: object, **__: object) -> None:
    """A ValueError that nobody meant for a user."""
    np.zeros(2) + np.zeros(3)


@pytest.mark.parser
def test_a_bug_of_the_annotator_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ValueError of NumPy inside the command passes through, with one text and with JSON lines."""
    monkeypatch.setattr("annotator.annotate.fired_rules", numpy_bug)
    (tmp_path / "a.txt").write_text("Ada lived.")
    (tmp_path / "a.jsonl").write_text('{"text": "Ada lived."}\n')
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(ValueError, match="could not be broadcast"):
            annotator.__main__.main([str(tmp_path / name)])


@pytest.mark.parser
def test_files_for_the_annotator_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be read, one that is no text, and a page that cannot be written: one line, exit code 2."""
    (tmp_path / "latin1.txt").write_bytes(b"Gr\xf6\xdfe")
    (tmp_path / "a.txt").write_text("Ada lived.")
    mistakes = [
        ([str(tmp_path)], f"error: {tmp_path} cannot be read: Is a directory. Name a text file."),
        ([str(tmp_path / "latin1.txt")], "latin1.txt is not UTF-8: "),
    ]
    for arguments, message in mistakes:
        assert annotator.__main__.main(arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


@pytest.mark.parser
def test_a_broken_pipeline_is_named(tmp_path: Path) -> None:
    """A folder that spaCy cannot load is an error for users, also as the ValueError that callers expect."""
    (tmp_path / "config.cfg").write_text("[nlp\n")
    with pytest.raises(AnnotatorError, match=f"model: spaCy cannot load {tmp_path}"):
        annotator.Annotator(annotator.__main__._default_tokenizer(), str(tmp_path))
    with pytest.raises(MissingFileError):
        open_tokenizer(tmp_path / "none.model")
    assert issubclass(MissingFileError, FileNotFoundError) and issubclass(AnnotatorError, ValueError)


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_a_bug_of_a_command_keeps_its_traceback(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Errors that were not made for users pass through `lacy-stream` and through what `composer RECIPE` runs."""

    def fail(*_: object, **__: object) -> None:
        raise error("ours")

    (tmp_path / "a.jsonl").write_text('{"text": "t"}\n')
    monkeypatch.setattr("lacy_stream.prepare.convert.find_inputs", fail)
    monkeypatch.setattr("lacy_stream.__main__.load_recipe", fail)
    with pytest.raises(error, match="ours"):
        main(["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")])
    with pytest.raises(error, match="ours"):
        lacy_stream.__main__.main(["recipe.yaml"])


def test_a_value_error_of_numpy_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is no message for users."""
    monkeypatch.setattr("lacy_stream.prepare.convert.find_inputs", numpy_bug)
    with pytest.raises(ValueError, match="could not be broadcast"):
        main(["prepare", "a.jsonl", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("error", [LacyStreamError, AnnotatorError])
def test_errors_for_users_are_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Those of either package, at either entry point, with exit code 2."""

    def fail(*_: object, **__: object) -> None:
        raise error("give another")

    monkeypatch.setattr("lacy_stream.prepare.convert.find_inputs", fail)
    monkeypatch.setattr("lacy_stream.__main__.load_recipe", fail)
    assert main(["prepare", "a.jsonl", "--out", str(tmp_path / "out")]) == 2
    assert lacy_stream.__main__.main(["recipe.yaml"]) == 2
    assert capsys.readouterr().err == "lacy-stream prepare: error: give another\nerror: give another\n"


@pytest.mark.process  # transformers and Composer look at the machine by other programs
def test_files_that_users_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing, is a folder, or is not text is named in one line by each command that reads it."""
    (tmp_path / "latin1.txt").write_bytes(b"Gr\xf6\xdfe")
    missing, folder, latin1 = str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "latin1.txt")
    out = ["--out", str(tmp_path / "out.jsonl")]
    mistakes = [
        (["show-calls", missing], f"there is no file '{missing}'"),
        (["export", missing, str(tmp_path / "model")], f"there is no file or folder '{missing}'"),
        (["generate", "model", "--prompts", missing, *out], f"{missing} cannot be read: No such file or directory"),
        (["generate", "model", "--prompts", folder, *out], f"{folder} cannot be read: Is a directory"),
        (["generate", "model", "--prompts", latin1, *out], f"{latin1} is not UTF-8"),
        (["generate", "model", "--prompt", "x", "--template", missing], f"{missing} cannot be read: No such file"),
        (["generate", "model", "--prompt", "x", "--out", folder], f"{folder} cannot be written: Is a directory"),
    ]
    for arguments, message in mistakes:
        assert main(arguments) == 2, arguments
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1, arguments


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    """What fails leaves the old file, no new folder, and nothing beside them."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / "folder") as partial:
        partial.mkdir()
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replaced_file(path) as partial:
        partial.write_text("new")
    with new_folder(tmp_path / "a" / "folder") as partial:
        partial.mkdir()
        (partial / "x").touch()
    assert path.read_text() == "new" and (tmp_path / "a" / "folder" / "x").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "folder", "x"]
    with pytest.raises(FileError, match="exists"), new_folder(path):
        pass
    with pytest.raises(FileError, match="cannot be written: File exists"), replaced_file(path / "below"):
        pass
    with pytest.raises(ValueError, match="ours"), file_errors(path, "read"):
        raise ValueError("ours")


@pytest.mark.process  # importing Composer starts one
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "nowhere.pt", "--prompt", "x", "--html", "/proc/self/page.html"],
        ["show-calls", "nowhere.pt", "--html", "/proc/self/page.html"],
        ["add-call", "nowhere.pt", "/proc/self/grown.pt"],
        ["evaluate", "losses", "nowhere.pt", "--out", "/proc/self"],
    ],
)
def test_place_of_a_result_is_tried_before_the_work(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A page or a folder that cannot be written is named before a model is looked for."""
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "/proc/self" in message and "cannot be written" in message and "nowhere" not in message


def test_trying_a_file_changes_nothing(tmp_path: Path) -> None:
    """Neither a file nor a folder is made, and a file keeps its content; a folder is no file."""
    (tmp_path / "there.txt").write_text("as it was")
    for path in (tmp_path / "there.txt", tmp_path / "new.txt", tmp_path / "a" / "b" / "new.txt"):
        check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]
    assert (tmp_path / "there.txt").read_text() == "as it was"
    with pytest.raises(FileError, match="is a folder: name a file in it"):
        check_writable(tmp_path)
