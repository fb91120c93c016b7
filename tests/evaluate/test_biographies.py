"""Biographies: written by a model and its partner, kept as they come, or read from a file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from judges import Reply, scripted_judge

from lacy_stream.cascade.settings import Decoding, Delegation
from lacy_stream.cli.main import main
from lacy_stream.evaluate.biographies import Biography, CascadeSettings, read_biographies, read_names, write_biographies
from lacy_stream.journal import JournalError
from lacy_stream.prepare.knowledge import build

pytestmark = pytest.mark.model

NAMES = ["Ada Lovelace", "Zoë Öström", "Charles Babbage", "Mary Somerville"]


@pytest.fixture
def cascade(tiny_partner: Path) -> CascadeSettings:
    return CascadeSettings(str(tiny_partner), Delegation(call_rate=0.3), Decoding(max_new_tokens=12, batch_size=8))


def test_texts_begin_with_the_name_and_calls_are_made(tiny_model: Path, cascade: CascadeSettings, tmp_path: Path):
    """Each name gets a text that begins "NAME is" and is as long as asked for; about a third is the partner's."""
    written = write_biographies("tiny", str(tiny_model), NAMES, cascade, tmp_path / "j.jsonl", "cpu")
    assert [one.name for one in written] == NAMES
    assert all(one.text.startswith(f"{one.name} is") and len(one.text) > len(one.name) + 3 for one in written)
    rates = [one.call_rate for one in written if one.call_rate is not None]
    assert len(rates) == 4 and 0.1 < sum(rates) / 4 < 0.6
    alone = CascadeSettings(decoding=Decoding(max_new_tokens=12, batch_size=8))
    plain = write_biographies("tiny", str(tiny_model), NAMES[:1], alone, tmp_path / "alone.jsonl", "cpu")
    assert plain[0].call_rate == 0 and plain[0].text != written[0].text


def test_a_stopped_run_goes_on_as_if_it_had_not(tiny_model: Path, cascade: CascadeSettings, tmp_path: Path):
    """After a kill in the middle of the third text the others are those of an uninterrupted run, thresholds and all."""
    whole = write_biographies("tiny", str(tiny_model), NAMES, cascade, tmp_path / "whole.jsonl", "cpu")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert write_biographies("tiny", str(tiny_model), NAMES, cascade, tmp_path / "cut.jsonl", "cpu") == whole
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Fewer names of the same list are the first of them, without a model being loaded.
    (tmp_path / "gone").mkdir()
    assert write_biographies("tiny", str(tiny_model), NAMES[:2], cascade, tmp_path / "cut.jsonl", "cpu") == whole[:2]


