"""FActScore (Min et al. 2023; section 5.2, appendix B): how much of a biography its subject's article supports.

    biography --sentences--> sentence --judge--> atomic facts --knowledge--> passages --judge--> verdict --> score

The protocol is that of FActScore's code (retrieval and ChatGPT): its instructions, its parsing, its length penalty.
Where it differs: passages are found by bm25 instead of a GTR encoder; sentences are cut by spaCy's rules instead of
NLTK's; the demonstrations are our own (``--demonstrations`` takes others); and an answer that says neither true nor
false is no verdict, where FActScore counts it as support unless it says "not" or "unknown".
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lacy_stream.evaluate.atomic_facts import (
    Demonstrations,
    facts_examples,
    facts_question,
    parse_facts,
    parse_verdict,
    sentences,
    verdict_question,
)
from lacy_stream.evaluate.biographies import Biography
from lacy_stream.evaluate.judge import Judge, in_parallel
from lacy_stream.evaluate.results import Table, bars, publish
from lacy_stream.evaluate.settings import FactCheckOptions, JudgeOptions
from lacy_stream.prepare.knowledge import Knowledge
from lacy_stream.progress import progress

GAMMA = FactCheckOptions.gamma
PASSAGES = 5
FACT_TOKENS, VERDICT_TOKENS = 256, 32
PAPER = {"Baseline 334M": 15.89, "LaCy 334M": 22.71, "LaCy 334M, RAG partner": 31.67, "Llama 3.2 1B alone": 34.20}


@dataclass(frozen=True)
class Fact:
    """An atomic fact. supported: the judge's verdict; None where it gave none, `why` says how that came."""

    text: str
    sentence: str
    supported: bool | None
    why: str = ""


@dataclass
class Judged:
    """A biography with its facts. skipped: why it has none that could be judged; "" where it has.

    unanswered: sentences for which the endpoint failed, so that facts are missing.
    """

    name: str
    text: str
    call_rate: float | None = None
    facts: list[Fact] = field(default_factory=list)
    skipped: str = ""
    unanswered: int = 0


@dataclass(frozen=True)
class Score:
    """FActScore over biographies that have verdicts, in percent, and what became of the others.

    score: mean over biographies of the supported share, times the length penalty; unpenalised: without it.
    responded: share of the biographies with an article that have facts, in percent.
    """

    score: float | None
    unpenalised: float | None
    responded: float | None
    biographies: int
    scored: int
    facts: int
    facts_per_biography: float | None
    call_rate: float | None
    without_verdict: int
    unanswered_sentences: int
    skipped: dict[str, list[str]]


@dataclass(frozen=True)
class Jury:
    """What judges biographies: an endpoint, the articles, the demonstrations, and how many questions run at once."""

    judge: Judge
    knowledge: Knowledge
    demonstrations: Demonstrations
    threads: int = JudgeOptions.threads
    gamma: int = GAMMA


# ---------------------------------------------------------------- facts and verdicts


def judge_biography(biography: Biography, jury: Jury) -> Judged:
    """Atomic facts of a biography, each with a verdict.

    Raises:
        JudgeError: the endpoint cannot be used any more.
    """
    judge, knowledge = jury.judge, jury.knowledge
    judged = Judged(biography.name, biography.text, biography.call_rate)
    if biography.skipped:
        judged.skipped = f"not written; {biography.skipped}"
        return judged
    if knowledge.article(biography.name) is None:
        near = ", ".join(knowledge.nearest_titles(biography.name))
        judged.skipped = "no article" + (f"; titles like it: {near}" if near else "")
        return judged
    examples = facts_examples(jury.demonstrations)
    for sentence in sentences(biography.text):
        answer = judge.ask(facts_question(sentence), FACT_TOKENS, examples)
        judged.unanswered += answer is None
        for text in parse_facts(answer or ""):
            passages = knowledge.search(biography.name, f"{biography.name} {text}", PASSAGES)
            verdict = judge.ask(verdict_question(biography.name, text, passages), VERDICT_TOKENS)
            supported = None if verdict is None else parse_verdict(verdict)
            why = "" if supported is not None else "no answer" if verdict is None else f"unclear: {verdict[:200]!r}"
            judged.facts.append(Fact(text, sentence, supported, why))
    if not judged.facts:
        judged.skipped = "no answer" if judged.unanswered else "no facts"
    elif all(fact.supported is None for fact in judged.facts):
        judged.skipped = "no verdict"
    return judged


def judge_biographies(label: str, biographies: Sequence[Biography], jury: Jury) -> list[Judged]:
    """All of a model, in order, several at a time."""
    judged = []
    with progress(f"{label}: biographies judged", len(biographies)) as advance:

        def one(biography: Biography) -> Judged:
            return judge_biography(biography, jury)

        for result in in_parallel(one, biographies, jury.threads):
            judged.append(result)
            advance(1)
    return judged


