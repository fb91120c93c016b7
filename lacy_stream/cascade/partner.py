"""The interface of a partner, the larger model that writes where the small one calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.errors import UsageError


class PartnerError(UsageError):
    """The partner cannot be used or does not answer; the message says why, and what to do."""


class PromptError(UsageError):
    """One prompt cannot be continued; the message says why. Other prompts are not affected."""


class Session(Protocol):
    """A partner's view of one text."""

    def close(self) -> None:
        """Forget the text."""
        ...


class Call(NamedTuple):
    """The question for the next token of one text."""

    session: Any
    """The ``Session`` of the text, of the partner that is asked."""
    text: str
    """The text so far."""
    ids: Sequence[int] | None = None
    """Its tokens, if the partner ``speaks`` the vocabulary of the small model; else None."""


Answer = Iterator[Candidate] | PartnerError | PromptError
"""Candidates for the next token, best first; or the error that concerns this call: the partner does not answer it
(PartnerError), or the text is longer than the partner's context (PromptError). Reading the candidates may raise a
PartnerError as well."""


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

    def propose_all(self, calls: Sequence[Call]) -> list[Answer]:
        """Answer the calls of several texts together.

        Args:
            calls: at most one for each text.

        Returns:
            One answer for each call, in order.
        """
        ...


def answer_of(partner: Partner, call: Call) -> Iterator[Candidate]:
    """Answer one call alone.

    Raises:
        PartnerError, PromptError: see ``Answer``.
    """
    (answer,) = partner.propose_all([call])
    if isinstance(answer, Exception):
        raise answer
    return answer
