"""FActScore: the questions, the reading of answers, the score, and a whole evaluation against an endpoint."""

from __future__ import annotations

import gzip
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from judges import Reply, ScriptedJudge, model_judge, scripted_judge

from lacy_stream.cli.main import main
from lacy_stream.evaluate.atomic_facts import (
    ASK_FACTS,
    facts_examples,
    facts_question,
    load_demonstrations,
    parse_facts,
    parse_verdict,
    sentences,
    verdict_question,
)
from lacy_stream.evaluate.factscore import Fact, JudgedBiography, aggregate, length_penalty
from lacy_stream.prepare.knowledge import build


def judged(name: str, *verdicts: bool | None, skipped: str = "") -> JudgedBiography:
    """A biography with facts of these verdicts."""
    return JudgedBiography(name, "text", facts=[Fact(f"{i}.", "s", v) for i, v in enumerate(verdicts)], skipped=skipped)


@pytest.mark.parser
def test_sentences():
    """Full stops of initials, titles and abbreviations end no sentence; line breaks do."""
    text = "J. R. Smith was born in Washington, D.C. in 1950. Dr. Smith died!\n\nA new line"
    assert sentences(text) == ["J. R. Smith was born in Washington, D.C. in 1950.", "Dr. Smith died!", "A new line"]


def test_demonstrations_are_earlier_turns():
    """The package's demonstrations are few and in the form that an answer should have."""
    demonstrations = load_demonstrations()
    assert 5 <= len(demonstrations) <= 8 and all(len(facts) > 2 for facts in demonstrations.values())
    for (question, answer), (sentence, facts) in zip(
        facts_examples(demonstrations), demonstrations.items(), strict=True
    ):
        assert question == facts_question(sentence) == f"{ASK_FACTS}{sentence}"
        assert parse_facts(answer) == facts


def test_demonstrations_from_a_file(tmp_path: Path):
    """FActScore's own file is taken as it is, eight of it; another layout is an error that names the file."""
    (tmp_path / "d.json").write_text(json.dumps({f"s{i}": ["f."] for i in range(21)}))
    assert list(load_demonstrations(tmp_path / "d.json")) == [f"s{i}" for i in range(8)]
    (tmp_path / "d.json").write_text("[1]")
    with pytest.raises(ValueError, match="d.json is not a JSON object"):
        load_demonstrations(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("- She sang.\n- She danced", ["She sang.", "She danced."]),
        ("Sure!\n\n1. One fact.\n2) Two.\n  * Three\n• One fact.", ["One fact.", "Two.", "Three."]),
        (f"- Mine.\n\n{ASK_FACTS}Something else.\n- Not mine.", ["Mine."]),
        ("I cannot do that.", []),
        ("", []),
        ("well-known - but no list", []),
    ],
)
def test_facts_of_an_answer(answer: str, facts: list[str]):
    """List items are facts, each once, with a full stop; prose and what a judge adds of its own are none."""
    assert parse_facts(answer) == facts


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("True", True),
        ("False.", False),
        ("It is not true, so False", False),
        ("true or false? TRUE", True),
        ("False. The text does not say that this is true.", False),
        ("True. It would be false to say otherwise.", True),
        ("**False**\n\nIt is true that he sang.", False),
        ("Output: False. What is true is that she wrote.", False),
        ("The statement is False. It is true that she wrote.", False),
        ("It is true that she wrote letters, but the claim is false.", False),
        ("The text says it is true that he was born there. False", False),
        ("True or False?\nOutput: False, it isn't true.", False),
        ("It isn't true.", False),
        ("This is not entirely true.", False),
        ("It is true that she sang. It is false that he did.", None),
        ("banana", None),
        ("untrue", None),
        ("", None),
    ],
)
def test_verdict_of_an_answer(answer: str, verdict: bool | None):
    """The verdict counts, and not each true or false of its reasons; an answer that says neither is no verdict."""
    assert parse_verdict(answer) is verdict


def test_verdict_question_has_the_nearest_passage_last():
    """The evidence comes before the fact, the best of it nearest to the question, as in FActScore's code."""
    question = verdict_question("Ada", "Ada wrote.", ["best", "second"])
    assert question == (
        "Answer the question about Ada based on the given context.\n\nTitle: Ada\nText: second\n\n"
        "Title: Ada\nText: best\n\nInput: Ada wrote. True or False?\nOutput:"
    )