def test_texts_of_other_runs_are_refused(tiny_model: Path, cascade: CascadeSettings, tmp_path: Path):
    """A journal about other names, of another call rate or of a model that has changed is not gone on with."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    arguments = (cascade, tmp_path / "j.jsonl", "cpu")
    write_biographies("tiny", str(model), NAMES[:1], *arguments)
    with pytest.raises(JournalError, match="other names"):
        write_biographies("tiny", str(model), NAMES[1:], *arguments)
    with pytest.raises(JournalError, match="call_rate was 0.3, is 0.1"):
        other = replace(cascade, delegation=Delegation(call_rate=0.1))
        write_biographies("tiny", str(model), NAMES, other, tmp_path / "j.jsonl", "cpu")
    (model / "model.safetensors").touch()
    with pytest.raises(JournalError, match="model was"):
        write_biographies("tiny", str(model), NAMES, *arguments)


def test_the_partner_reads_the_article(tiny_model: Path, cascade: CascadeSettings, tmp_path: Path):
    """With articles the partner answers otherwise than without, and a store that changes is another run."""
    rows = [{"title": NAMES[0], "text": "She wrote about engines. " * 20}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([tmp_path / "a.jsonl"], tmp_path / "k.db")
    (tmp_path / "t.txt").write_text("{title}: {article}\n")
    files = {"articles": str(tmp_path / "k.db"), "template": str(tmp_path / "t.txt")}
    reading = replace(cascade, **files, delegation=Delegation(call_rate=0.9))
    (with_it,) = write_biographies("t", str(tiny_model), NAMES[:1], reading, tmp_path / "a", "cpu")
    without = replace(cascade, delegation=Delegation(call_rate=0.9))
    (without_it,) = write_biographies("t", str(tiny_model), NAMES[:1], without, tmp_path / "b", "cpu")
    assert with_it.call_rate and without_it.call_rate and with_it.text != without_it.text
    (tmp_path / "k.db").touch()
    with pytest.raises(JournalError, match="articles was"):
        write_biographies("t", str(tiny_model), NAMES[:1], reading, tmp_path / "a", "cpu")


def test_names_and_texts_from_files(tmp_path: Path):
    """Names are one a line, each once; texts come with our keys or with FActScore's; what is neither is named."""
    (tmp_path / "names.txt").write_text("Ada\n\n Zoë \nAda\nCharles\n", encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == ["Ada", "Zoë", "Charles"]
    assert read_names(tmp_path / "names.txt", 2) == ["Ada", "Zoë"]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no names"):
        read_names(tmp_path / "none.txt")
    rows = [{"topic": "A", "output": "x\u2028y"}, {"name": "B", "text": "z", "call_rate": 0.5}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_biographies(tmp_path / "t.jsonl") == [Biography("A", "x\u2028y"), Biography("B", "z", 0.5)]
    rows = [{"model": "f00d"}, {"prompt": "Tell me a bio of C. D. C. D is", "text": " e.", "skipped": ""}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_biographies(tmp_path / "t.jsonl") == [Biography("C. D", "C. D is e.")]
    (tmp_path / "t.jsonl").write_text('{"topic": "A", "output": "x"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2 of"):
        read_biographies(tmp_path / "t.jsonl")


def test_factscore_of_a_model_and_its_partner(tiny_model: Path, tiny_partner: Path, tmp_path: Path):
    """From names to a table in one command; a name too long for the model's context is left out, by name."""
    names = [*NAMES[:2], "Very " * 600 + "Long"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    rows = [{"title": name, "text": f"{name} is."} for name in names]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([tmp_path / "a.jsonl"], tmp_path / "k.db")
    command = ["evaluate", "factscore", str(tiny_model), "--names", str(tmp_path / "names.txt"), "--partner"]
    command += [str(tiny_partner), "--max-new-tokens", "8", "--knowledge", str(tmp_path / "k.db"), "--out"]
    command += [str(tmp_path / "out"), "--judge-model", "m", "--judge"]

    def script(question: str, _: int) -> Reply:
        return Reply("True" if "True or False" in question else "- A fact.")

    with scripted_judge(script) as server:
        assert main([*command, server.url]) == 0
    (model,) = json.loads((tmp_path / "out" / "factscore.json").read_text())["models"]
    assert model["score"]["unpenalised"] == 100 and model["score"]["scored"] == 2
    assert model["score"]["skipped"] == {"not written": [names[2]]}
    assert "context" in model["items"][2]["skipped"]


def test_a_sweep_of_two_rates_and_a_method(tiny_model: Path, tiny_partner: Path, tmp_path: Path):
    """From names to both tables in one command; without calls nothing is delegated, with more calls more."""
    (tmp_path / "names.txt").write_text("Ada\nZoë\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"title": "Ada", "text": "x"}\n{"title": "Zoë", "text": "x"}\n')
    build([tmp_path / "a.jsonl"], tmp_path / "k.db")
    command = ["evaluate", "sweep", str(tiny_model), "--baseline", str(tiny_model), "--methods", "random"]
    command += ["--rates", "0", "0.6", "--method-rate", "0.3", "--names", str(tmp_path / "names.txt")]
    command += ["--max-new-tokens", "16", "--knowledge", str(tmp_path / "k.db"), "--out", str(tmp_path / "out")]
    command += ["--partner", str(tiny_partner), "--judge-model", "m", "--judge"]
    with scripted_judge(lambda question, _: Reply("- A fact." if "breakdown" in question else "False")) as server:
        assert main([*command, server.url]) == 0
    runs = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [(run["delegate"], run["call_rate"]) for run in runs] == [("call", 0.0), ("call", 0.6), ("random", 0.3)]
    rates = [run["score"]["call_rate"] for run in runs]
    assert rates[0] == 0 < rates[2] < rates[1]
