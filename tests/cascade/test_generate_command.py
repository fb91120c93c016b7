"""`lacy-stream generate` as people run it: output, files, going on, errors."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from servers import completions_server

from lacy_stream.cascade.articles import with_article
from lacy_stream.cascade.biography_prompt import name_in, prompt_for
from lacy_stream.cascade.identity import partner_content
from lacy_stream.cascade.output import generations_to_html, read_prompts, style_token
from lacy_stream.cascade.texts import Generation, Token
from lacy_stream.cli.main import main

pytestmark = pytest.mark.model

NAMES = "Ada Lovelace was\n\nMarie Curie was\nIn 1987, the\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(NAMES)
    return path


def rows(path: Path) -> list[dict]:
    """The texts of a JSONL file, without its head."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def test_a_prompt_on_the_terminal(wordy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text is printed with the partner's tokens in brackets; JSONL says who wrote what, the page marks it."""
    out, page = tmp_path / "texts.jsonl", tmp_path / "page.html"
    arguments = ["--partner", str(wordy_model), "--call-rate", "0.4", "--max-new-tokens", "24"]
    files = ["--out", str(out), "--html", str(page)]
    assert main(["generate", str(wordy_model), "--prompt", "Ada <b> was", *arguments, *files]) == 0
    printed = capsys.readouterr().out
    [text] = rows(out)
    assert printed.startswith("Ada <b> was") and "⟦" in printed and "target 40%" in printed
    assert "".join(token[0] for token in text["tokens"]) == text["text"]
    assert {token[1] for token in text["tokens"]} == {"model", "partner"}
    assert all(isinstance(token[2], float) for token in text["tokens"] if token[1] == "partner")
    assert page.read_text().count('class="k0"') > 1 and "Ada &lt;b&gt; was" in page.read_text()


