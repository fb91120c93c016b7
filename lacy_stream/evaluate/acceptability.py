"""Accuracy and acceptability of the tokens that a model proposes, by loss, for facts and other tokens (figure 3).

validation documents --model--> loss and greedy proposal of each token --annotator--> class
                                --judge--> acceptable or not --bins--> figure
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from annotator import Annotator, Document, FactClass
from annotator.tokenizers import Tokenizer
from lacy_stream.errors import UsageError
from lacy_stream.evaluate.judge import Judge, NothingScoredError, first_failure, in_parallel
from lacy_stream.evaluate.results import Table, publish
from lacy_stream.evaluate.settings import JudgeOptions
from lacy_stream.evaluate.token_table import LOSS_BIN_NAMES, LOSS_BINS, token_table
from lacy_stream.prepare.inputs import find_inputs
from lacy_stream.prepare.rows import read_rows
from lacy_stream.prepare.settings import ReadOptions
from lacy_stream.progress import progress
from lacy_stream.recipe import Recipe
from lacy_stream.train.checkpoint import CallingModel, load_model
from lacy_stream.train.recipe_data import held_out_documents

VERDICT_TOKENS = 512
CLASSES = {"factual": True, "other": False}

QUESTION = """\
You check single steps of a program that continues encyclopaedic text. You are given the text so far, the next piece
that the program proposes, and the piece that really came next. Pieces are often parts of words or of numbers.

The proposal is acceptable if the text may go on from it so that it agrees with the original: both can be true
together, and both say much the same. It is unacceptable if it leads to another fact, contradicts the original, or
changes what is said.

Text so far: "The bridge was opened in 19"
Proposal: "6"    Original: "3"
The year would begin with 196 and not with 193: another date.
Verdict: 0

Text so far: "Lena Holm is a Danish"
Proposal: " painter"    Original: " chemist"
She would have another profession.
Verdict: 0

Text so far: "The village lies on the"
Proposal: " bank"    Original: " eastern"
"on the bank of a river" can be said of a village on its eastern bank; nothing is contradicted.
Verdict: 1

Give one sentence of reasons, then "Verdict: 1" (acceptable) or "Verdict: 0" (unacceptable).

Text so far: {context}
Proposal: {proposal}    Original: {reference}
"""


@dataclass(frozen=True)
class Proposal:
    """A token of a document, and the token that a model proposes in its place."""

    start: int
    """Place where the token begins, in code points of the document's text."""
    reference: str
    """The true token."""
    proposal: str
    """The token that the model proposes."""
    loss: float
    """Loss of the true token in nats, with <CALL> left out of the softmax."""
    factual: bool
    """Whether the true token is a fact."""
    correct: bool
    """Whether the model proposes the true token."""
    acceptable: bool | None = None
    """The judge's verdict; None without one. The true token is acceptable without a question."""
    why: str = ""
    """Why there is no verdict; "" if there is one."""


class ScoredDocument(NamedTuple):
    """A document and a model's proposals for its tokens."""

    document: Document
    proposals: list[Proposal]


# ---------------------------------------------------------------- proposals


def read_documents(path: str, count: int) -> list[Document]:
    """Read the first documents of a JSONL or Parquet file."""
    inputs, _ = find_inputs([path], ReadOptions())
    rows = (row for source in inputs for row in read_rows(source, ReadOptions()) if not row.refused)
    return [Document(row.id, row.text) for row, _ in zip(rows, range(count))]


@torch.no_grad()
def propose(model: CallingModel, annotator: Annotator, document: Document) -> list[Proposal]:
    """Compute the loss and the greedy proposal for each token of a document except the first, as far as the context of
    the model reaches. <CALL> is banned.

    Args:
        model: the model.
        annotator: an annotator with the model's tokenizer.
        document: a document with text.
    """
    labelled, before = annotator.annotate([document.text])[0], len(model.start_ids)
    ids, classes = labelled.ids[: model.max_seq_len - before], labelled.classes[: model.max_seq_len - before]
    if len(ids) < 2:
        return []
    row_1T = torch.from_numpy(np.concatenate([np.array(model.start_ids, ids.dtype), ids]))[None].long()
    no_facts = np.full(before, FactClass.GRAMMATICAL, classes.dtype)
    class_1T = torch.from_numpy(np.concatenate([no_facts, classes]))[None]
    logits_1TV = model.model(input_ids=row_1T.to(model.model.device)).logits.float().cpu()
    # The table has the targets of the row. The row begins with the end of text, so entry i is token i of the document.
    table = token_table(logits_1TV, row_1T, class_1T, annotator.vocab_size)
    return [
        Proposal(
            start=int(labelled.offsets[i, 0]),
            reference=_spell_piece(annotator.tokenizer, ids[i - 1], ids[i]),
            proposal=_spell_piece(annotator.tokenizer, ids[i - 1], table.proposal[target]),
            loss=float(table.loss[target]),
            factual=bool(classes[i] == FactClass.FACTUAL),
            correct=bool(table.correct[target]),
        )
        for i, target in enumerate(range(before, len(table.loss)), start=1)
    ]


