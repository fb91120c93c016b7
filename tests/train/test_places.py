"""Files and folders of a recipe that cannot be used are named before Composer is loaded."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lacy_stream.recipe import Recipe, RecipeError, load_recipe
from lacy_stream.train import places
from lacy_stream.train.places import check_places, warn_of_little_room

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "lacy_demo.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data in two splits, a checkpoint, half of one, and what is no checkpoint."""
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "index.json").touch()
    (tmp_path / "run").mkdir()
    torch.save({"state": {}}, tmp_path / "run" / "latest-rank0.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "run" / "latest-rank0.pt").read_bytes()[:-100])
    (tmp_path / "text.pt").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(*overrides: str) -> Recipe:
    data = ["train_loader.dataset.local=data", "eval_loader.dataset.local=data"]
    return load_recipe(DEMO, [*data, "save_folder=saved", "autoresume=false", "loggers=null", *overrides])


def test_right_places_are_left_as_they_are(folder: Path) -> None:
    """What is tried leaves nothing but the save_folder."""
    before = sorted(folder.rglob("*"))
    check_places(recipe("load_path=run/latest-rank0.pt", "annotator.label_cache=cache/labels", "report_folder=a/b"))
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "saved"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("load_path=run", "load_path: 'run' is a folder. Name a checkpoint in it, such as 'run/latest-rank0.pt'"),
        ("load_path=half.pt", "load_path: 'half.pt' was not written to its end"),
        ("load_path=text.pt", "load_path: 'text.pt' is no checkpoint"),
        ("eval_mask_from=half.pt", "eval_mask_from: 'half.pt' was not written to its end"),
        ("eval_mask_from=run", "eval_mask_from: 'run' has no config.json.*such as 'run/latest-rank0.pt'"),
        (
            "algorithms.call_mask={method: rho-1, reference: nowhere}",
            "algorithms.call_mask.reference: there is no file or folder 'nowhere'",
        ),
        (
            "train_loader.dataset={local: data}",
            "no usable MDS index at data: .* data has the splits train, val: set split .*train_loader.dataset.local",
        ),
        (
            "eval_loader.dataset.split=test",
            "no usable MDS index at data/test: there is no such folder. data has the splits train, val",
        ),
        (
            "train_loader.dataset={local: data/train, split: train}",
            "no usable MDS index at data/train/train: .*data/train has one itself: leave split out",
        ),
        (
            "train_loader.dataset={streams: {a: {local: nowhere}}}",
            "no usable MDS index at nowhere: .*lacy-stream prepare .*train_loader.dataset.streams.a.local",
        ),
        ("save_folder=/proc/self", "save_folder: '/proc/self' cannot be written"),
        ("save_folder=half.pt", "save_folder: 'half.pt' cannot be made"),
        ("save_folder=half.pt/x", "save_folder: 'half.pt/x' cannot be made"),
        ("report_folder=/proc/self/x", "report_folder: '/proc/self/x' cannot be written"),
        ("annotator.label_cache=/proc/self/x", "annotator.label_cache: .* cannot be written"),
        ("loggers.file={filename: /proc/self/log.txt}", "loggers.file.filename: .* cannot be written"),
        ("loggers.file={filename: run}", "loggers.file.filename: run is a folder: name a file in it"),
        ("profiler={torch_prof_folder: /proc/self/x}", "profiler.torch_prof_folder: .* cannot be written"),
        (
            "train_loader.dataset={local: /proc/self/x, remote: 's3://data'}",
            "train_loader.dataset.local: .* cannot be written",
        ),
    ],
)
def test_place_that_cannot_be_used(folder: Path, override: str, message: str) -> None:
    """The error names the key, the path and the way out."""
    with pytest.raises(RecipeError, match=message):
        check_places(recipe(override))


@pytest.mark.process
def test_composer_is_not_loaded(folder: Path) -> None:
    """The command ends before it imports Composer, with code 2 and one line."""
    code = f"""
import sys
from lacy_stream.__main__ import main
tokenizer = "tokenizer.name=package:mistral_common/data/tokenizer.model.v1"
data = ["train_loader.dataset.local=data", "train_loader.dataset.split=test"]
code = main([{str(DEMO)!r}, tokenizer, "model.vocab_size=null", *data])
assert "composer" not in sys.modules and "torch" not in sys.modules
sys.exit(code)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2 and "data has the splits train, val" in ran.stderr, ran.stderr


def test_little_room(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A disk with less room than three numbers for each weight is warned of, with both sizes."""
    model = torch.nn.Linear(1000, 1000)  # 4 MB, so about 12 MB
    for free, warned in ((13_000_000, False), (11_000_000, True)):
        caplog.clear()
        monkeypatch.setattr(places.shutil, "disk_usage", lambda path, free=free: type("", (), {"free": free}))
        with caplog.at_level(logging.WARNING):
            warn_of_little_room(folder, model)
        assert ("a checkpoint takes about 0.01 GB" in caplog.text) == warned
