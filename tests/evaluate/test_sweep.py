"""The sweep: both tables of the paper, each run judged on its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judges import Reply, scripted_judge

from lacy_stream.cascade.settings import Delegation
from lacy_stream.evaluate.atomic_facts import ASK_FACTS
from lacy_stream.evaluate.biographies import Biography, CascadeSettings
from lacy_stream.evaluate.factscore import FactChecker
from lacy_stream.evaluate.judge import Judge
from lacy_stream.evaluate.sweep import SweepEntry, evaluate_sweep
from lacy_stream.prepare.knowledge import Knowledge, build


def script(question: str, _: int) -> Reply:
    """A sentence is a fact, and holds if it says "good"."""
    if question.startswith(ASK_FACTS):
        return Reply(f"- {question.removeprefix(ASK_FACTS)}")
    return Reply(str("good" in question.split("Input:")[1]))


def texts(good: int, bad: int, rate: float) -> list[Biography]:
    """One biography with these numbers of sentences that hold, and that do not."""
    sentences = [f"He is good {i}." for i in range(good)] + [f"He is bad {i}." for i in range(bad)]
    return [Biography("Ada", " ".join(sentences), rate)]


@pytest.mark.parser
def test_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Table 8 has a row for each rate with the calls that were made, table 9 one for each method, the paper's below."""
    (tmp_path / "a.jsonl").write_text('{"title": "Ada", "text": "Ada is good."}\n')
    build([tmp_path / "a.jsonl"], tmp_path / "k.db")
    rates = [SweepEntry("lacy", CascadeSettings("p", Delegation("call", 0.0)), texts(1, 3, 0.0))]
    rates += [SweepEntry("lacy", CascadeSettings("p", Delegation("call", 0.45)), texts(3, 1, 0.401))]
    methods = [SweepEntry("base", CascadeSettings("p", Delegation("random", 0.22)), texts(1, 1, 0.2))]
    with scripted_judge(script) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        evaluate_sweep(
            rates, methods, FactChecker(judge, Knowledge(tmp_path / "k.db"), {}, concurrency=2), tmp_path / "out"
        )
        evaluate_sweep([], methods, FactChecker(judge, Knowledge(tmp_path / "k.db"), {}), tmp_path / "one")
    page = (tmp_path / "out" / "sweep.md").read_text()
    assert "| lacy | 0.0 | 5.6 | 25.0 |" in page and "| lacy | 40.1 | 16.7 | 75.0 |" in page
    assert "| base | random | 20.0 |" in page and page.count("# FActScore by") == 2
    assert "| *LaCy 334M* (paper) | 79.7 | 25.6 | – |" in page
    assert "| *334M* (paper) | i-LaCy (entropy) | – | 20.2 | – |" in page
    assert "lacy-call-0.45: 1 of 1 biographies scored, on 4 facts." in page
    runs = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [(run["model"], run["delegate"], run["call_rate"]) for run in runs] == [
        ("lacy", "call", 0.0), ("lacy", "call", 0.45), ("base", "random", 0.22),
    ]  # fmt: skip
    assert [fact["supported"] for fact in runs[0]["items"][0]["facts"]] == [True, False, False, False]
    assert (tmp_path / "one" / "sweep.md").read_text().count("# FActScore by") == 1
    assert "by delegation" in capsys.readouterr().out
