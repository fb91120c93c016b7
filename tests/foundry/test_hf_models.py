"""Foundry's `hf_causal_lm` with calls: from a config, and from weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

from foundry_runs import CALLS, MAX_SEQ_LEN
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, 32,000 rows."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(vocab_size=32_000, num_key_value_heads=1, **sizes)).save_pretrained(folder)
    return folder


def model(folder: Path, **keys: Any) -> dict[str, Any]:
    return {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(folder),
        "use_flash_attention_2": False,
        **keys,
    }


@pytest.mark.slow
def test_from_weights_with_all_that_a_run_has(
    train: Callable[..., Any], run: dict[str, Any], rows: Path, llama: Path, tmp_path: Path
) -> None:
    """A model from weights grows by the row of <CALL>; in-context evaluation, MLflow's file store, TensorBoard and
    hf_checkpointer work as they did, and the exported folder has the token and its row."""
    (tmp_path / "tasks.jsonl").write_text(
        "".join(
            json.dumps({"context": "Ada wrote letters to", "continuation": f"Charles {i}"}) + "\n" for i in range(4)
        )
    )
    run["model"] = model(llama, pretrained=True, allow_embedding_resizing=True, additional_eval_metrics=["call_loss"])
    trained = train(
        CALLS,
        {
            "tokenizer": {"kwargs": {"additional_special_tokens": ["<CALL>"]}},
            "eval_loader": {
                "name": "text",
                "dataset": {"local": str(rows), "split": "val", "max_seq_len": MAX_SEQ_LEN},
                "drop_last": False,
                "num_workers": 0,
                "prefetch_factor": None,
                "persistent_workers": False,
            },
            "eval_interval": "4ba",
            "eval_first": True,
            "eval_subset_num_batches": 2,
            "icl_tasks": [
                {
                    "label": "letters",
                    "dataset_uri": str(tmp_path / "tasks.jsonl"),
                    "num_fewshot": [0],
                    "icl_task_type": "language_modeling",
                }
            ],
            "callbacks": {
                "hf_checkpointer": {"save_folder": "exported", "save_interval": "4ba", "precision": "float32"}
            },
            "loggers": {
                "tensorboard": {"log_dir": "tensorboard"},
                "mlflow": {"tracking_uri": str(tmp_path / "mlruns"), "experiment_name": "calls"},
            },
        },
    )
    assert len(trained.metrics["call_mask/call_fraction"]) == 4
    assert any("letters" in name for name in trained.metrics)
    assert 9 < trained.metrics["metrics/eval/CallLoss"][-1][1] < 12
    assert list((tmp_path / "mlruns").rglob("metrics/call_mask/call_fraction"))
    assert list((tmp_path / "tensorboard").rglob("events.out.*"))
    folder = next((tmp_path / "exported").rglob("config.json")).parent
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<CALL>") == 32_000
    assert AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.shape[0] == 32_001


@pytest.mark.slow
def test_from_a_config(train: Callable[..., Any], run: dict[str, Any], llama: Path) -> None:
    """A model from a config with spare rows trains with calls in two microbatches, beside a reference model."""
    run["model"] = model(llama, pretrained=False, config_overrides={"vocab_size": 32_064})
    compared = {"algorithms": {"call_mask": {"method": "spacy+refloss", "reference": str(llama)}}}
    trained = train(CALLS, compared, {"device_train_microbatch_size": 2})
    assert len(trained.metrics["call_mask/reference_s"]) == 4
    assert [value for _, value in trained.metrics["call_mask/call_fraction"]] == pytest.approx([18 / 124] * 4)
