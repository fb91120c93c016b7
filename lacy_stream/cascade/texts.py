"""The values of generation: a prompt, how it is to be continued, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MODEL, PARTNER = "model", "partner"


class Prompt(NamedTuple):
    """A text to continue."""

    text: str
    preamble: str = ""
    """What the partner reads before the text, such as an article. The small model does not read it."""
    missing: str = ""
    """Title of the article that the preamble lacks, because there is none; "" if it lacks none."""
    ids: tuple[int, ...] | None = None
    """What the small model reads, exactly. None for the tokens of the text, after what stands before each text."""


@dataclass(frozen=True)
class TextSettings:
    """How one text is written."""

    max_new_tokens: int = 256
    """Longest text, in tokens of the small model. A call at the end may exceed it by the rest of its pieces. With 0,
    the prompt is read and nothing is written."""
    temperature: float = 0.0
    """0 takes the most likely token. Otherwise the small model's tokens are drawn; the partner's never are."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities add up to this are drawn."""
    seed: int | None = None
    """Seed of the draws; None for another one each time."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    log_probabilities: int | None = None
    """Number of most likely tokens whose log-probabilities are kept for each token; None for no log-probabilities."""
    score_prompt: bool = False
    """Whether the log-probabilities of the prompt's tokens are kept, too."""


class LogProbabilities(NamedTuple):
    """How likely a token was for the small model, without <CALL> and before the repetition penalty, in nats."""

    own: float
    """Of the token itself."""
    top: tuple[tuple[int, float], ...]
    """The most likely tokens, best first: id and log-probability."""


class Token(NamedTuple):
    """One token of a generated text."""

    text: str
    """The text that the token adds. If a character is spelled in several tokens, its last token adds the character, and
    the others add nothing."""
    writer: str
    """MODEL or PARTNER."""
    score: float | None = None
    """The score that was compared with the threshold; by default, that of <CALL>. It is None where no decision was
    made: after the first token of a call, inside a character, and in a run without calls."""
    threshold: float | None = None
    """The threshold at that moment."""
    id: int | None = None
    """Its id in the vocabulary of the small model; None if the text was read from a file."""
    log_probabilities: LogProbabilities | None = None
    """None if they were not asked for, and for tokens of the partner."""


@dataclass(frozen=True)
class Generation:
    """The text that was written for one prompt."""

    prompt: str
    text: str
    """The text after the prompt. It ends before a stop string."""
    tokens: list[Token]
    """The tokens that were written, in order."""
    finish: str
    """Why the text ends: "end" (end-of-text token), "length" (max_new_tokens), "context" (the context of one of the two
    models is full), "stop" (a stop string), "partner" (the partner does not answer) or "skipped"."""
    skipped: str = ""
    """Why there is no text, or why the partner does not answer; "" otherwise."""
    prompt_scores: list[float] = field(default_factory=list)
    """The scores that the threshold began with. If all texts of a run share it, only the first text has them."""
    fallbacks: int = 0
    """Number of calls in which nothing that the partner proposed could be expressed, so that the small model wrote."""
    ended_at_call: bool = False
    """Whether the text ended with a call that brought no token."""
    prompt_ids: tuple[int, ...] = ()
    """What the small model read as the prompt."""
    prompt_log_probabilities: list[LogProbabilities] = field(default_factory=list)
    """Those of the ids of the prompt after the first one, if they were asked for."""
    unanswered: int = 0
    """Number of calls that the small model answered itself, because the partner was not there."""
    end: Token | None = None
    """The end-of-text token, which is none of ``tokens``; None if the text ends for another reason."""

    @property
    def call_rate(self) -> float:
        """The share of the tokens that the partner wrote, 0 to 1."""
        return sum(token.writer == PARTNER for token in self.tokens) / max(len(self.tokens), 1)
