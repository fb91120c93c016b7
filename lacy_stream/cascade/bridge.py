"""From the partner's next token to the small model's tokens (appendix A.5).

Text is the common language, and it only grows: what stands is never encoded again on the small model's side, since a
new ending would change earlier tokens (Plan + es -> Pl + anes).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lacy_stream.cascade.vocabulary import Vocabulary


class Proposal(NamedTuple):
    """One candidate of the partner for the next token.

    spelling: its bytes; None for a special token. token: its id in the partner's vocabulary, None where unknown.
    """

    spelling: bytes | None
    token: int | None = None


def whole_text(data: bytes) -> str | None:
    """The text of these bytes, or None where they end inside a character or hold what is no UTF-8: a partner could not
    read it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def pieces_of(proposal: Proposal, before: bytes, vocabulary: Vocabulary) -> list[int] | None:
    """The small model's tokens for a partner's token.

    A space behind a space is dropped: where the small model has already written the space before a word (or number), the
    partner's token still has its own.

    Args:
        proposal: the partner's token.
        before: the text that it continues.
        vocabulary: the small model's.

    Returns:
        One or more ids, or None where the token cannot be expressed: a special token, a part of a character, nothing
        but the space that stands already, or no text of this vocabulary.
    """
    spelling = proposal.spelling
    if spelling is None:
        return None
    if before.endswith(b" ") and spelling.startswith(b" "):
        spelling = spelling[1:]
    text = whole_text(spelling)
    return (vocabulary.continuation(text) or None) if text else None


def first_expressible(
    proposals: Iterable[Proposal], before: bytes, vocabulary: Vocabulary
) -> tuple[Proposal, list[int]] | None:
    """The best proposal that can be expressed, with its tokens; None where none can. Best first."""
    for proposal in proposals:
        if (pieces := pieces_of(proposal, before, vocabulary)) is not None:
            return proposal, pieces
    return None


def texts_of(vocabulary: Vocabulary, before: bytes, ids: Sequence[int]) -> list[str]:
    """What each id adds to a text, as characters: a part of a character adds nothing, its last part the character. The
    texts together are the text; bytes that are no character are U+FFFD.

    Args:
        before: the bytes before the first id; they end between characters.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(vocabulary.spellings[id] or b"") for id in ids]
    if not before and vocabulary.adds_space and texts and texts[0].startswith(" "):
        texts[0] = texts[0][1:]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts
