"""Texts -> labelled tokens: words, facts and tokens in turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotator.facts import RULES_VERSION, class_of_rule, fired_rules
from annotator.records import LabelledTokens, Words


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """One text with its words, the ``Rule`` that decided on each (uint8 [n]), and its labelled tokens."""

    text: str
    words: Words
    rules: NDArray[np.uint8]
    tokens: LabelledTokens


class Annotator:
    """Labels the tokens of texts as grammatical, factual or other (appendix A.2.1).

    Args:
        tokenizer: path of a SentencePiece model.
        model: name or path of an English spaCy pipeline; None for tokens without fact labels, all OTHER.
        engine: what runs the pipeline: "spacy"; "numba", ten times as fast; or "auto", see ``words.Parser``.

    Raises:
        FileNotFoundError: the tokenizer's file is not there.
        ValueError: the tokenizer is not a SentencePiece model, or the spaCy pipeline is not usable.
    """

    def __init__(self, tokenizer: str | Path, model: str | None = "en_core_web_sm", engine: str = "auto") -> None:
        # Here, so that `import annotator` stays light: spaCy takes seconds to import.
        from annotator.tokens import Tokenizer

        self._tokenizer = Tokenizer(tokenizer)
        self._parser = None
        if model is not None:
            from annotator.words import Parser

            self._parser = Parser(model, engine)

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the tokenizer; ``<CALL>`` is not one of them."""
        return self._tokenizer.vocab_size

    @property
    def eos_id(self) -> int:
        """Id of the end-of-sequence piece, -1 if the tokenizer has none."""
        return self._tokenizer.eos_id

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that the labels depend on beside the text: equal digests, equal labels."""
        from annotator.tokens import VERSION

        facts: dict[str, object] = {"tokenizer": self._tokenizer.sha256, "sentencepiece": VERSION}
        if self._parser is not None:
            facts |= {"rules": RULES_VERSION, "files": self._parser.sha256} | self._parser.versions
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

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
            ValueError: a text holds a lone surrogate, which is not a character; names the text and place.
        """
        texts = _checked(texts)
        if self._parser is None:
            return [self._tokenizer.label(text) for text in texts]
        words_of = self._parser.parse(texts)
        return [
            self._tokenizer.label(text, words, class_of_rule(fired_rules(words)))
            for text, words in zip(texts, words_of, strict=True)
        ]

    def explain(self, text: str) -> Explanation:
        """The label of every word and token of one text, with the rule behind it.

        Raises:
            ValueError: as ``annotate``; or the annotator has no spaCy pipeline.
        """
        if self._parser is None:
            raise ValueError("model: None has no words to explain. Use an English spaCy pipeline.")
        _checked([text])
        words = next(self._parser.parse([text]))
        rules = fired_rules(words)
        return Explanation(text, words, rules, self._tokenizer.label(text, words, class_of_rule(rules)))


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError("texts: got one string. Give a list of texts.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {index}: {type(text).__name__} instead of str. Decode it, or drop it.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {index}: lone surrogate U+{ord(text[error.start]):04X} at code point {error.start}. "
                "Decode the data with errors='replace', or drop the text."
            ) from error
    return texts
