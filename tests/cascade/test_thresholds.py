"""The call rate under scores that drift, on sequences made by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import product

import pytest

from lacy_stream.cascade.thresholds import CORRECTION, PaperThreshold, Threshold, TrackingThreshold

Scores = Callable[[int, random.Random], float]
DRIFTS: dict[str, Scores] = {
    "none": lambda n, r: r.gauss(0, 1),
    "up within each text": lambda n, r: r.gauss(0, 1) + (n % 256) / 50,
    "up without end": lambda n, r: r.gauss(0, 1) + n / 100,
    "down without end": lambda n, r: r.gauss(0, 1) - n / 100,
    "a jump": lambda n, r: r.gauss(0, 1) + 20 * (n > 2000),
    "in runs": lambda n, r: r.gauss(0, 1) + 5 * (n // 40 % 2),
    "constant": lambda n, r: 1.0,
}


def rate(threshold: Threshold, scores: Scores, tokens: int = 5120, pieces: int = 1) -> float:
    """The partner's share of the tokens when each call brings this many."""
    source, written, called = random.Random(0), 0, 0
    while written < tokens:
        score = scores(written, source)
        brought = pieces if score >= threshold.value() else 0
        threshold.update(score, max(brought, 1), brought)
        written, called = written + max(brought, 1), called + brought
    return called / written


@pytest.mark.parametrize(
    ("drift", "target"), [*product(DRIFTS, (0.15, 0.75)), *product(("none", "up within each text"), (0.22, 0.45))]
)
def test_the_rate_is_held(drift: str, target: float) -> None:
    """Over 20 texts of 256 tokens the rate is within 2 points, however the scores drift."""
    assert rate(TrackingThreshold(target), DRIFTS[drift]) == pytest.approx(target, abs=0.02)


def test_several_pieces_count() -> None:
    """It is the share of the tokens that is held: a call that brings three counts three."""
    assert rate(TrackingThreshold(0.3), DRIFTS["none"], pieces=3) == pytest.approx(0.3, abs=0.02)


def test_the_papers_estimator_drifts_away() -> None:
    """A plain quantile of all scores holds the rate without drift, and calls too often where scores rise."""
    assert rate(PaperThreshold(0.15), DRIFTS["none"], tokens=2560) == pytest.approx(0.15, abs=0.02)
    assert rate(PaperThreshold(0.15), DRIFTS["up without end"], tokens=2560) > 0.5


def test_high_scores_are_called() -> None:
    """It is the highest scores that are called, not any."""
    threshold, source = TrackingThreshold(0.2), random.Random(0)
    called, rest = [], []
    for _ in range(2000):
        score = source.random()
        call = score >= threshold.value()
        threshold.update(score, 1, int(call))
        (called if call else rest).append(score)
    assert sum(called) / len(called) > 0.85 and sum(rest) / len(rest) < 0.45


def test_nothing_and_everything() -> None:
    """0 never calls, 1 always does, whatever is missing."""
    never, always = TrackingThreshold(0), TrackingThreshold(1)
    never.update(3.0, 1, 0)
    assert never.value() == math.inf and always.value() == -math.inf


def test_the_first_decision_uses_the_prompt() -> None:
    """The threshold begins with the scores of the prompt, and forgets each for one of the text."""
    threshold = TrackingThreshold(0.5)
    threshold.warm_up([1.0, 2.0, 3.0])
    assert threshold.value() == 2.0
    for _ in range(3):
        threshold.update(10.0, 2, 1)  # on target
    assert threshold.value() == 10.0


def test_calls_that_were_impossible_are_made_up_for() -> None:
    """Positions without a decision count as tokens, so the calls that they lack come later."""
    threshold = TrackingThreshold(0.5)
    for n in range(50):
        threshold.update(float(n), 2, 1)
    before = threshold.value()
    for _ in range(CORRECTION // 2):
        threshold.update(None, 1, 0)
    assert threshold.value() < before
