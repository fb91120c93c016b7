"""What a recipe takes from Composer, or from a module of the user's, by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import algorithms, callbacks, loggers
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW, LinearWithWarmupScheduler
from composer.profiler import Profiler

from lacy_stream.recipe import Recipe, RecipeError, load_recipe
from lacy_stream.train.components import (
    Component,
    build_profiler,
    check_components,
    named_optimizer,
    named_scheduler,
    other_components,
)
from lacy_stream.train.run_log import RunLog

pytestmark = pytest.mark.model  # imports Composer

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "lacy_demo.yaml"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(DEMO, overrides)


class UsersAdam(torch.optim.Adam):
    """An optimizer as users bring it."""

    def __init__(self, params: Any, lr: float, betas: Any = (0.9, 0.95)) -> None:
        super().__init__(params, lr=lr, betas=betas)


@pytest.mark.parametrize(
    ("settings", "kind", "values"),
    [
        ("{name: decoupled_adamw, lr: 0.5, weight_decay: 1e-5}", DecoupledAdamW, {"lr": 0.5, "weight_decay": 1e-5}),
        ("{name: 'torch.optim:SGD', lr: 2, momentum: 0.9}", torch.optim.SGD, {"lr": 2, "momentum": 0.9}),
        (f"{{name: '{__name__}:UsersAdam', lr: 0.1}}", UsersAdam, {"lr": 0.1, "betas": (0.9, 0.95)}),
    ],
)
def test_optimizer_by_name(settings: str, kind: type, values: dict[str, float]) -> None:
    """An optimizer of Composer's, or a class of any module, is built with the arguments that the recipe gives."""
    run = recipe(f"optimizer={settings}")
    check_components(run)
    named = named_optimizer(run)
    assert named is not None
    optimizer = named.build([torch.nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is kind or type(optimizer).__name__ == kind.__name__
    assert {key: optimizer.param_groups[0][key] for key in values} == values


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CosineAnnealingWithWarmupScheduler", CosineAnnealingWithWarmupScheduler),
        ("cosine_with_warmup", CosineAnnealingWithWarmupScheduler),
        ("linear_with_warmup", LinearWithWarmupScheduler),
    ],
)
def test_scheduler_by_name(name: str, kind: type) -> None:
    """A schedule is found by Composer's name of its class, by the same in small letters, and by LLM Foundry's name."""
    run = recipe(f"scheduler={{name: {name}, t_warmup: 10ba, alpha_f: 0.1}}")
    check_components(run)
    named = named_scheduler(run)
    assert named is not None and isinstance(scheduler := named.build(), kind)
    assert (scheduler.t_warmup, scheduler.alpha_f) == ("10ba", 0.1)  # type: ignore[attr-defined]


def test_callbacks_loggers_and_algorithms_by_name(tmp_path: Path) -> None:
    """Callbacks, loggers and algorithms that are not among the recipe's own keys are built with their arguments, and
    null leaves one out."""
    run = recipe(
        "callbacks.optimizer_monitor={batch_log_interval: 5}",
        "callbacks.SystemMetricsMonitor=null",
        "loggers.InMemoryLogger={}",
        "loggers.console={log_interval: 7ba}",
        "algorithms.EMA={half_life: 10ba}",
        "algorithms.low_precision_layernorm={}",
    )
    check_components(run)
    built = {
        component.place: component.build()
        for kind, section in (("callbacks", run.callbacks), ("loggers", run.loggers), ("algorithms", run.algorithms))
        for component in other_components(kind, section)  # type: ignore[arg-type]
    }
    assert {place: type(value) for place, value in built.items()} == {
        "callbacks.optimizer_monitor": callbacks.OptimizerMonitor,
        "loggers.InMemoryLogger": loggers.InMemoryLogger,
        "loggers.console": loggers.ConsoleLogger,
        "algorithms.EMA": algorithms.EMA,
        "algorithms.low_precision_layernorm": algorithms.LowPrecisionLayerNorm,
    }
    assert built["algorithms.EMA"].half_life == "10ba"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks.optimizer_monitor={log_interval: 3}",
            "optimizer_monitor.log_interval: .*monitor.batch_log_interval$",
        ),
        (
            "algorithms.EMA={half_live: 3ba}",
            "algorithms.EMA.half_live: unknown key .*nearest.* algorithms.EMA.half_life",
        ),
        ("loggers.console={interval: 1ba}", "loggers.console.interval: .*nearest known key is .*console.log_interval"),
        ("scheduler={name: cosine_with_warmup}", "scheduler.t_warmup: missing"),
        ("scheduler={name: linear, alfa_f: 1}", "scheduler.alfa_f: .*nearest known key is scheduler.alpha_f"),
        ("optimizer={name: decoupled_adamw, lr: 1, beta: 2}", "optimizer.beta: .*nearest.* optimizer.betas"),
        ("optimizer={name: 'no_such_module:X', lr: 1}", "optimizer: 'no_such_module:X' cannot be imported"),
        ("optimizer={name: 'torch.optim:Nothing', lr: 1}", "optimizer: 'torch.optim:Nothing' cannot be imported"),
        ("optimizer={name: 'torch.nn:Linear', lr: 1}", "optimizer: 'torch.nn:Linear' is no Optimizer"),
        ("callbacks={'composer.algorithms:EMA': {}}", "callbacks.composer.algorithms:EMA: .* is no Callback"),
        ("compile_config={mod: x}", "compile_config.mod: unknown key .*nearest known key is compile_config.mode"),
        ("fsdp_config={sharding: x}", "fsdp_config.sharding: .*nearest known key is fsdp_config.sharding_strategy"),
        ("profiler={schedule: {weit: 1}}", "profiler.schedule.weit: .*nearest known key is profiler.schedule.wait"),
        ("profiler={torch_folder: x}", "profiler.torch_folder: .*nearest known key is profiler.torch_prof_folder"),
    ],
)
def test_argument_that_does_not_exist_is_named(override: str, message: str) -> None:
    """Names and arguments are compared with signatures; the error names the nearest known key."""
    run = recipe(override)
    with pytest.raises(RecipeError, match=message):
        check_components(run)


def test_profiler_is_built(tmp_path: Path) -> None:
    """The profiler takes its own arguments, and those of its schedule and trace handler."""
    settings = (
        f"{{schedule: {{wait: 1, active: 1}}, json_trace_handler: {{folder: '{tmp_path}'}}, sys_prof_cpu: false}}"
    )
    section = recipe(f"profiler={settings}").profiler
    assert section is not None and isinstance(build_profiler(section), Profiler)


def test_recipe_that_names_nothing_needs_no_composer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of its own keys alone is checked without looking at a signature: its run can start the workers first."""
    monkeypatch.setattr(Component, "find", lambda self: pytest.fail("looked up"))
    check_components(recipe())


def test_logs_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    """A run that writes a log of the same name renames the logs before it, and its own has the plain name."""
    for number in range(3):
        log = RunLog(f"{tmp_path}/{{run_name}}-rank{{rank}}.txt", capture_stdout=False, capture_stderr=False)
        log.init(SimpleNamespace(run_name="small"), None)  # type: ignore[arg-type]  # it asks for the name alone
        log.write("", f"run {number}\n")
        assert log.file is not None
        log.file.close()
    names = ("small-rank0.1.txt", "small-rank0.2.txt", "small-rank0.txt")
    assert [(tmp_path / name).read_text() for name in names] == ["run 0\n", "run 1\n", "run 2\n"]
    assert len(list(tmp_path.iterdir())) == 3
