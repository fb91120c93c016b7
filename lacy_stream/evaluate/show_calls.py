"""Shows the tokens of a text that a trained model would delegate, and those that its run would ignore: marked in the
terminal, or on a page with the loss of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from annotator import Annotator, Document, FactClass, LabelledTokens
from annotator.page import PageToken, token_page
from annotator.pipelines import OFFICIAL
from annotator.terminal import printable
from lacy_stream.errors import UsageError
from lacy_stream.evaluate.settings import ShowCallsOptions
from lacy_stream.files import check_writable, read_text, write_text
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import TokenScores, join_scores, own_call_mask, token_scores
from lacy_stream.objective.selectors import METHODS, Selection, Targets, budget
from lacy_stream.recipe import CallMask, Recipe
from lacy_stream.train.checkpoint import Checkpoint, describe_training, load_checkpoint
from lacy_stream.train.recipe_data import annotator_settings, held_out_documents

CALL_STYLE, IGNORED_STYLE, FACT_STYLE = "bold white on red", "black on yellow", "underline"
CALLED, IGNORED = "delegated to a larger model", "ignored in training"


@dataclass(frozen=True)
class MarkedDocument:
    """A document of n tokens with its marks."""

    document: Document
    offsets: NDArray[np.int32]
    """int32 [n, 2]: spans of the tokens, in code points."""
    loss: NDArray[np.float32]
    """float32 [n]: loss of the true token in nats, <CALL> excluded."""
    call_probability: NDArray[np.float32]
    """float32 [n]: probability of <CALL>."""
    call: NDArray[np.bool_]
    """bool [n]: tokens that the model delegates."""
    ignored: NDArray[np.bool_]
    """bool [n]: other tokens that the method of its run would ignore in training."""
    factual: NDArray[np.bool_]
    """bool [n]: tokens that are facts to the annotator."""
    wanted: NDArray[np.bool_] | None = None
    """bool [n]: tokens that the method of its run would delegate in training; None if unknown."""

    def spans(self, mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """The spans of the tokens in a mask, in code points. Neighbours are joined; outer white space is cut."""
        joined: list[tuple[int, int]] = []
        for start, end in self.offsets[mask].tolist():
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return [_trim(self.document.text, *span) for span in joined]


class _DocumentScores(NamedTuple):
    """A document and what the model makes of its n tokens."""

    document: Document
    labelled: LabelledTokens
    scores: TokenScores


def mark_documents(checkpoint: Checkpoint, annotator: Annotator, documents: Sequence[Document]) -> list[MarkedDocument]:
    """Find the tokens that the model delegates.

    Of all tokens of the documents together, it delegates the run's call fraction, by the rule of the validation losses
    (A.4.3). Texts that are longer than the model's context are read in pieces of that length.
    """
    read = [_score_document(checkpoint, annotator, document) for document in documents]
    losses, scores = join_scores([one.scores for one in read])
    classes = torch.from_numpy(np.concatenate([one.labelled.classes for one in read]))
    mask = checkpoint.recipe.algorithms.call_mask
    every = torch.ones_like(classes, dtype=torch.bool)
    call = own_call_mask(scores, every, mask.call_fraction)
    selection = _selection(mask, losses.true, classes)
    ignored = torch.zeros_like(every) if selection is None or selection.ignore is None else selection.ignore & ~call
    columns = [losses.true, torch.exp(-losses.call), call, ignored, classes == FactClass.FACTUAL]
    if selection is not None and selection.call is not None:
        columns.append(selection.call)
    # The mask is selected among all tokens at once. Then each column is cut into its documents again.
    ends = np.cumsum([len(one.labelled) for one in read])[:-1].tolist()
    parts = zip(*(column.tensor_split(ends) for column in columns))
    return [
        MarkedDocument(one.document, one.labelled.offsets, *(c.numpy() for c in part)) for one, part in zip(read, parts)
    ]


@torch.no_grad()
def _score_document(checkpoint: Checkpoint, annotator: Annotator, document: Document) -> _DocumentScores:
    labelled = annotator.label([replace(document, ids=None)])[0]
    rank: Rank = checkpoint.recipe.algorithms.call_mask.rank_calls_by
    length, scores = checkpoint.recipe.max_seq_len, []
    for start in range(0, max(len(labelled), 1), length):
        targets = torch.from_numpy(labelled.ids[start : start + length]).long()
        # A piece of a long text begins after the last token of the piece before it, and a text after the end of
        # another.
        before = int(labelled.ids[start - 1]) if start else annotator.eos_id
        inputs = torch.cat([torch.tensor([before]), targets[:-1]])[: len(targets)]
        if len(targets):
            logits = checkpoint.model(input_ids=inputs[None].to(checkpoint.model.device)).logits[0].cpu()
        else:  # an empty text
            logits = torch.zeros(0, checkpoint.call_token_id + 1)
        scores.append(token_scores(logits, targets, checkpoint.call_token_id, rank))
    return _DocumentScores(document, labelled, join_scores(scores))


def _selection(mask: CallMask, loss: torch.Tensor, classes: torch.Tensor) -> Selection | None:
    """The masks that the method of a run would choose if the tokens were a mini-batch. None if the method needs a
    reference model, which is not available here, or random numbers."""
    method = METHODS[mask.method]
    if method.reference or mask.method in ("loss-based", "spacy"):
        return None
    every, nothing = torch.ones_like(loss, dtype=torch.bool), torch.zeros_like(loss)
    counts = (budget(every, fraction) for fraction in (mask.call_fraction, mask.ignore_fraction))
    return method.select(Targets(loss, classes, every, nothing), *counts)


def to_terminal(marked: MarkedDocument) -> Text:
    """Format a document for a terminal: delegated tokens on red, ignored tokens on yellow, facts underlined."""
    text = Text(printable(marked.document.text))
    for mask, style in ((marked.factual, FACT_STYLE), (marked.ignored, IGNORED_STYLE), (marked.call, CALL_STYLE)):
        for span in marked.spans(mask):
            text.stylize(style, *span)
    return text


def to_plain(marked: MarkedDocument) -> str:
    """Format a document for output without colour: delegated tokens in ⟦ ⟧ and ignored tokens in ⟨ ⟩."""
    text, done, parts = printable(marked.document.text), 0, []
    brackets = {span: "⟦⟧" for span in marked.spans(marked.call)} | {s: "⟨⟩" for s in marked.spans(marked.ignored)}
    for (start, end), (opening, closing) in sorted(brackets.items()):
        parts += [text[done:start], opening, text[start:end], closing]
        done = end
    return "".join([*parts, text[done:]])


def documents_to_html(
    documents: list[MarkedDocument], beside: list[MarkedDocument] | None = None, captions: Sequence[str] = ("", "")
) -> str:
    """Make a page: delegated and ignored tokens are marked, facts underlined, and losses shown on hover.

    Args:
        documents: documents as a model marks them.
        beside: the same documents as another model marks them, shown to their right.
        captions: captions of the two models.
    """
    kinds = {CALLED: "background: #ff9a9a", IGNORED: "background: #ffe08a", "a fact": "text-decoration: underline"}
    versions = [documents] if beside is None else [documents, beside]
    if not any(marked.ignored.any() for version in versions for marked in version):
        del kinds[IGNORED]
    pages = [
        (same[0].document.id, [(caption, _tokens(marked)) for caption, marked in zip(captions, same)])
        for same in zip(*versions, strict=True)
    ]
    return token_page("What the model delegates", pages, kinds)


def _tokens(marked: MarkedDocument) -> Iterator[PageToken]:
    """Yield the tokens of a page. A character that is spelled in several pieces is shown with the last one."""
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
        first, last = _trim(marked.document.text, start, end) if kind else (start, end)
        yield PageToken(marked.document.text[start:first])
        yield PageToken(marked.document.text[first:last], kind, f"loss {loss:.2f} nats, <CALL> {probability:.0%}")
        yield PageToken(marked.document.text[last:end])


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Cut white space at the ends of a span, since a piece includes the space before a word."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def show_calls(options: ShowCallsOptions) -> None:
    """Print what the model of a checkpoint delegates, and write it to a page if one is named.

    Raises:
        UsageError: the checkpoints do not fit together.
    """
    console = Console(highlight=False)
    if options.html is not None:
        check_writable(options.html)
    device = options.compute.set_up()
    checkpoint = load_checkpoint(options.checkpoint)
    chosen = _choose_documents(checkpoint.recipe, options.files, max(options.documents, options.sample))
    shown = len(chosen) if options.files else options.documents
    marked = _annotate_and_mark(checkpoint, chosen, device)
    for one in marked[:shown]:
        console.rule(Text(printable(one.document.id)))
        console.print(to_terminal(one) if console.is_terminal else Text(to_plain(one)))
    _print_shares(console, marked)
    if checkpoint.recipe.algorithms.call_mask.method == "baseline":
        console.print("this model was not trained to delegate (method: baseline): its <CALL> logits mean nothing")
    console.print(f"the run: {describe_training(checkpoint.recipe)}; {checkpoint.annotation}")
    other, captions = None, ["", ""]
    if options.beside is not None:
        second = load_checkpoint(options.beside)
        if second.tokenizer.read_bytes() != checkpoint.tokenizer.read_bytes():
            raise UsageError(
                f"{options.beside} has another tokenizer than {options.checkpoint}: their tokens cannot be compared"
            )
        other = _annotate_and_mark(second, chosen, device)
        console.print(f"beside it, {describe_training(second.recipe)}:")
        _print_shares(console, other)
        other, captions = other[:shown], [describe_training(one.recipe) for one in (checkpoint, second)]
    if options.html is not None:
        write_text(options.html, documents_to_html(marked[:shown], other, captions))
        console.print(f"page: {options.html}")


def _choose_documents(recipe: Recipe, files: Sequence[str], count: int) -> list[Document]:
    if files:
        return [Document(name, read_text(name)) for name in files]
    return held_out_documents(recipe, count)


def _annotate_and_mark(checkpoint: Checkpoint, documents: Sequence[Document], device: str) -> list[MarkedDocument]:
    checkpoint.model.to(device)  # type: ignore[arg-type]
    settings = annotator_settings(checkpoint.recipe, checkpoint.tokenizer)
    annotator = replace(settings, model=settings.model or OFFICIAL).build()
    return mark_documents(checkpoint, annotator, documents)


def _print_shares(console: Console, documents: Sequence[MarkedDocument]) -> None:
    """Print the legend, and how many delegated tokens of all documents are facts, compared with calls at random."""
    call, ignored, factual = (
        np.concatenate([getattr(marked, name) for marked in documents]) for name in ("call", "ignored", "factual")
    )
    tokens = max(len(call), 1)
    parts = [(CALL_STYLE, "⟦", CALLED, "⟧", call.mean()), (IGNORED_STYLE, "⟨", IGNORED, "⟩", ignored.mean())]
    for style, opening, name, closing, share in parts if ignored.any() else parts[:1]:
        legend = f"[{style}]{name}[/]" if console.is_terminal else f"{opening}{name}{closing}"
        console.print(f"{legend}: {share:.0%} of the {tokens:,} tokens of {len(documents):,} documents")
    if console.is_terminal:
        console.print(f"[{FACT_STYLE}]a fact to the annotator[/]: {factual.mean():.0%}")
    console.print(f"of the delegated tokens, {_compare_with_chance(factual[call].mean(), factual.mean(), 'are facts')}")
    if all(marked.wanted is not None for marked in documents):
        wanted = np.concatenate([marked.wanted for marked in documents])  # type: ignore[misc]
        what = "are those that the call mask of its training wants (facts with the highest losses)"
        console.print(f"of the delegated tokens, {_compare_with_chance(wanted[call].mean(), wanted.mean(), what)}")


def _compare_with_chance(share: float, chance: float, what: str) -> str:
    """Format a share beside that of calls at random."""
    times = f": {share / chance:.1f} times as many" if chance else ""
    return f"{share:.1%} {what}; calls at random would have {chance:.1%}{times}"
