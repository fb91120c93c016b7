"""The threshold that holds the call rate: which scores are high enough to call (appendix A.5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import numpy as np

WINDOW = 512
"""Scores that the quantile is taken of: two texts of 256 tokens. Longer forgets more slowly what has drifted away."""
CORRECTION = 100
"""Tokens that the share may be off before the level moves by 1. Shorter holds the rate more tightly, and then lets less
be called where many facts stand together."""


class Threshold(Protocol):
    """Decides from a stream of scores. The same calls in the same order give the same thresholds."""

    def warm_up(self, scores: Iterable[float]) -> None:
        """Scores that were seen before the first decision (those at the positions of the first prompt)."""
        ...

    def value(self) -> float:
        """A call is made where the score is at least this: inf for never, -inf for always."""
        ...

    def update(self, score: float | None, tokens: int, called: int) -> None:
        """One decision has been made.

        Args:
            score: of the position; None where no call was possible.
            tokens: that it brought. called: how many of them the partner wrote.
        """


class TrackingThreshold:
    """A quantile of the latest scores, at a level that is corrected by how far the partner's share is off.

    The level is ``rate + (rate * tokens - called) / CORRECTION``, cut to 0..1. At 0 nothing is called and at 1
    everything, so whatever the scores do, the partner's tokens stay within CORRECTION tokens (and the longest call) of
    their target: at most 2 points after 5,000 tokens, as long as calls are possible.

    Args:
        rate: share of the tokens that the partner is to write, 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._prompt: deque[float] = deque()
        self._missing = 0.0

    def warm_up(self, scores: Iterable[float]) -> None:
        self._prompt.extend(scores)

    def value(self) -> float:
        level = self._rate + self._missing / CORRECTION
        return _quantile([*self._prompt, *self._scores], level) if self._rate > 0 else np.inf

    def update(self, score: float | None, tokens: int, called: int) -> None:
        if score is not None:
            self._scores.append(score)
            if self._prompt:  # a prompt is no text of the model's own: what comes replaces it
                self._prompt.popleft()
        self._missing += self._rate * tokens - called


class PaperThreshold:
    """The quantile of all scores seen so far, as the paper describes it. Its rate is off where the scores drift: 22%
    instead of 15% in the paper.

    Args:
        rate: share of the decisions that are to be calls, 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._scores: list[float] = []

    def warm_up(self, scores: Iterable[float]) -> None:
        self._scores.extend(scores)

    def value(self) -> float:
        return _quantile(self._scores, self._rate)

    def update(self, score: float | None, tokens: int, called: int) -> None:
        if score is not None:
            self._scores.append(score)


def _quantile(scores: Iterable[float], share: float) -> float:
    """The score that this share of the scores reaches or exceeds, interpolated."""
    if share >= 1:
        return -np.inf
    values = np.fromiter(scores, dtype=np.float64)
    return float(np.quantile(values, 1 - share)) if share > 0 and len(values) else np.inf


THRESHOLDS = {"tracking": TrackingThreshold, "paper": PaperThreshold}