def test_length_penalty():
    """No penalty above gamma facts; exp(1 - gamma / n) at and below it."""
    assert [length_penalty(n) for n in (11, 10)] == [1.0, 1.0]
    assert length_penalty(9) == pytest.approx(math.exp(-1 / 9))
    assert length_penalty(5) == pytest.approx(math.exp(-1)) and length_penalty(2, gamma=2) == 1.0


def test_score_of_hand_built_verdicts():
    """The mean over biographies, not facts; with and without the penalty; what has no verdict is named, not counted."""
    score = aggregate(
        [
            judged("a", *[True] * 6, *[False] * 6),
            judged("b", True, True, True, False, None),
            judged("c", skipped="no facts"),
            judged("d", skipped="no article; titles like it: e"),
            judged("e", None, skipped="no verdict"),
        ]
    )
    assert score.unpenalised == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert score.score == pytest.approx(100 * (0.5 + 0.75 * math.exp(1 - 10 / 4)) / 2)
    assert score.responded == pytest.approx(100 * 2 / 3)
    assert (score.biographies, score.scored, score.facts, score.facts_per_biography) == (5, 2, 16, 8)
    assert score.without_verdict == 2
    assert score.skipped == {"no facts": ["c"], "no article": ["d"], "no verdict": ["e"]}
    assert aggregate([judged("c", skipped="no facts")]).score is None


def test_published_human_verdicts(shared: Path):
    """On FActScore's human verdicts (irrelevant facts unsupported) InstructGPT scores 42.8 and ChatGPT 58.3."""
    by_model: dict[str, list[JudgedBiography]] = defaultdict(list)
    for line in gzip.open(shared / "factscore_labeled_human.jsonl.gz", "rt", encoding="utf-8"):
        row = json.loads(line)
        verdicts = [verdict == "S" for _, verdict in row["facts"]]
        by_model[row["model"]].append(judged(row["topic"], *verdicts, skipped="" if verdicts else "no facts"))
    scores = {model: aggregate(items) for model, items in by_model.items()}
    assert scores["InstructGPT"].unpenalised == pytest.approx(42.8, abs=0.05)
    assert scores["ChatGPT"].unpenalised == pytest.approx(58.3, abs=0.05)
    assert len(scores["ChatGPT"].skipped["no facts"]) == 183 - scores["ChatGPT"].scored == 26


# ---------------------------------------------------------------- whole evaluations

TEXTS = {
    "Ada Lovelace": "Ada Lovelace wrote letters. She died in London. She was a pilot.",
    "Nobody Known": "Nobody Known is a person.",
    "Silent Sam": "Silent Sam is",
    "Charles Babbage": "Charles Babbage built engines. He was a baker.",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with texts.jsonl in FActScore's format and articles of all names but one in k.db."""
    rows = [{"topic": name, "output": text} for name, text in TEXTS.items()]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "Ada Lovelace": "wrote letters and died in London",
        "Charles Babbage": "built engines",
        "Silent Sam": "sat",
    }
    articles = [{"title": name, "text": f"{name} {did}."} for name, did in facts.items()]
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in articles))
    build([tmp_path / "articles.jsonl"], tmp_path / "k.db")
    return tmp_path


def honest(question: str, _: int = 0) -> Reply:
    """A judge by rule: a sentence is a fact, "Silent Sam is" none; it holds if its last word is in the evidence."""
    if question.startswith("Please breakdown"):
        sentence = question.rsplit(ASK_FACTS, 1)[1]
        return Reply("I see no facts." if sentence == "Silent Sam is" else f"- {sentence}")
    evidence, fact = question.split("\n\nInput: ")
    return Reply(str(re.findall(r"\w+", fact.split(" True or False?")[0])[-1] in evidence))


def run(files: Path, server: ScriptedJudge, *more: str) -> int:
    return main(
        ["evaluate", "factscore", str(files / "texts.jsonl"), "--out", str(files / "out"), "--judge", server.url]
        + ["--judge-model", "m", "--knowledge", str(files / "k.db"), "--judge-retries", "0", *more]
    )


