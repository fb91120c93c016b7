"""Runs of LLM Foundry that take seconds: a tokenizer, rows of tokens, a YAML, and what each batch of a run was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foundry_runs import MAX_SEQ_LEN, TEXT, batch_record, merged


@pytest.fixture(scope="session")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A folder with the SentencePiece model of the suite as a fast tokenizer of transformers, 32,000 tokens."""
    from transformers import LlamaTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizers") / "llama"
    LlamaTokenizerFast(vocab_file=str(tokenizer_path), eos_token="</s>", pad_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_path: Path) -> Path:
    """The texts of ``corpus`` as Foundry's convert_dataset_json concatenates them: MDS with rows of token ids."""
    from streaming import MDSWriter, StreamingDataset

    from annotator.tokenizers import open_tokenizer

    folder = tmp_path_factory.mktemp("rows")
    tokenizer = open_tokenizer(tokenizer_path)
    for split in ("train", "val"):
        texts = StreamingDataset(local=str(corpus), split=split, batch_size=1)
        ids = [np.append(tokenizer.encode(texts[i]["text"]).ids, tokenizer.eos_id) for i in range(len(texts))]
        whole = np.concatenate(ids).astype(np.int32)
        with MDSWriter(out=str(folder / split), columns={"tokens": "ndarray:int32"}, size_limit=10_000) as writer:
            for start in range(0, len(whole) - MAX_SEQ_LEN, MAX_SEQ_LEN):
                writer.write({"tokens": whole[start : start + MAX_SEQ_LEN]})
    return folder


@pytest.fixture
def run(hf_tokenizer: Path, rows: Path) -> dict[str, Any]:
    """The YAML of a run that exists: MPT on Foundry's loader, without calls, its vocabulary with spare rows."""
    return {
        "run_name": "small",
        "seed": 17,
        "max_seq_len": MAX_SEQ_LEN,
        "model": {
            "name": "mpt_causal_lm",
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 1,
            "expansion_ratio": 2,
            "max_seq_len": MAX_SEQ_LEN,
            "vocab_size": 32_064,
            "loss_fn": "torch_crossentropy",
            "attn_config": {"attn_impl": "torch"},
        },
        "tokenizer": {"name": str(hf_tokenizer), "kwargs": {"model_max_length": MAX_SEQ_LEN}},
        "train_loader": {
            "name": "text",
            "dataset": {"local": str(rows), **TEXT},
            "drop_last": True,
            "num_workers": 0,
            "prefetch_factor": None,
            "persistent_workers": False,
        },
        "optimizer": {
            "name": "decoupled_adamw",
            "lr": 1.0e-2,
            "betas": [0.9, 0.95],
            "eps": 1.0e-8,
            "weight_decay": 0.0,
        },
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "callbacks": {"batch_record": {}},
        "max_duration": "4ba",
        "eval_interval": 0,
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 4,
        "device_eval_batch_size": 4,
        "precision": "fp32",
        "progress_bar": False,
        "python_log_level": "warning",
    }


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any]) -> Callable[..., Any]:
    """Trains the run with changes, through ``train_from_yaml``, in a folder of its own; returns Composer's Trainer,
    with the record of its batches as ``record`` and the last value of each metric as ``metrics``."""
    import yaml
    from composer.loggers import InMemoryLogger
    from llmfoundry import registry
    from llmfoundry.command_utils import train_from_yaml

    monkeypatch.chdir(tmp_path)
    registry.callbacks.register("batch_record", func=batch_record())
    registry.loggers.register("in_memory", func=InMemoryLogger)

    def train(*changes: Mapping[str, Any]) -> Any:
        config = merged(run, {"loggers": {"in_memory": {}}})
        for change in changes:
            config = merged(config, change)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        trainer = train_from_yaml(str(tmp_path / "run.yaml"))
        trainer.close()
        trainer.record = next(c for c in trainer.state.callbacks if type(c).__name__ == "BatchRecord")
        trainer.metrics = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger)).data
        return trainer

    return train
