"""The threshold that a score must reach for a call, adapted so that the call rate is met (appendix A.5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import numpy as np

WINDOW = 512
"""Number of latest scores in the quantile: those of two texts of 256 tokens. With more, it follows drifting scores more
slowly."""
CORRECTION = 100
"""Number of missing or surplus tokens of the partner that move the level by 1. With fewer, the rate is held more
tightly, but fewer tokens can be called where many facts stand together."""


class Threshold(Protocol):
    """A threshold for a stream of scores. Its values depend on nothing but the calls of its methods and their order."""

    def warm_up(self, scores: Iterable[float]) -> None:
        """Take the scores at the positions of the first prompt, before the first decision."""
        ...

    def value(self) -> float:
        """The threshold for the next decision. A score calls if it is at least this: inf calls never, -inf always."""
        ...

    def update(self, score: float | None, tokens: int, called: int) -> None:
        """Take note of a decision.

        Args:
            score: the score at its position; None if no call was possible there.
            tokens: number of tokens that it brought.
            called: number of these tokens that the partner wrote.
        """


class TrackingThreshold:
    """A quantile of the latest scores, at a level that is corrected by the partner's tokens that are missing so far.

    The level is the share of the scores that calls: ``rate + (rate * tokens - called) / CORRECTION``, clipped to 0..1.
    With a rate of 0.15, after 1,000 tokens of which the partner wrote 140, 10 are missing, and the level is
    0.15 + 10 / 100 = 0.25: the next call needs a score among the highest 25%.

    At level 0 nothing is called, and at level 1 everything is. So whatever the scores do, the number of the partner's
    tokens stays within CORRECTION tokens (and the longest call) of its target. After 5,000 tokens, the rate is off by
    at most 2 points, as long as calls are possible.

    Args:
        rate: share of the tokens that the partner shall write, 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._prompt: deque[float] = deque()  # scores of the prompt that no later score has replaced
        self._missing = 0.0  # tokens that the partner should have written by now, but has not; negative for a surplus

    def warm_up(self, scores: Iterable[float]) -> None:
        self._prompt.extend(scores)

    def value(self) -> float:
        # Each missing token lowers the threshold a little, and each surplus one raises it.
        level = self._rate + self._missing / CORRECTION
        return _quantile([*self._prompt, *self._scores], level) if self._rate > 0 else np.inf

    def update(self, score: float | None, tokens: int, called: int) -> None:
        if score is not None:
            self._scores.append(score)
            if self._prompt:  # each new score replaces one of the prompt, which is not a text of the model
                self._prompt.popleft()
        self._missing += self._rate * tokens - called


class PaperThreshold:
    """The quantile of all scores so far, as the paper describes it. If the scores drift, the rate is missed: it was 22%
    instead of 15% in the paper.

    Args:
        rate: share of the decisions that shall be calls, 0 to 1.
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
    """The score that this share of the scores reaches or exceeds, interpolated: for [1, 2, 3, 4, 5] and 0.25 it is 4.

    Without scores, or for a share of 0, it is inf, which calls never. For a share of 1 it is -inf.
    """
    if share >= 1:
        return -np.inf
    values = np.sort(np.fromiter(scores, dtype=np.float64))
    if share <= 0 or not len(values):
        return np.inf
    # As np.quantile, which takes several times as long, and this is done for each token.
    place = (1 - share) * (len(values) - 1)
    low, high = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
    return float(low if low == high else low + (high - low) * (place - int(place)))


THRESHOLDS = {"tracking": TrackingThreshold, "paper": PaperThreshold}