@pytest.mark.parser
def test_an_evaluation_ends_with_a_table(files: Path, capsys: pytest.CaptureFixture[str]):
    """JSON has every fact with its verdict, the table the score beside the paper's, and who was left out, by name."""
    with scripted_judge(honest) as server:
        assert run(files, server) == 0
        printed = capsys.readouterr()
        model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
        verdicts = {item["name"]: [fact["supported"] for fact in item["facts"]] for item in model["items"]}
        assert verdicts == {
            "Ada Lovelace": [True, True, False],
            "Nobody Known": [],
            "Silent Sam": [],
            "Charles Babbage": [True, False],
        }
        assert model["score"]["unpenalised"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
        assert model["score"]["skipped"] == {"no article": ["Nobody Known"], "no facts": ["Silent Sam"]}
        page = (files / "out" / "factscore.md").read_text()
        assert "| *LaCy 334M* (paper) | 22.7 |" in page and "| 58.3 |" in page
        assert "1 left out, no facts: Silent Sam" in page and "1 left out, no article: Nobody Known" in page
        assert (files / "out" / "factscore.png").read_bytes()[:4] == b"\x89PNG"
        assert "22.7" in printed.out and "biographies judged: 4 of 4" in printed.err
        shown = [request["messages"][:-1] for request in server.requests if "breakdown" in str(request["messages"][-1])]
        assert len(shown) == 6 and all(len(turns) == 2 * len(load_demonstrations()) for turns in shown)
        asked = len(server.questions)
        assert run(files, server) == 0 and len(server.questions) == asked  # nothing is asked twice


@pytest.mark.parser
def test_a_judge_that_dies_loses_nothing(files: Path, capfd: pytest.CaptureFixture[str]):
    """The run ends with one message; the next one asks only what was not answered, and has the same scores."""
    answered = []

    def dying(question: str, before: int) -> Reply:
        if len(answered) >= 4:
            return Reply("out of order", status=500)
        answered.append(question)
        return honest(question)

    with scripted_judge(dying) as server:
        assert run(files, server, "--judge-concurrency", "1") == 2
        message = capfd.readouterr().err
        assert "failed 3 times in a row" in message and "Traceback" not in message
        before, server.script = len(server.questions), honest
        assert run(files, server, "--judge-concurrency", "1") == 0
        assert not set(server.questions[before:]) & set(answered)
    model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
    assert model["score"]["unpenalised"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


@pytest.mark.parser
def test_nonsense_is_counted_not_scored(files: Path, capsys: pytest.CaptureFixture[str]):
    """Verdicts that say neither true nor false are no support; they are counted and written down."""

    def nonsense(question: str, _: int) -> Reply:
        return honest(question) if question.startswith("Please breakdown") else Reply("banana")

    with scripted_judge(nonsense) as server:
        assert run(files, server) == 2
    model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
    assert model["score"]["score"] is None and model["score"]["without_verdict"] == 5
    assert model["score"]["skipped"]["no verdict"] == ["Ada Lovelace", "Charles Babbage"]
    assert model["items"][0]["facts"][0]["why"] == "unclear: 'banana'"
    printed = capsys.readouterr()
    assert "5 facts (100%) without a verdict" in " ".join(printed.out.split())
    assert "nothing was scored for texts" in printed.err


@pytest.mark.parser
def test_a_list_of_facts_that_was_cut_is_not_judged(files: Path):
    """A sentence whose facts were cut by the token limit is unanswered; --judge-max-tokens gives more, and what was
    answered is not asked again."""

    def cutting(question: str, _: int) -> Reply:
        cut = question.endswith("She was a pilot.") and server.requests[-1]["max_tokens"] < 4096
        return Reply("- She was", finish="length") if cut else honest(question)

    with scripted_judge(cutting) as server:
        assert run(files, server) == 0
        model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
        assert model["score"]["unanswered_sentences"] == 1
        assert "She was" not in [fact["text"] for item in model["items"] for fact in item["facts"]]
        asked = len(server.questions)
        assert run(files, server, "--judge-max-tokens", "4096") == 0
        facts, verdict = server.questions[asked:]
        assert facts.endswith(" She was a pilot.") and "Input: She was a pilot. True or False?" in verdict


@pytest.mark.parser
def test_a_refusal_of_everything_is_an_error(files: Path, capsys: pytest.CaptureFixture[str]):
    """Where the endpoint refuses each question, its message is shown, and nothing scored is no success."""
    with scripted_judge(lambda *_: Reply("logit_bias is not supported", status=400)) as server:
        assert run(files, server) == 2
    printed = capsys.readouterr()
    assert "logit_bias is not supported" in printed.err and "Traceback" not in printed.err


@pytest.mark.parser
def test_a_text_that_is_not_unicode_is_left_out(files: Path):
    """A lone surrogate in one text ends nothing: its name is listed with the reason."""
    rows = [{"topic": "Ada Lovelace", "output": "She wrote \ud800."}, {"topic": "Charles Babbage", "output": "He sat."}]
    (files / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with scripted_judge(honest) as server:
        assert run(files, server) == 0
    model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
    assert model["score"]["skipped"] == {"not Unicode": ["Ada Lovelace"]} and model["score"]["scored"] == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--judge-max-tokens", "0", "--judge-max-tokens is 0"),
        ("--judge-extra-body", "[1]", "give a JSON object"),
        ("--judge-extra-body", "{", "give a JSON object"),
        ("--judge-timeout", "0", "--judge-timeout is 0"),
        ("--judge-retries", "-1", "--judge-retries is -1"),
    ],
)
def test_options_of_the_judge(option: str, value: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]):
    """A value that no judge can have is named before anything is asked."""
    with scripted_judge(honest) as server:
        assert run(files, server, f"{option}={value}") == 2
    assert message in capsys.readouterr().err and not server.questions


@pytest.mark.parser
def test_a_question_that_fails_leaves_a_gap_that_is_named(files: Path, capsys: pytest.CaptureFixture[str]):
    """One sentence that the endpoint cannot take is counted; the rest of its biography is scored."""

    def partly(question: str, _: int) -> Reply:
        return Reply("too long", status=400) if question.endswith("She was a pilot.") else honest(question)

    with scripted_judge(partly) as server:
        assert run(files, server) == 0
    model = json.loads((files / "out" / "factscore.json").read_text())["models"][0]
    assert model["score"]["unanswered_sentences"] == 1
    assert model["score"]["unpenalised"] == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert "failed for 1 sentences" in " ".join(capsys.readouterr().out.split())


@pytest.mark.process
@pytest.mark.slow
def test_a_real_model_as_the_judge(files: Path, tiny_model: Path):
    """Against a real model's endpoint, though its weights are random, the protocol ends with a table of all names."""
    with model_judge(tiny_model) as url:
        command = ["evaluate", "factscore", str(files / "texts.jsonl"), "--out", str(files / "out"), "--judge", url]
        command += ["--judge-model", "tiny", "--judge-max-tokens", "16", "--knowledge", str(files / "k.db")]
        assert main(command) == 2  # no answer of random weights is a verdict
    result = json.loads((files / "out" / "factscore.json").read_text())
    assert [item["name"] for item in result["models"][0]["items"]] == list(TEXTS)
    assert result["jury"]["questions"]["asked"] >= 6 and result["jury"]["questions"]["failed"] == 0
    assert "4 biographies scored" in (files / "out" / "factscore.md").read_text()


def test_a_missing_extra_says_what_to_install(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Without the packages of the extra the message is the pip command."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with scripted_judge(honest) as server:
        assert run(files, server) == 2
    assert "needs matplotlib: pip install 'lacy-stream[evaluate]'" in capfd.readouterr().err


@pytest.mark.model  # imports Composer
def test_user_errors_are_one_message(files: Path, capfd: pytest.CaptureFixture[str]):
    """A file that holds no texts, a store that is none, and names that are missing: exit code 2 and the way out."""
    (files / "bad.jsonl").write_text('{"topic": "x"}\n')
    (files / "folder").mkdir()
    common = ["--out", str(files / "out"), "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"]
    for model, knowledge, message in (
        ("bad.jsonl", "k.db", "line 1 of"),
        ("texts.jsonl", "texts.jsonl", "is no store"),
        ("folder", "k.db", "--names is missing"),
    ):
        arguments = ["evaluate", "factscore", str(files / model), *common, "--knowledge", str(files / knowledge)]
        assert main(arguments) == 2
        assert message in capfd.readouterr().err