# ---------------------------------------------------------------- score


def length_penalty(facts: int, gamma: int = GAMMA) -> float:
    """1 for more than `gamma` facts, else exp(1 - gamma / facts)."""
    return 1.0 if facts > gamma else math.exp(1 - gamma / facts)


def aggregate(judged: Sequence[Judged], gamma: int = GAMMA) -> Score:
    """FActScore of judged biographies. Facts without a verdict count for nothing; biographies without one are left out
    of the mean, as in FActScore, and named by reason.

    Args:
        gamma: of the length penalty.
    """
    verdicts = [[fact.supported for fact in one.facts if fact.supported is not None] for one in judged]
    shares = [(sum(v) / len(v), len(v)) for v in verdicts if v]
    skipped: dict[str, list[str]] = {}
    for one in judged:
        if one.skipped:
            skipped.setdefault(one.skipped.split(";")[0], []).append(one.name)
    rates = [one.call_rate for one in judged if one.call_rate is not None]
    facts = sum(n for _, n in shares)
    return Score(
        score=_percent([share * length_penalty(n, gamma) for share, n in shares]),
        unpenalised=_percent([share for share, _ in shares]),
        responded=_percent([1.0] * len(shares) + [0.0] * len(skipped.get("no facts", []))),
        biographies=len(judged),
        scored=len(shares),
        facts=facts,
        facts_per_biography=facts / len(shares) if shares else None,
        call_rate=_percent(rates),
        without_verdict=sum(fact.supported is None for one in judged for fact in one.facts),
        unanswered_sentences=sum(one.unanswered for one in judged),
        skipped=skipped,
    )


def _percent(shares: Sequence[float]) -> float | None:
    return 100 * sum(shares) / len(shares) if shares else None


def notes(label: str, score: Score) -> list[str]:
    """What a reader of the score should know, a sentence each."""
    said = [f"{label}: {score.scored} of {score.biographies} biographies scored, on {score.facts:,} facts."]
    for reason, names in score.skipped.items():
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        said.append(f"{label}: {len(names)} left out, {reason}: {shown}.")
    if score.without_verdict:
        share = score.without_verdict / (score.facts + score.without_verdict)
        said.append(f"{label}: {score.without_verdict:,} facts ({share:.0%}) without a verdict count for nothing.")
    if score.unanswered_sentences:
        said.append(
            f"{label}: the endpoint failed for {score.unanswered_sentences} sentences; run the same command again to "
            "ask for them."
        )
    return said


# ---------------------------------------------------------------- the evaluation


def evaluate_factscore(
    biographies: Mapping[str, Sequence[Biography]],
    jury: Jury,
    out: str | os.PathLike[str],
    training: Sequence[str] = (),
) -> None:
    """Judge the biographies of each model and write factscore.json, .md and .png.

    Args:
        biographies: label of the model -> its texts.
        training: sentences on how the models were trained to call, for the page.

    Raises:
        JudgeError: the endpoint cannot be used; its answers so far are in its cache.
    """
    judged = {label: judge_biographies(label, texts, jury) for label, texts in biographies.items()}
    scores = {label: aggregate(items, jury.gamma) for label, items in judged.items()}
    table = Table(
        title="FActScore (%)",
        columns=["model", "FActScore", "unpenalised", "responded", "facts per text", "calls"],
        rows=[
            [label, s.score, s.unpenalised, s.responded, s.facts_per_biography, s.call_rate]
            for label, s in scores.items()
        ],
        paper=[[label, score, None, None, None, None] for label, score in PAPER.items()],
        source="table 7; it does not say whether they include the length penalty",
        notes=[*training, *(note for label, score in scores.items() for note in notes(label, score)), judge_note(jury)],
    )
    drawn = {label: score.score for label, score in scores.items() if score.score is not None}
    bars(Path(out) / "factscore.png", "FActScore", "FActScore (%)", drawn, PAPER)
    models = [
        {"model": label, "score": asdict(scores[label]), "items": [asdict(item) for item in items]}
        for label, items in judged.items()
    ]
    publish(out, "factscore", {"jury": jury_settings(jury), "models": models}, table)


def jury_settings(jury: Jury) -> dict[str, Any]:
    """What the verdicts depend on, and what asking for them took."""
    return {
        "judge": jury.judge.model,
        "knowledge": f"{jury.knowledge.path.name}, {jury.knowledge.articles:,} articles",
        "demonstrations": len(jury.demonstrations),
        "gamma": jury.gamma,
        "questions": jury.judge.counts,
    }


def judge_note(jury: Jury) -> str:
    counts = jury.judge.counts
    return (
        f"Judge: {jury.judge.model}; {counts['asked']:,} questions asked, {counts['from_cache']:,} answered before, "
        f"{counts['retried']:,} retries, {counts['failed']:,} failed. Articles: {jury.knowledge.articles:,}."
    )
