"""Scores of the controls and of i-LaCy, with the real annotator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from annotator import Annotator
from annotator.tokenizers import open_tokenizer
from lacy_stream.cascade.delegation import NOT_A_FACT, CallScore, InferenceTimeLacy, RandomScore, open_score
from lacy_stream.cascade.settings import Delegation
from lacy_stream.cascade.vocabulary import TokenizerVocabulary
from lacy_stream.errors import UsageError
from lacy_stream.objective.scores import uncertainty
from lacy_stream.train.checkpoint import CallingModel, load_model


@pytest.fixture(scope="module")
def pieces(tokenizer_path: Path) -> TokenizerVocabulary:
    return TokenizerVocabulary(open_tokenizer(tokenizer_path))


def ilacy(pieces: TokenizerVocabulary, annotator: Annotator, entropy: bool = False) -> InferenceTimeLacy:
    return InferenceTimeLacy(pieces, annotator, entropy=entropy, call_token_id=32_000)


@pytest.mark.parametrize(
    ("text", "word", "fact"),
    [
        ("Marie Curie was born in", " Paris", True),
        ("Marie Curie was born in", " the", False),
        ("Marie Curie was born in 186", "7", True),
        ("Marie Curie", " was", False),
        ("Paris is large. She lived in", " Paris", False),  # mentioned before
        ("Marie Curie was born in", " ", False),  # a space alone is no word yet
    ],
)
def test_facts_of_the_proposed_token(
    pieces: TokenizerVocabulary, annotator: Annotator, text: str, word: str, fact: bool
) -> None:
    """The annotator decides on the text so far with the proposed token at its end."""
    ids = pieces.continuation(word)
    assert ids is not None
    score = ilacy(pieces, annotator)(torch.zeros(32_001), ids[-1], text)
    assert (score > NOT_A_FACT / 2) == fact


def test_uncertainty_by_hand() -> None:
    """-log p of the best token, and the entropy of the 20 best, renormalised."""
    sure, even = torch.full((50,), -1e9), torch.full((50,), -1e9)
    sure[3] = 0.0
    even[:30] = 0.0
    assert uncertainty(sure, entropy=False) == pytest.approx(0, abs=1e-6)
    assert uncertainty(sure, entropy=True) == pytest.approx(0, abs=1e-6)
    assert uncertainty(even, entropy=False) == pytest.approx(torch.log(torch.tensor(30.0)).item())
    assert uncertainty(even, entropy=True) == pytest.approx(torch.log(torch.tensor(20.0)).item())


def test_facts_come_before_the_rest(pieces: TokenizerVocabulary, annotator: Annotator) -> None:
    """A fact of which the model is sure goes before an uncertain token that is no fact; <CALL> plays no part."""
    score = ilacy(pieces, annotator)
    paris, the = (pieces.continuation(word) for word in (" Paris", " the"))
    assert paris is not None and the is not None
    sure = torch.zeros(32_001)
    sure[paris[0]] = 20.0
    text = "Marie Curie was born in"
    assert score(sure, paris[0], text) > score(torch.zeros(32_001), the[0], text)
    called = sure.clone()
    called[32_000] = 50.0
    assert score(called, paris[0], text) == score(sure, paris[0], text)


def test_random_depends_on_the_text_alone() -> None:
    """A text's draws are the same in a resumed run, differ between texts and seeds, and fill 0 to 1."""

    def draws(seed: int, number: int) -> list[float]:
        score = RandomScore(seed).of_text(number)
        return [score(torch.zeros(1), 0, "") for _ in range(1000)]

    assert draws(0, 1) == draws(0, 1) != draws(0, 2) != draws(1, 2)
    assert sum(draws(0, 1)) / 1000 == pytest.approx(0.5, abs=0.05)


def test_the_score_of_call() -> None:
    """By logit the score is the logit as it comes, by probability the log-odds; at the prompt's positions, too."""
    logits = torch.arange(6.0).reshape(2, 3)
    by_logit, by_probability = CallScore(2, "logit"), CallScore(2, "probability")
    assert by_logit(logits[1], 0, "") == 5.0 and by_logit.of_prompt(logits) == [2.0, 5.0]
    odds = torch.logit(logits.softmax(-1)[:, 2]).tolist()
    assert by_probability.of_prompt(logits) == pytest.approx(odds)
    assert by_probability(logits[1], 0, "") == pytest.approx(odds[1])


def test_ranking_is_of_the_run_unless_told(wordy_model: Path, pieces: TokenizerVocabulary) -> None:
    """Without a word the run's own ranking is taken, of a model without a run the probability; a ranking of <CALL> for
    a delegation that does not use it is refused, as is an unknown one."""
    from lacy_stream.recipe import load_recipe

    model = load_model(wordy_model)
    paper = replace(model, recipe=load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "lacy_334m.yaml"))
    logits = torch.randn(32_001)
    for one, told, expected in [
        (model, None, "probability"),
        (paper, None, "logit"),
        (paper, "probability", "probability"),
    ]:
        score = open_score(Delegation(rank_calls_by=told), one, pieces)
        assert score(logits, 0, "") == CallScore(32_000, expected)(logits, 0, "")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="delegate 'random' does not"):
        Delegation("random", rank_calls_by="logit")
    with pytest.raises(UsageError, match="rank_calls_by: 'margin' is none of probability, logit"):
        Delegation(rank_calls_by="margin")


def test_models_that_cannot_call(wordy_model: Path, pieces: TokenizerVocabulary) -> None:
    """A model without <CALL>, and a baseline, which never learned it, are refused with the way out."""
    from lacy_stream.recipe import load_recipe

    model: CallingModel = load_model(wordy_model)
    recipe = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "baseline_334m.yaml")
    for other, message in (
        (replace(model, call_token_id=None), "has no <CALL>"),
        (replace(model, recipe=recipe), "base"),
    ):
        with pytest.raises(ValueError, match=message):
            open_score(Delegation("call"), other, pieces)
        assert isinstance(open_score(Delegation("random"), other, pieces), RandomScore)
