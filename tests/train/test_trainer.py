"""The main job, as people run it: recipes, by the `composer` command where a process of its own matters."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
from processes import composer, start

from lacy_stream.__main__ import main as train
from lacy_stream.cli.main import main as lacy_stream

pytestmark = pytest.mark.process

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BIN = Path(sys.executable).parent

SMALL = """
run_name: small
seed: 3
max_seq_len: 32
model: {name: gpt2, d_model: 16, n_heads: 2, n_layers: 1}
tokenizer: {name: package:mistral_common/data/tokenizer.model.v1}
annotator: {model: en_core_web_sm, num_workers: 1}
train_loader: {dataset: {local: CORPUS, split: train, shuffle: true}, lanes: 4}
eval_loader: {dataset: {local: CORPUS, split: val}, lanes: 4}
optimizer: {lr: 1.0e-2}
loggers: {file: {filename: "log-rank{rank}.txt", flush_interval: 1}}
max_duration: 6ba
global_train_batch_size: 4
device_train_microbatch_size: 2
device_eval_batch_size: 4
eval_interval: 6ba
eval_subset_num_batches: 3
precision: fp32
progress_bar: false
"""

METRICS = [
    "call_mask/call_fraction",
    "call_mask/factual_fraction",
    "call_mask/call_loss",
    "call_mask/rest_loss",
    "call_mask/threshold",
    "call_mask/precision",
    "call_mask/chance",
    "call_mask/call_probability",
    "stream/data_wait_s",
    "stream/data_wait_fraction",
    "stream/tokens_per_s_per_core",
    "stream/data_wait_max_s",
    "stream/wait_annotation_s",
    "stream/queue_depth",
    "stream/worker_restarted",
    "stream/chunk_hit_rate",
    "stream/vector_hit_rate",
    "stream/engine_fallback",
    "loss/train/total",
]


@pytest.fixture
def recipe(tmp_path: Path, corpus: Path) -> Path:
    """A recipe that trains in seconds, in a folder of its own."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("CORPUS", str(corpus)))
    return path


