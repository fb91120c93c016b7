"""Texts -> labelled tokens: pieces, words and facts in turn, then the alignment of pieces with words."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.align import classify
from annotator.errors import AnnotatorError
from annotator.facts import RULES_VERSION, class_of_rule, fired_rules
from annotator.records import Document, FactClass, LabelledTokens, Pieces, Words
from annotator.spans import factual_tokens, read_spans
from annotator.tokenizers import open_tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """One text with its words, the ``Rule`` that decided on each (uint8 [n]), and its labelled tokens.

    spans: int32 [m, 2], what a labeller marked; there are no words then. None where the rules decided.
    """

    text: str
    words: Words
    rules: NDArray[np.uint8]
    tokens: LabelledTokens
    spans: NDArray[np.int32] | None = None


class _Task(NamedTuple):
    """A document on its way to its labels: one or several texts; whether the parser or the labeller is to see them;
    and the spans that the only text came with."""

    segments: list[Pieces]
    annotate: bool = True
    spans: NDArray[np.int32] | None = None


def fingerprint(identity: dict[str, str]) -> str:
    """Hex digest of an ``Annotator.identity``."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Annotator:
    """Labels the tokens of texts as grammatical, factual or other (appendix A.2.1).

    Args:
        tokenizer: a SentencePiece model or a tokenizer.json; a folder with one of them; or ``package:NAME/PATH``.
        model: name or path of an English spaCy pipeline; None for tokens without fact labels, all OTHER.
        engine: what runs the pipeline: "spacy"; "numba", several times as fast; or "auto", see ``words.Parser``.
        labeller: name of what marks the facts instead of the pipeline and the rules, see ``annotator.labellers``;
            ``model`` is not loaded then.
        eos_token, split_special_tokens: of the tokenizer, see ``annotator.tokenizers.open_tokenizer``.

    Raises:
        MissingFileError: the tokenizer's file is not there.
        AnnotatorError: the tokenizer, the spaCy pipeline or the labeller is not usable.
    """

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        model: str | None = "en_core_web_sm",
        engine: str = "auto",
        labeller: str | None = None,
        *,
        eos_token: str | None = None,
        split_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = open_tokenizer(tokenizer, eos_token, split_special_tokens)
        """Pieces of texts, and texts of ids."""
        self._parser = self._labeller = None
        # Imported here, so that `import annotator` stays light: spaCy takes seconds to import.
        if labeller is not None:
            from annotator.labellers import Labeller

            self._labeller = Labeller(labeller)
        elif model is not None:
            from annotator.words import Parser

            self._parser = Parser(model, engine)

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the tokenizer; ``<CALL>`` is not one of them."""
        return self.tokenizer.vocab_size

    @property
    def eos_id(self) -> int:
        """Id of the end-of-sequence piece, -1 if the tokenizer has none."""
        return self.tokenizer.eos_id

    @cached_property
    def identity(self) -> dict[str, str]:
        """All that the labels depend on beside the text, by name: equal identities, equal labels."""
        tokens = self.tokenizer.identity
        if self._labeller is not None:
            return tokens | self._labeller.identity
        if self._parser is None:
            return tokens
        return tokens | {"rules": str(RULES_VERSION), "files": self._parser.sha256} | self._parser.versions

    @property
    def fingerprint(self) -> str:
        """``identity`` as one hex digest."""
        return fingerprint(self.identity)

    def stats(self) -> dict[str, float]:
        """See ``words.Parser.stats``; empty without a pipeline."""
        return {} if self._parser is None else self._parser.stats()

    def annotate(self, texts: Iterable[str]) -> list[LabelledTokens]:
        """Label each text on its own: the labels of a text do not depend on its neighbours.

        Args:
            texts: n texts of any length. An empty text has no tokens.

        Returns:
            n ``LabelledTokens``, in order.

        Raises:
            AnnotatorError: a text holds a lone surrogate, which is not a character; names the text and place.
        """
        if isinstance(texts, str):
            raise AnnotatorError("texts: got one string. Give a list of texts.")
        return self._label([_Task(self._pieces(text, f"text {n}")) for n, text in enumerate(texts)])

    def annotate_ids(self, rows: Iterable[NDArray[np.integer]]) -> list[LabelledTokens]:
        """Label token ids that another tool has made with the same tokenizer, as they are.

        A row may hold several documents: it is cut after each end-of-sequence id (with a tokenizer.json, also before
        each beginning-of-sequence id), and each segment is labelled as a text of its own. So a first mention is the
        first **in the segment**. Where a row begins in the middle of a document, what the document has mentioned in
        the row before counts as new: more of such a segment is FACTUAL than of the same words in the whole document.
        End-of-sequence and other control ids are GRAMMATICAL, and so never delegated.

        Args:
            rows: n rows of ids in [0, vocab_size), each of any length. An empty row has no tokens.

        Returns:
            n ``LabelledTokens``, in order: the ids that came in, as int32; offsets in the text that the row spells,
            its segments joined (see ``Tokenizer.decode``), in which control ids have no width.

        Raises:
            AnnotatorError: an id that the tokenizer does not have; names the row and position.
        """
        return self._label([_Task(self._segments(row, f"row {n}")) for n, row in enumerate(rows)])

    def label(self, documents: Iterable[Document]) -> list[LabelledTokens]:
        """Label texts as ``annotate`` does, and rows of ids as ``annotate_ids`` does, each document on its own.

        Where ``annotate`` of a document is false, it is only tokenised: all is OTHER but the control ids of a row.
        A document with ``spans`` is FACTUAL where they cover it (``spans.factual_tokens``), and OTHER elsewhere.

        Returns:
            ``LabelledTokens`` for each document, in order.

        Raises:
            AnnotatorError: as ``annotate`` and ``annotate_ids``; or spans outside the text; names the document.
        """
        return self._label([self._read(document) for document in documents])

    def explain(self, text: str) -> Explanation:
        """The label of every word and token of one text, with the rule behind it.

        Raises:
            AnnotatorError: as ``annotate``; or the annotator has neither a spaCy pipeline nor a labeller.
        """
        (pieces,) = self._pieces(text, "text")
        if self._labeller is not None:
            spans = self._labeller.spans(text)
            return Explanation(text, Words.empty(), np.zeros(0, np.uint8), self._covered(pieces, spans), spans)
        if self._parser is None:
            raise AnnotatorError("model: None has no words to explain. Use an English spaCy pipeline.")
        words = next(self._parser.parse([text]))
        rules = fired_rules(words)
        return Explanation(text, words, rules, classify(pieces, words, class_of_rule(rules)))

    def _read(self, document: Document) -> _Task:
        name = f"document {document.id!r}"
        if document.ids is not None:
            return _Task(self._segments(document.ids, name), document.annotate)
        pieces = self._pieces(document.text, name)
        if document.spans is None or not document.annotate:
            return _Task(pieces, document.annotate)
        try:
            return _Task(pieces, spans=read_spans(document.spans, document.text))
        except AnnotatorError as error:
            raise AnnotatorError(f"{name}: {error}") from error

    def _pieces(self, text: str, name: str) -> list[Pieces]:
        _check_text(text, name)
        return [self.tokenizer.encode(text)]

    def _segments(self, row: NDArray[np.integer], name: str) -> list[Pieces]:
        try:
            return self.tokenizer.segments(row)
        except AnnotatorError as error:
            raise AnnotatorError(f"{name}: {error}") from error

    def _label(self, tasks: list[_Task]) -> list[LabelledTokens]:
        """Label documents of one or several texts; the parser sees those that need it."""
        texts = [pieces.text for task in tasks if task.annotate and task.spans is None for pieces in task.segments]
        words_of = None if self._parser is None else self._parser.parse(texts)

        def labelled(pieces: Pieces, task: _Task) -> LabelledTokens:
            if task.spans is not None:
                return self._covered(pieces, task.spans)
            if task.annotate and self._labeller is not None:
                return self._covered(pieces, self._labeller.spans(pieces.text))
            if task.annotate and words_of is not None:
                words = next(words_of)
                return classify(pieces, words, class_of_rule(fired_rules(words)))
            return classify(pieces)

        return [_joined([labelled(pieces, task) for pieces in task.segments]) for task in tasks]

    def _covered(self, pieces: Pieces, spans: NDArray[np.int32]) -> LabelledTokens:
        """The tokens of a text, FACTUAL where spans cover them; control pieces stay GRAMMATICAL."""
        tokens = classify(pieces)
        factual = factual_tokens(tokens.offsets, pieces.text, spans) & (tokens.classes == FactClass.OTHER)
        return LabelledTokens(
            tokens.ids, np.where(factual, np.uint8(FactClass.FACTUAL), tokens.classes), tokens.offsets
        )


def _joined(segments: list[LabelledTokens]) -> LabelledTokens:
    """The tokens of a row from those of its segments; if there are several, none is empty."""
    if len(segments) == 1:
        return segments[0]
    lengths = [segment.offsets[-1, 1] for segment in segments]
    first = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    return LabelledTokens(
        np.concatenate([segment.ids for segment in segments]),
        np.concatenate([segment.classes for segment in segments]),
        np.concatenate([segment.offsets + start for segment, start in zip(segments, first, strict=True)]),
    )


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise AnnotatorError(f"{name}: {type(text).__name__} instead of str. Decode it, or drop it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AnnotatorError(
            f"{name}: lone surrogate U+{ord(text[error.start]):04X} at code point {error.start}. "
            "Decode the data with errors='replace', or drop the text."
        ) from error
