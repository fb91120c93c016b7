"""Texts -> labelled tokens: a text is cut into pieces and words, the rules classify the words, and the pieces are
aligned with them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.align import classify
from annotator.errors import AnnotatorError
from annotator.facts import RULES_VERSION, class_of_rule, fired_rules, fired_rules_of_texts
from annotator.records import Document, FactClass, LabelledTokens, Pieces, Words
from annotator.spans import factual_tokens, read_spans
from annotator.tokenizers import open_tokenizer

_RULES_AT_ONCE = 4096
"""Words, over all texts, to which the rules are applied in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """One text with its labels and the reasons for them.

    text:   the text.
    words:  its n words; none if a labeller decided.
    rules:  uint8 [n], the ``Rule`` that decided on each word.
    tokens: its labelled tokens.
    spans:  int32 [m, 2], what a labeller marked; None if the rules decided.
    """

    text: str
    words: Words
    rules: NDArray[np.uint8]
    tokens: LabelledTokens
    spans: NDArray[np.int32] | None = None


class _LabelTask(NamedTuple):
    """A document that is to be labelled.

    segments: the pieces of its only text, or of each text of a row of ids.
    annotate: whether the parser or the labeller is to see the texts.
    spans:    int32 [m, 2], the spans that came with the only text, or None.
    """

    segments: list[Pieces]
    annotate: bool = True
    spans: NDArray[np.int32] | None = None


