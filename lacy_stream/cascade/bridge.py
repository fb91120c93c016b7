"""From the partner's next token to the small model's tokens (appendix A.5).

Text is the common language, and it only grows: what stands is never encoded again on the small model's side, since a
new ending would change earlier tokens (Plan + es -> Pl + anes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lacy_stream.cascade.vocabulary import Vocabulary


class Proposal(NamedTuple):
    """One candidate of the partner for the next token.

    spelling: its bytes; None for a special token. token: its id in the partner's vocabulary, None where unknown.
    """

    spelling: bytes | None
    token: int | None = None


def pieces_of(proposal: Proposal, before: str, vocabulary: Vocabulary) -> list[int] | None:
    """The small model's tokens for a partner's token.

    A space behind a space is dropped: where the small model has already written the space before a word, the partner's
    token still has its own.

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
    try:
        text = spelling.decode()
    except UnicodeDecodeError:
        return None
    if before.endswith(" ") and text.startswith(" "):
        text = text[1:]
    return vocabulary.continuation(text) if text else None


def first_expressible(
    proposals: Iterable[Proposal], before: str, vocabulary: Vocabulary
) -> tuple[Proposal, list[int]] | None:
    """The best proposal that can be expressed, with its tokens; None where none can. Best first."""
    for proposal in proposals:
        if (pieces := pieces_of(proposal, before, vocabulary)) is not None:
            return proposal, pieces
    return None
