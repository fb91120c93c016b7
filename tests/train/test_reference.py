"""Reference models: what may judge a run's tokens, and what may not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from annotator.tokenizers import open_tokenizer
from lacy_stream.train.reference import ReferenceModelError, load_reference

pytestmark = pytest.mark.model


def folder(path: Path, vocabulary: int = 32_000, positions: int = 16) -> Path:
    """A Hugging Face folder of a small GPT-2."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_positions=positions, n_embd=4, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_folder_becomes_a_frozen_model(tmp_path: Path, tokenizer_path: Path) -> None:
    """A folder with or without an entry for <CALL>, and with the run's own tokenizer.model, is loaded frozen."""
    for vocabulary in (32_000, 32_001):
        path = folder(tmp_path / str(vocabulary), vocabulary)
        shutil.copy(tokenizer_path, path / "tokenizer.model")
        model = load_reference(path, tokenizer_path, 16)
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        assert model(input_ids=torch.zeros(1, 16, dtype=torch.long)).logits.shape == (1, 16, vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 50_257}, "50257 entries; the tokenizer .* has 32000 pieces: .* 32000 entries, or one more"),
        ({"positions": 8}, "context of 8 tokens, and rows have 16"),
    ],
)
def test_model_that_does_not_fit_is_refused(tmp_path: Path, tokenizer_path: Path, change: dict, message: str) -> None:
    """Another vocabulary, or a context shorter than the rows."""
    with pytest.raises(ReferenceModelError, match=message):
        load_reference(folder(tmp_path / "other", **change), tokenizer_path, 16)


def test_other_tokenizer_is_refused(tmp_path: Path, tokenizer_path: Path) -> None:
    """32,000 entries of another meaning: found by tokenizer.model, or by the pieces in tokenizer.json."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    path = folder(tmp_path / "other")
    (path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes() + b"\n")
    with pytest.raises(ReferenceModelError, match="another tokenizer: its tokenizer.model is not"):
        load_reference(path, tokenizer_path, 16)
    (path / "tokenizer.model").unlink()
    pieces = open_tokenizer(tokenizer_path).pieces()
    pieces[500], pieces[501] = pieces[501], pieces[500]
    Fast(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "<unk>")).save(
        str(path / "tokenizer.json")
    )
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ReferenceModelError, match="another tokenizer: piece .* is 501 there, 500 here"):
        load_reference(path, tokenizer_path, 16)


def test_what_is_no_model_is_refused(tmp_path: Path, tokenizer_path: Path) -> None:
    """Neither a missing path nor a folder of something else is a model."""
    with pytest.raises(ReferenceModelError, match="no file or folder"):
        load_reference(tmp_path / "nowhere", tokenizer_path, 16)
    with pytest.raises(ReferenceModelError, match="is no Hugging Face model"):
        load_reference(tmp_path, tokenizer_path, 16)