def fingerprint(identity: dict[str, str]) -> str:
    """The hex digest of an ``Annotator.identity``."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Annotator:
    """Labels the tokens of texts as grammatical, factual or other (appendix A.2.1).

    Args:
        tokenizer: a SentencePiece model or a tokenizer.json, a folder with one of them, or ``package:NAME/PATH``.
        model: name or path of an English spaCy pipeline, or None for tokens without fact labels, which are all OTHER.
        engine: the program that runs the pipeline: "spacy"; "numba", which is several times as fast; or "auto", see
            ``words.Parser``.
        labeller: name of a labeller that marks facts in place of the pipeline and the rules, see
            ``annotator.labellers``. The model is not loaded then.
        eos_token, split_special_tokens: arguments of ``annotator.tokenizers.open_tokenizer``.

    Raises:
        MissingFileError: the tokenizer's file does not exist.
        AnnotatorError: the tokenizer, the spaCy pipeline or the labeller cannot be used.
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
        """Cuts texts into pieces, and spells the texts of ids."""
        self._parser = self._labeller = None
        self._words = 0
        self._seconds = {"tokens": 0.0}  # CPU time by stage
        # Imported here, so that `import annotator` stays light: spaCy takes seconds to import.
        if labeller is not None:
            from annotator.labellers import Labeller

            self._labeller = Labeller(labeller)
            self._seconds["labeller"] = 0.0
        elif model is not None:
            from annotator.words import Parser

            self._parser = Parser(model, engine)
            self._seconds |= {"words": 0.0, "facts": 0.0}

    @property
    def vocab_size(self) -> int:
        """The number of the tokenizer's pieces. ``<CALL>`` is not one of them."""
        return self.tokenizer.vocab_size

    @property
    def eos_id(self) -> int:
        """The id of the end-of-sequence piece, -1 if the tokenizer has none."""
        return self.tokenizer.eos_id

    @cached_property
    def identity(self) -> dict[str, str]:
        """Everything besides the text that the labels depend on, by name. Equal identities mean equal labels."""
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
        """What the annotator has done so far.

        parsed_words:    number of words that the pipeline has found.
        seconds/STAGE:   CPU seconds of the process in a stage: "tokens" (the tokenizer, and the alignment of pieces),
                         "words" (the pipeline), "facts" (the rules) and "labeller", of which only those exist that the
                         annotator has. The steps of the engine, such as "seconds/words/parse", are parts of "words".
        further entries: see ``words.Parser.stats``.
        """
        stats: dict[str, float] = {f"seconds/{stage}": seconds for stage, seconds in self._seconds.items()}
        if self._parser is None:
            return stats
        steps = {f"seconds/words/{step}": seconds for step, seconds in self._parser.seconds.items()}
        return stats | steps | {"parsed_words": self._words} | self._parser.stats()

    def annotate(self, texts: Iterable[str]) -> list[LabelledTokens]:
        """Label texts, each on its own: the labels of a text do not depend on its neighbours.

        Args:
            texts: n texts of any length. An empty text has no tokens.

        Returns:
            n ``LabelledTokens``, in order.

        Raises:
            AnnotatorError: a text is not a string, or holds a lone surrogate, which is not a character. The message
                names the text and the place.
        """
        if isinstance(texts, str):
            raise AnnotatorError("texts: got one string. Give a list of texts.")
        return self._label([_LabelTask(self._pieces(text, f"text {n}")) for n, text in enumerate(texts)])

    def annotate_ids(self, rows: Iterable[NDArray[np.integer]]) -> list[LabelledTokens]:
        """Label rows of token ids that another tool has made with the same tokenizer. The ids are not changed.

        A row may hold several documents. It is cut after each end-of-sequence id, before each beginning-of-sequence id
        and after any other control ids, and each segment is labelled as a text of its own. So a first mention is the
        first **in the segment**. If a row begins in the middle of a document, the mentions in the row before do not
        count, and more of the segment is FACTUAL than it would be in the whole document. End-of-sequence and other
        control ids are GRAMMATICAL, so that they are never delegated. So are several unknown ids at an end of a
        segment, which are padding.

        Args:
            rows: n rows of ids in [0, vocab_size), each of any length. An empty row has no tokens.

        Returns:
            n ``LabelledTokens``, in order, with the given ids as int32. Offsets count in the text that the row spells,
            its segments joined (see ``Tokenizer.decode``). Control ids have no width in it.

        Raises:
            AnnotatorError: the tokenizer does not have an id. The message names the row and the position.
        """
        return self._label([_LabelTask(self._segments(row, f"row {n}")) for n, row in enumerate(rows)])

    def label(self, documents: Iterable[Document]) -> list[LabelledTokens]:
        """Label documents, each on its own: texts as ``annotate`` does, and rows of ids as ``annotate_ids`` does.

        A document whose ``annotate`` is False is only tokenised: its tokens are OTHER, except for control ids. In a
        document with ``spans``, the tokens that they cover are FACTUAL (``spans.factual_tokens``), and the others are
        OTHER.

        Returns:
            ``LabelledTokens`` for each document, in order.

        Raises:
            AnnotatorError: see ``annotate`` and ``annotate_ids``; or the spans do not lie in the text. The message
                names the document.
        """
        return self._label([self._read(document) for document in documents])

    def explain(self, text: str) -> Explanation:
        """Label every word and token of one text, and tell the rule or the span that decided.

        Raises:
            AnnotatorError: see ``annotate``; or the annotator has neither a spaCy pipeline nor a labeller.
        """
        (pieces,) = self._pieces(text, "text")
        if self._labeller is not None:
            spans = self._labeller.spans(text)
            return Explanation(text, Words.empty(), np.zeros(0, np.uint8), self._label_covered(pieces, spans), spans)
        if self._parser is None:
            raise AnnotatorError("model: None gives no words to explain. Use an English spaCy pipeline.")
        words = next(self._parser.parse([text]))
        rules = fired_rules(words)
        return Explanation(text, words, rules, classify(pieces, words, class_of_rule(rules)))

    def _read(self, document: Document) -> _LabelTask:
        """Check a document, and cut its text or texts into pieces."""
        name = f"document {document.id!r}"
        if document.ids is not None:
            return _LabelTask(self._segments(document.ids, name), document.annotate)
        pieces = self._pieces(document.text, name)
        if document.spans is None or not document.annotate:
            return _LabelTask(pieces, document.annotate)
        try:
            return _LabelTask(pieces, spans=read_spans(document.spans, document.text))
        except AnnotatorError as error:
            raise AnnotatorError(f"{name}: {error}") from error

    def _pieces(self, text: str, name: str) -> list[Pieces]:
        """The pieces of a text, in a list of one. ``name`` names the text in messages."""
        _check_text(text, name)
        start = time.process_time()
        pieces = self.tokenizer.encode(text)
        self._lap("tokens", start)
        return [pieces]

    def _segments(self, row: NDArray[np.integer], name: str) -> list[Pieces]:
        """The pieces of each text of a row of ids. ``name`` names the row in messages."""
        start = time.process_time()
        try:
            segments = self.tokenizer.segments(row)
        except AnnotatorError as error:
            raise AnnotatorError(f"{name}: {error}") from error
        self._lap("tokens", start)
        return segments

    def _label(self, tasks: list[_LabelTask]) -> list[LabelledTokens]:
        """Label documents. The parser sees all texts that need it in one call, so that it can group them."""
        texts = [pieces.text for task in tasks if task.annotate and task.spans is None for pieces in task.segments]
        # An iterator over the words of these texts, which are taken below in the same order.
        ruled = None if self._parser is None else self._read_words(self._parser.parse(texts))

        def label(pieces: Pieces, task: _LabelTask) -> LabelledTokens:
            if task.spans is not None:
                return self._label_covered(pieces, task.spans)
            if task.annotate and self._labeller is not None:
                start = time.process_time()
                spans = self._labeller.spans(pieces.text)
                self._lap("labeller", start)
                return self._label_covered(pieces, spans)
            if task.annotate and ruled is not None:
                return self._label_words(pieces, *next(ruled))
            return classify(pieces)

        return [_join_segments([label(pieces, task) for pieces in task.segments]) for task in tasks]

    def _read_words(self, parsed: Iterator[Words]) -> Iterator[tuple[Words, NDArray[np.uint8]]]:
        """The words of each text, and the rules that decide on them, which are applied to many short texts at once."""
        while True:
            mark = time.process_time()
            group, size = [], 0
            for words in parsed:  # the first of a group of the parser's: parses all of them
                group.append(words)
                size += len(words)
                if size >= _RULES_AT_ONCE:
                    break
            mark = self._lap("words", mark)
            if not group:
                return
            rules = fired_rules_of_texts(group)
            self._lap("facts", mark)
            self._words += size
            yield from zip(group, rules, strict=True)

    def _label_words(self, pieces: Pieces, words: Words, rules: NDArray[np.uint8]) -> LabelledTokens:
        """The tokens of a text with these words, by the rules."""
        mark = time.process_time()
        tokens = classify(pieces, words, class_of_rule(rules))
        self._lap("tokens", mark)
        return tokens

    def _lap(self, stage: str, since: float) -> float:
        """Count the CPU time of a stage since a mark, and return the next mark."""
        now = time.process_time()
        self._seconds[stage] += now - since
        return now

    def _label_covered(self, pieces: Pieces, spans: NDArray[np.int32]) -> LabelledTokens:
        """The tokens of a text. Those that spans cover are FACTUAL, but control pieces stay GRAMMATICAL."""
        start = time.process_time()
        tokens = classify(pieces)
        # Without words, each class is OTHER or, for control pieces, GRAMMATICAL.
        factual = factual_tokens(tokens.offsets, pieces.text, spans) & (tokens.classes == FactClass.OTHER)
        classes = np.where(factual, np.uint8(FactClass.FACTUAL), tokens.classes)
        self._lap("tokens", start)
        return LabelledTokens(tokens.ids, classes, tokens.offsets)


def _join_segments(segments: list[LabelledTokens]) -> LabelledTokens:
    """Join the tokens of a row's segments. If there are several, none is empty."""
    if len(segments) == 1:
        return segments[0]
    # The last end of a segment is the length of its text. The segments' texts follow one another without a gap.
    lengths = [segment.offsets[-1, 1] for segment in segments]
    first = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    return LabelledTokens(
        np.concatenate([segment.ids for segment in segments]),
        np.concatenate([segment.classes for segment in segments]),
        np.concatenate([segment.offsets + start for segment, start in zip(segments, first, strict=True)]),
    )


def _check_text(text: str, name: str) -> None:
    """Raise an ``AnnotatorError`` that names the text, unless it is a string of characters."""
    if not isinstance(text, str):
        raise AnnotatorError(f"{name}: {type(text).__name__} instead of str. Decode it, or drop it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AnnotatorError(
            f"{name}: lone surrogate U+{ord(text[error.start]):04X} at code point {error.start}. "
            "Decode the data with errors='replace', or drop the text."
        ) from error
