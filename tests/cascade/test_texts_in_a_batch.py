"""Texts that enter and leave a running batch: each is what it is alone; stop strings, draws, log-probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lacy_stream.cascade import Delegation, TransformersPartner, open_partner
from lacy_stream.cascade.batch_decoder import BatchDecoder
from lacy_stream.cascade.choice import most_likely
from lacy_stream.cascade.engine import Engine
from lacy_stream.cascade.partner import Answer, Call, PartnerError
from lacy_stream.cascade.texts import Generation, Prompt, TextSettings
from lacy_stream.train.checkpoint import CallingModel, load_model

pytestmark = pytest.mark.model

PROMPTS = ["Marie Curie was born in", "In 1987, the", "Ada", "Tell me a bio of Ada Lovelace. Ada Lovelace is", "He"]
PER_TEXT = Delegation(call_rate=0.3, threshold_per="text")


@pytest.fixture(scope="module")
def wordy(wordy_model: Path) -> CallingModel:
    return load_model(wordy_model)


@pytest.fixture(scope="module")
def bytewise(tiny_partner: Path) -> TransformersPartner:
    """A partner with another vocabulary and other texts."""
    partner = open_partner(str(tiny_partner))
    assert isinstance(partner, TransformersPartner)
    return partner


def engine_of(model: CallingModel, partner: Any = None, delegation: Delegation = PER_TEXT, **options: Any) -> Engine:
    settings: dict[str, Any] = {"calls": partner is not None, "penalty": 1.2, "many": True} | options
    return Engine(model, delegation, partner, **settings)


def written(engine: Engine, *prompts: str, every: int = 0, **settings: Any) -> list[Generation]:
    """The texts of some prompts, the next of which enters after a number of steps."""
    found: dict[int, Generation] = {}
    following = list(enumerate(prompts))
    steps = 0
    while following or engine.texts:
        while following and steps >= following[0][0] * every:
            number, prompt = following.pop(0)
            engine.add(number, Prompt(prompt), TextSettings(**settings))
        for progress in engine.step():
            if progress.generation is not None:
                found[progress.number] = progress.generation
        steps += 1
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("chunk", [None, 4])
def test_texts_are_what_they_are_alone(wordy: CallingModel, bytewise: TransformersPartner, chunk: int | None) -> None:
    """Each text has a threshold of its own. Texts that enter at different steps, wait for the partner together and
    leave at different steps have the tokens, the writers and the scores that each has alone."""
    together = engine_of(wordy, bytewise, chunk=chunk)
    assert isinstance(together._decoder, BatchDecoder)
    texts = written(together, *PROMPTS, every=3, max_new_tokens=24)
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts)):
        alone = engine_of(wordy, bytewise, many=False, chunk=chunk)
        [expected] = written(alone, prompt, max_new_tokens=24)
        assert [(t.id, t.writer) for t in text.tokens] == [(t.id, t.writer) for t in expected.tokens], number
        scores = [t.score for t in text.tokens if t.score is not None]
        assert scores == pytest.approx([t.score for t in expected.tokens if t.score is not None], abs=1e-4)
    assert {token.writer for text in texts for token in text.tokens} == {"model", "partner"}
    assert not bytewise._decoders[True, True]._places, "the partner forgets the texts"  # type: ignore[attr-defined]


def test_the_partner_is_asked_for_several_texts(wordy: CallingModel, bytewise: TransformersPartner) -> None:
    """Calls of several texts are answered together, and the call rate is held."""
    sizes: Counter[int] = Counter()
    propose_all = bytewise.propose_all

    def counted(calls: Sequence[Call]) -> list[Answer]:
        sizes[len(calls)] += 1
        return propose_all(calls)

    bytewise.propose_all = counted  # type: ignore[method-assign]
    try:
        engine = engine_of(wordy, bytewise, Delegation(call_rate=0.3))
        texts = written(engine, *(f"{n}, or" for n in range(8)), max_new_tokens=64)
    finally:
        del bytewise.propose_all
    tokens = [token for text in texts for token in text.tokens]
    assert sum(token.writer == "partner" for token in tokens) / len(tokens) == pytest.approx(0.3, abs=0.05)
    assert sum(size * count for size, count in sizes.items()) / sum(sizes.values()) > 3


def test_a_text_that_is_removed(wordy: CallingModel, bytewise: TransformersPartner) -> None:
    """A text that is given up leaves its neighbours alone, and its number can be used again."""
    engine = engine_of(wordy, bytewise)
    for number, prompt in enumerate(PROMPTS[:3]):
        engine.add(number, Prompt(prompt), TextSettings(12))
    engine.step()
    engine.remove(1)
    engine.add(1, Prompt(PROMPTS[1]), TextSettings(12))
    found = {}
    while engine.texts:
        found |= {p.number: p.generation.text for p in engine.step() if p.generation is not None}
    [expected] = written(engine_of(wordy, bytewise), PROMPTS[1], max_new_tokens=12)
    assert found[1] == expected.text and len(found) == 3


def test_stop_strings(wordy: CallingModel) -> None:
    """A text ends before the first stop string, also if that spans tokens; the rest is not written."""
    [whole] = written(engine_of(wordy), PROMPTS[0], max_new_tokens=24)
    stop = whole.text[9:13]
    assert len({token.text for token in whole.tokens if token.text in stop}) < len(stop)
    [text] = written(engine_of(wordy), PROMPTS[0], max_new_tokens=24, stop=("never", stop))
    assert (text.finish, text.text) == ("stop", whole.text[: whole.text.index(stop)])
    assert len(text.tokens) < 24


def test_draws_depend_on_the_seed_alone(wordy: CallingModel) -> None:
    """With a temperature, the same seed gives the same text, in a batch and alone; other seeds give others. A small
    ``top_p`` is the greedy text."""
    drawn = {"max_new_tokens": 12, "temperature": 1.0}
    first = written(engine_of(wordy), *PROMPTS, seed=1, **drawn)
    [alone] = written(engine_of(wordy, many=False), PROMPTS[2], seed=1, **drawn)
    [other] = written(engine_of(wordy), PROMPTS[2], seed=2, **drawn)
    greedy, narrow = (
        written(engine_of(wordy), PROMPTS[2], **s)[0] for s in ({"max_new_tokens": 12}, drawn | {"top_p": 1e-6})
    )
    assert first[2].text == alone.text != other.text
    assert narrow.text == greedy.text != alone.text


def test_most_likely_by_hand() -> None:
    """The tokens whose probabilities reach the share stay as they are; the best one always stays."""
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    assert most_likely(probabilities, 0.7).tolist() == pytest.approx([0, 0.5, 0, 0.25])
    assert most_likely(probabilities, 0.75).tolist() == pytest.approx([0, 0.5, 0, 0.25])
    assert most_likely(probabilities, 0.01).tolist() == [0, 0.5, 0, 0]
    assert most_likely(probabilities, 1) is probabilities


@pytest.mark.parametrize("chunk", [None, 3])
def test_log_probabilities(wordy: CallingModel, chunk: int | None) -> None:
    """Of the prompt and of what was written: those of a pass over the whole text without <CALL>."""
    settings = {"max_new_tokens": 4, "log_probabilities": 2, "score_prompt": True}
    texts = written(engine_of(wordy, chunk=chunk), *PROMPTS[:2], **settings)
    for text in texts:
        row = [*text.prompt_ids, *(token.id for token in text.tokens if token.id is not None)]
        with torch.no_grad():
            logits = wordy.model(torch.tensor([row[:-1]])).logits[0, :, :32_000].float()
        expected = torch.log_softmax(logits, -1)
        found = [*text.prompt_log_probabilities, *(token.log_probabilities for token in text.tokens)]
        assert len(found) == len(row) - 1
        for at, one in enumerate(found):
            assert one is not None and one.own == pytest.approx(expected[at, row[at + 1]].item(), abs=1e-4)
            best = expected[at].topk(2)
            assert [id for id, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)


class Unreliable:
    """A partner that fails in some of its answers."""

    name = "unreliable"

    def __init__(self, partner: TransformersPartner, answers: int) -> None:
        self._partner, self._answers = partner, answers
        self.speaks, self.session = partner.speaks, partner.session

    def propose_all(self, calls: Sequence[Call]) -> list[Answer]:
        self._answers -= 1
        if self._answers < 0:
            return [PartnerError("it is gone")] * len(calls)
        return self._partner.propose_all(calls)


def test_a_partner_that_is_lost(wordy: CallingModel, bytewise: TransformersPartner) -> None:
    """The step raises; or the text is continued alone, which is counted; or it ends and says why. With another partner,
    calls are made again."""
    with pytest.raises(PartnerError, match="gone"):
        written(engine_of(wordy, Unreliable(bytewise, 0)), PROMPTS[0])
    engine = engine_of(wordy, Unreliable(bytewise, 2), partner_failure="continue")
    [text] = written(engine, PROMPTS[0], max_new_tokens=32)
    [plain] = written(engine_of(wordy), PROMPTS[0], max_new_tokens=32)
    assert (text.finish, len(text.tokens)) == (plain.finish, 32) and text.unanswered > 0
    assert 0 < sum(token.writer == "partner" for token in text.tokens) and engine.partner is None
    engine.partner = bytewise
    [text] = written(engine, PROMPTS[0], max_new_tokens=32)
    assert text.unanswered == 0 and text.call_rate > 0.1
    [text] = written(engine_of(wordy, Unreliable(bytewise, 1), partner_failure="error"), PROMPTS[0], max_new_tokens=64)
    assert (text.finish, text.skipped) == ("partner", "it is gone") and len(text.tokens) < 64


def test_ids_as_prompts(wordy: CallingModel) -> None:
    """Ids are read as they are: nothing is put before them, and their text is what the partner sees."""
    engine = engine_of(wordy)
    ids = engine.vocabulary.encode(PROMPTS[0])
    for number, prompt in enumerate((Prompt(PROMPTS[0]), Prompt("", ids=(2, *ids)), Prompt("", ids=tuple(ids)))):
        engine.add(number, prompt, TextSettings(8))
    texts = {}
    while engine.texts:
        texts |= {p.number: p.generation for p in engine.step() if p.generation is not None}
    assert texts[0].text == texts[1].text != texts[2].text
    assert texts[2].prompt_ids == tuple(ids)
