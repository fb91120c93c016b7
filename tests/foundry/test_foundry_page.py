"""The YAML of docs/foundry.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

from composer.loggers import TensorboardLogger
from llmfoundry.command_utils import train_from_yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "foundry.md"


@pytest.mark.slow
def test_the_whole_run_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hf_tokenizer: Path, rows: Path
) -> None:
    """The page's run trains and evaluates before and after; TensorBoard has our metrics, and the label cache and the
    checkpoint are where the YAML puts them."""
    (text,) = [block for block in re.findall("```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if "run_name" in block]
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "tokenizer").symlink_to(hf_tokenizer)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokens").symlink_to(rows)
    monkeypatch.chdir(tmp_path)
    trainer = train_from_yaml("run.yaml")
    trainer.close()
    assert trainer.state.timestamp.batch.value == 4
    assert (tmp_path / "checkpoints" / "ep0-ba4-rank0.pt").exists() and list((tmp_path / "labels").glob("*/data.mdb"))
    logged = EventAccumulator(str(next((tmp_path / "tensorboard").rglob("events.out.*")).parent)).Reload()
    assert any(isinstance(logger, TensorboardLogger) for logger in trainer.logger.destinations)
    fractions = [event.value for event in logged.Scalars("call_mask/call_fraction")]
    assert fractions == pytest.approx([int(0.15 * 4 * 31) / (4 * 31)] * 4)
    for metric in ("TotalLoss", "CallLoss", "NonCallLoss"):
        values = [event.value for event in logged.Scalars(f"metrics/eval/{metric}")]
        assert len(values) == 2 and 9 < values[0] < 12
    assert logged.Scalars("metrics/eval/CallLoss")[0].value != logged.Scalars("metrics/eval/NonCallLoss")[0].value
    for metric in ("data_wait_fraction", "wait_annotation_s", "documents_ahead", "tokens_per_s_per_core"):
        assert len(logged.Scalars(f"stream/{metric}")) == 4
