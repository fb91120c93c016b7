"""Does the recipe of the paper train as it stands, and does it resume? 20 steps, then the last 10 again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from report import Check

RECIPE = "recipes/lacy_334m.yaml"
METRIC = re.compile(r"\[metric\]\[batch=(\d+)\]: (\S+): (\S+)")
"""A line of Composer's FileLogger."""
LOSS = "loss/train/total"
TOY_SETTINGS = (
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    "max_seq_len=64",
    "annotator.num_workers=1",
    "global_train_batch_size=8",
    "device_train_microbatch_size=2",
    "train_loader.lanes=16",
    "eval_loader.lanes=16",
    "optimizer.lr=0.01",
    "callbacks.speed_monitor.window_size=2",
)
GROUPS = ("throughput", "memory", "stream", "call_mask", "metrics")
"""The first parts of the names of metrics that are reported."""

Metrics = dict[int, dict[str, float]]
"""The number of a batch -> name -> value."""


def run(check: Check) -> None:
    folder = check.work / "smoke"
    shutil.rmtree(folder, ignore_errors=True)
    steps, saved = (6, 3) if check.toy else (20, 10)
    whole = train(check, folder / "whole", steps, saved)
    losses = [values[LOSS] for _, values in sorted(whole.items()) if LOSS in values]
    check.report("losses", losses=losses, within=len(losses) == steps and losses[-1] < losses[0])
    calls = values_of(whole, "call_mask/call_fraction")
    check.report("calls", fractions=calls, within=bool(calls) and 0.14 < min(calls) and max(calls) <= 0.15)
    check.report("data wait", seconds=values_of(whole, "stream/data_wait_s"))
    last: dict[str, float] = {}
    for _, values in sorted(whole.items()):
        last |= {name: value for name, value in values.items() if name.split("/")[0] in GROUPS}
    check.report("last metrics", **last)
    checkpoint = folder / "whole" / f"ep0-ba{saved}-rank0.pt"
    check.report("checkpoint", megabytes=checkpoint.stat().st_size >> 20)
    resumed = train(check, folder / "resumed", steps, saved, checkpoint)
    # Some kernels of a GPU add in an order that varies, so two runs of the same steps differ as well.
    again = train(check, folder / "again", steps, saved, checkpoint) if check.on_gpu else resumed
    apart, noise = differences(whole, resumed), differences(resumed, again)
    within = len(apart) == steps - saved and max(apart) <= max(2 * max(noise), 1e-3 * losses[0])
    check.report("resume", loss_apart=apart, loss_apart_of_two_resumed_runs=noise, within=within)


def train(check: Check, folder: Path, steps: int, saved: int, checkpoint: Path | None = None) -> Metrics:
    """Run the recipe as users do, in a process.

    Raises:
        SystemExit: it failed; the end of its output is reported.
    """
    data, log = check.data(), folder / "log.txt"
    settings = [
        f"train_loader.dataset.local={data}",
        f"eval_loader.dataset.local={data}",
        f"max_duration={steps}ba",
        f"scheduler.t_warmup={steps // 4}ba",  # in the recipe's 2,560 steps, nothing is learned in 20
        f"eval_interval={steps}ba",
        "eval_subset_num_batches=4",
        f"save_interval={saved}ba",
        f"save_folder={'null' if checkpoint else folder}",
        f"loggers.file.filename={log}",
        "autoresume=false",
        "progress_bar=false",
        *(TOY_SETTINGS if check.toy else ()),
        *([f"load_path={checkpoint}"] if checkpoint else ()),
    ]
    start = time.monotonic()
    command = [sys.executable, "-m", "lacy_stream", str(check.root / RECIPE), *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=check.work)
    seconds = round(time.monotonic() - start, 1)
    check.report("run", run=folder.name, exit=done.returncode, seconds=seconds, output=done.stdout[-1500:])
    if done.returncode:
        raise SystemExit(f"{RECIPE} failed with exit code {done.returncode}")
    return read_metrics(log)


def read_metrics(log: Path) -> Metrics:
    found: Metrics = {}
    for line in log.read_text().splitlines():
        if match := METRIC.match(line):
            found.setdefault(int(match[1]), {})[match[2]] = float(match[3])
    return found


def values_of(metrics: Metrics, name: str) -> list[float]:
    return [values[name] for _, values in sorted(metrics.items()) if name in values]


def differences(one: Metrics, other: Metrics) -> list[float]:
    """How far apart the losses of the steps are that both runs took."""
    both = sorted(batch for batch in one if LOSS in one[batch] and LOSS in other.get(batch, {}))
    return [round(abs(one[batch][LOSS] - other[batch][LOSS]), 6) for batch in both]
