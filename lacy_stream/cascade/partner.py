"""The interface of a partner, the larger model that writes where the small one calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.errors import UsageError


class PartnerError(UsageError):
    """The partner cannot be used or does not answer; the message says why, and what to do."""


class PromptError(UsageError):
    """One prompt cannot be continued; the message says why. Other prompts are not affected."""


class Session(Protocol):
    """A partner that works on one text."""

    def propose(self, text: str, ids: Sequence[int] | None = None) -> Iterator[Candidate]:
        """Yield candidates for the next token, best first.

        Args:
            text: the text so far.
            ids: its tokens, if the partner ``speaks`` the vocabulary of the small model; else None.

        Raises:
            PartnerError: the partner does not answer.
            PromptError: the text is longer than the partner's context.
        """
        ...


class Partner(Protocol):
    """A larger model that proposes tokens."""

    name: str
    """Name for messages and records."""

    def speaks(self, vocabulary: Vocabulary) -> bool:
        """Whether tokens have the same ids in this vocabulary as in the partner's, so that no translation is needed."""
        ...

    def session(self, preamble: str = "") -> Session:
        """Begin a text.

        Args:
            preamble: text that the partner reads first, and the small model does not. It may name special tokens.
        """
        ...
