"""The README's examples, run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from composer.models import HuggingFaceModel
from transformers import GPT2Config, GPT2LMHeadModel

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path, tokenizer_path: Path) -> Path:
    """A folder with the files that the examples name."""
    shutil.copy(tokenizer_path, tmp_path / "tokenizer.model")
    shutil.copytree(corpus, tmp_path / "data" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_plugging_in(here: Path) -> None:
    """The Trainer example runs with a user's own GPT-2, trains, and calls 15% of the tokens."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32_001, n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=2
    )
    model = HuggingFaceModel(GPT2LMHeadModel(config), use_logits=True)
    before = model.model.transformer.wte.weight.detach().clone()
    names: dict = {"model": model}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.timestamp.batch.value == 20
    assert not torch.equal(before, model.model.transformer.wte.weight)


def test_annotator_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The annotator example prints the ids of the facts of its sentence."""
    exec(compile(EXAMPLES[1], "README.md", "exec"), {})
    assert re.match(r"\[[\d\s]+\]", capsys.readouterr().out)


def test_no_example_is_left_out() -> None:
    """Every Python example of the README is one of the two above, or the labeller that test_labellers.py runs."""
    assert len([example for example in EXAMPLES if "def formulas_and_quantities" not in example]) == 2
