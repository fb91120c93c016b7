"""What is delegated: a score for each position, the higher the sooner (section 5, table 9)."""

from __future__ import annotations

import random
from typing import Protocol

import torch
from torch import Tensor

from annotator import Annotator, AnnotatorSettings, FactClass
from annotator.pipelines import OFFICIAL
from annotator.tokenizers import is_tokenizer_json
from lacy_stream.cascade.settings import Delegation
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import call_scores, uncertainty
from lacy_stream.train.checkpoint import CallingModel

NOT_A_FACT = -100.0
"""Added to the uncertainty (0 to about 10 nats) of a token that would be no fact."""


class Score(Protocol):
    """Called at each position where a token is chosen.

    Args of ``__call__``:
        logits_V: of the small model, raw.
        proposal: the token that it would write.
        text: so far.
    """

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float: ...

    def of_text(self, number: int) -> Score:
        """The score for one text, by its number in the run: it must not depend on other texts."""
        ...

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        """Scores at the positions of a prompt, for the threshold to begin with; empty where they would be no guide."""
        ...


class CallScore:
    """The score of <CALL> (LaCy and all methods that are trained to call).

    Args:
        call_token_id: id of <CALL>. rank_calls_by: its log-odds or its logit, see ``methods.Rank``. The threshold alone
            decides: where <CALL> leads plays no part.
    """

    def __init__(self, call_token_id: int, rank_calls_by: Rank) -> None:
        self._id = call_token_id
        self._rank: Rank = rank_calls_by

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        return float(call_scores(logits_V[None], self._id, self._rank).score[0])

    def of_text(self, number: int) -> Score:
        return self

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        return call_scores(logits_TV, self._id, self._rank).score.tolist()


class Random:
    """The control: uniform in 0..1, whatever the model says."""

    def __init__(self, seed: int, number: int = 0) -> None:
        self._seed, self._random = seed, random.Random(seed * 1_000_003 + number)

    def __call__(self, logits_V: Tensor, proposal: int, text: str) -> float:
        return self._random.random()

    def of_text(self, number: int) -> Score:
        return Random(self._seed, number)

    def of_prompt(self, logits_TV: Tensor) -> list[float]:
        return [position / 100 for position in range(101)]  # their distribution is known


class InferenceTimeLacy:
    """i-LaCy: an ordinary model delegates where the token that it would write is a fact and it is unsure.

    Facts come first. Where there are fewer of them than the call rate asks for, the most uncertain of the other tokens
    follow; in the paper these are never delegated, and the rate is then not reached.

    Args:
        vocabulary: the model's.
        annotator: parses the text so far with the proposed token at its end; its tokenizer may be another.
        entropy: uncertainty is the entropy of the 20 most likely tokens, renormalised; else the negative
            log-probability of the most likely one. Nats, of the logits as they come, <CALL> excluded.
        call_token_id: of a model that has <CALL>.
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
        return []  # would take a parse for each position

    def _is_fact(self, text: str) -> bool:
        """Whether the word at the end of the text is one. A lone space before a word is not."""
        if text[-1:].isspace():
            return False
        classes = self._annotator.annotate([text])[0].classes
        return bool(len(classes)) and int(classes[-1]) == FactClass.FACTUAL


def open_score(
    delegation: Delegation, model: CallingModel, vocabulary: Vocabulary, annotator: Annotator | None = None
) -> Score:
    """The score by which a model delegates.

    Args:
        annotator: for i-LaCy; None makes one.

    Raises:
        UsageError: the model cannot use it.
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
        return Random(delegation.seed)
    if annotator is None:
        annotator = default_annotator(model)
    entropy = delegation.method == "ilacy-entropy"
    return InferenceTimeLacy(vocabulary, annotator, entropy=entropy, call_token_id=model.call_token_id)


def default_annotator(model: CallingModel) -> Annotator:
    """The annotator of the model's run, or where none is known, en_core_web_sm's. A model without a SentencePiece file
    gets the one of mistral-common, which only cuts the parsed words into pieces."""
    from lacy_stream.recipe import tokenizer_path

    pipeline = model.recipe.annotator.model if model.recipe is not None else None
    file = model.tokenizer
    if is_tokenizer_json(file):
        file = tokenizer_path("package:mistral_common/data/tokenizer.model.v1")
    return AnnotatorSettings(file, pipeline or OFFICIAL).build()