def test_prompts_in_a_batch(wordy_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that grow together are printed one after the other."""
    command = ["generate", str(wordy_model), "--partner", str(wordy_model), "--max-new-tokens", "12"]
    command += ["--prompt", "Ada Lovelace was", "--prompt", "Marie Curie was"]
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert main([*command, "--batch-size", "2"]) == 0
    together = capsys.readouterr().out
    assert (
        together.replace("⟦", "").replace("⟧", "").split("texts")[0]
        == alone.replace("⟦", "").replace("⟧", "").split("texts")[0]
    )
    assert main([*command, "--batch-size", "0"]) == 2
    assert "batch_size is 0" in capsys.readouterr().err


def test_a_file_of_prompts_goes_on(
    wordy_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off in the middle of a line, the same command writes what an uninterrupted run writes. The empty prompt is
    skipped by name."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    command = ["generate", str(wordy_model), "--partner", str(wordy_model), "--prompts", str(prompts)]
    command += ["--call-rate", "0.3", "--max-new-tokens", "12", "--out"]
    assert main([*command, str(whole)]) == 1
    assert "skipped: prompt 2: the prompt is empty" in capsys.readouterr().out
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert main([*command, str(cut)]) == 1
    assert cut.read_bytes() == data
    prompts.write_text(NAMES.replace("Ada", "Eve"))
    assert main([*command, str(cut)]) == 2
    assert "text 1 has the prompt 'Ada" in capsys.readouterr().err
    for option, message in (("--seed", "seed was 0, is 1"), ("--batch-size", "batch_size was 8, is 1")):
        assert main([*command, str(cut), option, "1"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.process
def test_an_endpoint_that_dies(wordy_model: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    """What was written stays, the error says what to do, and with the endpoint back the run continues."""
    out = tmp_path / "texts.jsonl"
    command = ["generate", str(wordy_model), "--prompts", str(prompts), "--call-rate", "1", "--max-new-tokens", "4"]
    with completions_server("vllm") as (url, _):
        first = tmp_path / "first.txt"
        first.write_text(NAMES.splitlines()[0])
        command[3] = str(first)
        assert main([*command, "--partner", f"{url}#stub", "--out", str(out)]) == 0
        command[3] = str(prompts)
    kept = out.read_bytes()
    assert main([*command, "--partner", f"{url}#stub", "--out", str(out)]) == 2
    assert "the same command again" in capsys.readouterr().err
    assert out.read_bytes().startswith(kept) and len(rows(out)) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "prompts.txt"], "--prompts needs --out"),
        (["--prompt", "a", "--call-rate", "2", "--partner", "MODEL"], "call_rate is 2"),
        (["--prompt", "a", "--partner", "none.gguf"], "no file 'none.gguf'"),
        (["--prompt", "a", "--partner", "p", "--partner-device", "gpu"], "there is no device 'gpu'"),
        (["--prompt", "a", "--knowledge", "none"], "none does not exist"),
    ],
)
def test_errors(wordy_model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Each mistake is one line that names it."""
    arguments = [str(wordy_model) if argument == "MODEL" else argument for argument in arguments]
    assert main(["generate", str(wordy_model), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_marks_and_strangers() -> None:
    """The page escapes text and marks neighbours together; the terminal gets no control characters."""
    tokens = [Token(" <i>", "model"), Token(" Par", "partner", 1.0, 0.0), Token("is", "partner"), Token(".", "model")]
    page = generations_to_html([Generation("a", " <i> Paris.", tokens, "length")])
    assert "&lt;i&gt;" in page and "<i>" not in page
    assert page.count('class="k0"') == 2 and "50% by the partner" in page
    assert style_token(Token(" \x1b[31mx", "partner"), colour=False).plain == " ⟦\ufffd[31mx⟧"
    assert style_token(Token(" x", "model"), colour=False).plain == " x"


def test_articles_come_before_the_text(tmp_path: Path) -> None:
    """The first 8,000 characters of the person's article, the title from the prompt or the file; none where unknown."""
    from lacy_stream.prepare.knowledge import Knowledge, build

    source = tmp_path / "articles.jsonl"
    source.write_text(json.dumps({"title": "Ada Lovelace", "text": "x" * 8000 + "END"}) + "\n")
    build([source], tmp_path / "store")
    store = Knowledge(tmp_path / "store")
    prompt = "Tell me a bio of Ada Lovelace. Ada Lovelace is"
    found = with_article(prompt, None, store)
    assert found.text == prompt and "about Ada Lovelace." in found.preamble
    assert "x" * 8000 + "<|im_end|>" in found.preamble
    assert "xx" not in with_article("Tell me a bio of Eve. Eve is", None, store).preamble
    assert not found.missing and with_article("Tell me a bio of Eve. Eve is", None, store).missing == "Eve"
    with pytest.raises(ValueError, match="no title for the prompt"):
        with_article("Who?", None, store)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Who?", "title": "Ada_Lovelace"}\n')
    [row] = read_prompts(file, store, "{title}: {article}\n")
    assert row.preamble == "Ada_Lovelace: " + "x" * 8000 + "\n"
    file.write_text('{"text": "Who?"}\n')
    with pytest.raises(ValueError, match='line 1: expected an object with "prompt"'):
        read_prompts(file)


@pytest.mark.parametrize("name", ["prompts.jsonl", "PROMPTS.JSONL", "prompts.ndjson"])
def test_every_name_of_json_lines_is_read(name: str, tmp_path: Path) -> None:
    """Prompts are objects in each file whose name says so, as `prepare` reads them; elsewhere a line is a prompt."""
    line = '{"prompt": "Who?"}'
    for file, text in ((tmp_path / name, "Who?"), (tmp_path / "prompts.txt", line)):
        file.write_text(line + "\n")
        assert [prompt.text for prompt in read_prompts(file)] == [text]


@pytest.mark.parametrize(
    "name",
    ["Ada Lovelace", "Franklin D. Roosevelt", "J. R. R. Tolkien", "E. E. Cummings", "Sammy Davis Jr.", "St. Vincent",
     "Flann O\u2019Brien", "Boutros Boutros-Ghali", "Malcolm X", "Will.i.am", "Thomas Thomas", "C. D"],
)  # fmt: skip
def test_names_of_biographies(name: str) -> None:
    """The name is found in the paper's prompt, in its first sentence, and where the text continues in another way."""
    for prompt in (prompt_for(name), f"Tell me a bio of {name}.", f"Tell me a bio of {name}. {name}, who was"):
        assert name_in(prompt) == name, prompt


def test_prompts_without_a_name() -> None:
    """A prompt of another form has no name that could be guessed."""
    for prompt in ("Who was Ada Lovelace?", "Tell me a bio of Ada Lovelace. She was born. ", "Tell me a bio of "):
        assert name_in(prompt) is None
    assert name_in("Tell me a bio of Sammy Davis Jr. Sammy Davis Jr. is") == "Sammy Davis Jr."


def test_missing_articles_are_counted_and_named(
    wordy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The article of the whole name is read. Names without one are said at the end. A byte order mark is no part of a
    prompt, and the other kind of apostrophe is no other name."""
    from lacy_stream.prepare.knowledge import build

    titles = ["Franklin D. Roosevelt", "Flann O'Brien"]
    source, prompts = tmp_path / "articles.jsonl", tmp_path / "prompts.txt"
    source.write_text("".join(json.dumps({"title": title, "text": "x"}) + "\n" for title in titles))
    build([source], tmp_path / "store")
    names = ["Franklin D. Roosevelt", "Nobody Known", "Flann O\u2019Brien"]
    prompts.write_text("".join(f"{prompt_for(name)}\n" for name in names), encoding="utf-8-sig")
    command = ["generate", str(wordy_model), "--partner", str(wordy_model), "--max-new-tokens", "2", "--knowledge"]
    assert main([*command, str(tmp_path / "store"), "--prompts", str(prompts), "--out", str(tmp_path / "o.jsonl")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 titles have no article, so the partner read none for them: Nobody Known" in printed
    assert [row["prompt"] for row in rows(tmp_path / "o.jsonl")] == [prompt_for(name) for name in names]


def test_one_bad_prompt_ends_nothing(wordy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lone surrogate in a JSONL file is skipped by name, on the first try and when the run is continued."""
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text('{"prompt": "a\\ud800"}\n{"prompt": "In 1987, the"}\n')
    command = ["generate", str(wordy_model), "--prompts", str(prompts), "--max-new-tokens", "4", "--out", str(out)]
    page = ["--html", str(tmp_path / "page.html")]
    for more in ([], page):
        assert main([*command, *more]) == 1
        assert "prompt 1: the prompt holds a lone surrogate" in " ".join(capsys.readouterr().out.split())
        assert [bool(row["text"]) for row in rows(out)] == [False, True]


def test_a_partner_that_was_replaced(wordy_model: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    """Another model under the partner's name does not continue the texts of the first."""
    partner, out = tmp_path / "partner", tmp_path / "o.jsonl"
    shutil.copytree(wordy_model, partner)
    command = ["generate", str(wordy_model), "--partner", str(partner), "--max-new-tokens", "4", "--out", str(out)]
    assert main([*command, "--prompt", "In 1987, the"]) == 0
    weights = load_file(partner / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, partner / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main([*command, "--prompt", "In 1987, the", "--prompt", "Ada"]) == 2
    assert "partner_content was" in capsys.readouterr().err


@pytest.mark.process
def test_what_an_endpoint_serves_under_a_name() -> None:
    """What an endpoint says about a model tells a replaced one; one that is down is unknown."""
    with completions_server("vllm") as (url, _):
        first = partner_content(f"{url}#stub")
        assert first == partner_content(url) and first is not None
        assert partner_content(f"{url}#other") is None
    with completions_server("vllm", "", "root=/models/new") as (url, _):
        assert partner_content(f"{url}#stub") not in (None, first)
    assert partner_content(f"{url}#stub") is None


def test_an_ascii_terminal(wordy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is done and said, with replacements for what the terminal cannot show."""
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    command = ["generate", str(wordy_model), "--partner", str(wordy_model), "--call-rate", "0.5", "--max-new-tokens"]
    assert main([*command, "12", "--prompt", "Zo\u00eb was"]) == 0
    sys.stdout.flush()
    assert b"Zo? was" in shown.getvalue() and b"target 50%" in shown.getvalue()


@pytest.mark.slow
def test_a_real_partner(wordy_model: Path, smollm: Path, tmp_path: Path) -> None:
    """SmolLM2 with its own tokenizer as the partner: its words are in the text, the call rate is kept roughly."""
    out = tmp_path / "texts.jsonl"
    command = ["generate", str(wordy_model), "--partner", str(smollm), "--out", str(out), "--max-new-tokens", "32"]
    assert main([*command, "--call-rate", "1", "--prompt", "The capital of France is"]) == 0
    [text] = rows(out)
    assert text["text"].startswith(" Paris") and text["call_rate"] == 1
