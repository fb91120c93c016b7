"""Models whose state is not a cache of keys and values for each position, and models with sliding windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from lacy_stream.cascade.batch_decoder import BatchDecoder, groups, open_decoder
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
    assert can_crop(model) == (kind in CROPPED)
    decoder, growing = Decoder(model), open_decoder(model, many=False)
    for row in ROWS:
        torch.testing.assert_close(decoder.logits(row), whole(model, row), rtol=1e-4, atol=1e-4)
    for end in (4, 5, 6):
        found = growing.logits({0: ROWS[1][:end]})[0][-1]
        torch.testing.assert_close(found, whole(model, ROWS[1][:end]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "reason"), [("Llama", ""), ("Qwen2", ""), ("Mistral", "sliding window of 3"),
    ("Gemma3Text", "sliding window of 3"), ("Jamba", "recurrent state"), ("Bloom", "no position ids")])  # fmt: skip
def test_batches(kind: str, reason: str) -> None:
    """Rows are read together only where padding between their ids changes nothing."""
    model = tiny(kind, (CROPPED | READ_AGAIN)[kind])
    found = no_batches(model)
    assert reason in found and bool(found) == bool(reason)
    decoder = open_decoder(model, many=True)
    assert isinstance(decoder, BatchDecoder) == (not reason)
    rows = {3: ROWS[0], 5: ROWS[3]}
    for number, logits_TV in decoder.logits(rows).items():
        torch.testing.assert_close(logits_TV[-1], whole(model, rows[number]), rtol=1e-4, atol=1e-4)


def test_rows_are_divided_into_passes() -> None:
    """Rows of similar lengths are read together, where the padding costs less than another pass; a pass stays within
    its bound."""
    lengths = {0: 1, 1: 20, 2: 2, 3: 18, 4: 1}
    assert sorted(map(sorted, groups(lengths, 16, 100))) == [[0, 2, 4], [1, 3]]
    assert groups(lengths, 1000, 1000) == [[1, 3, 2, 0, 4]]
    assert groups(lengths, 0, 100) == [[0, 4], [2], [3], [1]]
    assert all(max(lengths[n] for n in group) * len(group) <= 20 for group in groups(lengths, 1000, 20))
    assert groups({}, 16, 100) == [] and groups({5: 200}, 16, 100) == [[5]]


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_positions_or_masks(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
