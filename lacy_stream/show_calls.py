"""What a trained model would delegate: text with the <CALL> tokens marked, in the terminal or as a page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from annotator import Annotator, Document, FactClass
from annotator.terminal import printable
from lacy_stream.checkpoint import Checkpoint, load_checkpoint
from lacy_stream.corpus import open_corpus
from lacy_stream.metrics import CallScores, call_scores, own_call_mask
from lacy_stream.recipe import Recipe
from lacy_stream.train import corpus_arguments

CALL_STYLE, FACT_STYLE = "bold white on red", "underline"


@dataclass(frozen=True)
class Marked:
    """One document: spans of code points that the model delegates, and those that are facts to the annotator."""

    document: Document
    calls: list[tuple[int, int]]
    facts: list[tuple[int, int]]
    call_share: float
    factual_share_of_calls: float


def held_out_documents(recipe: Recipe, count: int) -> list[Document]:
    """The first documents of a run's validation split.

    Raises:
        ValueError: the recipe has none.
    """
    loader = recipe.eval_loader
    if loader is None:
        raise ValueError("the recipe of this checkpoint has no eval_loader: name a text file instead")
    corpus = open_corpus(**corpus_arguments(loader.dataset))
    return [corpus.document(position) for position in range(min(count, len(corpus)))]


@torch.no_grad()
def mark(checkpoint: Checkpoint, annotator: Annotator, document: Document) -> Marked:
    """Find the tokens of a document that the model delegates: the run's call fraction of them, by the rule of
    the validation losses (A.4.3). Texts longer than the model's context are read in pieces of that length."""
    labelled = annotator.annotate([document.text])[0]
    length, parts = checkpoint.recipe.max_seq_len, []
    for start in range(0, len(labelled), length):
        targets = torch.from_numpy(labelled.ids[start : start + length]).long()
        before = int(labelled.ids[start - 1]) if start else annotator.eos_id
        inputs = torch.cat([torch.tensor([before]), targets[:-1]])
        parts.append(call_scores(checkpoint.model(input_ids=inputs[None]).logits[0], checkpoint.call_token_id))
    if not parts:
        return Marked(document, [], [], 0.0, 0.0)
    scores = CallScores(*(torch.cat(part) for part in zip(*parts, strict=True)))
    fraction = checkpoint.recipe.algorithms.call_mask.call_fraction
    call = own_call_mask(scores, torch.ones(len(labelled), dtype=torch.bool), fraction)
    factual = torch.from_numpy(labelled.classes == FactClass.FACTUAL)
    return Marked(
        document,
        _spans(labelled.offsets[call.numpy()]),
        _spans(labelled.offsets[factual.numpy()]),
        call.float().mean().item(),
        factual[call].float().mean().item() if call.any() else 0.0,
    )


def _spans(offsets) -> list[tuple[int, int]]:
    """Neighbouring pieces joined: int32 [n, 2] -> spans."""
    spans: list[tuple[int, int]] = []
    for start, end in offsets.tolist():
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def to_terminal(marked: Marked) -> Text:
    """The document with delegated tokens on red and annotated facts underlined."""
    text = Text(printable(marked.document.text))
    for spans, style in ((marked.facts, FACT_STYLE), (marked.calls, CALL_STYLE)):
        for span in spans:
            text.stylize(style, *_trimmed(marked.document.text, *span))
    return text


def to_plain(marked: Marked) -> str:
    """The document with delegated tokens in ⟦ ⟧, for output without colour."""
    text, done, parts = printable(marked.document.text), 0, []
    for span in marked.calls:
        start, end = _trimmed(text, *span)
        parts += [text[done:start], "⟦", text[start:end], "⟧"]
        done = end
    return "".join([*parts, text[done:]])


def to_html(documents: list[Marked]) -> str:
    """A page with the delegated spans of each document marked."""
    from annotator.words import highlight_page

    pages: list[dict[str, object]] = [
        {
            "title": marked.document.id,
            "text": marked.document.text,
            "ents": [
                {"start": start, "end": end, "label": "CALL"}
                for start, end in (_trimmed(marked.document.text, *span) for span in marked.calls)
                if start < end
            ],
        }
        for marked in documents
    ]
    return highlight_page(pages, {"CALL": "#ff9a9a"})


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its ends: a piece includes the space before it."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def show_calls(
    checkpoint_path: str, files: list[str], html: str | os.PathLike[str] | None = None, documents: int = 1
) -> None:
    """Print, and write to ``html`` where given, what the model of a checkpoint delegates in the files, or in
    the first ``documents`` of its run's held-out data where there are none."""
    if documents < 1:
        raise ValueError(f"--documents is {documents}: show at least one")
    checkpoint = load_checkpoint(checkpoint_path)
    annotator = Annotator(checkpoint.tokenizer, model=checkpoint.recipe.annotator.model or "en_core_web_sm")
    if files:
        chosen = [Document(name, Path(name).read_text(encoding="utf-8")) for name in files]
    else:
        chosen = held_out_documents(checkpoint.recipe, documents)
    console = Console(highlight=False)
    all_marked = [mark(checkpoint, annotator, document) for document in chosen]
    for marked in all_marked:
        console.rule(Text(printable(marked.document.id)))
        console.print(to_terminal(marked) if console.is_terminal else Text(to_plain(marked)))
    calls = sum(marked.call_share for marked in all_marked) / max(len(all_marked), 1)
    facts = sum(marked.factual_share_of_calls for marked in all_marked) / max(len(all_marked), 1)
    legend = f"[{CALL_STYLE}]delegated to a larger model[/], [{FACT_STYLE}]a fact to the annotator[/]"
    console.print(
        f"{legend if console.is_terminal else '⟦delegated to a larger model⟧'}: {calls:.0%} of the tokens, of which "
        f"{facts:.0%} are facts"
    )
    if checkpoint.recipe.algorithms.call_mask.method == "baseline":
        console.print("this model was not trained to delegate (method: baseline): its <CALL> logits mean nothing")
    console.print(f"the run: {checkpoint.annotation}")
    if html is not None:
        Path(html).write_text(to_html(all_marked), encoding="utf-8")
        console.print(f"page: {html}")
