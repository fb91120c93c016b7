"""The README's examples, run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from composer.models import HuggingFaceModel
from transformers import GPT2Config, GPT2LMHeadModel

from lacy_stream.selectors import Targets

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


def test_selector_of_ones_own() -> None:
    """The selector example calls the two hardest facts and ignores the easiest token."""
    names: dict = {}
    exec(compile(EXAMPLES[-1], "README.md", "exec"), names)
    loss = torch.tensor([5.0, 1.0, 4.0, 9.0, 3.0])
    targets = Targets(loss, torch.tensor([1, 2, 1, 0, 1]), torch.ones(5, dtype=torch.bool), torch.rand(5))
    call, ignore = names["call_mask"].method.select(targets, torch.tensor(2), torch.tensor(1))
    assert call.nonzero().flatten().tolist() == [0, 2] and ignore.nonzero().flatten().tolist() == [1]


def test_no_example_is_left_out() -> None:
    """Every Python example of the README is one of the three above, or the labeller that test_labellers.py runs."""
    assert len([example for example in EXAMPLES if "def formulas_and_quantities" not in example]) == 3
