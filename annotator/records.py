"""The values that flow through the annotator: Document -> Pieces, Words -> FactClass per word -> LabelledTokens."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHARACTERS_PER_TOKEN = 4
"""Of English text, about."""


class FactClass(enum.IntEnum):
    """The three classes of appendix A.2.1. The values are stored in batches as uint8."""

    GRAMMATICAL = 0
    FACTUAL = 1
    OTHER = 2


class Pos(enum.IntEnum):
    """Universal part-of-speech tags; NONE is a word that the parser left untagged."""

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
    """The dependency labels (ClearNLP scheme) that the rules read; every other label is OTHER."""

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
    """Kind of named entity that a word belongs to: the rules only tell PERSON from the rest."""

    NONE = 0
    PERSON = 1
    OTHER = 2


class Flag(enum.IntFlag):
    """Lexical properties of a word, which depend on its spelling alone."""

    SPACE = 1  # nothing but white space
    PUNCT = 2  # nothing but punctuation
    ALPHA = 4  # nothing but letters
    CAPITAL = 8  # the first character is an upper-case letter
    LETTER = 16  # at least one letter
    DIGIT = 32  # at least one digit
    LIKE_NUM = 64  # a number in digits or words: "10.9", "ten", "third"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One raw text, or one row of token ids, with the id that it has in the data set.

    ids:      integers [n], where the data set holds tokens instead of a text; ``text`` is then empty.
    annotate: False where no token is to be FACTUAL: the parser does not see the text.
    spans:    what of the text is factual, where the data set says so, as it says it (``spans.read_spans``): JSON, or
              integers [n, 2] or [2n]. The parser does not see the text.
    """

    id: str
    text: str
    ids: NDArray[np.integer] | None = None
    annotate: bool = True
    spans: str | NDArray[np.integer] | None = None

    @property
    def characters(self) -> int:
        """Length of the text in code points; of a row of ids, an estimate of it."""
        return len(self.text) if self.ids is None else CHARACTERS_PER_TOKEN * len(self.ids)

    @property
    def tokens(self) -> int:
        """Number of tokens of a row of ids; of a text, an estimate of it, at least 1."""
        return len(self.text) // CHARACTERS_PER_TOKEN + 1 if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """What a tokenizer makes of one text, or reads in the ids of one, as arrays of length n.

    text:     the text.
    ids:      int32, piece ids.
    offsets:  int32 [n, 2], start and end of each piece in code points of the text: monotone, and the last end is the
              length of the text. A piece includes the space before it.
    control:  bool, the piece is a control piece, which spells nothing.
    """

    text: str
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    control: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The words of one text with what a parser says about them, as arrays of length n.

    start, end:  int32, code point offsets. Words do not overlap; one space between two words is in neither.
    form:        int32, index into ``forms``. Two words have the same index if they differ only in case.
    forms:       the distinct lower-cased words of the text.
    pos:         uint8, ``Pos`` values.
    dep:         uint8, ``Dep`` values.
    head:        int32, index of the syntactic head; the root of a sentence is its own head.
    ent:         uint8, ``Ent`` values.
    ent_start:   bool, the word is the first of a named entity.
    sent_start:  bool, the word is the first of a sentence.
    flags:       uint8, ``Flag`` bits.
    chunks:      int32 [m, 2], first word and end (exclusive) of each base noun phrase: ascending, without
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
        """Whether both say the same about the same words; forms may be numbered differently."""
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
        """The words of a whole text from those of its segments, whose offsets count from the text's start."""
        if len(parts) < 2:
            return parts[0] if parts else Words.empty()
        number: dict[str, int] = {}
        form = [
            np.array([number.setdefault(f, len(number)) for f in part.forms], dtype=np.int32)[part.form]
            for part in parts
        ]
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
    """The tokens of one text, each with the class of the word that it belongs to.

    ids:      int32 [n], piece ids of the whole text (no BOS, no EOS), or the ids of a row, control ids included.
    classes:  uint8 [n], ``FactClass`` values.
    offsets:  int32 [n, 2], start and end of each piece in code points of the text: monotone, and the
              last end is the length of the text. A piece includes the space before it. A label cache does not keep
              them: tokens that come from one have int32 [0, 2].
    """

    ids: NDArray[np.int32]
    classes: NDArray[np.uint8]
    offsets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)
