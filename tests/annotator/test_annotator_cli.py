"""`python -m annotator` as a user runs it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import annotator.__main__
from annotator import Annotator
from annotator.__main__ import main
from annotator.terminal import printable

pytestmark = pytest.mark.parser

TEXT = "Marie Curie was born in Warsaw in 1867. She was a physicist, and Curie won 1867 prizes.\n"


loaded_once = functools.cache(Annotator)


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The finished command, run in this process, which has imported spaCy already, and loads each annotator once."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file, pytest.MonkeyPatch.context() as patch:
        file.write(stdin)
        file.seek(0)
        patch.setattr(sys, "stdin", file)
        patch.setattr(annotator.__main__, "Annotator", loaded_once)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(args))
            except SystemExit as end:  # argparse's
                code = int(end.code or 0)
    return subprocess.CompletedProcess(["annotator", *args], code, out.getvalue(), err.getvalue())


def run_process(*args: str, stdin: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The finished command, in a process of its own."""
    command = [sys.executable, "-m", "annotator", *args]
    return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", env=os.environ | env)


@pytest.mark.process
def test_text_on_standard_input():
    """Without colours, facts stand in brackets; the legend and the share follow."""
    done = run_process("-", stdin=TEXT)
    assert done.returncode == 0, done.stderr
    assert "[Marie Curie] was born in [Warsaw] in [1867]. She was a [physicist], and Curie won" in done.stdout
    assert "named entity" in done.stdout
    assert "15 of 35 tokens are factual (42.9%)" in done.stdout


@pytest.mark.process
def test_colours_where_the_terminal_has_them():
    """In a terminal, facts are coloured and stand without brackets."""
    done = run_process("-", stdin=TEXT, FORCE_COLOR="1", TERM="xterm-256color")
    assert "42mMarie Curie\x1b[0m was born" in done.stdout
    assert "[Warsaw]" not in done.stdout


def test_json_of_a_text_file(tmp_path: Path):
    """Words with class and rule, tokens with class, all by code points of the text."""
    file = tmp_path / "curie.txt"
    file.write_text(TEXT, encoding="utf-8")
    done = run(str(file), "--json")
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["text"] == TEXT and record["id"] == str(file)
    words = [(TEXT[start:end], label, rule) for start, end, label, rule in record["words"]]
    assert words[0] == ("Marie", "factual", "person_entity")
    assert ("in", "grammatical", "preposition") in words and ("born", "other", "no_rule") in words
    assert words[words.index(("won", "other", "no_rule")) + 1] == ("1867", "other", "repeated_word")
    assert {label for _, _, _, label in record["tokens"]} == {"factual", "grammatical", "other"}
    assert record["tokens"][0][1] == 0 and record["tokens"][-1][2] == len(TEXT)


