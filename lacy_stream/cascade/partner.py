"""What a partner is: the larger model that steps in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from lacy_stream.cascade.bridge import Proposal
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.errors import UsageError


class PartnerError(UsageError):
    """The partner cannot be used, or does not answer; the message says why and what to do."""


class PromptError(UsageError):
    """This one prompt cannot be continued; the message says why."""


class Session(Protocol):
    """A partner on one text."""

    def propose(self, text: str, ids: Sequence[int] | None = None) -> Iterator[Proposal]:
        """Candidates for the next token, best first.

        Args:
            text: so far. ids: its tokens, where the partner ``speaks`` the small model's vocabulary; else None.

        Raises:
            PartnerError: no answer.
            PromptError: the text is longer than the partner's context.
        """
        ...


class Partner(Protocol):
    """name: for people and for records.

    speaks(vocabulary): whether tokens have the same ids there, so that they go over as they are.
    session(preamble): a new text. The preamble is what the partner reads before it and the small model does not; it may
        name special tokens.
    """

    name: str

    def speaks(self, vocabulary: Vocabulary) -> bool: ...

    def session(self, preamble: str = "") -> Session: ...