def run(*command: object, cwd: Path, code: int = 0) -> str:
    """Run a command of this environment; returns its output and checks its exit code."""
    process = subprocess.run(
        [BIN / str(command[0]), *map(str, command[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"COLUMNS": "200"},
    )
    output = process.stdout + process.stderr
    assert process.returncode == code, output
    return output


def printed(
    main: Callable[[list[str]], int], *arguments: object, capfd: pytest.CaptureFixture[str], code: int = 0
) -> str:
    """What a command prints, run here and not in a process of its own, which would import Composer for ten seconds."""
    capfd.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    return "".join(capfd.readouterr())


def wait_for(condition: Callable[[], bool], process: BaseProcess, within_s: float = 300) -> None:
    """Wait until something is true of a running process."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline and process.is_alive(), "it did not happen"
        time.sleep(0.02)


def logged(log: Path, metric: str) -> list[float]:
    """All values of one metric in a file logger's output, which has four decimals."""
    return [float(value) for value in re.findall(rf"^\[metric\].*: {metric}: (\S+)", log.read_text(), re.MULTILINE)]


EXACT = pytest.approx([int(0.15 * 4 * 31) / (4 * 31)] * 6, abs=1e-4)


@pytest.mark.slow
def test_recipe_trains_and_resumes(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A recipe trains with annotation in the data path: every batch logs every metric, 15% of the tokens are called,
    the held-out losses are logged, the run resumed from its middle ends with the same weights, and a recipe that the
    checkpoint does not fit is refused."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    output = printed(
        train,
        recipe,
        "save_folder=whole",
        "save_interval=3ba",
        "loggers.tensorboard={log_dir: tb}",
        "callbacks={speed_monitor: {window_size: 2}, lr_monitor: {}, runtime_estimator: {}}",
        capfd=capfd,
    )
    assert "tokens/s per core" in output and "held-out TotalLoss" in output
    assert re.search("the trainer waited for data .*annotation .* The bottleneck was", caplog.text)
    log = tmp_path / "log-rank0.txt"
    for metric in METRICS:
        assert len(logged(log, metric)) == 6, metric
    assert logged(log, "call_mask/call_fraction") == EXACT
    assert 7 < logged(log, "metrics/eval/TotalLoss")[-1] < 12
    assert logged(log, "throughput/tokens_per_sec") and list((tmp_path / "tb").rglob("events.out.*"))

    resumed = ["load_path=whole/ep0-ba3-rank0.pt", "save_folder=resumed", "save_interval=3ba"]
    printed(train, recipe, *resumed, capfd=capfd)
    states = [
        torch.load(tmp_path / folder / "ep0-ba6-rank0.pt", weights_only=False)["state"]
        for folder in ("whole", "resumed")
    ]
    for name, weights in states[0]["model"].items():
        assert torch.equal(weights, states[1]["model"][name]), name
    assert states[0]["dataset_state"] == states[1]["dataset_state"]

    for change, message in [
        ("max_seq_len=16", "size mismatch"),
        ("train_loader.lanes=2", "lanes: 4 in the checkpoint"),
        ("algorithms.call_mask.objective=paper", "objective 'defer', and this run has 'paper'.*set accept_changes"),
    ]:
        output = printed(train, recipe, resumed[0], change, capfd=capfd, code=2)
        assert re.search(f"error: the checkpoint in .* does not fit this recipe: .*{message}", output), output

    output = printed(
        train,
        recipe,
        "max_duration=2ba",
        "eval_interval=2ba",
        "algorithms.call_mask={method: rho-1, reference: whole/latest-rank0.pt}",
        "eval_mask_from=whole/latest-rank0.pt",
        capfd=capfd,
    )
    for metric in ("call_mask/reference_s", "call_mask/calls_factual"):
        assert len(logged(log, metric)) == 2, metric
    for metric in ("MatchedCallLoss", "MatchedNonCallLoss"):
        assert 7 < logged(log, f"metrics/eval/{metric}")[-1] < 12 and f"held-out {metric}" in output

    shown = printed(lacy_stream, "show-calls", "whole/latest-rank0.pt", "--html", "calls.html", capfd=capfd)
    assert shown.count("⟦") > 1 and "of the delegated tokens" in shown and "calls at random would have" in shown
    assert "CALL" in (tmp_path / "calls.html").read_text()
    text = tmp_path / "text.txt"
    text.write_text("Marie Curie was born in Warsaw in 1867.")
    assert "Warsaw" in printed(lacy_stream, "show-calls", "whole/latest-rank0.pt", text, capfd=capfd)


@pytest.mark.slow
def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run whose worker, and then whose every process, is killed in the middle, started again by the same command,
    ends with the same weights bit for bit; what happened to the worker stands in the report of the run."""
    common = [recipe, "max_duration=40ba", "eval_loader=null", "device_train_microbatch_size=4"]
    monkeypatch.chdir(tmp_path)
    printed(train, *common, "save_folder=whole", "save_interval=40ba", capfd=capfd)
    command = [*map(str, common), "save_folder=killed", "save_interval=2ba", "autoresume=true"]
    trainer = start(train, command, tmp_path, tmp_path)
    assert trainer.pid is not None
    killed = tmp_path / "killed"
    wait_for(lambda: (killed / "ep0-ba2-rank0.pt").exists(), trainer)
    worker = next(p for p in psutil.Process(trainer.pid).children(recursive=True) if "spawn_main" in p.cmdline()[-2])
    worker.kill()
    wait_for(lambda: (killed / "ep0-ba8-rank0.pt").exists(), trainer)  # and perhaps only half of it
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.join(timeout=180)
    assert not (killed / "ep0-ba40-rank0.pt").exists(), "killed too late to test anything"
    events = [json.loads(line)["event"] for line in (killed / "report" / "rank0.jsonl").read_text().splitlines()]
    assert events == ["worker_restarted"]
    (killed / "latest-rank0.pt").unlink(missing_ok=True)  # as a kill between two steps of Composer's would leave it
    (killed / "ep0-ba10-rank0.pt").write_bytes((killed / "ep0-ba2-rank0.pt").read_bytes()[:-100])

    printed(train, *command, capfd=capfd)
    assert (killed / "ep0-ba10-rank0.pt").exists() and not list(killed.glob("*.unfinished"))
    states = [
        torch.load(tmp_path / name / "ep0-ba40-rank0.pt", weights_only=False)["state"] for name in ("whole", "killed")
    ]
    for name, weights in states[0]["model"].items():
        assert torch.equal(weights, states[1]["model"][name]), name
    assert states[0]["dataset_state"] == states[1]["dataset_state"]


@pytest.mark.slow
def test_two_ranks(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`composer -n 2 small.yaml key=value` trains on two ranks with half of each batch, the call fraction being exact
    over both, and ends with the held-out loss of one rank on all documents."""
    launcher = start(composer, ["-n", "2", str(recipe), "eval_subset_num_batches=-1"], tmp_path, tmp_path)
    launcher.join(timeout=300)
    assert launcher.exitcode == 0
    for rank in (0, 1):
        log = tmp_path / f"log-rank{rank}.txt"
        assert logged(log, "call_mask/call_fraction") == EXACT
    two = logged(tmp_path / "log-rank0.txt", "metrics/eval/TotalLoss")[-1]
    assert two == logged(tmp_path / "log-rank1.txt", "metrics/eval/TotalLoss")[-1]
    monkeypatch.chdir(tmp_path)
    printed(train, recipe, "eval_subset_num_batches=-1", "device_train_microbatch_size=4", capfd=capfd)
    assert two == pytest.approx(logged(tmp_path / "log-rank0.txt", "metrics/eval/TotalLoss")[-1], abs=2e-4)


@pytest.mark.slow
def test_334m_recipe_trains_a_step_on_a_cpu(corpus: Path, tmp_path: Path) -> None:
    """`composer recipes/lacy_334m.yaml` with overrides for data, batch, length and duration."""
    output = run(
        "composer",
        RECIPES / "lacy_334m.yaml",
        "max_duration=1ba",
        "global_train_batch_size=2",
        "max_seq_len=32",
        "save_folder=null",
        f"train_loader.dataset.local={corpus}",
        "eval_loader=null",
        "train_loader.lanes=4",
        "autoresume=false",
        cwd=tmp_path,
    )
    assert "335.2M parameters" in output, "127 rows that pad the vocabulary are counted"
    assert "fp32 instead of amp_bf16" in output
    assert logged(tmp_path / "runs/lacy-334m/log-rank0.txt", "call_mask/call_fraction") == pytest.approx(
        [9 / 62], abs=1e-4
    )


def test_model_is_built_without_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 is built without the import of every causal model of transformers, and Composer's own check, which
    imports them, is in place again for others."""
    from composer.models import huggingface
    from transformers.models.auto import modeling_auto

    from lacy_stream.recipe import GPT2
    from lacy_stream.train.model import build_model

    class Imported(Exception):
        pass

    class Mapping:
        def values(self) -> None:
            raise Imported

    monkeypatch.setattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING", Mapping())
    config = GPT2(name="gpt2", d_model=16, n_heads=2, n_layers=1)
    model = build_model(config, max_seq_len=8, call_token_id=100, eos_id=2)
    assert model.shift_labels
    with pytest.raises(Imported):
        huggingface.HuggingFaceModel(model.model)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_loader.dataset.local=nowhere", "error: no usable MDS index at nowhere.*lacy-stream prepare"),
        ("tokenizer.name=nowhere.model", "error: tokenizer.name: there is no file 'nowhere.model'"),
        ("model.vocab_size=32000", "error: model.vocab_size: 32000, but the tokenizer .* it must be 32001"),
        ("annotator.model=en_core_web_nothing", "error: annotator.model: .*en_core_web_nothing.*download"),
        ("eval_mask_from=nowhere.pt", "error: eval_mask_from: there is no file or folder 'nowhere.pt'"),
        ("save_folder=/proc/x", "error: save_folder: '/proc/x' cannot be made"),
        ("load_path=small.yaml", "error: load_path: 'small.yaml' is no checkpoint"),
        (
            "save_folder=used",
            "error: save_folder: 'used' has checkpoints.*ep0-ba7.*autoresume=true.*save_overwrite=true",
        ),
        ("fsdp_config={sharding_strategy: FULL_SHARD}", "error: fsdp_config: .*GPUs only"),
    ],
)
def test_what_is_wrong_is_one_clear_error(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    """Missing data, tokenizer or parser, a vocabulary that does not fit, a folder that cannot be used or no checkpoint
    end the run with one line that says what to do, code 2."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "ep0-ba7-rank0.pt").touch()
    monkeypatch.chdir(tmp_path)
    output = printed(train, recipe, override, capfd=capfd, code=2)
    assert re.search(message, output), output
    assert "Traceback" not in output


@pytest.mark.slow
def test_wheel_brings_the_hook(recipe: Path, tmp_path: Path) -> None:
    """A normal install from the wheel, not only an editable one, lets Python run a recipe, and uninstalling
    takes the hook away."""
    root = RECIPES.parent
    source = tmp_path / "source"
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(".*", "demo", "data", "runs", "tests"))
    run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run("uv", "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run("uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=tmp_path)
    packages = Path(torch.__file__).parent.parent  # .pth files of a PYTHONPATH entry are not read: only ours is
    command = [python, recipe, "max_sq_len=1"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(packages)})
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (
        2,
        "error: max_sq_len: unknown key (value 1); the nearest known key is max_seq_len",
    )
    run("uv", "pip", "uninstall", "--python", python, "lacy-stream", cwd=tmp_path)
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(packages)})
    assert "SyntaxError" in ran.stderr or "NameError" in ran.stderr
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/*lacy*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGKILL of the trainer", "SIGKILL of all"])
def test_stopped_run_leaves_nobody(
    recipe: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However a run is stopped, with the launcher or without, it ends in time, no process of it is left, nothing is
    left in /dev/shm, no file of the run in the folder for temporary files (SIGKILL leaves what torch and the launcher
    make there), and the same command works again."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    module = ["-m", "lacy_stream"] if how == "SIGTERM" else []  # both ways to start a run
    command = [*module, str(recipe), "max_duration=100000ba", "eval_interval=100000ba"]
    main = train if "SIGKILL" in how else composer
    first = start(main, command, tmp_path, temporary)
    assert first.pid is not None
    log = tmp_path / "log-rank0.txt"
    wait_for(lambda: log.exists() and len(logged(log, "loss/train/total")) > 3, first)
    family = psutil.Process(first.pid).children(recursive=True)
    assert any("spawn_main" in process.cmdline()[-2] for process in family), "the annotation worker"
    assert main is train or any("-m" in p.cmdline() or str(recipe) in p.cmdline() for p in family), "the trainer"
    maps = [mapped.path for process in family for mapped in process.memory_maps()]
    shared = [path for path in maps if path.startswith("/dev/shm/")]  # by name: others use the folder as well
    if how == "Ctrl-C":
        os.killpg(first.pid, signal.SIGINT)
    elif how == "SIGTERM":
        first.terminate()
    elif how == "SIGKILL of the trainer":
        first.kill()
    else:
        os.killpg(first.pid, signal.SIGKILL)
    first.join(timeout=180)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not first.is_alive() and not alive, alive
    assert not any(os.path.exists(path) for path in shared)
    left = {path.name for path in temporary.rglob("*") if path.is_file()}
    assert left <= ({"_remote_module_non_scriptable.py"} if "SIGKILL" in how else set()), left  # torch's
    if how == "SIGKILL of all":
        monkeypatch.chdir(tmp_path)
        printed(train, recipe, "max_duration=1ba", "eval_loader=null", capfd=capfd)


@pytest.mark.slow
def test_run_needs_no_shared_memory(recipe: Path, tmp_path: Path) -> None:
    """A run in a container whose /dev/shm is small, and full, works: the stream uses pipes."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting a /dev/shm of our own needs root and unshare")
    fill = "! head -c 100000 /dev/zero > /dev/shm/full 2> /dev/null"
    train = f"exec {sys.executable} {recipe} max_duration=2ba eval_loader=null"
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && {fill} && {train}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(logged(tmp_path / "log-rank0.txt", "loss/train/total")) == 2
