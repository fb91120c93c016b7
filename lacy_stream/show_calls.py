"""What a trained model would delegate, and what its run ignored: text with these tokens marked, in the terminal or as a
page with the loss of each token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from annotator import Annotator, Document, FactClass
from annotator.page import Token, token_page
from annotator.terminal import printable
from lacy_stream.checkpoint import Checkpoint, load_checkpoint
from lacy_stream.errors import UsageError
from lacy_stream.files import read_text, write_text
from lacy_stream.losses import TokenLosses, token_losses
from lacy_stream.metrics import CallScores, call_scores, own_call_mask
from lacy_stream.recipe import CallMask
from lacy_stream.recipe_data import held_out_documents
from lacy_stream.selectors import METHODS, Targets, budget

CALL_STYLE, IGNORED_STYLE, FACT_STYLE = "bold white on red", "black on yellow", "underline"
CALLED, IGNORED = "delegated to a larger model", "ignored in training"


@dataclass(frozen=True)
class Marked:
    """One document, token by token, [n].

    offsets: int32 [n, 2], code points. loss: float32, of the true token, nats, <CALL> excluded. call_probability:
    float32. call, ignored, factual: bool: what the model delegates, what its run's method would ignore in training of
    what is left, and the facts of the annotator.
    """

    document: Document
    offsets: NDArray[np.int32]
    loss: NDArray[np.float32]
    call_probability: NDArray[np.float32]
    call: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    factual: NDArray[np.bool_]

    def spans(self, mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """The marked tokens in code points, neighbours joined, without the space at their ends."""
        joined: list[tuple[int, int]] = []
        for start, end in self.offsets[mask].tolist():
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return [_trimmed(self.document.text, *span) for span in joined]


@torch.no_grad()
def mark(checkpoint: Checkpoint, annotator: Annotator, document: Document) -> Marked:
    """Find the tokens of a document that the model delegates: the run's call fraction of them, by the rule of
    the validation losses (A.4.3). Texts longer than the model's context are read in pieces of that length."""
    labelled = annotator.label([replace(document, ids=None)])[0]
    length, losses, scores = checkpoint.recipe.max_seq_len, [], []
    for start in range(0, len(labelled), length):
        targets = torch.from_numpy(labelled.ids[start : start + length]).long()
        before = int(labelled.ids[start - 1]) if start else annotator.eos_id
        inputs = torch.cat([torch.tensor([before]), targets[:-1]])
        logits = checkpoint.model(input_ids=inputs[None]).logits
        losses.append(TokenLosses(*(loss[0] for loss in token_losses(logits, targets[None], checkpoint.call_token_id))))
        scores.append(call_scores(logits[0], checkpoint.call_token_id))
    if not losses:
        empty, none = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        return Marked(document, labelled.offsets, empty, empty, none, none, none)
    both = TokenLosses(*(torch.cat(part) for part in zip(*losses, strict=True)))
    every = torch.ones(len(labelled), dtype=torch.bool)
    mask = checkpoint.recipe.algorithms.call_mask
    call = own_call_mask(
        CallScores(*(torch.cat(part) for part in zip(*scores, strict=True))), every, mask.call_fraction
    )
    classes = torch.from_numpy(labelled.classes)
    return Marked(
        document,
        labelled.offsets,
        both.true.numpy(),
        torch.exp(-both.call).numpy(),
        call.numpy(),
        (_ignored(mask, both.true, classes) & ~call).numpy(),
        labelled.classes == FactClass.FACTUAL,
    )


