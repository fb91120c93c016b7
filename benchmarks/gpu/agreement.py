"""Does the device compute what float64 on a CPU does, and do all ways to compute a step give the same step?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from composer import Trainer
from learner import attend_with_dense_mask, make_model, make_optimizer, random_loader
from report import Check
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from annotator import FactClass
from lacy_stream import CallMask
from lacy_stream.objective.batch import shift_labels
from lacy_stream.objective.losses import IGNORED_LABEL, HiddenStates, token_losses, training_loss
from lacy_stream.objective.methods import OBJECTIVES
from lacy_stream.objective.minibatch import Masks, select_masks
from lacy_stream.objective.selectors import METHODS, Selection, Targets, lacy

LOSS_BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
GRADIENT_BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative errors against float64 on a CPU, for the same inputs."""
WEIGHTS_BOUND = {"fp32": 1e-4, "amp_bf16": 1e-2}
"""Relative distance of the weights after a few steps that were computed in two ways. AdamW takes steps of one size, so
that the sign of a gradient near 0 is a whole step."""
DIFFERENT_CALLS_BOUND = {"fp32": 1e-3, "amp_bf16": 1e-2}
"""Share of the targets: those whose losses lie next to the threshold may change sides."""
STEPS = 3


def run(check: Check) -> None:
    _report_attention(check)
    _report_methods(check)
    _report_trainings(check)


# --- attention --------------------------------------------------------------------------------------------------------


def _report_attention(check: Check) -> None:
    """Whether PyTorch's attention gets a dense mask, and whether its flash kernel takes the call: our models, and the
    same with the mask that ``steps`` compares them with."""
    pieces, length = 300, 64
    ids_BT = torch.randint(0, pieces, (2, length), device=check.device)
    for wanted in (False, True):
        model = make_model("toy" if check.toy else "42M", pieces, length).model.train()
        if wanted:
            attend_with_dense_mask(model)
        calls: list[tuple[bool, bool]] = []
        with watched_attention(calls), torch.autocast(check.device, dtype=torch.bfloat16):
            try:
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where it does not take the call
                    model(input_ids=ids_BT)
                flash = True
            except RuntimeError:
                flash = False
        dense, causal = any(dense for dense, _ in calls), all(causal for _, causal in calls)
        within = bool(calls) and dense == wanted and causal != wanted and (flash or wanted)
        check.report("attention", mask_wanted=wanted, dense_mask=dense, causal=causal, flash=flash, within=within)


@contextmanager
def watched_attention(calls: list[tuple[bool, bool]]) -> Iterator[None]:
    """Note for each call of PyTorch's attention whether it got a mask, and whether it is causal by itself."""
    original = F.scaled_dot_product_attention

    def watched(*arguments: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **settings: Any) -> Tensor:
        calls.append((attn_mask is not None, is_causal))
        return original(*arguments, attn_mask=attn_mask, is_causal=is_causal, **settings)

    F.scaled_dot_product_attention = watched
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


# --- the nine methods -------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A mini-batch, float32, on the CPU, and what the methods look at beside the model's losses."""

    states_BTD: Tensor
    weight_VD: Tensor
    targets_BT: Tensor
    classes_BT: Tensor
    random_BT: Tensor
    reference_BT: Tensor

    @property
    def call_token_id(self) -> int:
        return len(self.weight_VD) - 1


class Result(NamedTuple):
    """On the CPU: the loss and its gradients in float64, and the masks that the device selects from its own losses."""

    loss: float
    gradients: list[Tensor]
    selection: Selection


def _report_methods(check: Check) -> None:
    example = make_example(check.toy)
    ways = itertools.product(METHODS, OBJECTIVES, ("logits", "hidden states"), (torch.float32, torch.bfloat16))
    for method, objective, source, dtype in ways:
        inputs = [part.to(dtype) for part in inputs_of(example, source)]
        expected = compute(example, [part.double() for part in inputs], method, objective)
        found = compute(example, [part.to(check.device) for part in inputs], method, objective, expected.selection)
        loss_error = abs(found.loss - expected.loss) / abs(expected.loss)
        gradient_error = max(map(relative_distance, found.gradients, expected.gradients))
        differ = sum(
            int((ours != theirs).sum())
            for ours, theirs in zip(found.selection, expected.selection, strict=True)
            if ours is not None and theirs is not None
        )
        within = loss_error <= LOSS_BOUND[dtype] and gradient_error <= GRADIENT_BOUND[dtype]
        within &= differ <= DIFFERENT_CALLS_BOUND["fp32" if dtype == torch.float32 else "amp_bf16"] * len(
            example.targets_BT.flatten()
        )
        call = found.selection.call
        check.report(
            "method",
            method=method,
            objective=objective,
            source=source,
            dtype=str(dtype).removeprefix("torch."),
            loss=expected.loss,
            loss_error=loss_error,
            gradient_error=gradient_error,
            masks_differ_at=differ,
            calls=None if call is None else int(call.sum()),
            within=within,
        )


