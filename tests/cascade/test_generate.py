"""The cascade on small real models: caches, call rates, one tokenizer or two, going on, bad prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lacy_stream.cascade import Decoding, Delegation, Generation, TransformersPartner, open_partner
from lacy_stream.cascade import generate as generate_texts
from lacy_stream.cascade.batch_decoder import BatchDecoder
from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.decoder import Decoder
from lacy_stream.cascade.output import from_record, record
from lacy_stream.cascade.partner import Answer, Call
from lacy_stream.cascade.vocabulary import Vocabulary, open_vocabulary
from lacy_stream.train.checkpoint import CallingModel, load_model

pytestmark = pytest.mark.model

PROMPTS = ["Marie Curie was born in", "Tell me a bio of Ada Lovelace. Ada Lovelace is", "In 1987, the"]


def generate(model: CallingModel, prompts: list[str], **options: Any) -> Iterator[Generation]:
    """``cascade.generate``, with the fields of its settings as arguments."""

    def settings(kind: type) -> Any:
        return kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})

    delegation, decoding = settings(Delegation), settings(Decoding)
    return generate_texts(model, prompts, delegation=delegation, decoding=decoding, **options)


@pytest.fixture(scope="module")
def wordy(wordy_model: Path) -> CallingModel:
    return load_model(wordy_model)


@pytest.fixture(scope="module")
def twin(wordy_model: Path) -> TransformersPartner:
    """The same model with the same tokenizer, as a partner."""
    partner = open_partner(str(wordy_model))
    assert isinstance(partner, TransformersPartner)
    return partner


class Scripted:
    """A partner that proposes the same tokens at each call, and keeps the texts that it was given."""

    name = "scripted"

    def __init__(self, *spellings: bytes | None) -> None:
        self.spellings, self.texts, self.preambles = spellings, [], []

    def speaks(self, vocabulary: Vocabulary) -> bool:
        return False

    def session(self, preamble: str = "") -> Scripted:
        self.preambles.append(preamble)
        return self

    def close(self) -> None: ...

    def propose_all(self, calls: Sequence[Call]) -> list[Answer]:
        self.texts += [call.text for call in calls]
        return [map(Candidate, self.spellings) for _ in calls]


def plain(model: CallingModel, prompt: str, tokens: int) -> str:
    """What transformers generates, <CALL> banned."""
    vocabulary = open_vocabulary(model)
    ids = [2, *vocabulary.encode(prompt)]
    out = model.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        do_sample=False,
        max_new_tokens=tokens,
        repetition_penalty=1.2,
        bad_words_ids=[[32_000]],
        pad_token_id=0,
    )[0].tolist()
    return vocabulary.spell([id for id in out if id != 2]).decode(errors="replace")


def test_without_calls_it_is_plain_generation(wordy: CallingModel) -> None:
    """No partner, or a call rate of 0: the text of transformers' own generate."""
    for prompt, text in zip(PROMPTS, generate(wordy, PROMPTS, max_new_tokens=24), strict=True):
        assert prompt + text.text == plain(wordy, prompt, 24)
        assert len(set(text.text.split())) > 3, "the model must not only repeat itself"
    [none] = generate(wordy, PROMPTS[:1], partner=Scripted(b" x"), call_rate=0, max_new_tokens=8)
    assert none.call_rate == 0


@pytest.mark.parametrize("rate", [0.15, 0.75])
def test_the_same_model_on_both_sides(wordy: CallingModel, twin: TransformersPartner, rate: float) -> None:
    """The text is that of plain generation, whichever model writes."""
    writers: set[str] = set()
    for prompt, text in zip(PROMPTS, generate(wordy, PROMPTS, partner=twin, call_rate=rate, max_new_tokens=24)):
        assert prompt + text.text == plain(wordy, prompt, 24)
        writers |= {token.writer for token in text.tokens}
    assert writers == {"model", "partner"}


@pytest.mark.parametrize("reuse_same", [True, False])
def test_the_naive_way_writes_the_same(wordy: CallingModel, wordy_model: Path, reuse_same: bool) -> None:
    """With caches or everything read again at each token, the same text; also if the text is encoded again."""
    texts = []
    for reuse in (True, False):
        partner = open_partner(str(wordy_model))
        assert isinstance(partner, TransformersPartner)
        partner.reuse = reuse
        if not reuse_same:
            partner.speaks = lambda vocabulary: False  # type: ignore[method-assign]
        [text] = generate(wordy, PROMPTS[:1], partner=partner, call_rate=0.5, max_new_tokens=24, reuse=reuse)
        texts.append((text.text, [token.writer for token in text.tokens]))
    assert texts[0] == texts[1] and "partner" in texts[0][1]


