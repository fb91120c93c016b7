"""How texts decide about calls: their score, the threshold that they share or have alone, and when the partner is
asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lacy_stream.cascade.delegation import Score
from lacy_stream.cascade.settings import Delegation
from lacy_stream.cascade.texts import PARTNER, Generation, Token
from lacy_stream.cascade.thresholds import THRESHOLDS, Threshold

WAITING_SHARE = 0.75
"""The partner is asked when this share of the texts wait for it, since a pass for several texts costs less than one for
each. With 1, a text that makes no calls for long would hold up all others."""


def asks_now(waiting: int, texts: int) -> bool:
    """Whether the partner is asked now.

    Args:
        waiting: number of texts that wait for the partner.
        texts: number of texts that are not finished.
    """
    return waiting > 0 and waiting >= WAITING_SHARE * texts


@dataclass
class TextPolicy:
    """The score and the threshold of one text."""

    score: Score
    threshold: Threshold
    prompt_scores: list[float] = field(default_factory=list)
    """Scores that the text gave to the threshold to begin with."""


class CallPolicy:
    """The score and the thresholds of all texts.

    Args:
        delegation: what is delegated, and whether all texts share a threshold.
        score: scores positions.
    """

    def __init__(self, delegation: Delegation, score: Score) -> None:
        self._delegation, self._score = delegation, score
        self._shared = self._threshold() if delegation.threshold_per == "run" else None
        self._warm = False

    def _threshold(self) -> Threshold:
        return THRESHOLDS[self._delegation.estimator](self._delegation.call_rate)

    @property
    def warming(self) -> int | None:
        """How many of the texts that begin now give the scores of their prompts to their threshold; None for all."""
        if self._shared is None:
            return None
        return 0 if self._warm else 1

    def of_text(self, number: int, prompt_logits_TV: Tensor | None) -> TextPolicy:
        """The policy of a text.

        Args:
            number: number of the text in the run.
            prompt_logits_TV: logits after each id of its prompt, float32 [T, V], to warm up the threshold; else None.
        """
        policy = TextPolicy(self._score.of_text(number), self._shared or self._threshold())
        if prompt_logits_TV is not None and self.warming != 0:
            policy.prompt_scores = policy.score.of_prompt(prompt_logits_TV)
            policy.threshold.warm_up(policy.prompt_scores)
            self._warm = True
        return policy

    def count_in(self, texts: Sequence[Generation]) -> None:
        """Bring the shared threshold to the state in which texts that were written together have left it.

        The order of their decisions depends on which texts waited for the partner, and when. So the steps are taken
        once more, with the decisions as they were recorded.
        """
        if self._shared is None:
            return
        for text in texts:
            if text.prompt_scores and not self._warm:
                self._shared.warm_up(text.prompt_scores)
                self._warm = True
        recorded = [_RecordedText(text, self._shared) for text in texts]
        while unfinished := [text for text in recorded if not text.is_finished]:
            for text in unfinished:
                if not text.waits:
                    text.decide()
            unfinished = [text for text in unfinished if not text.is_finished]
            waiting = [text for text in unfinished if text.waits]
            if asks_now(len(waiting), len(unfinished)):
                for text in waiting:
                    text.receive_answer()


class _RecordedText:
    """A finished text whose decisions are taken once more."""

    def __init__(self, text: Generation, threshold: Threshold) -> None:
        self._threshold = threshold
        self._decisions = list(_decisions(text.tokens))[::-1]
        self._ended_at_call = text.ended_at_call
        self._ends_alone = text.finish == "end" or text.ended_at_call  # by a decision that brought no token
        self.waits = False
        self.is_finished = not self._decisions and not self._ends_alone

    def decide(self) -> None:
        if not self._decisions:
            self.waits, self.is_finished = self._ended_at_call, not self._ended_at_call
            return
        score, *_ = self._decisions[-1]
        if score is not None and score >= self._threshold.value():
            self.waits = True
        else:
            self._count()

    def receive_answer(self) -> None:
        self.waits = False
        if self._decisions:
            self._count()
        else:
            self.is_finished = True

    def _count(self) -> None:
        self._threshold.update(*self._decisions.pop())
        self.is_finished = not self._decisions and not self._ends_alone


def _decisions(tokens: Iterable[Token]) -> Iterator[tuple[float | None, int, int]]:
    """Find the decisions that wrote these tokens: (score, number of tokens, number of the partner's tokens) of each.

    A token of the partner that has no score belongs to the call before it. With M for the small model, P for the
    partner and the scores 1, 2 and 4, the tokens M1 P2 P P M4 were written by the decisions (1, 1, 0), (2, 3, 3) and
    (4, 1, 0).
    """
    steps: list[list[Token]] = []
    for token in tokens:
        if token.writer == PARTNER and token.score is None and steps:
            steps[-1].append(token)
        else:
            steps.append([token])
    for step in steps:
        yield step[0].score, len(step), len(step) if step[0].writer == PARTNER else 0
