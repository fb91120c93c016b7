"""Pieces and words of a text -> LabelledTokens. Each token takes the class of the word that it belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.records import FactClass, LabelledTokens, Pieces, Words


def classify(pieces: Pieces, words: Words | None = None, classes: NDArray[np.uint8] | None = None) -> LabelledTokens:
    """Give each token of a text the class of the word that it belongs to.

    A token belongs to the word that holds its first code point other than a space. A token without such a code point
    belongs to the word at its end. That is a token of spaces, or one of no code point at all: a tokenizer may spell an
    unknown character in bytes, of which only the last has the character's width. In "in 1867", cut into "in", " " and
    "1867", the lone space belongs to the number, as the space before any other word belongs to that word.

    A token that belongs to no word is OTHER. Without ``words``, every token is. A control piece, which stands for no
    text, is GRAMMATICAL in any case.

    Args:
        pieces: the n pieces of the whole text.
        words: the m words of the same text.
        classes: uint8 [m], the ``FactClass`` of each word.

    Returns:
        n tokens, with the ids and offsets of the pieces.
    """
    labels = np.full(len(pieces), FactClass.OTHER, dtype=np.uint8)
    if words is not None and classes is not None and len(words) and len(pieces):
        word = words_of_pieces(pieces, words)
        labels[word >= 0] = classes[word[word >= 0]]
    labels[pieces.control] = FactClass.GRAMMATICAL
    return LabelledTokens(pieces.ids, labels, pieces.offsets)


def words_of_pieces(pieces: Pieces, words: Words) -> NDArray[np.intp]:
    """The index of the word that each piece belongs to (see ``classify``), -1 for none; intp [n].

    There must be at least one word.
    """
    code_points = np.frombuffer(pieces.text.encode("utf-32-le"), dtype=np.uint32)
    # In " a b" the code points other than U+0020 are at 1 and 3, and the text ends at 4. A piece that starts at 2 has
    # its first such code point at 3.
    inked = np.append(np.flatnonzero(code_points != 0x20), len(pieces.text))
    anchor = inked[np.searchsorted(inked, pieces.offsets[:, 0])]
    anchor = np.minimum(anchor, pieces.offsets[:, 1])
    # Words do not overlap. So only the last word that begins at or before the anchor can hold it; -1 where none does.
    word = np.searchsorted(words.start, anchor, side="right") - 1
    inside = (word >= 0) & (anchor < words.end[word])
    return np.where(inside, word, -1)