def make_example(toy: bool) -> Example:
    rows, length, width, entries = (4, 64, 16, 301) if toy else (4, 256, 64, 32_001)
    generator = torch.Generator().manual_seed(1)
    labels_BT = torch.randint(0, entries - 1, (rows, length), generator=generator)
    labels_BT[0, length // 2 :] = IGNORED_LABEL
    # 22% facts: more than are called, and fewer than are called and ignored, so that every part of a method acts.
    shares = torch.zeros(len(FactClass))
    for kind, share in ((FactClass.FACTUAL, 0.22), (FactClass.GRAMMATICAL, 0.3), (FactClass.OTHER, 0.48)):
        shares[kind] = share
    draws = torch.multinomial(shares, rows * length, replacement=True, generator=generator)
    classes_BT = draws.view(rows, length).to(torch.uint8)
    targets_BT, classes_BT = shift_labels(labels_BT, classes_BT)
    return Example(
        torch.randn(rows, length, width, generator=generator),
        3 * torch.randn(entries, width, generator=generator) / width**0.5,
        targets_BT,
        classes_BT,
        torch.rand(rows, length, generator=generator),
        5 * torch.rand(rows, length, generator=generator),
    )


def inputs_of(example: Example, source: str) -> tuple[Tensor, ...]:
    """What is differentiated: the logits [B, T, V], or the hidden states [B, T, D] and the weight [V, D]."""
    if source == "logits":
        return (F.linear(example.states_BTD, example.weight_VD),)
    return example.states_BTD, example.weight_VD


def compute(
    example: Example, inputs: list[Tensor], method: str, objective: Any, masks: Selection | None = None
) -> Result:
    """Loss and gradients of a mini-batch, on the device and in the type of its inputs.

    Args:
        masks: by which the loss is computed; by default, those that are selected here.
    """
    device = inputs[0].device
    inputs = [part.clone().requires_grad_() for part in inputs]
    targets_BT, classes_BT, random_BT, reference_BT = (part.to(device) for part in example[2:])
    valid_BT = targets_BT != IGNORED_LABEL
    logits = inputs[0] if len(inputs) == 1 else HiddenStates(*inputs)
    losses = token_losses(logits, targets_BT, example.call_token_id)
    seen = Targets(losses.true.detach(), classes_BT, valid_BT, random_BT, reference_BT)
    selected: Masks = select_masks(METHODS[method].select, seen, 0.15, 0.15, "global")
    used = selected.selection if masks is None else masks
    used = Selection(*(None if mask is None else mask.to(device) for mask in used))
    loss = training_loss(losses, valid_BT, *used, objective=objective)
    loss.backward()
    gradients = [part.grad.cpu().double() for part in inputs if part.grad is not None]
    selection = Selection(*(None if mask is None else mask.cpu() for mask in selected.selection))
    return Result(loss.item(), gradients, selection)


def relative_distance(ours: Tensor, theirs: Tensor) -> float:
    """NaN where one of them has a NaN, which is within no bound."""
    return float((ours - theirs).norm() / theirs.norm())


# --- whole steps ------------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """The call masks of each step, [B, T] bool, and all weights after the last one, on the CPU."""

    masks: list[Tensor]
    weights: Tensor


def _report_trainings(check: Check) -> None:
    """The same steps in one microbatch and in four, from logits and from hidden states."""
    for precision in ("fp32", "amp_bf16") if check.on_gpu else ("fp32",):
        first = train(check, precision, microbatches=1, fused_loss=False)
        for microbatches, fused_loss in ((4, False), (1, True), (4, True)):
            other = train(check, precision, microbatches, fused_loss)
            differ = [int((one != two).sum()) for one, two in zip(first.masks, other.masks, strict=True)]
            error, targets = relative_distance(other.weights, first.weights), first.masks[0].numel()
            within = max(differ) <= DIFFERENT_CALLS_BOUND[precision] * targets and error <= WEIGHTS_BOUND[precision]
            check.report(
                "training",
                precision=precision,
                microbatches=microbatches,
                fused_loss=fused_loss,
                calls=[int(mask.sum()) for mask in other.masks],
                masks_differ_at=differ,
                targets=targets,
                weights_error=error,
                within=within,
            )


def train(check: Check, precision: str, microbatches: int, fused_loss: bool) -> Training:
    size, rows, length, pieces = ("toy", 8, 32, 300) if check.toy else ("42M", 32, 512, 32_000)
    masks: list[Tensor] = []

    def recorded(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
        selection = lacy(targets, call_count, ignore_count)
        assert selection.call is not None
        masks.append(selection.call.cpu())
        return selection

    model = make_model(size, pieces, length)
    trainer = Trainer(
        model=model,
        train_dataloader=random_loader(rows, length, pieces, seed=3),
        max_duration=f"{STEPS}ba",
        optimizers=make_optimizer(model, lr=1e-3),
        algorithms=[CallMask(pieces, method=recorded, fused_loss=fused_loss)],
        device_train_microbatch_size=rows // microbatches,
        progress_bar=False,
        seed=5,
        **check.trainer_settings(precision),
    )
    trainer.fit()
    trainer.close()
    weights = torch.cat([weight.detach().flatten().cpu().double() for weight in model.parameters()])
    return Training(masks, weights)
