"""`lacy-stream evaluate losses`: the numbers, the baseline on the same masks, going on after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lacy_stream.cli.main import main
from lacy_stream.evaluate import validation_losses as module
from lacy_stream.evaluate.token_table import losses, own_mask

pytestmark = pytest.mark.model


@pytest.fixture
def folders(tmp_path: Path, tokenizer_path: Path) -> dict[str, Path]:
    """Exported folders of small random models: one with <CALL>, and a baseline without."""
    made = {}
    for seed, (name, entries) in enumerate([("calling", 32_001), ("plain", 32_000)]):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=entries, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=2)
        if entries == 32_001:
            config.call_token_id = 32_000
        made[name] = tmp_path / name
        GPT2LMHeadModel(config).save_pretrained(made[name])
        (made[name] / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    return made


def test_losses_of_a_model_and_a_baseline(folders: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch) -> None:
    """The JSON holds the losses of all held-out targets on the model's own mask, and the baseline's on the same; the
    table and the picture are there; stopped after the first parts, the same command ends with the same numbers."""
    out = tmp_path / "out"
    command = ["evaluate", "losses", str(folders["calling"]), "--baseline", str(folders["plain"])]
    command += ["--data", str(corpus), "--out", str(out), "--batch-size", "4", "--limit", "40"]
    monkeypatch.setattr(module, "PART_BATCHES", 4)
    kept, seen = module._keep_part, []

    def stop(*args) -> None:
        kept(*args)
        seen.append(args)
        if len(seen) == 2:
            raise OSError("stopped")

    monkeypatch.setattr(module, "_keep_part", stop)
    with pytest.raises(OSError, match="stopped"):
        main(command)
    monkeypatch.setattr(module, "_keep_part", kept)
    computed = module._batch_table
    batches = []
    monkeypatch.setattr(module, "_batch_table", lambda *args: batches.append(0) or computed(*args))
    assert main(command) == 0
    assert len(batches) == 2 * 10 - 2 * 4, "the parts that were there are not computed again"

    found = json.loads((out / "losses.json").read_text())
    table = module.join_tables(
        module.TokenTable(**np.load(part)) for part in sorted((out / "losses-calling").glob("part-*.npz"))
    )
    assert found["targets"] == len(table.loss) > 1000
    expected = losses(table, own_mask(table, 0.15, "probability"))
    for name, value in expected.items():
        assert found["models"]["calling"][name] == pytest.approx(value)
    assert 9 < found["models"]["calling"]["matched_call_loss"] < 12
    assert found["models"]["calling"]["rank_calls_by"] == "probability"
    assert main([*command, "--rank-calls-by", "logit"]) == 0
    by_logit = json.loads((out / "losses.json").read_text())["models"]["calling"]
    assert by_logit["call_loss"] == pytest.approx(losses(table, own_mask(table, 0.15, "logit"))["call_loss"])
    assert "| calling | – | logit |" in (out / "losses.md").read_text()
    assert "baseline there" in (out / "losses.md").read_text() and (out / "losses.png").stat().st_size > 10_000


def test_a_model_that_is_called_baseline(folders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    """A MODEL in a folder "baseline" has its own losses beside those of --baseline."""
    found = []
    for name in ("baseline", "other"):
        path, out = tmp_path / name, tmp_path / f"out-{name}"
        shutil.copytree(folders["calling"], path)
        command = ["evaluate", "losses", str(path), "--baseline", str(folders["plain"]), "--data", str(corpus)]
        assert main([*command, "--batch-size", "4", "--limit", "8", "--out", str(out)]) == 0
        found.append(json.loads((out / "losses.json").read_text())["models"][name])
    assert found[0] == found[1] and found[0]["matched_call_loss"] != found[0]["call_loss"]


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "nan"])
def test_call_fractions_that_leave_a_mask_empty(
    fraction: str, folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys
) -> None:
    """They are refused before the work."""
    command = ["evaluate", "losses", str(folders["calling"]), "--data", str(corpus), "--out", str(tmp_path / "out")]
    assert main([*command, f"--call-fraction={fraction}"]) == 2
    assert "--call-fraction is" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_model_without_call_has_no_mask(folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys) -> None:
    """A model without <CALL> can only be the baseline."""
    assert main(["evaluate", "losses", str(folders["plain"]), "--data", str(corpus), "--out", str(tmp_path)]) == 2
    assert "plain has no <CALL> in its vocabulary" in capsys.readouterr().err


def test_folder_without_data_says_so(folders: dict[str, Path], tmp_path: Path, capsys) -> None:
    """An exported folder does not know its held-out data: --data is asked for."""
    assert main(["evaluate", "losses", str(folders["calling"]), "--out", str(tmp_path / "out")]) == 2
    assert "give --data" in capsys.readouterr().err
