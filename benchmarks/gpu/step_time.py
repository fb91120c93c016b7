"""Time of a step, tokens/s, MFU and peak memory, with each improvement of the step on and off."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from composer import Callback, Trainer
from learner import Learner, attend_with_dense_mask, make_model, make_optimizer, random_loader
from report import Check

from lacy_stream import CallMask
from lacy_stream.objective.methods import Scope
from lacy_stream.train.flops import flops_per_token

LEAST_S = 20
"""No plan begins with less time than this."""


@dataclass(frozen=True)
class Plan:
    """A way to train.

    size: of the model, a key of ``learner.SIZES``.
    rows: of a microbatch.
    loss: ``hf``: Hugging Face's cross-entropy, no call mask; ``ours``: the call mask ``lacy``.
    microbatches: of a step.
    scope: of the call mask.
    fused_loss: compute our loss from hidden states, rather than from logits.
    dense_mask: give attention a mask [B, 1, T, T], as transformers 4.53 to 4.57 do.
    pad_vocab_to: the rows of the embedding are a multiple of this, as in the shipped recipes; 1 for 32,001 of them.
    fused_adamw: AdamW in one kernel; on a CPU it never is.
    compiled: by torch.compile.
    composer: a Trainer of Composer, rather than a plain loop.
    """

    size: str
    rows: int
    loss: Literal["hf", "ours"] = "ours"
    microbatches: int = 1
    scope: Scope = "global"
    fused_loss: bool = True
    dense_mask: bool = False
    pad_vocab_to: int = 128
    fused_adamw: bool = True
    compiled: bool = False
    composer: bool = True

    @property
    def name(self) -> str:
        """The size, the loss, and what is not the default."""
        changes = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in ("size", "loss") and getattr(self, field.name) != field.default
        ]
        return ", ".join([f"{self.size} {self.loss}", *changes])


def plans(toy: bool) -> list[Plan]:
    """All plans, most important first. Hugging Face's loss comes twice, since a card may become slower as it warms."""
    ours = Plan("toy", 4) if toy else Plan("334M", 16)
    large = Plan("toy", 2) if toy else Plan("1.27B", 8)
    plain = replace(ours, loss="hf")
    return [
        plain,
        ours,
        replace(ours, fused_loss=False),
        plain,
        replace(plain, compiled=True),
        replace(ours, compiled=True),
        replace(large, loss="hf"),
        large,
        replace(plain, pad_vocab_to=1),
        replace(ours, pad_vocab_to=1),
        replace(ours, dense_mask=True),
        replace(ours, fused_adamw=False),
        replace(plain, microbatches=4),
        replace(ours, microbatches=4),
        replace(ours, microbatches=4, scope="running"),
        replace(ours, microbatches=4, scope="microbatch"),
        replace(ours, composer=False),
        replace(ours, rows=2 * ours.rows, compiled=True),
        replace(large, compiled=True),
        replace(ours, fused_loss=False, pad_vocab_to=1, dense_mask=True, fused_adamw=False),
    ]


def run(check: Check) -> None:
    pieces, length = (300, 64) if check.toy else (32_000, 1024)
    measured: list[tuple[Plan, dict[str, Any]]] = []
    failed = []
    for plan in plans(check.toy):
        if check.seconds_left() < LEAST_S:
            check.report("stopped", before=plan.name)
            break
        start = time.monotonic()
        try:
            found = measure(check, plan, pieces, length)
            measured.append((plan, found))
        except Exception as error:  # such as too little memory: the next plan may do
            traceback.print_exc()
            failed.append(plan.name)
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        took = round(time.monotonic() - start, 1)
        check.report("step", plan=plan.name, **asdict(plan), length=length, **found, took_s=took)
        gc.collect()
        if check.on_gpu:
            torch.cuda.empty_cache()
    report_ratios(check, measured)
    if failed:
        raise SystemExit(f"plans failed: {failed}")


