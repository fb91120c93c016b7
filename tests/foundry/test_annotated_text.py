"""`annotated_text` under Foundry: raw text, for training and evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

from foundry_runs import CALLS, MAX_SEQ_LEN, weights

pytestmark = pytest.mark.model


@pytest.mark.slow
def test_raw_text_trains_evaluates_and_resumes(
    train: Callable[..., Any], corpus: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """A run on raw text evaluates on one pass of raw text, has sequence ids, and continues from its checkpoint to the
    same weights; a checkpoint of `text` is refused by name."""
    loader = {
        "name": "annotated_text",
        "dataset": {"local": str(corpus), "split": "train", "max_seq_len": MAX_SEQ_LEN, "eos_token_id": 2},
        "annotator": {"num_workers": 1, "tokenizer": str(tokenizer_path)},
        "lanes": 4,
        "num_workers": 0,
    }
    held_out = loader | {"dataset": loader["dataset"] | {"split": "val"}, "drop_last": False}
    del loader["dataset"]["eos_token_id"]
    changes = {
        "train_loader": None,
        "eval_loader": held_out,
        "eval_interval": "4ba",
        "algorithms": CALLS["algorithms"],
        "callbacks": {"stream_monitor": {}},
        "model": {"additional_train_metrics": ["total_loss"]},
        "save_folder": "whole",
        "save_interval": "2ba",
    }
    whole = train(changes, {"train_loader": loader})
    assert whole.record.keys[0] == {"input_ids", "labels", "token_class"}
    assert 8 < whole.metrics["metrics/eval/TotalLoss"][-1][1] < 12
    assert len(whole.metrics["stream/data_wait_s"]) == 4

    (tmp_path / "resumed").mkdir()
    for target in ("ep0-ba2-rank0.pt", "latest-rank0.pt"):
        shutil.copy(tmp_path / "whole" / "ep0-ba2-rank0.pt", tmp_path / "resumed" / target)
    again = {"save_folder": "resumed", "autoresume": True, "eval_loader": None, "eval_interval": 0}
    resumed = train(changes, {"train_loader": loader}, again)
    assert resumed.record.digests == whole.record.digests[2:]
    assert weights(resumed) == weights(whole)
