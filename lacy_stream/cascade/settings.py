"""Settings of a cascade, for `generate`, `evaluate` and the Python interface. This file does not import torch, so that
`--help` answers at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import RANKS

DELEGATION_METHODS = ("call", "random", "ilacy-logprob", "ilacy-entropy")
ESTIMATORS = ("tracking", "paper")
MANY_TEXTS = 8
"""Batch size for writing many texts that nobody watches as they grow."""


@dataclass(frozen=True)
class Delegation:
    """What the small model delegates.

    Raises:
        UsageError: a value is not one of the known ones or out of range.
    """

    method: str = "call"
    """Who decides: "call" (the score of <CALL>), "random", "ilacy-logprob" or "ilacy-entropy"."""

    call_rate: float = 0.15
    """Share of the tokens that the partner writes, 0 to 1. With 0 there are no calls."""

    estimator: str = "tracking"
    """How the threshold is estimated: "tracking" or "paper", see ``cascade.thresholds``."""

    seed: int = 0
    """Seed of random delegation."""

    rank_calls_by: str | None = None
    """How <CALL> is scored, see ``methods.Rank``; None for the way of the model's run. Only for method "call"."""

    def __post_init__(self) -> None:
        if self.method not in DELEGATION_METHODS:
            raise UsageError(f"delegate: {self.method!r} is none of {', '.join(DELEGATION_METHODS)}")
        if self.rank_calls_by is not None and self.rank_calls_by not in RANKS:
            raise UsageError(f"rank_calls_by: {self.rank_calls_by!r} is none of {', '.join(RANKS)}")
        if self.rank_calls_by is not None and self.method != "call":
            raise UsageError(
                f"rank_calls_by: {self.rank_calls_by!r} ranks calls by <CALL>, and delegate {self.method!r} does not: "
                "leave it out"
            )
        if not 0 <= self.call_rate <= 1:
            raise UsageError(f"call_rate is {self.call_rate}: give a share of the tokens, 0 to 1")
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"estimator: {self.estimator!r} is none of {', '.join(ESTIMATORS)}")


@dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Raises:
        UsageError: a value is out of range.
    """

    max_new_tokens: int = 256
    """Maximum number of tokens of the small model in a text. The last call is not cut, and so it may exceed this."""

    repetition_penalty: float = 1.2
    """Repetition penalty for the small model and for a partner in this process; 1 for none."""

    batch_size: int = 1
    """Number of texts that the small model writes at once; the partner answers one at a time. The texts depend on it,
    through rounding and through the order of decisions that the threshold sees."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")
        if self.repetition_penalty <= 0:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}: give 1 for none, more to discourage repetition"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}: give at least 1")


def flat_settings(delegation: Delegation, decoding: Decoding) -> dict[str, object]:
    """Both settings as one mapping of JSON values, with the option names of the command line."""
    values = asdict(delegation)
    return {"delegate": values.pop("method")} | values | asdict(decoding)
