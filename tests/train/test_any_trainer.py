"""The loops of docs/any_trainer.md, as they stand there, end with the weights of Composer's Trainer."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import any_trainer
import pytest
import torch
from any_trainer import MICROBATCHES, ROWS, gpt2, rows, sgd
from composer import Trainer
from composer.models import HuggingFaceModel
from processes import on_two_ranks

from lacy_stream import CallMask
from lacy_stream.train.model import known_to_be_causal

pytestmark = [pytest.mark.process, pytest.mark.model]

ROOT = Path(__file__).resolve().parents[2]
STEPS, BREAK = 4, 2
PAGE = (ROOT / "docs" / "any_trainer.md").read_text(encoding="utf-8")
(LOOP,) = re.findall(r"```python\n(.[^`]*objective.begin_step\(step.*?)```", PAGE, re.S)
(TRAINER,) = re.findall(r"```python\n(.[^`]*class CallTrainer.*?)```", PAGE, re.S)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_path: Path) -> Path:
    """The data and the tokenizer of every run."""
    folder = tmp_path_factory.mktemp("any-trainer")
    shutil.copy(tokenizer_path, folder / "tokenizer.model")
    (folder / "data").symlink_to(corpus)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Weights:
    """The weights that Composer's Trainer makes in the same steps, from the same microbatches."""
    model = gpt2()
    with rows(folder, ROWS) as loader:
        with known_to_be_causal():
            wrapped = HuggingFaceModel(model, use_logits=True)
        trainer = Trainer(
            model=wrapped,
            train_dataloader=loader,
            algorithms=[CallMask(32_000)],
            optimizers=sgd(model),
            max_duration=f"{STEPS}ba",
            device_train_microbatch_size=ROWS // MICROBATCHES,
            device="cpu",
            progress_bar=False,
        )
        trainer.fit()
        trainer.close()
    assert not torch.allclose(model.lm_head.weight, gpt2().lm_head.weight, atol=1e-3), "it learns"
    return model.state_dict()


def assert_same(trained: Weights, expected: Weights) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_plain_loop(folder: Path, expected: Weights, tmp_path: Path) -> None:
    """The page's loop, stopped and resumed from its own checkpoint by a new model and a new loader. Its process never
    imports Composer."""
    (tmp_path / "loop.py").write_text(LOOP, encoding="utf-8")
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, any_trainer.__file__, "loop.py", str(folder), str(BREAK), str(STEPS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("call_fraction") == STEPS
    assert_same(torch.load(tmp_path / "weights-0.pt"), expected)


def test_plain_loop_on_two_ranks(folder: Path, expected: Weights, tmp_path: Path) -> None:
    """The same loop on two gloo ranks."""
    (tmp_path / "loop.py").write_text(LOOP, encoding="utf-8")
    on_two_ranks(functools.partial(_run_loop, data=folder), tmp_path)
    for rank in (0, 1):
        assert (tmp_path / f"printed-{rank}.txt").read_text().count("call_fraction") == STEPS
        assert_same(torch.load(tmp_path / f"weights-{rank}.pt"), expected)


def _run_loop(rank: int, folder: Path, data: Path) -> None:
    os.chdir(folder)
    with open(f"printed-{rank}.txt", "w") as file, contextlib.redirect_stdout(file):
        any_trainer.main("loop.py", str(data), str(BREAK), str(STEPS))


def test_trainer_of_transformers(
    folder: Path, expected: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's Trainer, stopped and resumed from its checkpoint at the row after the last one that it took."""
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs it")
    monkeypatch.chdir(tmp_path)
    for steps in (BREAK, STEPS):
        model = gpt2()
        with rows(folder, ROWS // MICROBATCHES) as loader:
            names = {"model": model, "optimizer": sgd(model), "loader": loader, "steps": steps}
            exec(compile(TRAINER, "any_trainer.md", "exec"), names)
    history = [entry for entry in names["trainer"].state.log_history if "loss" in entry]
    assert len(history) == STEPS and all(0.1 < entry["call_fraction"] <= 0.15 for entry in history)
    position = json.loads(Path("run", f"checkpoint-{STEPS}", "loader.json").read_text())
    assert json.loads(position["lacy_stream"])["rows"] == STEPS * ROWS
    assert_same(model.state_dict(), expected)
