"""Rows that pad a vocabulary: they have no logits in training, and are gone afterwards."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from test_hugging_face import LENGTH, PIECES, batches, fit, new, wanted
from transformers import AutoModelForCausalLM, PreTrainedModel

from lacy_stream.recipe import GPT2
from lacy_stream.train.hugging_face import causal_model
from lacy_stream.train.model import build_model
from lacy_stream.train.padding import PaddedOutput, pad_vocabulary, remove_padding

pytestmark = pytest.mark.model

ENTRIES = PIECES + 1


def model_of(kind: str, pad: int) -> PreTrainedModel:
    torch.manual_seed(1)
    if kind == "recipe's gpt2":
        config = GPT2(name="gpt2", d_model=16, n_heads=2, n_layers=1, pad_vocab_to_multiple_of=pad)
        return build_model(config, max_seq_len=LENGTH, call_token_id=PIECES, eos_id=2).model
    return new(kind, pad=pad)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "recipe's gpt2"])
def test_padding_has_no_logits(kind: str) -> None:
    """The embeddings have a multiple of 64 rows and the logits one entry for each id, tied or not, with the model's own
    loss, too; and the model can be pickled."""
    model = pickle.loads(pickle.dumps(model_of(kind, 64)))
    ids = torch.randint(0, PIECES, (2, 8))
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 64
    outputs = model(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert outputs.logits.shape == (2, 8, ENTRIES)
    torch.testing.assert_close(outputs.loss, expected)
    assert type(model_of(kind, 1).get_output_embeddings()) is torch.nn.Linear, "nothing to leave out"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("fused_loss", [False, True])
def test_padding_does_not_show_in_training(kind: str, fused_loss: bool) -> None:
    """Trained with and without padded rows, from the same weights, a model is the same, with both ways to the loss: the
    padding is in no softmax. Its rows stay what weight decay makes of them."""
    plain, padded = new(kind), new(kind, pad=64)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    rows = {name for name, value in state.items() if value.shape[:1] == (ENTRIES,)}
    before = {}
    for name in rows:
        before[name] = padded.state_dict()[name].clone()
        state[name] = torch.cat([state[name], before[name][ENTRIES:]])
    padded.load_state_dict(state)
    for model in (plain, padded):
        fit(model, batches(steps=3), fused_loss=fused_loss, device_train_microbatch_size=4)
    decay = (1 - 1e-2 * 1e-2) ** 3  # AdamW's own, of 0.01, times the learning rate
    for name, value in plain.state_dict().items():
        other = padded.state_dict()[name]
        torch.testing.assert_close(other[: len(value)] if name in rows else other, value, rtol=1e-3, atol=1e-5)
        if name in rows:
            torch.testing.assert_close(other[ENTRIES:], before[name][ENTRIES:] * decay)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_is_removed_and_made(kind: str, tmp_path: Path) -> None:
    """Without the padded rows the logits are the same, and so they are with new rows, which are zero."""
    model, ids = model_of(kind, 64), torch.randint(0, PIECES, (2, 8))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        remove_padding(model, ENTRIES)
        assert model.config.vocab_size == model.get_output_embeddings().weight.shape[0] == ENTRIES
        torch.testing.assert_close(model(input_ids=ids).logits, before)
        pad_vocabulary(model, 16)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
    assert again.shape[-1] == 48 and not again[..., ENTRIES:].any()
    torch.testing.assert_close(again[..., :ENTRIES], before)


def test_spare_rows_of_a_model_that_is_continued(tmp_path: Path) -> None:
    """Rows that a trained model has after <CALL> are padding, too."""
    new("llama", pad=64).save_pretrained(tmp_path)
    settings = {"pretrained_model_name_or_path": str(tmp_path), "pretrained": True, "config_overrides": {}}
    continued = causal_model(wanted("llama").model_copy(update=settings), pieces=PIECES, max_seq_len=LENGTH, eos_id=2)
    layer = continued.get_output_embeddings()
    assert isinstance(layer, PaddedOutput) and (layer.entries, layer.weight.shape[0]) == (ENTRIES, 64)
