"""The check of a GPU node (benchmarks/gpu), at toy size on the CPU: it must keep in step with the code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import processes
import pytest

from lacy_stream.objective.methods import OBJECTIVES
from lacy_stream.objective.selectors import METHODS

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / "benchmarks" / "gpu" / "check.py"

Lines = dict[str, dict[str, list[dict[str, Any]]]]
"""Part -> name of the finding -> its lines."""


@pytest.fixture(scope="module")
def gpu_check(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """The results of the parts that a node is checked with first: one by the command, and the others, which differ in
    the module alone, in processes that have Composer."""
    out = tmp_path_factory.mktemp("check")
    arguments = ["--toy", "--out", str(out)]
    done = subprocess.run([sys.executable, str(CHECK), *arguments, "--parts", "smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    with processes.processes(1) as forked:
        for part in ("env", "agree", "steps"):
            assert forked.submit(run_part, [*arguments, "--part", part]).result(timeout=600) == 0
    found: Lines = defaultdict(lambda: defaultdict(list))
    for line in (out / "results.jsonl").read_text().splitlines():
        values = json.loads(line)
        found[values["part"]][values["name"]].append(values)
    return found


def run_part(arguments: list[str]) -> int:
    sys.path.insert(0, str(CHECK.parent))
    from check import main

    return main(arguments)


def test_every_part_succeeds(gpu_check: Lines) -> None:
    """Each part ends with the exit code 0, and no line is outside of its bounds."""
    assert {part: gpu_check[part]["end"][0]["exit"] for part in ("engine", "smoke")} == {"engine": 0, "smoke": 0}
    assert gpu_check["check"]["outside of bounds"][0]["lines"] == []
    lines = [line for part in gpu_check.values() for lines in part.values() for line in lines]
    assert all(line.get("within", True) for line in lines) and sum("within" in line for line in lines) > 20
    assert gpu_check["env"]["versions"][0]["torch"] and gpu_check["env"]["ceilings"][0]["matmul_tflops"] > 0


def test_methods_agree_with_float64(gpu_check: Lines) -> None:
    """All nine methods were compared, in both objectives, from both sources and in both types, and float32 agrees with
    float64 to 1e-5."""
    methods = gpu_check["agree"]["method"]
    ways = {(line["method"], line["objective"], line["source"], line["dtype"]) for line in methods}
    assert ways == set(product(METHODS, OBJECTIVES, ("logits", "hidden states"), ("float32", "bfloat16")))
    for line in methods:
        bound = 1e-5 if line["dtype"] == "float32" else 2e-2
        assert line["loss_error"] < bound and line["gradient_error"] < bound and not line["masks_differ_at"], line
    # Each method selects otherwise, so that an agreement says something of it.
    of_one_way = [line for line in methods if (line["objective"], line["dtype"]) == ("paper", "float32")]
    assert len({round(line["loss"], 6) for line in of_one_way if line["source"] == "logits"}) == len(METHODS)
    trainings = {(line["microbatches"], line["fused_loss"]) for line in gpu_check["agree"]["training"]}
    assert trainings == {(4, False), (1, True), (4, True)}
    assert all(line["weights_error"] < 1e-5 for line in gpu_check["agree"]["training"])


def test_recipe_trains_and_resumes(gpu_check: Lines) -> None:
    """The recipe's losses fall, 15% are called, and the resumed run repeats the losses."""
    smoke = gpu_check["smoke"]
    assert [run["run"] for run in smoke["run"]] == ["whole", "resumed"]
    losses = smoke["losses"][0]["losses"]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert smoke["resume"][0]["loss_apart"] == pytest.approx([0, 0, 0], abs=1e-3)
    assert {"throughput/tokens_per_sec", "stream/data_wait_s", "call_mask/precision"} <= set(smoke["last metrics"][0])


def test_every_plan_of_a_step_runs(gpu_check: Lines) -> None:
    """Each plan has a time and an MFU; each improvement is there on and off."""
    steps = gpu_check["steps"]["step"]
    assert len(steps) == 20
    assert all(line["ms"] > 0 and line["tokens_per_s"] > 0 and line["mfu"] > 0 for line in steps)
    for name in ("fused_loss", "dense_mask", "pad_vocab_to", "fused_adamw", "compiled", "composer", "scope", "loss"):
        assert len({line[name] for line in steps}) >= 2, name
    ratios = {line["plan"]: line["times_hf"] for line in gpu_check["steps"]["call mask"]}
    assert {"toy ours, rows=4", "toy ours, rows=4, fused_loss=False", "toy ours, rows=4, compiled=True"} <= set(ratios)


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """A part that reads articles asks for them, and a limit names a part."""
    for arguments, message in (
        (["--parts", "smoke"], "give --articles"),
        (["--parts", "env", "--limits", "nothing=3"], "PART is one of env"),
    ):
        command = [sys.executable, str(CHECK), "--out", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
