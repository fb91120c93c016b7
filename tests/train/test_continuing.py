"""Continuing a run that plain Composer has trained, with another loader and without <CALL>."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from annotator import AnnotatorSettings
from lacy_stream.cli.main import main
from lacy_stream.objective.batch import shift_labels
from lacy_stream.objective.losses import token_losses, training_loss
from lacy_stream.objective.selectors import METHODS, Targets, budget
from lacy_stream.stream.batches import PositionError, annotated_dataloader
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.train.call_mask import CallMask
from lacy_stream.train.hugging_face import model_of_config
from lacy_stream.train.model import known_to_be_causal

pytestmark = pytest.mark.model

PIECES, LENGTH, ROWS, RATE = 32_000, 16, 4, 1e-2
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def neox(rows: int) -> HuggingFaceModel:
    torch.manual_seed(1)
    config = GPTNeoXConfig(vocab_size=rows, max_position_embeddings=LENGTH, **SIZES)
    with known_to_be_causal():
        return HuggingFaceModel(GPTNeoXForCausalLM(config), use_logits=True)


def trainer(model: HuggingFaceModel, loader: Any, until: str, **settings: Any) -> Trainer:
    return Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=torch.optim.AdamW(model.parameters(), lr=RATE),
        max_duration=until,
        progress_bar=False,
        device="cpu",
        **settings,
    )


@pytest.fixture(scope="module")
def existing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three batches of a GPT-NeoX, by plain Composer and a plain DataLoader."""
    ids = torch.randint(0, PIECES, (5 * ROWS, LENGTH), generator=torch.Generator().manual_seed(4))
    loader = DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=ROWS)
    folder = tmp_path_factory.mktemp("existing")
    trainer(neox(PIECES), loader, "3ba", save_folder=str(folder), save_interval="3ba").fit()
    return folder / "ep0-ba3-rank0.pt"