def test_the_cache_reads_only_what_changed(wordy: CallingModel) -> None:
    """A longer row, another end, a shorter row, the same again: the logits of a fresh model, and few reads."""
    decoder = Decoder(wordy.model)
    rows = [[2, 5, 6, 7], [2, 5, 6, 7, 8], [2, 5, 6, 9, 10], [2, 5], [2, 5], [3]]
    reads = []
    for row in rows:
        before = decoder.tokens_read
        found = decoder.logits(row)
        reads.append(decoder.tokens_read - before)
        torch.testing.assert_close(found, Decoder(wordy.model).logits(row), rtol=1e-4, atol=1e-4)
    assert reads == [4, 1, 2, 1, 0, 1]


def test_rows_that_are_read_together(wordy: CallingModel) -> None:
    """Rows of other lengths that grow by other steps and end at other times: each has the logits that it has alone."""
    long = list(range(3, 403))
    steps: list[dict[int, list[int]]] = [
        {3: [2, 5, 6], 4: [2]},
        {3: [2, 5, 6, 7], 4: [2, 9, 9, 9, 9], 7: [2, 8, 8, 8, 8, 8]},  # a row enters
        {7: [2, 8, 8, 8, 8, 8, 4], 3: [2, 5, 6, 7, 8]},  # a row waits
        {4: [2, 9, 9, 5, 6], 1: long},  # a row has another end; one is much longer
        {1: [*long, 5], 4: [2, 9, 9, 5, 6], 3: [2, 5]},  # nothing is new, and a shorter row
    ]
    decoder = BatchDecoder(wordy.model)
    for step, rows in enumerate(steps):
        found = decoder.logits(rows, every={7})
        assert list(found) == list(rows)
        for number, row in rows.items():
            torch.testing.assert_close(found[number][-1], Decoder(wordy.model).logits(row), rtol=1e-4, atol=1e-4)
        if step == 1:
            every_TV = Decoder(wordy.model).logits_of_all(rows[7])
            torch.testing.assert_close(found[7], every_TV, rtol=1e-4, atol=1e-4)
        if step == 2:
            assert len(found[7]) == 1
            decoder.end(7)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_texts_of_a_batch_are_those_of_one_at_a_time(
    wordy: CallingModel, twin: TransformersPartner, batch_size: int
) -> None:
    """With the same model on both sides the text is plain generation, whichever writes; prompts that are skipped leave
    their neighbours alone, and short texts end before long ones."""
    prompts = [PROMPTS[0], "", *PROMPTS[1:], "1" * 505, "He"]
    texts = list(generate(wordy, prompts, partner=twin, call_rate=0.3, max_new_tokens=24, batch_size=batch_size))
    assert [text.finish for text in texts] == ["length", "skipped", "length", "length", "context", "length"]
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.skipped or prompt + text.text == plain(wordy, prompt, len(text.tokens))
    assert {token.writer for text in texts for token in text.tokens} == {"model", "partner"}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "batch_size"), [(0.15, 1), (0.45, 8)])
def test_the_call_rate(wordy: CallingModel, twin: TransformersPartner, rate: float, batch_size: int) -> None:
    """Over 10 prompts of 256 tokens the partner's share is within 2 points of its target."""
    texts = list(generate(wordy, [f"{n}, or" for n in range(10)], partner=twin, call_rate=rate, batch_size=batch_size))
    tokens = [token for text in texts for token in text.tokens]
    share = sum(token.writer == "partner" for token in tokens) / len(tokens)
    assert len(tokens) > 1500 and share == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("delegate", ["ilacy-logprob", "ilacy-entropy"])
def test_inference_time_lacy_writes(wordy: CallingModel, twin: TransformersPartner, delegate: str) -> None:
    """Whole texts of a model without <CALL>: those of plain generation, about as many calls as asked for, and what was
    called is more uncertain, or more of a fact, than what was not."""
    model = replace(wordy, call_token_id=None)
    options = {"partner": twin, "call_rate": 0.3, "max_new_tokens": 48, "batch_size": 3}
    texts = list(generate(model, PROMPTS, method=delegate, **options))
    tokens = [token for text in texts for token in text.tokens]
    called = [token.score for token in tokens if token.writer == "partner" and token.score is not None]
    kept = [token.score for token in tokens if token.writer == "model" and token.score is not None]
    assert sum(token.writer == "partner" for token in tokens) / len(tokens) == pytest.approx(0.3, abs=0.1)
    assert sum(called) / len(called) > sum(kept) / len(kept)
    facts = [score for score in called + kept if score > -50]
    assert facts and len(facts) < len(called + kept), "some of the proposals are facts by grammar, and not all"


def test_the_partner_sees_the_text_so_far(wordy: CallingModel) -> None:
    """The partner is given prompt and text, without <CALL>, and its token in several pieces is appended whole."""
    partner = Scripted(None, b"\xe2", b" 1987")
    [text] = generate(wordy, ["born in"], partner=partner, call_rate=1, max_new_tokens=10)
    assert partner.texts == ["born in", "born in 1987"]
    assert text.text == " 1987 1987" and [token.text for token in text.tokens[:5]] == [" ", "1", "9", "8", "7"]
    assert [token.score is not None for token in text.tokens] == [True, *[False] * 4] * 2
    assert "".join(token.text for token in text.tokens) == text.text


