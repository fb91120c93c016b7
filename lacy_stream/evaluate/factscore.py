"""FActScore (Min et al. 2023; section 5.2, appendix B): the share of a biography's facts that an article supports.

    biography --sentences--> sentence --judge--> atomic facts --knowledge--> passages --judge--> verdict --> score

Instructions, parsing and length penalty are those of FActScore's code (retrieval and ChatGPT). There are four
differences. Passages are found by bm25 instead of a GTR encoder. Sentences are split by spaCy's rules instead of
NLTK's. The demonstrations are other ones (``--demonstrations`` takes yours). And an answer that says neither true nor
false is no verdict, whereas FActScore counts it as support unless it says "not" or "unknown"; of an answer with both
words it takes the last, where ``parse_verdict`` looks for the one that is the verdict.
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
from lacy_stream.evaluate.judge import Judge, NothingScoredError, first_failure, in_parallel
from lacy_stream.evaluate.results import Table, bars, publish
from lacy_stream.evaluate.settings import FactCheckOptions, JudgeOptions
from lacy_stream.files import is_unicode
from lacy_stream.prepare.knowledge import Knowledge
from lacy_stream.progress import progress

GAMMA = FactCheckOptions.gamma
"""Number of facts below which a biography is penalised for being short."""
PASSAGES = 5
"""Number of passages that the judge is shown for a fact."""
FACT_TOKENS, VERDICT_TOKENS = 512, 256
"""Longest answers. A judge that adds reasons to its verdict must be able to end them: a cut answer is none."""
PAPER = {"Baseline 334M": 15.89, "LaCy 334M": 22.71, "LaCy 334M, RAG partner": 31.67, "Llama 3.2 1B alone": 34.20}


@dataclass(frozen=True)
class Fact:
    """An atomic fact."""

    text: str
    sentence: str
    """The sentence that states it."""
    supported: bool | None
    """The judge's verdict; None without one."""
    why: str = ""
    """Why there is no verdict; "" if there is one."""


@dataclass
class JudgedBiography:
    """A biography with its facts and their verdicts."""

    name: str
    text: str
    call_rate: float | None = None
    """As in ``Biography``."""
    facts: list[Fact] = field(default_factory=list)
    skipped: str = ""
    """Why no fact could be judged; "" if some could."""
    unanswered: int = 0
    """Number of sentences for which the endpoint failed, so that their facts are missing."""


@dataclass(frozen=True)
class FactScore:
    """FActScore over the biographies that have verdicts. Shares are in percent; None if nothing was counted."""

    score: float | None
    """Mean over biographies of the supported share of facts, times the length penalty."""
    unpenalised: float | None
    """The same without the length penalty."""
    responded: float | None
    """Share of the biographies with an article that have facts."""
    biographies: int
    """Number of all biographies."""
    scored: int
    """Number of biographies with verdicts."""
    facts: int
    """Number of facts with a verdict."""
    facts_per_biography: float | None
    """Mean number of facts with a verdict."""
    call_rate: float | None
    """Mean share of the tokens that the partner wrote."""
    without_verdict: int
    """Number of facts without a verdict."""
    unanswered_sentences: int
    """Number of sentences for which the endpoint failed."""
    skipped: dict[str, list[str]]
    """Reason -> names of the biographies without a score."""


@dataclass(frozen=True)
class FactChecker:
    """Everything that is needed to judge biographies."""

    judge: Judge
    knowledge: Knowledge
    """The articles."""
    demonstrations: Demonstrations
    concurrency: int = JudgeOptions.judge_concurrency
    """Number of biographies that are judged at once."""
    gamma: int = GAMMA
    """Number of facts of the length penalty."""


# ---------------------------------------------------------------- facts and verdicts


def judge_biography(biography: Biography, checker: FactChecker) -> JudgedBiography:
    """Split a biography into atomic facts, and judge each of them.

    Raises:
        JudgeError: the endpoint cannot be used any more.
    """
    judge, knowledge = checker.judge, checker.knowledge
    judged = JudgedBiography(biography.name, biography.text, biography.call_rate)
    if not is_unicode(biography.name + biography.text):
        judged.skipped = "not Unicode; it holds a lone surrogate"
        return judged
    if biography.skipped:
        judged.skipped = f"not written; {biography.skipped}"
        return judged
    if knowledge.article(biography.name) is None:
        near = ", ".join(knowledge.nearest_titles(biography.name))
        judged.skipped = "no article" + (f"; titles like it: {near}" if near else "")
        return judged
    examples = facts_examples(checker.demonstrations)
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


def judge_biographies(label: str, biographies: Sequence[Biography], checker: FactChecker) -> list[JudgedBiography]:
    """Judge all biographies of a model, several at a time; returns them in order."""
    judged = []
    with progress(f"{label}: biographies judged", len(biographies)) as advance:

        def one(biography: Biography) -> JudgedBiography:
            return judge_biography(biography, checker)

        for result in in_parallel(one, biographies, checker.concurrency):
            judged.append(result)
            advance(1)
    return judged


# ---------------------------------------------------------------- score