@pytest.fixture(scope="module")
def grown(existing: Path) -> Path:
    out = existing.with_name("grown.pt")
    assert main(["add-call", str(existing), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pool(tokenizer_path: Path) -> Iterator[AnnotationPool]:
    with AnnotationPool(AnnotatorSettings(tokenizer_path), 1) as made:
        yield made


def stream(corpus: Path, pool: AnnotationPool, **settings: Any) -> DataLoader:
    return annotated_dataloader(
        corpus, pool, split="train", shuffle=True, batch_size=ROWS, max_seq_len=LENGTH, lanes=4, **settings
    )


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)["state"]


def test_row_is_added_to_weights_and_moments(existing: Path, grown: Path) -> None:
    """`add-call` appends to both embeddings the mean of their rows, and zeros to the moments of the optimizer. All else
    in the checkpoint is as it was."""
    before, after = state(existing), state(grown)
    widened = 0
    for name, old in before["model"].items():
        new = after["model"][name]
        if old.shape[0] == PIECES:
            widened += 1
            assert torch.allclose(new[PIECES], old.mean(0), atol=1e-6)
        assert torch.equal(new[: len(old)], old)
    assert widened == 2
    ((old_optimizer,), (new_optimizer,)) = (list(each["optimizers"].values()) for each in (before, after))
    for name, moments in old_optimizer["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            new = new_optimizer["state"][name][key]
            assert torch.equal(new[: len(moments[key])], moments[key]) and not new[len(moments[key]) :].any()
    assert old_optimizer["param_groups"] == new_optimizer["param_groups"]
    assert before["timestamp"] == after["timestamp"]


def test_grown_run_continues_batch_by_batch(
    grown: Path, corpus: Path, pool: AnnotationPool, caplog: pytest.LogCaptureFixture
) -> None:
    """The run continues with LaCy from its fourth batch, with its optimizer, on our stream from its first row: after
    every batch its weights are those of a plain loop over the same rows."""
    expected = list(plain_loop(grown, stream(corpus, pool), batches=3))
    caplog.set_level(logging.WARNING)
    for batches, weights in enumerate(expected, start=1):
        model = neox(PIECES + 1)
        caplog.clear()
        run = trainer(
            model,
            stream(corpus, pool, accept_changes=True),
            f"{3 + batches}ba",
            load_path=str(grown),
            algorithms=[CallMask(PIECES)],
        )
        assert run.state.timestamp.batch == 3
        said = [record for record in caplog.records if "another loader has written it" in record.message]
        assert len(said) == 1 and "starts at its beginning" in said[0].message
        run.fit()
        assert run.state.timestamp.batch == 3 + batches
        assert run.state.train_dataloader.dataset.stats().rows == ROWS * batches  # type: ignore[union-attr]
        for name, value in model.model.state_dict().items():
            assert torch.allclose(value, weights[name], atol=1e-6), (batches, name)


def plain_loop(checkpoint: Path, loader: DataLoader, batches: int) -> Iterator[dict[str, torch.Tensor]]:
    """The weights after each batch, by PyTorch alone: the model and moments of a checkpoint, LaCy's masks and loss."""
    saved = state(checkpoint)
    model = model_of_config(saved["integrations"]["huggingface"]["model"]["config"]["content"]).train()
    model.load_state_dict({name.removeprefix("model."): value for name, value in saved["model"].items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    (moments,) = saved["optimizers"].values()
    named = [moments["state"][f"model.{name}"] for name, _ in model.named_parameters()]
    optimizer.load_state_dict({"state": dict(enumerate(named)), "param_groups": optimizer.state_dict()["param_groups"]})
    for _, batch in zip(range(batches), loader):
        labels_BT, classes_BT = shift_labels(batch["labels"], batch["token_class"])
        losses = token_losses(model(input_ids=batch["input_ids"]).logits, labels_BT, PIECES)
        valid_BT = labels_BT != -100
        targets = Targets(losses.true.detach(), classes_BT, valid_BT, torch.zeros_like(losses.true), None)
        call_BT, _ = METHODS["lacy"].select(targets, budget(valid_BT, 0.15), budget(valid_BT, 0.15))
        assert call_BT is not None and call_BT.any()
        optimizer.zero_grad()
        training_loss(losses, valid_BT, call_BT & valid_BT, objective="defer").backward()
        optimizer.step()
        yield {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_other_loader_is_refused_without_the_key(grown: Path, corpus: Path, pool: AnnotationPool) -> None:
    """Without `accept_changes`, the error names both ways out; and taking the weights alone is one."""
    with pytest.raises(PositionError, match="another loader.*accept_changes: true.*load_weights_only: true"):
        trainer(neox(PIECES + 1), stream(corpus, pool), "4ba", load_path=str(grown))
    run = trainer(neox(PIECES + 1), stream(corpus, pool), "4ba", load_path=str(grown), load_weights_only=True)
    assert run.state.timestamp.batch == 0


def test_row_is_set_by_a_text(existing: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    """With a text and the tokenizer of the run, p(<CALL>) starts at the call fraction; the rows are padded as asked."""
    text = tmp_path / "text.txt"
    text.write_text("Ada Lovelace wrote letters to Charles Babbage in 1843. " * 40)
    out = tmp_path / "grown.pt"
    options = ["--tokenizer", str(tokenizer_path), "--text", str(text), "--call-fraction", "0.1"]
    assert main(["add-call", str(existing), str(out), *options, "--pad-to-multiple-of", "64"]) == 0
    saved = state(out)
    content = saved["integrations"]["huggingface"]["model"]["config"]["content"]
    assert (content["vocab_size"], content["call_token_id"]) == (32_064, PIECES)
    model = model_of_config(content).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in saved["model"].items()})
    with torch.no_grad():
        logits = model(torch.randint(0, PIECES, (4, LENGTH))).logits
    assert 0.05 < logits.softmax(-1)[..., PIECES].mean() < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grown.pt", "new.pt"], "grown.pt has <CALL> already: it is 32000"),
        (["nowhere.pt", "new.pt"], "there is no file 'nowhere.pt'"),
        (["grown.pt", "grown.pt"], "'grown.pt' exists"),
        (["junk.pt", "new.pt"], "junk.pt is no checkpoint"),
        (["other.pt", "new.pt"], "other.pt is no checkpoint of a Composer run with a model of transformers"),
        (["grown.pt", "new.pt", "--text", "junk.pt"], "a text is turned into ids by the tokenizer"),
    ],
)
def test_what_cannot_be_grown(
    arguments: list[str], message: str, grown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that has <CALL>, that is not there or is none, and a file that exists are one clear error."""
    monkeypatch.chdir(grown.parent)
    Path("junk.pt").write_text("no checkpoint")
    torch.save({"state": {}}, "other.pt")
    assert main(["add-call", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new.pt").exists()
