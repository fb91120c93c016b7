"""A token of the partner -> tokens of the small model (appendix A.5).

The two models have different vocabularies, so text is their common language. The tokens of the small model are never
encoded again: with a new ending, earlier tokens could change ("Plan" and then "es" would become "Pl", "anes"). Each new
piece of text is encoded by itself, as a continuation of what is there.

    text so far   token of the partner   tokens of the small model
    "was"         " born"                [" born"]
    "was "        " born"                ["born"]           the space is there already
    "was"         " Anneliese"           [" Ann", "eliese"]
    "was "        " "                    None               nothing would be added
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lacy_stream.cascade.vocabulary import Vocabulary


class Candidate(NamedTuple):
    """A token that the partner proposes as the next one."""

    spelling: bytes | None
    """The bytes that it spells in UTF-8; None for a special token."""
    token: int | None = None
    """Its id in the partner's vocabulary; None if unknown."""


def pieces_of(candidate: Candidate, before: str, vocabulary: Vocabulary) -> list[int] | None:
    """Express a token of the partner in tokens of the small model.

    A space after a space is dropped: the small model may have written the space before a word already, but the
    partner's token for the word brings its own.

    Args:
        candidate: the partner's token.
        before: the text that it continues.
        vocabulary: the vocabulary of the small model.

    Returns:
        One or more ids. None if the token cannot be expressed: it is a special token, a part of a character or a space
        after a space, or this vocabulary cannot spell it.
    """
    spelling = candidate.spelling
    if spelling is None:
        return None
    try:
        text = spelling.decode()
    except UnicodeDecodeError:  # a part of a character
        return None
    if before.endswith(" ") and text.startswith(" "):
        text = text[1:]
    return vocabulary.continuation(text) if text else None


def first_expressible(
    candidates: Iterable[Candidate], before: str, vocabulary: Vocabulary
) -> tuple[Candidate, list[int]] | None:
    """Find the first candidate that can be expressed.

    Args:
        candidates: tokens of the partner, best first.
        before: the text that they continue.
        vocabulary: the vocabulary of the small model.

    Returns:
        The candidate and its ids in ``vocabulary``; None if no candidate can be expressed.
    """
    for candidate in candidates:
        if (pieces := pieces_of(candidate, before, vocabulary)) is not None:
            return candidate, pieces
    return None