def test_json_lines_with_titles(tmp_path: Path):
    """Each line is a document with its id; a title is put before the text, and is the first mention."""
    file = tmp_path / "docs.jsonl"
    records = [{"id": "7", "title": "Marie Curie", "text": "Marie Curie died."}, {"text": "\u4e2d \U0001f600 1987."}]
    file.write_text("".join(json.dumps(r) + "\n" for r in records) + "\n", encoding="utf-8")
    done = run(str(file), "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["id"], first["text"]) == ("7", "Marie Curie\n\nMarie Curie died.")
    assert [word[3] for word in first["words"]][3:5] == ["repeated_person"] * 2
    assert (second["id"], second["text"]) == ("2", "\u4e2d \U0001f600 1987.")
    assert [second["text"][w[0] : w[1]] for w in second["words"]][-2] == "1987"


@pytest.mark.parametrize("name", ["docs.json", "docs.JSON", "docs", "-"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects(tmp_path: Path, name: str, indent: int | None):
    """JSON that is no JSON lines is not read as prose: each object of an array is a document."""
    records = [{"id": "7", "title": "Ada", "text": "Ada lived."}, {"text": "Zo\xeb lived."}, {"body": "Bob lived."}]
    text = json.dumps(records, indent=indent)
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    done = run("-" if name == "-" else str(file), "--json", stdin=text)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["text"]) for row in found] == [("7", "Ada\n\nAda lived."), ("2", "Zo\xeb lived.")]
    assert done.returncode == 1
    assert done.stderr.startswith(
        f'skipped: {"-" if name == "-" else file}, object 3: it is not a JSON object with a "t'
    )


def test_one_object_over_many_lines(tmp_path: Path):
    """A document written with indentation is one document, and not prose."""
    file = tmp_path / "doc.json"
    file.write_text(json.dumps({"id": "7", "text": "Ada lived."}, indent=2), encoding="utf-8")
    (found,) = map(json.loads, run(str(file), "--json").stdout.splitlines())
    assert (found["id"], found["text"]) == ("7", "Ada lived.")


def test_json_without_texts_is_no_prose(tmp_path: Path):
    """Objects whose text has another name are skipped by number; a .json file that is no JSON is an error."""
    done = run("-", "--json", stdin='{"body": "Ada lived."}\n')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('skipped: -, line 1: it is not a JSON object with a "text"')
    file = tmp_path / "docs.json"
    file.write_text('[{"text": "Ada lived."}', encoding="utf-8")
    done = run(str(file), "--json")
    assert (done.returncode, done.stdout) == (2, "") and f"{file} is not JSON. Name a file of" in done.stderr


@pytest.mark.parametrize("text", ["[Verse 1]\nAda lived.\n", "{Ada} lived.\n", "[1, 2]\n", "7\n"])
def test_prose_with_brackets_is_prose(text: str):
    """A text that begins with a bracket, or is a number, is a text."""
    (found,) = map(json.loads, run("-", "--json", stdin=text).stdout.splitlines())
    assert found["text"] == text


def test_titles_are_those_of_prepare():
    """A title of white space is none, and a line whose title is no string is skipped, as `prepare` does both."""
    lines = '{"title": " ", "text": "Ada lived."}\n{"title": 1984, "text": "Ada lived."}\n'
    done = run("-", "--json", stdin=lines)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["Ada lived."]
    assert done.stderr.splitlines()[0] == "skipped: -, line 2: title is not a string"


def test_id_that_is_null(tmp_path: Path):
    """An id of null is no id: the line number stands in."""
    done = run("-", "--json", stdin='\n{"id": null, "text": "Fine."}\n{"id": 0, "text": "Fine."}\n')
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["2", "0"]


BROKEN_LINES = (
    '{"id": "a", "text": "Ada lived."}\n'
    '{"id": "b\\u001b", "text": "Bo\\ud800b lived."}\n'
    "not json\n"
    '{"text": null}\n' + "[" * 100_000 + '\n{"id": "<script>\\udc00", "text": "Zoe lived."}\n'
)


@pytest.mark.parametrize("output", ["terminal", "json", "html"])
def test_what_cannot_be_labelled_is_skipped(tmp_path: Path, output: str):
    """Each line that cannot be labelled is named on stderr, the others are labelled, and the status is 1."""
    page = tmp_path / "out.html"
    options = {"terminal": [], "json": ["--json"], "html": ["--html", str(page)]}[output]
    done = run("-", *options, stdin=BROKEN_LINES)
    assert done.returncode == 1
    *skips, summary = done.stderr.splitlines()
    assert summary == "skipped 4 of 6 documents"
    assert skips[0].startswith("skipped: -, line 2, document 'b\\x1b': text: lone surrogate U+D800 at code point 2")
    assert skips[1:] == [f'skipped: -, line {n}: it is not a JSON object with a "text"' for n in (3, 4, 5)]
    shown = page.read_text(encoding="utf-8") if output == "html" else done.stdout
    assert "Ada" in shown and "Zoe" in shown and "Bo" not in shown
    if output == "html":
        assert "<script" not in shown and "&lt;script&gt;" in shown
        assert "<title>lacy-stream: facts</title>" in shown


def test_help_names_the_exit_statuses():
    """0, 1 and 2 each have a meaning."""
    assert "Exit status: 0 if every document was labelled; 1 if some" in " ".join(run("--help").stdout.split())


def test_missing_tokenizer_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Without --tokenizer and without mistral-common, the error names what to install from a checkout too."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([__file__]) == 2
    assert "pip install mistral-common`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kept",
    ["\t\n", "a\u00a0b\u3000\u2009", "co\u00adop", "\u0646\u200c\u0647", "\U0001f469\u200d\U0001f467\ufe0f", "\u200e"],
)
def test_ordinary_characters_are_printed(kept: str):
    """Spaces of every width, soft hyphens, joiners and variation selectors do nothing to a terminal."""
    assert printable(kept) == kept


@pytest.mark.parametrize(
    "replaced", ["\0", "\r", "\x1b", "\x7f", "\x85", "\x9b", *"\u202a\u202e\u2066\u2069", "\u2028", "\ud800"]
)
def test_characters_that_act_on_a_terminal_are_replaced(replaced: str):
    """Control characters and bidirectional overrides become U+FFFD, one for one."""
    assert printable(f"a{replaced}b") == "a\ufffdb"


def test_page(tmp_path: Path):
    """The page marks each fact with its rule, one colour per family, and escapes the text."""
    page = tmp_path / "out.html"
    done = run("-", "--html", str(page), stdin="<b> " + TEXT)
    assert done.returncode == 0, done.stderr
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>") and "&lt;b&gt;" in html
    assert html.count("PERSON ENTITY") == 1 and "REPEATED PERSON" in html
    assert "background: #8fd694" in html and "background: #ffd166" in html
    assert html.count('class="k0"') >= 1 + 3  # in the legend, and three entities


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["no-such-file.txt"], "", "no-such-file.txt"),
        (["-", "--tokenizer", "none.model"], "", "none.model"),
        (["-", "--model", "xx_none"], "", "spacy download xx_none"),
    ],
)
def test_mistakes_are_named(args: list[str], stdin: str, message: str):
    """A mistake ends with status 2 and one line that names it, not with a traceback."""
    done = run(*args, stdin=stdin)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
