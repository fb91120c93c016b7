"""A run whose model cannot be compiled, or whose device cannot do what the recipe asks for."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Trainer
from test_call_mask import CALL, ROWS, CallMask, fit, gpt2, rows, weights
from torch.utils.data import DataLoader

from lacy_stream.objective.methods import Scope
from lacy_stream.recipe import Recipe, RecipeError, load_recipe
from lacy_stream.train.compiling import CompileError, guard_compiled
from lacy_stream.train.components import check_components
from lacy_stream.train.trainer import _check_precision, _fit

pytestmark = pytest.mark.model

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "lacy_demo.yaml"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(DEMO, overrides)


def trainer(model: Any, steps: int = 2, scope: Scope = "global", **settings: Any) -> Trainer:
    """A Trainer with the batches, the optimizer and the call mask of ``fit``."""
    return Trainer(
        model=model,
        train_dataloader=DataLoader(rows(ROWS * steps), batch_size=ROWS),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        algorithms=[CallMask(CALL, scope=scope)],
        progress_bar=False,
        device="cpu",
        **{"device_train_microbatch_size": 4} | settings,
    )


def no_compiler(graph: Any, inputs: Any) -> Any:
    """A backend of torch.compile on a machine that lacks what it needs."""
    raise OSError("there is no compiler\non this machine")


def test_compile_that_fails_trains_uncompiled() -> None:
    """The model is trained as without torch.compile, with one warning that says why."""
    plain, compiled = gpt2(), gpt2()
    fit(plain, microbatch=4)
    run = trainer(compiled, compile_config={"backend": no_compiler})
    guard_compiled(run.state.model, fallback=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit()
    (message,) = [str(warning.message) for warning in caught if "torch.compile" in str(warning.message)]
    assert "no compiler" in message and "trained uncompiled (compile_fallback)" in message
    assert torch.equal(weights(compiled), weights(plain))


def test_compile_that_fails_stops_where_it_is_asked() -> None:
    """Without a fallback, the run stops with the key and the way out."""
    run = trainer(gpt2(), compile_config={"backend": no_compiler})
    guard_compiled(run.state.model, fallback=False)
    with pytest.raises(CompileError, match="compile_config: torch.compile failed .*compile_fallback=true"):
        run.fit()


def test_errors_of_a_compiled_model_stay_its_own() -> None:
    """What a model raises is no failure of the compiler."""

    def forward(batch: Any) -> Any:
        raise RuntimeError("the model's own")

    model = gpt2()
    run = trainer(model, compile_config={"backend": "eager"})
    run.state.model.forward = forward
    guard_compiled(run.state.model, fallback=True)
    with pytest.raises(RuntimeError, match="the model's own"):
        run.fit()


def test_unknown_backend_is_refused() -> None:
    """A backend that torch.compile does not have is found before anything is loaded."""
    with pytest.raises(RecipeError, match="compile_config.backend: .*no backend 'inducter'.*known name is inductor"):
        check_components(recipe("compile_config={backend: inducter}"))
    check_components(recipe("compile_config={backend: eager}"))


def test_card_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that would only emulate bf16 is named, with the precisions that it has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(RecipeError, match="precision: amp_bf16, but Tesla V100 has no bf16: set precision=amp_fp16"):
        _check_precision(recipe("precision=amp_bf16"))
    _check_precision(recipe("precision=fp32"))


class TooLarge:
    """A forward for which the memory does not suffice with more than some rows."""

    def __init__(self, model: Any, rows: int) -> None:
        self.forward, self.rows, self.sizes = model.forward, rows, []

    def __call__(self, batch: Any) -> Any:
        self.sizes.append(len(batch["input_ids"]))
        if self.sizes[-1] > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return self.forward(batch)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "device_train_microbatch_size: .* 16 rows of 128 tokens .*: set device_train_microbatch_size to less than",
        ),
        (["device_train_microbatch_size=1"], "too little memory for one row of 128 tokens .*fsdp_config"),
    ],
)
def test_too_little_memory_is_a_clear_error(overrides: list[str], message: str) -> None:
    """The key, its value and the way out, in place of a traceback."""
    model = gpt2()
    run = trainer(model)
    run.state.model.forward = TooLarge(model, 0)
    with pytest.raises(RecipeError, match=message):
        _fit(run, recipe(*overrides))


@pytest.mark.parametrize("scope", ["global", "running"])
def test_auto_starts_the_step_over(scope: Scope) -> None:
    """`auto` halves the microbatches until they fit: the weights are those of a run that began with that size, though
    the first tries broke off in a first pass or in the middle of a step."""
    known, found = gpt2(), gpt2()
    fit(known, microbatch=2, scope=scope)
    run = trainer(found, scope=scope, device_train_microbatch_size=ROWS)
    run.state.auto_microbatching = True
    forward = run.state.model.forward = TooLarge(found, 2)
    with pytest.warns(RuntimeWarning, match="microbatch size will be decreased from 8 -> 4"):
        run.fit()
    assert set(forward.sizes) == {8, 4, 2}
    torch.testing.assert_close(weights(found), weights(known))


def test_auto_that_finds_nothing_is_a_clear_error() -> None:
    """Where not even one row fits, the message says what else can be made smaller."""
    model = gpt2()
    run = trainer(model)
    run.state.auto_microbatching = True
    run.state.model.forward = TooLarge(model, 0)
    with pytest.raises(RecipeError, match="device_train_microbatch_size: auto, but .* one row .*smaller max_seq_len"):
        _fit(run, recipe("device_train_microbatch_size=auto"))


def test_model_that_hides_its_output_layer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """On a GPU, a model whose output layer cannot be had takes its logits, with one warning."""
    model = gpt2()
    model.model.get_output_embeddings = lambda: None
    mask = CallMask(CALL)
    mask._model = model
    on_gpu: Any = SimpleNamespace(device=SimpleNamespace(name="gpu"), model=model)
    with caplog.at_level(logging.WARNING):
        assert mask._open_output_layer(on_gpu) is None
    (message,) = [record.message for record in caplog.records if record.name == "lacy_stream.train.call_mask"]
    assert "computed from logits, which takes more memory, since GPT2LMHeadModel has no plain linear" in message