def report_ratios(check: Check, measured: list[tuple[Plan, dict[str, Any]]]) -> None:
    """The cost of the call mask: time and peak memory of our plans, as multiples of those of Hugging Face's loss in the
    same setting. Plans are measured one after the other."""
    for plan, found in measured:
        beside = replace(plan, loss="hf", scope="global", fused_loss=True)  # these two mean nothing to it
        theirs = [values for other, values in measured if other == beside]
        if plan.loss == "ours" and theirs:
            time_ratio = found["ms"] / statistics.mean(values["ms"] for values in theirs)
            memory_ratio = found["peak_gb"] / max(values["peak_gb"] for values in theirs) if check.on_gpu else None
            check.report("call mask", plan=plan.name, times_hf=round(time_ratio, 3), memory_times_hf=memory_ratio)


def measure(check: Check, plan: Plan, pieces: int, length: int) -> dict[str, Any]:
    """Milliseconds and what follows from them. No data is waited for."""
    model = make_model(plan.size, pieces, length, plan.pad_vocab_to)
    if plan.dense_mask:
        attend_with_dense_mask(model.model)
    clock = Clock(check, *((1, 2) if check.toy else (3, 8)))
    try:
        (_run_composer if plan.composer else _run_loop)(check, plan, model, clock, pieces, length)
    finally:
        torch._dynamo.reset()
    tokens_per_s = plan.rows * plan.microbatches * length / clock.step_s
    flops = flops_per_token(model.model, length)
    assert flops is not None, "only mixtures of experts have none"
    return {
        "ms": round(1000 * clock.step_s, 3),
        "first_step_s": round(clock.first_step_s, 1),
        "tokens_per_s": round(tokens_per_s),
        "mfu": float(f"{tokens_per_s * flops / (check.peak_tflops * 1e12):.4g}"),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if check.on_gpu else None,
    }


class Clock:
    """Seconds of a step: the mean over ``timed`` steps, after a first one and ``warm`` more. The device is waited for
    before the first of them and after the last, and nowhere between."""

    def __init__(self, check: Check, warm: int, timed: int) -> None:
        self._check, self._warm, self._timed = check, warm, timed
        self.steps = 1 + warm + timed
        self.first_step_s, self.step_s = 0.0, 0.0
        self._done = 0
        self._start = time.perf_counter()

    def start(self) -> None:
        self._start = time.perf_counter()

    def end_step(self) -> None:
        self._done += 1
        if self._done not in (1, 1 + self._warm, self.steps):
            return
        self._check.synchronize()
        if self._done == 1:
            self.first_step_s = time.perf_counter() - self._start
        if self._done == 1 + self._warm:
            if self._check.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            self.start()
        elif self._done == self.steps:
            self.step_s = (time.perf_counter() - self._start) / self._timed


class ClockOfBatches(Callback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def fit_start(self, state: Any, logger: Any) -> None:
        self._clock.start()

    def batch_end(self, state: Any, logger: Any) -> None:
        self._clock.end_step()


def _run_composer(check: Check, plan: Plan, model: Any, clock: Clock, pieces: int, length: int) -> None:
    rows, algorithms = plan.rows * plan.microbatches, []
    if plan.loss == "ours":
        algorithms = [CallMask(pieces, scope=plan.scope, fused_loss=plan.fused_loss)]
    trainer = Trainer(
        model=model,
        train_dataloader=random_loader(rows, length, pieces),
        max_duration=f"{clock.steps}ba",
        optimizers=make_optimizer(model, fused=plan.fused_adamw),
        algorithms=algorithms,
        callbacks=[ClockOfBatches(clock)],
        device_train_microbatch_size=plan.rows,
        compile_config=compile_config(check) if plan.compiled else None,
        progress_bar=False,
        seed=5,
        **check.trainer_settings(),
    )
    trainer.fit()
    trainer.close()


def _run_loop(check: Check, plan: Plan, model: Any, clock: Clock, pieces: int, length: int) -> None:
    learner = Learner(check, model, pieces)
    batches = iter(random_loader(plan.rows, length, pieces))
    clock.start()
    for _ in range(clock.steps):
        batch = {key: value.to(check.device, non_blocking=True) for key, value in next(batches).items()}
        learner.step(batch)
        clock.end_step()


def compile_config(check: Check) -> dict[str, Any]:
    """The defaults of torch.compile; on a CPU, without the compiler of the backend, which takes minutes."""
    return {} if check.on_gpu else {"backend": "eager"}