def _spell_piece(tokenizer: Tokenizer, before: int, id: int) -> str:
    """The text that a piece adds after another piece."""
    text, start = (tokenizer.decode(np.array(ids, np.int32)).text for ids in ([before, id], [before]))
    return text[len(start) :]


def score_documents(
    label: str, path: str, texts: str | None, count: int, pipeline: str, device: str
) -> list[ScoredDocument]:
    """Compute a model's proposals for the first documents of a file, or of the held-out data of its run.

    Args:
        label: name of the model in messages.
        path: its checkpoint or folder.
        texts: file of the documents; None for the held-out data.
        count: number of documents.
        pipeline: name of the spaCy pipeline that finds facts.
        device: torch device.

    Raises:
        UsageError: there are no documents.
    """
    model = load_model(path)
    model.model.to(device)  # type: ignore[arg-type]
    annotator = replace(model.annotator_settings, model=pipeline).build()
    if texts is None and model.recipe is None:
        raise UsageError(f"{path} has no recipe that names held-out data; name documents with --texts")
    documents = read_documents(texts, count) if texts else held_out_documents(cast(Recipe, model.recipe), count)
    if not documents:
        raise UsageError(f"{texts or path} holds no documents")
    scored = []
    with progress(f"{label}: documents read", len(documents)) as advance:
        for document in documents:
            scored.append(ScoredDocument(document, propose(model, annotator, document)))
            advance(1)
    return scored


# ---------------------------------------------------------------- verdicts


def question(text: str, proposal: Proposal) -> str:
    """The question for the judge about a proposal. This prompt is not that of the paper's appendix A.1."""
    context, proposed, reference = (
        f'"{part}"' for part in (text[: proposal.start], proposal.proposal, proposal.reference)
    )
    return QUESTION.format(context=context, proposal=proposed, reference=reference)


def parse_acceptability(answer: str) -> bool | None:
    """Read the last verdict of an answer, or an answer that is only a digit; None if there is neither."""
    said = re.findall(r"verdict\W*([01])\b(?![./,]\d)", answer, re.IGNORECASE) or re.findall(r"^\W*([01])\W*$", answer)
    return said[-1] == "1" if said else None


def judge_proposal(text: str, proposal: Proposal, judge: Judge) -> Proposal:
    """Judge one proposal for a token of ``text``; returns the proposal with its verdict.

    Raises:
        JudgeError: the endpoint cannot be used any more.
    """
    if proposal.correct:
        return replace(proposal, acceptable=True)
    answer = judge.ask(question(text, proposal), VERDICT_TOKENS)
    verdict = None if answer is None else parse_acceptability(answer)
    why = "" if verdict is not None else "no answer" if answer is None else f"unclear: {answer[-200:]!r}"
    return replace(proposal, acceptable=verdict, why=why)


def judge_all(label: str, scored: Sequence[ScoredDocument], judge: Judge, concurrency: int) -> list[ScoredDocument]:
    """Judge all proposals, several at a time; returns the same documents with verdicts."""
    total = sum(len(one.proposals) for one in scored)
    judged = []
    with progress(f"{label}: proposals judged", total) as advance:
        pairs = [(one.document.text, proposal) for one in scored for proposal in one.proposals]
        for proposal in in_parallel(lambda pair: judge_proposal(*pair, judge), pairs, concurrency):
            judged.append(proposal)
            advance(1)
    remaining = iter(judged)
    return [ScoredDocument(one.document, [next(remaining) for _ in one.proposals]) for one in scored]


# ---------------------------------------------------------------- bins


@dataclass(frozen=True)
class Bin:
    """Tokens of one class with a loss in [low, high) nats."""

    low: float
    high: float
    factual: bool
    tokens: int
    """Number of tokens."""
    judged: int
    """Number of tokens with a verdict."""
    accuracy: float | None
    """Share of the tokens that the model proposes correctly, in percent; None without tokens."""
    acceptability: float | None
    """Share of the tokens with a verdict that are acceptable, in percent; None without verdicts."""


def bins(proposals: Sequence[Proposal]) -> list[Bin]:
    """Compute accuracy and acceptability in each bin of LOSS_BINS, first for facts, then for other tokens."""
    return [
        _bin([p for p in proposals if p.factual == factual and low <= p.loss < high], low, high, factual)
        for factual in CLASSES.values()
        for low, high in zip(LOSS_BINS, LOSS_BINS[1:], strict=False)
    ]


def _bin(inside: Sequence[Proposal], low: float, high: float, factual: bool) -> Bin:
    verdicts = [p.acceptable for p in inside if p.acceptable is not None]
    shares = _percent([p.correct for p in inside]), _percent(verdicts)
    return Bin(low, high, factual, len(inside), len(verdicts), *shares)


