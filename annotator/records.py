"""The values that flow through the annotator: Document -> Pieces and Words -> FactClass per word -> LabelledTokens."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.errors import AnnotatorError

CHARACTERS_PER_TOKEN = 4
"""An estimate for English text."""


class FactClass(enum.IntEnum):
    """The three classes of appendix A.2.1. Batches hold the values as uint8."""

    GRAMMATICAL = 0
    FACTUAL = 1
    OTHER = 2


class Pos(enum.IntEnum):
    """Universal part-of-speech tags. NONE stands for a word that the parser left untagged."""

    NONE = 0
    ADJ = 1
    ADP = 2
    ADV = 3
    AUX = 4
    CCONJ = 5
    DET = 6
    INTJ = 7
    NOUN = 8
    NUM = 9
    PART = 10
    PRON = 11
    PROPN = 12
    PUNCT = 13
    SCONJ = 14
    SPACE = 15
    SYM = 16
    VERB = 17
    X = 18


class Dep(enum.IntEnum):
    """The dependency labels (ClearNLP scheme) that the rules read. Every other label is OTHER."""

    OTHER = 0
    APPOS = 1
    ATTR = 2
    AUX = 3
    CASE = 4
    CONJ = 5
    DET = 6
    DOBJ = 7
    NSUBJ = 8
    NSUBJPASS = 9
    OPRD = 10
    POBJ = 11
    POSS = 12
    PREDET = 13
    PREP = 14


class Ent(enum.IntEnum):
    """The kind of named entity that a word belongs to. The rules only distinguish PERSON from the rest."""

    NONE = 0
    PERSON = 1
    OTHER = 2


class Flag(enum.IntFlag):
    """Properties of a word that depend on its spelling alone, as bits."""

    SPACE = 1  # it is white space
    PUNCT = 2  # it consists of punctuation
    ALPHA = 4  # it consists of letters
    CAPITAL = 8  # it begins with an upper-case letter
    LETTER = 16  # it has a letter
    DIGIT = 32  # it has a digit
    LIKE_NUM = 64  # it is a number in digits or words: "10.9", "ten", "third"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One raw text, or one row of token ids, of a data set.

    id:       the id that it has in the data set.
    text:     the text; empty where the data set holds tokens.
    ids:      integers [n], the tokens of a data set that holds them instead of texts.
    annotate: False if no token is to be FACTUAL. The parser does not see the text then.
    spans:    the factual parts of the text, if the data set names them, in one of the forms that ``spans.read_spans``
              takes: JSON, or integers [n, 2] or [2n]. The parser does not see the text then.
    """

    id: str
    text: str
    ids: NDArray[np.integer] | None = None
    annotate: bool = True
    spans: str | NDArray[np.integer] | None = None

    @property
    def characters(self) -> int:
        """The length of the text in code points. For a row of ids this is an estimate."""
        return len(self.text) if self.ids is None else CHARACTERS_PER_TOKEN * len(self.ids)

    @property
    def tokens(self) -> int:
        """The number of tokens in a row of ids. For a text this is an estimate, at least 1."""
        return len(self.text) // CHARACTERS_PER_TOKEN + 1 if self.ids is None else len(self.ids)


