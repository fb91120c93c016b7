"""The call mask with parameters that are sharded over two processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from composer import Trainer
from processes import on_two_ranks
from test_call_mask import CALL, EXACT, ROWS, CallMask, HalfOfTheRows, Log, fit, gpt2
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.process, pytest.mark.model]


def _train_shards(rank: int, folder: Path) -> None:
    """Train with half of each mini-batch, and with half of each parameter."""
    os.environ["FSDP_VERSION"] = "2"
    model, log = gpt2(), Log()
    shards = {model.model, *model.model.transformer.h}  # pyright: ignore
    model.model.fsdp_wrap_fn = lambda module: module in shards
    # Where FSDP2 asks for the mean of the gradients, gloo of PyTorch 2.7 gives their sum.
    mean = torch.empty(1)
    distributed.reduce_scatter_tensor(mean, torch.ones(2), op=distributed.ReduceOp.AVG)
    Trainer(
        model=model,
        train_dataloader=DataLoader(HalfOfTheRows(rank), batch_size=ROWS // 2),
        max_duration="2ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5 / mean.item()),
        algorithms=[CallMask(CALL)],
        parallelism_config={"fsdp": {"state_dict_type": "full"}},
        loggers=[log.memory],
        device_train_microbatch_size=2,
        progress_bar=False,
        device="cpu",
    ).fit()
    sharded = [isinstance(value, DTensor) and value.to_local().numel() < value.numel() for value in model.parameters()]
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save((all(sharded), weights, log["call_fraction"]), folder / "result.pt")


def test_sharded_model_trains_the_same_weights(tmp_path: Path) -> None:
    """Composer's FSDP2 on two gloo processes, in two microbatches: every parameter is sharded, the share of calls is
    exact, and the weights are those of one process. FSDP1 of Composer 0.32 asks for a GPU."""
    alone = gpt2()
    fit(alone)
    on_two_ranks(_train_shards, tmp_path)
    sharded, weights, fractions = torch.load(tmp_path / "result.pt")
    assert sharded and fractions == pytest.approx([EXACT, EXACT])
    expected = alone.state_dict()
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)