def _percent(values: Sequence[bool]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def draw_acceptability(path: Path, binned: Mapping[str, Sequence[Bin]]) -> None:
    """Draw figure 3: accuracy on the left, acceptability on the right, and a row for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5 * len(binned)), layout="constrained")
    grid = figure.subplots(len(binned), 2, squeeze=False, sharey=True)
    for row, (label, all_bins) in zip(grid, binned.items(), strict=True):
        for axes, measure in zip(row, ("accuracy", "acceptability"), strict=True):
            for name, factual in CLASSES.items():
                points = [
                    (index, getattr(one, measure))
                    for index, one in enumerate(one for one in all_bins if one.factual == factual)
                    if getattr(one, measure) is not None
                ]
                axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            axes.set(title=f"{label}: {measure}", xlabel="loss of the true token (nats)", ylabel="%", ylim=(0, 105))
            axes.set_xticks(range(len(LOSS_BIN_NAMES)), LOSS_BIN_NAMES)
            axes.set_xlim(-0.5, len(LOSS_BIN_NAMES) - 0.5)
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# ---------------------------------------------------------------- the evaluation


def evaluate_acceptability(
    scored: Mapping[str, Sequence[ScoredDocument]],
    judge: Judge,
    out: str | os.PathLike[str],
    concurrency: int = JudgeOptions.judge_concurrency,
    training: Sequence[str] = (),
) -> None:
    """Judge the proposals of each model and write acceptability.json, .md and .png.

    Args:
        scored: label of the model -> its proposals.
        judge: the judge.
        out: folder for the three files.
        concurrency: number of questions that are asked at once.
        training: sentences for the page about how the models were trained to call.

    Raises:
        JudgeError: the endpoint cannot be used; the answers so far are kept in its cache.
        NothingScoredError: no proposal of a model that was asked about has a verdict. The files were written.
    """
    judged = {label: judge_all(label, documents, judge, concurrency) for label, documents in scored.items()}
    proposals = {label: [p for one in documents for p in one.proposals] for label, documents in judged.items()}
    binned = {label: bins(those) for label, those in proposals.items()}
    table = Table(
        title="Accuracy and acceptability by loss (%)",
        columns=["model", "loss, nats", "class", "tokens", "accuracy", "acceptability"],
        rows=[[label, *row] for label, those in proposals.items() for row in _rows(those, binned[label])],
        notes=[
            "The paper shows its figures as a plot only (figure 3).",
            *training,
            *(note for label, those in proposals.items() for note in _notes(label, those)),
            f"Judge: {judge.model}; {judge.counts['asked']:,} questions asked, {judge.counts['from_cache']:,} answered "
            f"before, {judge.counts['retried']:,} retries, {judge.counts['failed']:,} failed{first_failure(judge)}.",
        ],
    )
    draw_acceptability(Path(out) / "acceptability.png", binned)
    models = [
        {
            "model": label,
            "bins": [asdict(b) | {"high": None if b.high == LOSS_BINS[-1] else b.high} for b in binned[label]],
            "documents": [_as_json(one) for one in documents],
        }
        for label, documents in judged.items()
    ]
    publish(out, "acceptability", {"judge": judge.model, "questions": judge.counts, "models": models}, table)
    asked = {label: [p.acceptable for p in those if not p.correct] for label, those in proposals.items()}
    if unscored := [label for label, verdicts in asked.items() if set(verdicts) == {None}]:
        raise NothingScoredError(f"no proposal was judged for {', '.join(unscored)}{first_failure(judge)}")


def _rows(proposals: Sequence[Proposal], binned: Sequence[Bin]) -> list[list[str | float | None]]:
    """Make the rows of one model: each class as a whole, and then its bins with tokens."""
    rows: list[list[str | float | None]] = []
    for name, factual in CLASSES.items():
        whole = _bin([p for p in proposals if p.factual == factual], 0.0, LOSS_BINS[-1], factual)
        for one in [whole, *(b for b in binned if b.factual == factual and b.tokens)]:
            span = "all" if one is whole else f"{one.low:g} to {one.high:g}"
            rows.append([span, name, f"{one.tokens:,}", one.accuracy, one.acceptability])
    return rows


def _notes(label: str, proposals: Sequence[Proposal]) -> list[str]:
    missing = sum(p.acceptable is None for p in proposals)
    said = [f"{label}: {len(proposals):,} tokens, {sum(p.correct for p in proposals):,} proposed as they are."]
    return said + ([f"{label}: {missing:,} proposals without a verdict count for nothing."] if missing else [])


def _as_json(scored: ScoredDocument) -> dict[str, Any]:
    document, proposals = scored
    return {"id": document.id, "text": document.text, "tokens": [asdict(proposal) for proposal in proposals]}