def _ignored(mask: CallMask, loss: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """What the method of a run would ignore, if the document were a mini-batch."""
    every, nothing = torch.ones_like(loss, dtype=torch.bool), torch.zeros_like(loss)
    method = METHODS[mask.method]
    if method.reference:  # these ignore nothing, and the reference is not at hand
        return ~every
    counts = (budget(every, fraction) for fraction in (mask.call_fraction, mask.ignore_fraction))
    ignored = method.select(Targets(loss, classes, every, nothing), *counts).ignore
    return ~every if ignored is None else ignored


def to_terminal(marked: Marked) -> Text:
    """The document with delegated tokens on red, ignored ones on yellow and annotated facts underlined."""
    text = Text(printable(marked.document.text))
    for mask, style in ((marked.factual, FACT_STYLE), (marked.ignored, IGNORED_STYLE), (marked.call, CALL_STYLE)):
        for span in marked.spans(mask):
            text.stylize(style, *span)
    return text


def to_plain(marked: Marked) -> str:
    """The document with delegated tokens in ⟦ ⟧ and ignored ones in ⟨ ⟩, for output without colour."""
    text, done, parts = printable(marked.document.text), 0, []
    brackets = {span: "⟦⟧" for span in marked.spans(marked.call)} | {s: "⟨⟩" for s in marked.spans(marked.ignored)}
    for (start, end), (opening, closing) in sorted(brackets.items()):
        parts += [text[done:start], opening, text[start:end], closing]
        done = end
    return "".join([*parts, text[done:]])


def to_html(documents: list[Marked]) -> str:
    """A page: delegated and ignored tokens marked, facts underlined, the loss of each token on hover."""
    kinds = {CALLED: "background: #ff9a9a", IGNORED: "background: #ffe08a", "a fact": "text-decoration: underline"}
    if not any(marked.ignored.any() for marked in documents):
        del kinds[IGNORED]
    pages = [(marked.document.id, _tokens(marked)) for marked in documents]
    return token_page("What the model delegates", pages, kinds)


def _tokens(marked: Marked) -> Iterator[Token]:
    """The tokens of a page; a character that is spelled in several pieces is shown with its last one."""
    columns = (
        marked.offsets.tolist(),
        marked.loss,
        marked.call_probability,
        marked.call,
        marked.ignored,
        marked.factual,
    )
    for (start, end), loss, probability, call, ignored, factual in zip(*columns, strict=True):
        kind = CALLED if call else IGNORED if ignored else "a fact" if factual else ""
        first, last = _trimmed(marked.document.text, start, end) if kind else (start, end)
        yield Token(marked.document.text[start:first])
        yield Token(marked.document.text[first:last], kind, f"loss {loss:.2f} nats, <CALL> {probability:.0%}")
        yield Token(marked.document.text[last:end])


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
        raise UsageError(f"--documents is {documents}: show at least one")
    checkpoint = load_checkpoint(checkpoint_path)
    settings = checkpoint.recipe.annotator
    annotator = Annotator(checkpoint.tokenizer, settings.model or "en_core_web_sm", labeller=settings.labeller)
    if files:
        chosen = [Document(name, read_text(name)) for name in files]
    else:
        chosen = held_out_documents(checkpoint.recipe, documents)
    console = Console(highlight=False)
    all_marked = [mark(checkpoint, annotator, document) for document in chosen]
    for marked in all_marked:
        console.rule(Text(printable(marked.document.id)))
        console.print(to_terminal(marked) if console.is_terminal else Text(to_plain(marked)))
    _print_shares(console, all_marked)
    if checkpoint.recipe.algorithms.call_mask.method == "baseline":
        console.print("this model was not trained to delegate (method: baseline): its <CALL> logits mean nothing")
    console.print(f"the run: {checkpoint.annotation}")
    if html is not None:
        write_text(html, to_html(all_marked))
        console.print(f"page: {html}")


def _print_shares(console: Console, documents: list[Marked]) -> None:
    """The legend, with the shares of all tokens."""
    call, ignored, factual = (
        np.concatenate([getattr(marked, name) for marked in documents]) for name in ("call", "ignored", "factual")
    )
    tokens = max(len(call), 1)
    parts = [
        (CALL_STYLE, "⟦", f"{CALLED}", "⟧", f": {call.sum() / tokens:.0%} of the tokens, of which "
         f"{(call & factual).sum() / max(call.sum(), 1):.0%} are facts"),
        (IGNORED_STYLE, "⟨", f"{IGNORED}", "⟩", f": {ignored.sum() / tokens:.0%}"),
    ]  # fmt: skip
    for style, opening, name, closing, share in parts if ignored.any() else parts[:1]:
        legend = f"[{style}]{name}[/]" if console.is_terminal else f"{opening}{name}{closing}"
        console.print(legend + share)
    if console.is_terminal:
        console.print(f"[{FACT_STYLE}]a fact to the annotator[/]: {factual.sum() / tokens:.0%}")