def test_nothing_that_can_be_expressed(wordy: CallingModel) -> None:
    """Where the partner has only special tokens, the small model writes, and that is counted."""
    [text] = generate(wordy, PROMPTS[:1], partner=Scripted(None), call_rate=1, max_new_tokens=4)
    assert text.fallbacks == 4 and text.call_rate == 0 and PROMPTS[0] + text.text == plain(wordy, PROMPTS[0], 4)


def test_no_call_inside_a_character(wordy: CallingModel) -> None:
    """While the bytes of a character are unfinished the small model continues: a partner could not read them."""
    first, second = 0xC3 + 3, 0xA9 + 3  # the byte pieces begin at id 3
    model = load_model(wordy.tokenizer.parent)
    forward, partner = model.model.forward, Scripted(b" x")
    script = iter([(first, -1e4), (second, 1e4), (first, 1e4)])  # the next token, and the logit of <CALL>

    def scripted(*args, **kwargs):
        out = forward(*args, **kwargs)
        token, out.logits[0, -1, 32_000] = next(script)
        out.logits[0, -1, token] = 2e4
        return out

    model.model.forward = scripted
    [text] = generate(model, ["a"], partner=partner, call_rate=0.5, max_new_tokens=3, estimator="paper")
    assert [(token.text, token.writer) for token in text.tokens] == [("", "model"), ("é", "model"), (" x", "partner")]
    assert text.tokens[1].score is None and partner.texts == ["aé"]


@pytest.mark.parametrize("delegate", ["call", "random"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_run_goes_on_where_it_was(
    wordy: CallingModel, twin: TransformersPartner, batch_size: int, delegate: str
) -> None:
    """With the texts that are there already, also through JSON, the rest is what an uninterrupted run writes: also
    where it was stopped within a batch."""
    prompts = ["", *PROMPTS, "Paris", "The"]
    arguments = {"partner": twin, "call_rate": 0.3, "max_new_tokens": 12, "batch_size": batch_size}
    whole = list(generate(wordy, prompts, method=delegate, **arguments))
    for number in (1, 4, 5):
        done = [from_record(record(text)) for text in whole[:number]]
        rest = list(generate(wordy, prompts, method=delegate, done=done, **arguments))
        assert [text.tokens for text in rest] == [text.tokens for text in whole[number:]]


def test_a_partner_whose_context_is_full(wordy: CallingModel, twin: TransformersPartner) -> None:
    """What stands already is kept, and the text ends there; a prompt that is too long for it is skipped."""
    context, twin.context = twin.context, 30
    try:
        texts = list(generate(wordy, ["Ada " * 40, PROMPTS[0]], partner=twin, call_rate=0.5, max_new_tokens=60))
    finally:
        twin.context = context
    assert [text.finish for text in texts] == ["skipped", "context"]
    assert "context of 30" in texts[0].skipped and 10 < len(texts[1].tokens) < 60


def test_prompts_that_cannot_be_continued(wordy: CallingModel) -> None:
    """Empty, broken and too long prompts are skipped by name; the others are written. A full context ends a text."""
    long, nearly = "Ada " * 600, "1" * 505
    prompts = ["", "  \n", "a\ud800", long, nearly, PROMPTS[0]]
    texts: list[Generation] = list(generate(wordy, prompts, max_new_tokens=10))
    assert [text.finish for text in texts] == ["skipped"] * 4 + ["context", "length"]
    assert "empty" in texts[0].skipped and "surrogate" in texts[2].skipped and "context of 512" in texts[3].skipped
    assert len(texts[4].tokens) == 512 - 507 and len(texts[5].tokens) == 10


def test_arguments_that_mean_nothing(wordy: CallingModel) -> None:
    """Each is an error that names the value, before anything is generated."""
    partner = Scripted(b" x")
    for wrong, message in (
        ({"call_rate": 1.5}, "call_rate is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"estimator": "best"}, "estimator: 'best'"),
        ({"method": "never"}, "delegate: 'never'"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(wordy, PROMPTS, partner=partner, **wrong)
    with pytest.raises(ValueError, match="has no <CALL>"):
        generate(replace(wordy, call_token_id=None), PROMPTS, partner=partner)


def test_other_tokenizers_for_the_small_model(wordy_model: Path, tmp_path: Path) -> None:
    """A model with a tokenizer.json only, without <CALL>, delegates at random."""
    model = load_model(wordy_model)
    model.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(wordy_model).save_pretrained(tmp_path)
    other = replace(load_model(tmp_path), call_token_id=None)
    assert other.tokenizer == tmp_path / "tokenizer.json"
    [text] = generate(other, PROMPTS[:1], partner=Scripted(b" x"), method="random", call_rate=0.5, max_new_tokens=40)
    assert 0.3 < text.call_rate < 0.7 and " x" in text.text
