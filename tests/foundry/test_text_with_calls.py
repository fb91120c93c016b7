"""`text_with_calls`: Foundry's own loader with labels, in runs that exist."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

import numpy as np
import torch
from foundry_runs import CALLS, weights

from annotator import Annotator
from lacy_stream.foundry import pools

pytestmark = pytest.mark.model


@pytest.mark.slow
def test_three_lines_add_calls_to_a_run(train: Callable[..., Any], annotator: Annotator) -> None:
    """A run with `text` and the same run with `text_with_calls` and `call_mask` see the same batches; those of the
    second one have the annotator's labels, 15% of the targets are called, and <CALL> is the first spare row."""
    plain, calls = train(), train(CALLS)
    assert calls.record.digests == plain.record.digests
    assert calls.record.keys[0] == plain.record.keys[0] | {"token_class"}
    assert calls.state.model.tokenizer.convert_tokens_to_ids("<CALL>") == 32_000
    fractions = [value for _, value in calls.metrics["call_mask/call_fraction"]]
    assert fractions == pytest.approx([int(0.15 * 4 * 31) / (4 * 31)] * 4)
    batch = calls.state.batch
    labelled = annotator.annotate_ids([np.asarray(row) for row in batch["input_ids"]])
    assert np.array_equal(calls.record.classes[-1], np.stack([tokens.classes for tokens in labelled]))
    assert {1, 2} <= set(np.unique(calls.record.classes[-1]))


@pytest.mark.slow
def test_batches_of_workers_with_sequence_ids(train: Callable[..., Any]) -> None:
    """With two workers of Foundry's loader, sequence ids and two microbatches, the batches are those of `text` too,
    also where an epoch ends; the monitor counts what is read and labelled."""
    changes = {
        "model": {"attn_config": {"attn_uses_sequence_id": True}},
        "train_loader": {
            "dataset": {"eos_token_id": 2, "epoch_size": 12},
            "num_workers": 2,
            "prefetch_factor": 2,
            "persistent_workers": True,
        },
        "device_train_microbatch_size": 2,
        "callbacks": {"stream_monitor": {}},
    }
    plain, calls = train(changes), train(changes, CALLS)
    assert calls.state.timestamp.epoch.value == 1
    assert "sequence_id" in calls.record.keys[0]
    assert calls.record.digests == plain.record.digests and len(set(calls.record.digests)) == 4
    assert "stream/data_wait_s" not in plain.metrics and len(calls.metrics["stream/data_wait_s"]) == 4


@pytest.mark.slow
def test_checkpoint_of_a_run_without_calls(train: Callable[..., Any], tmp_path: Path) -> None:
    """A run without calls is continued with calls at the row that comes next, by load_path and by autoresume, to the
    same weights; and so is the run with calls, after an interruption."""
    plain = train({"save_folder": "plain", "save_interval": "2ba"})
    half = tmp_path / "plain" / "ep0-ba2-rank0.pt"
    loaded = train(CALLS, {"load_path": str(half), "save_folder": "loaded", "save_interval": "1ba"})
    assert loaded.record.digests == plain.record.digests[2:]
    assert loaded.record.classes[0] is not None and weights(loaded) != weights(plain)
    for name, file in (("resumed", half), ("interrupted", tmp_path / "loaded" / "ep0-ba3-rank0.pt")):
        (tmp_path / name).mkdir()
        for target in (file.name, "latest-rank0.pt"):
            shutil.copy(file, tmp_path / name / target)
        again = train(CALLS, {"save_folder": name, "autoresume": True})
        assert again.record.digests == plain.record.digests[2 if name == "resumed" else 3 :]
        assert weights(again) == weights(loaded)


@pytest.mark.slow
def test_two_ranks(train: Callable[..., Any]) -> None:
    """On two ranks the batches of each are those of `text`, and 15% of the targets of both together are called."""
    plain, calls = on_two_ranks(train), on_two_ranks(train, CALLS)
    for rank in (0, 1):
        assert calls[rank][0] == plain[rank][0] and len(calls[rank][0]) == 4
        assert calls[rank][1] == pytest.approx([int(0.15 * 4 * 31) / (4 * 31)] * 4)
    assert calls[0][0] != calls[1][0]


def on_two_ranks(train: Callable[..., Any], *changes: Any) -> list[tuple[list[str], list[float]]]:
    """The digests of the batches and the call fractions of each rank, in processes that are forks of this one: they
    need not import Foundry again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def rank_of_run(rank: int) -> None:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0}
        os.environ |= {name: str(value) for name, value in ranks.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)  # a fork has none of its parent's threads, nor those of its pools
        pools._pools.clear()
        trainer = train({"device_train_microbatch_size": 2}, *changes)
        fractions = trainer.metrics.get("call_mask/call_fraction", [])
        results.put((rank, trainer.record.digests, [float(value) for _, value in fractions]))

    if torch.distributed.is_initialized():  # by the runs before; a fork cannot end a group whose threads it lacks
        torch.distributed.destroy_process_group()
    processes = [context.Process(target=rank_of_run, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    return [result[1:] for result in sorted(results.get() for _ in processes)]
