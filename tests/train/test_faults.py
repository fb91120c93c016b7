"""Runs that cannot succeed, and checkpoints that cannot be written: what a run says, and what it leaves."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from streaming import MDSWriter

from lacy_stream.__main__ import main as train
from lacy_stream.stream.report import Report
from lacy_stream.train.places import only_run_in
from lacy_stream.train.resume import mend_save_folder

pytestmark = [pytest.mark.process, pytest.mark.model]

RECIPE = """
run_name: faults
max_seq_len: 16
model: {name: gpt2, d_model: 8, n_heads: 2, n_layers: 1}
tokenizer: {name: package:mistral_common/data/tokenizer.model.v1}
annotator: {model: null, num_workers: 1}
train_loader: {dataset: {local: CORPUS, split: train, shuffle: true}, lanes: 4}
optimizer: {lr: 1.0e-3}
algorithms: {call_mask: {method: loss-based}}
max_duration: 6ba
global_train_batch_size: 4
device_train_microbatch_size: 4
save_folder: run
save_interval: 1ba
precision: fp32
progress_bar: false
"""


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe without a parser, whose run takes a second, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "faults.yaml"
    path.write_text(RECIPE.replace("CORPUS", str(corpus)))
    return path


def run(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a run prints; its exit code is checked."""
    capfd.readouterr()
    assert train([str(argument) for argument in arguments]) == code
    return "".join(capfd.readouterr())


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ep*"))


def assert_finite(path: Path) -> None:
    state = torch.load(path, weights_only=False)["state"]
    assert all(weights.isfinite().all() for weights in state["model"].values())


class Damage(Callback):
    """Makes a weight NaN after the third batch, as a faulty step of an optimizer would."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == 3:
            next(state.model.parameters()).data[0, 0] = torch.nan


# --- 1: a run that cannot succeed -----------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [4, 2])
def test_loss_that_is_no_number_ends_the_run(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], microbatch: int
) -> None:
    """With an absurd learning rate the run ends with what happened and when, code 2, and the name of the last
    checkpoint, whose weights are numbers."""
    settings = ["optimizer.lr=1e30", "save_num_checkpoints_to_keep=1", f"device_train_microbatch_size={microbatch}"]
    output = run(capfd, 2, recipe, *settings)
    assert "Traceback" not in output
    error = re.search(
        r"error: after (\d+) steps? of training, .*(loss|moments|weights).*NaN.*The last checkpoint is run/(\S+)$|"
        r"error: after batch 1, weights .* NaN or infinite.*No checkpoint has been written$",
        output,
        re.MULTILINE,
    )
    assert error, output
    for name in checkpoints(tmp_path / "run"):
        assert_finite(tmp_path / "run" / name)


def test_checkpoint_of_damaged_weights_is_not_written(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights that a step made NaN are found before they are saved: the only checkpoint that is kept stays, and the
    link points to it."""
    damage = f'callbacks={{"{__name__}:Damage": {{}}}}'
    output = run(capfd, 2, recipe, damage, "save_num_checkpoints_to_keep=1")
    assert re.search(
        "error: after batch 3, weights .*so no checkpoint was written.*last checkpoint is run/ep0-ba2", output
    )
    assert checkpoints(tmp_path / "run") == ["ep0-ba2-rank0.pt"]
    assert (tmp_path / "run" / "latest-rank0.pt").resolve().name == "ep0-ba2-rank0.pt"
    assert_finite(tmp_path / "run" / "ep0-ba2-rank0.pt")


