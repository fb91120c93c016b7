"""Pieces of a text and its words -> LabelledTokens: each token takes the class of the word that it belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.records import FactClass, LabelledTokens, Pieces, Words


def classify(pieces: Pieces, words: Words | None = None, classes: NDArray[np.uint8] | None = None) -> LabelledTokens:
    """Give each token of a text the class of the word that it belongs to.

    A token belongs to the word that holds its first code point other than a space; a token of spaces only, or of no
    code point (a tokenizer may spell a character that it does not know in bytes, and only the last byte gets the
    character's width), to the word at its end. So the lone space token before a number counts with the number, as the
    space before any other word does. A token that belongs to no word is OTHER, and without ``words`` every token is;
    but a control piece, which is in no text, is GRAMMATICAL.

    Args:
        pieces: of the whole text, n of them.
        words: of the same text, m of them.
        classes: uint8 [m], the ``FactClass`` of each word.

    Returns:
        The n tokens, with the ids and offsets of the pieces.
    """
    labels = np.full(len(pieces), FactClass.OTHER, dtype=np.uint8)
    if words is not None and classes is not None and len(words) and len(pieces):
        word = words_of_pieces(pieces, words)
        labels[word >= 0] = classes[word[word >= 0]]
    labels[pieces.control] = FactClass.GRAMMATICAL
    return LabelledTokens(pieces.ids, labels, pieces.offsets)


def words_of_pieces(pieces: Pieces, words: Words) -> NDArray[np.intp]:
    """Index of the word that each piece belongs to (see ``classify``), -1 for none; intp [n]. There is a word."""
    code_points = np.frombuffer(pieces.text.encode("utf-32-le"), dtype=np.uint32)
    # Position of the first code point other than U+0020 at or after each position.
    inked = np.append(np.flatnonzero(code_points != 0x20), len(pieces.text))
    anchor = inked[np.searchsorted(inked, pieces.offsets[:, 0])]
    anchor = np.minimum(anchor, pieces.offsets[:, 1])
    word = np.searchsorted(words.start, anchor, side="right") - 1
    inside = (word >= 0) & (anchor < words.end[word])
    return np.where(inside, word, -1)
