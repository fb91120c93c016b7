"""The score of a position: the higher, the sooner it is delegated (section 5, table 9)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from annotator import Annotator, FactClass
from annotator.pipelines import OFFICIAL
from lacy_stream.cascade.settings import Delegation
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import call_score, uncertainty
from lacy_stream.train.checkpoint import CallingModel

NOT_A_FACT = -100.0
"""Added to the uncertainty (0 to about 10 nats) of a token that is not a fact, so that all facts come first."""


class Score(Protocol):
    """A function that scores a position at which a token is chosen."""

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        """Score a position.

        Args:
            logits_V: raw logits of the small model, float32 [V].
            proposal: id of the token that the small model would write.
            text: the text so far.
        """
        ...

    def of_text(self, number: int) -> Score:
        """The score for one text, given by its number in the run. It must not depend on other texts."""
        ...

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        """Scores at the positions of a prompt, for the threshold to begin with. Empty if they would be misleading or
        too expensive.

        Args:
            logits_TV: logits after each id of the prompt, float32 [T, V].
        """
        ...


class CallScore:
    """The score of <CALL> (LaCy and all methods that are trained to call).

    The threshold alone decides. It does not matter whether <CALL> is the most likely token.

    Args:
        call_token_id: id of <CALL>.
        rank_calls_by: whether the score is the log-odds or the logit of <CALL>, see ``methods.Rank``.
    """

    def __init__(self, call_token_id: int, rank_calls_by: Rank) -> None:
        self._id = call_token_id
        self._rank: Rank = rank_calls_by

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        return float(call_score(logits_V, self._id, self._rank))

    def of_text(self, number: int) -> Score:
        return self

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        return call_score(logits_TV, self._id, self._rank).tolist()


class RandomScore:
    """The control: uniform in 0..1, independent of the model.

    Args:
        seed: seed of the run.
        number: number of the text in the run.
    """

    def __init__(self, seed: int, number: int = 0) -> None:
        # Each text draws from a generator of its own, so that a resumed run draws the same.
        self._seed, self._random = seed, random.Random(seed * 1_000_003 + number)

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        return self._random.random()

    def of_text(self, number: int) -> Score:
        return RandomScore(self._seed, number)

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        return [position / 100 for position in range(101)]  # evenly spread, since the distribution is known


class InferenceTimeLacy:
    """i-LaCy: an ordinary model delegates where it is uncertain and the token that it would write is a fact.

    Facts come first. If there are fewer facts than the call rate asks for, the most uncertain of the other tokens
    follow. The paper never delegates these, and so it does not reach the rate.

    Args:
        vocabulary: the vocabulary of the model.
        annotator: parses the text so far, with the proposed token at its end. It may have another tokenizer.
        entropy: True measures uncertainty as the entropy of the 20 most likely tokens, renormalised; False, as the
            negative log-probability of the most likely token. Both are in nats, from the raw logits without <CALL>.
        call_token_id: id of <CALL> if the model has it; else None.
    """

    def __init__(
        self, vocabulary: Vocabulary, annotator: Annotator, *, entropy: bool, call_token_id: int | None
    ) -> None:
        self._vocabulary, self._annotator = vocabulary, annotator
        self._entropy, self._call_token_id = entropy, call_token_id

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        logits_V = logits_V.float().clone()
        if self._call_token_id is not None:
            logits_V[self._call_token_id :] = -torch.inf
        unsure = uncertainty(logits_V, entropy=self._entropy)
        spelling = self._vocabulary.spellings[proposal]
        if spelling is None:
            return unsure + NOT_A_FACT
        return unsure + (0.0 if self._is_fact(text + spelling.decode(errors="replace")) else NOT_A_FACT)

    def of_text(self, number: int) -> Score:
        return self

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        return []  # each position would take a parse

    def _is_fact(self, text: str) -> bool:
        """Whether the last word of the text is a fact. A space at the end is not."""
        if text[-1:].isspace():
            return False
        classes = self._annotator.annotate([text])[0].classes
        return bool(len(classes)) and int(classes[-1]) == FactClass.FACTUAL


def open_score(
    delegation: Delegation, model: CallingModel, vocabulary: Vocabulary, annotator: Annotator | None = None
) -> Score:
    """Make the score by which a model delegates.

    Args:
        delegation: names the method.
        model: the small model.
        vocabulary: its vocabulary.
        annotator: finds facts for i-LaCy; None makes one.

    Raises:
        UsageError: the model cannot delegate by this method.
    """
    if delegation.method == "call":
        if model.call_token_id is None:
            raise UsageError(
                f"{model.name} has no <CALL>: use --delegate ilacy-logprob, ilacy-entropy or random, or --call-rate 0"
            )
        if model.recipe is not None and model.recipe.algorithms.call_mask.method == "baseline":
            raise UsageError(
                f"{model.name} was not trained to call (method: baseline), so its <CALL> logits mean nothing: use "
                "--delegate ilacy-logprob, ilacy-entropy or random, or --call-rate 0"
            )
        rank = delegation.rank_calls_by or model.rank_calls_by
        return CallScore(model.call_token_id, rank)  # type: ignore[arg-type]
    if delegation.method == "random":
        return RandomScore(delegation.seed)
    if annotator is None:
        annotator = default_annotator(model)
    entropy = delegation.method == "ilacy-entropy"
    return InferenceTimeLacy(vocabulary, annotator, entropy=entropy, call_token_id=model.call_token_id)


def default_annotator(model: CallingModel) -> Annotator:
    """Make the annotator of the model's run, or one with en_core_web_sm if no run is known."""
    pipeline = model.recipe.annotator.model if model.recipe is not None else None
    return replace(model.annotator_settings, model=pipeline or OFFICIAL).build()