def test_run_does_not_end_well_with_damaged_weights(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The weights are looked at after the last batch, too, also where none are saved."""
    damage = f'callbacks={{"{__name__}:Damage": {{}}}}'
    output = run(capfd, 2, recipe, damage, "save_folder=null", "max_duration=3ba")
    assert "error: after batch 3, weights of the model" in output and "No checkpoint has been written" in output


def test_older_checkpoint_stays_until_the_newer_one_is_proved(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights of a diverging step may be finite: the checkpoint before them is deleted only after the next loss."""
    damage = f'callbacks={{"{__name__}:Explosion": {{}}}}'
    output = run(capfd, 2, recipe, damage, "save_num_checkpoints_to_keep=1")
    assert "after 3 steps of training, the loss of the model is NaN or infinite" in output
    assert checkpoints(tmp_path / "run") == ["ep0-ba2-rank0.pt", "ep0-ba3-rank0.pt"]


class Explosion(Callback):
    """Makes the weights so large after the third batch that the next loss is no number."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == 3:
            for parameter in state.model.parameters():
                parameter.data.fill_(1e38)


def test_nan_may_be_allowed(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`callbacks.nan_monitor=null` lets the run continue."""
    damage = f'callbacks={{nan_monitor: null, "{__name__}:Damage": {{}}}}'
    run(capfd, 0, recipe, damage)
    assert "ep0-ba6-rank0.pt" in checkpoints(tmp_path / "run")


def test_corpus_of_empty_documents_ends_the_run(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows of end-of-document tokens alone are nothing to train on: code 2, the cause, and no checkpoint of them."""
    with MDSWriter(out=str(tmp_path / "empty"), columns={"text": "str"}) as writer:
        for _ in range(5):
            writer.write({"text": ""})
    output = run(capfd, 2, recipe, "train_loader.dataset={local: empty}", "save_interval=100ba", "max_duration=100ba")
    assert re.search("error: the last 64 rows of the stream have no text, so there is nothing to learn from", output)
    assert checkpoints(tmp_path / "run") == []


# --- 14, 18, 19: checkpoints ----------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond some bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that finds no room ends the run with the file, the reason and the way out; its half is gone, and the
    same command continues from the last whole one."""
    settings = [recipe, "autoresume=true", "save_interval=2ba"]
    run(capfd, 0, *settings, "max_duration=2ba")
    size = (tmp_path / "run" / "ep0-ba2-rank0.pt").stat().st_size
    with largest_file(size // 2):
        output = run(capfd, 2, *settings)
    assert "Traceback" not in output
    assert re.search(
        "error: save_folder: the checkpoint ep0-ba4-rank0.pt cannot be written: .*the disk is full.*GB free. Make room",
        output,
    ), output
    assert checkpoints(tmp_path / "run") == ["ep0-ba2-rank0.pt"]
    run(capfd, 0, *settings)
    assert checkpoints(tmp_path / "run") == [f"ep0-ba{batch}-rank0.pt" for batch in (2, 4, 6)]


def test_half_a_checkpoint_makes_room(tmp_path: Path) -> None:
    """What a killed run has left of a checkpoint is deleted, since the disk may be full; a file that never was a
    checkpoint is set aside."""
    torch.save({"state": {}}, tmp_path / "ep0-ba2-rank0.pt")
    half = (tmp_path / "ep0-ba2-rank0.pt").read_bytes()[:-50]
    (tmp_path / "ep0-ba4-rank0.pt").write_bytes(half)
    (tmp_path / "ep0-ba6-rank0.pt").write_bytes(b"")
    (tmp_path / "ep0-ba8-rank0.pt").write_text("a note")
    report = Report()
    mend_save_folder(tmp_path, report)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["ep0-ba2-rank0.pt", "ep0-ba8-rank0.pt.unfinished", "latest-rank0.pt"]
    assert report.counts()["half_checkpoint_deleted"] == 2 and report.counts()["checkpoint_set_aside"] == 1


def test_kept_checkpoints_after_a_resume(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those that an earlier process of the run has saved count among those to keep."""
    settings = [recipe, "autoresume=true", "save_num_checkpoints_to_keep=2"]
    run(capfd, 0, *settings, "max_duration=3ba")
    assert checkpoints(tmp_path / "run") == ["ep0-ba2-rank0.pt", "ep0-ba3-rank0.pt"]
    run(capfd, 0, *settings)
    assert checkpoints(tmp_path / "run") == ["ep0-ba5-rank0.pt", "ep0-ba6-rank0.pt"]
    assert (tmp_path / "run" / "latest-rank0.pt").resolve().name == "ep0-ba6-rank0.pt"


def test_tasks_and_runs_in_one_folder(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run in the folder of a living one, and a task of a cluster without a launcher, end with code 2 before
    anything is written."""
    (tmp_path / "run").mkdir()
    with only_run_in(tmp_path / "run"):
        assert "error: save_folder: another run writes to 'run'" in run(capfd, 2, recipe)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert "error: SLURM has started 2 tasks" in run(capfd, 2, recipe)
    assert checkpoints(tmp_path / "run") == []
