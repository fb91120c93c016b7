"""Models whose state is not a cache of keys and values for each position, and models with sliding windows."""

from __future__ import annotations

import random
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from lacy_stream.cascade import batch_decoder
from lacy_stream.cascade.batch_decoder import BatchDecoder, open_decoder, passes
from lacy_stream.cascade.decoder import Decoder, can_crop, no_batches

pytestmark = pytest.mark.model

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 60, "state_size": 4}
CROPPED: dict[str, dict[str, Any]] = {
    "Llama": SIZES | HEADS,
    "Mistral": SIZES | HEADS | {"sliding_window": 3},
    "Gemma2": SIZES | HEADS | {"sliding_window": 3},
    "Gemma3Text": SIZES | HEADS | {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "Qwen2": SIZES | HEADS,
    "Bloom": {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 2},
}
READ_AGAIN: dict[str, dict[str, Any]] = {
    "Mamba": MAMBA,
    "Mamba2": MAMBA | {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8},
    "Rwkv": {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2},
    "Jamba": SIZES | HEADS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "RecurrentGemma": SIZES | HEADS | {"attention_window_size": 4, "lru_width": 32},
    "Lfm2": SIZES | HEADS | {"layer_types": ["conv", "full_attention"]},
}
ROWS = [[2, 5, 6, 7, 8, 9], [2, 5, 6, 7, 8, 9, 4], [2, 5, 6, 9, 10], [2, 5], [2, 5], [3]]


def tiny(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of a kind with random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return AutoModelForCausalLM.from_config(config).eval()


def whole(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """The logits after a row that is read at once, without any cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("kind", [*CROPPED, *READ_AGAIN])
def test_logits_are_those_of_the_whole_row(kind: str) -> None:
    """A longer row, another end, a shorter row, the same again: nothing of the prefix is forgotten or left over."""
    model = tiny(kind, (CROPPED | READ_AGAIN)[kind])
    if not version("transformers").startswith("4.51"):
        assert can_crop(model) == (kind in CROPPED)
    decoder, growing = Decoder(model), open_decoder(model, many=False)
    for row in ROWS:
        torch.testing.assert_close(decoder.logits(row), whole(model, row), rtol=1e-4, atol=1e-4)
    for end in (4, 5, 6):
        found = growing.logits({0: ROWS[1][:end]})[0][-1]
        torch.testing.assert_close(found, whole(model, ROWS[1][:end]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "reason", "batches"), [("Llama", "", True), ("Qwen2", "", True),
    ("Mistral", "", True), ("Gemma3Text", "", True), ("Gemma2", "", False), ("Jamba", "recurrent state", False),
    ("Bloom", "no position ids", False)])  # fmt: skip
def test_batches(kind: str, reason: str, batches: bool) -> None:
    """Rows are read together only where that changes nothing. Gemma 2 has a cap of its scores, which SDPA has not."""
    model = tiny(kind, (CROPPED | READ_AGAIN)[kind])
    found = no_batches(model)
    assert reason in found and (reason or not found)
    decoder = open_decoder(model, many=True)
    assert isinstance(decoder, BatchDecoder) == batches
    rows = {3: ROWS[0], 5: ROWS[3]}
    for number, logits_TV in decoder.logits(rows).items():
        torch.testing.assert_close(logits_TV[-1], whole(model, rows[number]), rtol=1e-4, atol=1e-4)


def test_rows_are_divided_into_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass stays within its bounds of ids and of logits, unless a single row has more."""
    monkeypatch.setattr(batch_decoder, "PASS_IDS", 10)
    monkeypatch.setattr(batch_decoder, "PASS_LOGITS", 4)
    assert passes({0: 4, 1: 6, 2: 1, 3: 30, 4: 2}, ()) == [[0, 1], [2], [3], [4]]
    assert passes({0: 1, 1: 1, 2: 1, 3: 1, 4: 1}, ()) == [[0, 1, 2, 3], [4]]
    assert passes({0: 2, 1: 2, 2: 6, 3: 1}, {0, 1, 2}) == [[0, 1], [2], [3]]
    assert passes({}, ()) == []


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX", "Qwen3", "Mistral", "Gemma3Text"])
def test_rows_in_one_pass(kind: str) -> None:
    """Rows of very different numbers of new ids, with and without all logits, in places that are not adjacent, have the
    logits that each has alone; and the model attends as usual afterwards."""
    if kind in ("GPT2", "Gemma3Text") and version("transformers").startswith("4.51"):
        pytest.skip("it has no such cache in transformers 4.51")
    heads = {"num_attention_heads": 2} if kind.startswith("GPT") else HEADS
    model = tiny(kind, CROPPED.get(kind, SIZES | heads) | {"initializer_range": 0.3})
    decoder = open_decoder(model, many=True)
    assert isinstance(decoder, BatchDecoder)
    drawn = random.Random(0)
    texts: dict[int, list[int]] = {}
    for step in range(30):
        numbers = drawn.sample(range(7), 4)
        for number in numbers:
            text = texts.get(number, [])
            kept = text[: len(text) - drawn.randrange(3)]
            texts[number] = kept + [drawn.randrange(3, 60) for _ in range(drawn.choice((1, 1, 2, 3, 7, 12)))]
        found = decoder.logits({number: texts[number] for number in numbers}, every=numbers[:1])
        for number in numbers:
            expected_TV = model(input_ids=torch.tensor([texts[number]]), use_cache=False).logits[0].float()
            given_TV = found[number]
            assert len(given_TV) == 1 or number == numbers[0]
            torch.testing.assert_close(given_TV, expected_TV[-len(given_TV) :], rtol=1e-4, atol=1e-4)
        if step % 7 == 6:
            decoder.end(numbers[1])
            texts.pop(numbers[1])


@pytest.mark.parametrize("ignored", ["position_ids", "past_key_values"])
def test_a_model_that_ignores_positions_or_the_cache(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether rows can be read together is tried before it is done: a model of unknown code reads them one by one."""
    model = tiny("Llama", CROPPED["Llama"] | {"initializer_range": 0.5})
    forward = model.forward

    def careless(input_ids: Any = None, position_ids: Any = None, past_key_values: Any = None, **rest: Any) -> Any:
        given = {"position_ids": position_ids, **rest}
        given[ignored] = None
        return forward(input_ids=input_ids, past_key_values=past_key_values, **given)

    monkeypatch.setattr(model, "forward", careless)
    assert not no_batches(model)
    assert not isinstance(open_decoder(model, many=True), BatchDecoder)


@pytest.mark.parametrize("kind", ["Falcon", "StableLm", "GPTNeo", "GPT2"])
def test_a_model_with_attention_of_its_own(kind: str) -> None:
    """Its attention may not go through transformers' interface, which differs between versions. Its rows have the right
    logits all the same."""
    sizes = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "attention_types": [[["global"], 2]],
        "num_layers": 2,
    }
    model = tiny(kind, SIZES | sizes)
    decoder = open_decoder(model, many=True)
    for rows in ({0: ROWS[0], 1: ROWS[3]}, {0: ROWS[1], 2: ROWS[2], 1: ROWS[4]}):
        for number, logits_TV in decoder.logits(rows).items():
            torch.testing.assert_close(logits_TV[-1], whole(model, rows[number]), rtol=1e-4, atol=1e-4)