def title_line(title: object) -> str:
    """What a title puts before the text of its document: the title and a blank line; "" for None or white space.

    Raises:
        AnnotatorError: it is not a string.
    """
    if title is not None and not isinstance(title, str):
        raise AnnotatorError("title is not a string")
    return f"{title}\n\n" if title and title.strip() else ""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The n pieces into which a tokenizer cuts one text, or which it reads in the ids of one.

    text:     the text.
    ids:      int32 [n], piece ids.
    offsets:  int32 [n, 2], start and end (exclusive) of each piece in code points of the text. Both are monotone, and
              the last end is the length of the text. A piece includes the space before it.
    control:  bool [n], the piece is a control piece, which spells nothing.
    """

    text: str
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    control: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The n words of one text, with what a parser says about them. The arrays are [n] unless they say otherwise.

    start, end:  int32, offsets in code points, the end exclusive. Words do not overlap. One space between two words
                 belongs to neither.
    form:        int32, index into ``forms``. Words that differ only in case have the same index.
    forms:       the distinct lower-cased words of the text.
    pos:         uint8, ``Pos`` values.
    dep:         uint8, ``Dep`` values.
    head:        int32, index of the syntactic head. The root of a sentence is its own head.
    ent:         uint8, ``Ent`` values.
    ent_start:   bool, the word is the first of a named entity.
    sent_start:  bool, the word is the first of a sentence.
    flags:       uint8, ``Flag`` bits.
    chunks:      int32 [m, 2], first word and end (exclusive) of each base noun phrase, in ascending order and without
                 overlap. The head of a chunk is its last word.
    """

    start: NDArray[np.int32]
    end: NDArray[np.int32]
    form: NDArray[np.int32]
    forms: list[str]
    pos: NDArray[np.uint8]
    dep: NDArray[np.uint8]
    head: NDArray[np.int32]
    ent: NDArray[np.uint8]
    ent_start: NDArray[np.bool_]
    sent_start: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    chunks: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.start)

    def same(self, other: Words) -> bool:
        """Tell whether both say the same about the same words. The forms may have other numbers."""
        names = ("start", "end", "pos", "dep", "head", "ent", "ent_start", "sent_start", "flags", "chunks")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names) and (
            [self.forms[i] for i in self.form] == [other.forms[i] for i in other.form]
        )

    @staticmethod
    def empty() -> Words:
        """The words of a text without words."""
        ints = np.zeros(0, dtype=np.int32)
        codes = np.zeros(0, dtype=np.uint8)
        bools = np.zeros(0, dtype=np.bool_)
        return Words(ints, ints, ints, [], codes, codes, ints, codes, bools, bools, codes, ints.reshape(0, 2))

    @staticmethod
    def join(parts: list[Words]) -> Words:
        """Join the words of a text's segments, whose offsets count from the start of the text.

        Words of two segments with one form get one number.
        """
        if len(parts) < 2:
            return parts[0] if parts else Words.empty()
        number: dict[str, int] = {}
        form = [
            np.array([number.setdefault(f, len(number)) for f in part.forms], dtype=np.int32)[part.form]
            for part in parts
        ]
        # The first word of each segment, by which heads and chunks are shifted.
        first = np.cumsum([0] + [len(part) for part in parts], dtype=np.int32).tolist()
        return Words(
            start=np.concatenate([part.start for part in parts]),
            end=np.concatenate([part.end for part in parts]),
            form=np.concatenate(form),
            forms=list(number),
            pos=np.concatenate([part.pos for part in parts]),
            dep=np.concatenate([part.dep for part in parts]),
            head=np.concatenate([part.head + n for part, n in zip(parts, first, strict=False)]),
            ent=np.concatenate([part.ent for part in parts]),
            ent_start=np.concatenate([part.ent_start for part in parts]),
            sent_start=np.concatenate([part.sent_start for part in parts]),
            flags=np.concatenate([part.flags for part in parts]),
            chunks=np.concatenate([part.chunks + n for part, n in zip(parts, first, strict=False)]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabelledTokens:
    """The n tokens of one text, each with the class of the word that it belongs to.

    ids:      int32 [n], the piece ids of the whole text (without BOS and EOS), or the ids of a row (with control ids).
    classes:  uint8 [n], ``FactClass`` values.
    offsets:  int32 [n, 2], start and end (exclusive) of each piece in code points of the text. Both are monotone, and
              the last end is the length of the text. A piece includes the space before it. A label cache does not keep
              offsets, and workers on other machines do not send them: such tokens have int32 [0, 2].
    """

    ids: NDArray[np.int32]
    classes: NDArray[np.uint8]
    offsets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)
