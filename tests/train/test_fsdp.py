"""The call mask with parameters that are sharded over two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_call_mask import EXACT, fit, gpt2

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.slow]

SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
from composer import Trainer
from composer.utils import dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset
from test_call_mask import CALL, ROWS, CallMask, Log, gpt2, rows

dist.initialize_dist("cpu")
rank, log, model = dist.get_global_rank(), Log(), gpt2()
mine = [row for number, row in enumerate(rows(ROWS * 2)) if number % 2 == rank]

class Mine(IterableDataset):
    def __iter__(self):
        return iter(mine)

shards = {{model.model, *model.model.transformer.h}}
model.model.fsdp_wrap_fn = lambda module: module in shards
# Where FSDP2 asks for the mean of the gradients, gloo of PyTorch 2.7 gives their sum.
mean = torch.empty(1)
torch.distributed.reduce_scatter_tensor(mean, torch.ones(2), op=torch.distributed.ReduceOp.AVG)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / mean.item())
trainer = Trainer(model=model, train_dataloader=DataLoader(Mine(), batch_size=ROWS // 2), max_duration="2ba",
                  optimizers=optimizer, algorithms=[CallMask(CALL)],
                  parallelism_config={{"fsdp": {{"state_dict_type": "full"}}}}, loggers=[log.memory],
                  device_train_microbatch_size=2, progress_bar=False, device="cpu")
sharded = [isinstance(value, DTensor) and value.to_local().numel() < value.numel() for value in model.parameters()]
trainer.fit()
weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    torch.save((all(sharded), weights, log["call_fraction"]), {result!r})
"""


def test_sharded_model_trains_the_same_weights(tmp_path: Path) -> None:
    """Composer's FSDP2 on two gloo processes, in two microbatches: every parameter is sharded, the share of calls is
    exact, and the weights are those of one process. FSDP1 of Composer 0.32 asks for a GPU."""
    alone = gpt2()
    fit(alone)
    script, result = tmp_path / "sharded.py", tmp_path / "result.pt"
    paths = [str(folder) for folder in Path(__file__).parents[:2]]
    script.write_text(SCRIPT.format(paths=paths, result=str(result)))
    run = subprocess.run(
        [sys.executable, "-m", "composer.cli.launcher", "-n", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"FSDP_VERSION": "2"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    sharded, weights, fractions = torch.load(result)
    assert sharded and fractions == pytest.approx([EXACT, EXACT])
    expected = alone.state_dict()
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)