def length_penalty(facts: int, gamma: int = GAMMA) -> float:
    """1 for more than `gamma` facts, else exp(1 - gamma / facts)."""
    return 1.0 if facts > gamma else math.exp(1 - gamma / facts)


def aggregate(judged: Sequence[JudgedBiography], gamma: int = GAMMA) -> FactScore:
    """Compute FActScore over judged biographies. Facts without a verdict are not counted. Biographies without a verdict
    are left out of the mean, as in FActScore, and are named with the reason.

    Args:
        judged: the biographies of one model.
        gamma: number of facts of the length penalty.
    """
    verdicts = [[fact.supported for fact in one.facts if fact.supported is not None] for one in judged]
    shares = [(sum(v) / len(v), len(v)) for v in verdicts if v]
    skipped: dict[str, list[str]] = {}
    for one in judged:
        if one.skipped:
            # The reason is counted without the details after the semicolon, which differ from text to text.
            skipped.setdefault(one.skipped.split(";")[0], []).append(one.name)
    rates = [one.call_rate for one in judged if one.call_rate is not None]
    facts = sum(n for _, n in shares)
    return FactScore(
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


def notes(label: str, score: FactScore) -> list[str]:
    """Write sentences for the reader of a score: how many were scored, what was left out, and why."""
    said = [f"{label}: {score.scored} of {score.biographies} biographies scored, on {score.facts:,} facts."]
    for reason, names in score.skipped.items():
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        said.append(f"{label}: {len(names)} left out, {reason}: {shown}.")
    if score.without_verdict:
        share = score.without_verdict / (score.facts + score.without_verdict)
        said.append(f"{label}: {score.without_verdict:,} facts ({share:.0%}) without a verdict are not counted.")
    if score.unanswered_sentences:
        said.append(
            f"{label}: the endpoint failed for {score.unanswered_sentences} sentences; run the same command again to "
            "ask for them."
        )
    return said


# ---------------------------------------------------------------- the evaluation


def evaluate_factscore(
    biographies: Mapping[str, Sequence[Biography]],
    checker: FactChecker,
    out: str | os.PathLike[str],
    training: Sequence[str] = (),
) -> None:
    """Judge the biographies of each model and write factscore.json, .md and .png.

    Args:
        biographies: label of the model -> its texts.
        checker: judges them.
        out: folder for the three files.
        training: sentences for the page about how the models were trained to call.

    Raises:
        JudgeError: the endpoint cannot be used; the answers so far are kept in its cache.
        NothingScoredError: no biography of a model has a score. The files were written.
    """
    judged = {label: judge_biographies(label, texts, checker) for label, texts in biographies.items()}
    scores = {label: aggregate(items, checker.gamma) for label, items in judged.items()}
    table = Table(
        title="FActScore (%)",
        columns=["model", "FActScore", "unpenalised", "responded", "facts per text", "calls"],
        rows=[
            [label, s.score, s.unpenalised, s.responded, s.facts_per_biography, s.call_rate]
            for label, s in scores.items()
        ],
        paper=[[label, score, None, None, None, None] for label, score in PAPER.items()],
        source="table 7; it does not say whether they include the length penalty",
        notes=[
            *training,
            *(note for label, score in scores.items() for note in notes(label, score)),
            judge_note(checker),
        ],
    )
    drawn = {label: score.score for label, score in scores.items() if score.score is not None}
    bars(Path(out) / "factscore.png", "FActScore", "FActScore (%)", drawn, PAPER)
    models = [
        {"model": label, "score": asdict(scores[label]), "items": [asdict(item) for item in items]}
        for label, items in judged.items()
    ]
    publish(out, "factscore", {"jury": checker_settings(checker), "models": models}, table)
    check_scored(scores, checker.judge)


def check_scored(scores: Mapping[str, FactScore], judge: Judge) -> None:
    """Check that each model has a score.

    Raises:
        NothingScoredError: one has none.
    """
    unscored = {label: notes(label, score) for label, score in scores.items() if score.scored == 0}
    if unscored:
        why = " ".join(note for said in unscored.values() for note in said)
        first = f" The judge's first failure: {judge.first_failure}" if judge.first_failure else ""
        raise NothingScoredError(f"nothing was scored for {', '.join(unscored)}. {why}{first}")


def checker_settings(checker: FactChecker) -> dict[str, Any]:
    """The settings on which the verdicts depend, and the numbers of questions, as JSON values."""
    return {
        "judge": checker.judge.model,
        "knowledge": f"{checker.knowledge.path.name}, {checker.knowledge.articles:,} articles",
        "demonstrations": len(checker.demonstrations),
        "gamma": checker.gamma,
        "questions": checker.judge.counts,
    }


def judge_note(checker: FactChecker) -> str:
    """Write a sentence about the judge, its questions and the articles."""
    counts = checker.judge.counts
    return (
        f"Judge: {checker.judge.model}; {counts['asked']:,} questions asked, {counts['from_cache']:,} answered before, "
        f"{counts['retried']:,} retries, {counts['failed']:,} failed{first_failure(checker.judge)}. "
        f"Articles: {checker.knowledge.articles:,}."
    )
