"""Whether the losses of a step are finite numbers, on all ranks, before the optimizer learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lacy_stream.errors import LacyStreamError, UsageError


class LossError(LacyStreamError, FloatingPointError):
    """A loss is NaN or infinite, so the run cannot continue. The message says which one, when and where."""


class StepCounts(NamedTuple):
    """What the check of a step knows of one rank: its losses of the model, and of the reference model, that are no
    finite numbers; and its valid targets."""

    model: float
    reference: float
    targets: float


class StepCheck:
    """Counts the losses of one step that are no finite numbers. Nothing waits for a GPU."""

    def __init__(self) -> None:
        self._own: list[Tensor] = []  # scalars, one for each call of `add`
        self._reference: list[Tensor] = []

    @torch.no_grad()
    def add(self, losses: Tensor, counted: Tensor | None = None) -> None:
        """Look at losses of the model.

        Args:
            losses: of any shape.
            counted: bool, of the same shape: those that matter. None for all.
        """
        self._own.append(_unusable(losses, counted))

    @torch.no_grad()
    def add_reference(self, losses: Tensor, counted: Tensor) -> None:
        """Look at losses of the reference model, which decide the masks. Arguments as for ``add``."""
        self._reference.append(_unusable(losses, counted))

    def counts(self, targets: Tensor) -> Tensor:
        """The fields of ``StepCounts``, float64 [3], on the device of the losses.

        Args:
            targets: how many valid targets this rank has in the step, a scalar.
        """
        device = self._own[0].device if self._own else targets.device
        own, reference = (_total(counts, device) for counts in (self._own, self._reference))
        return torch.stack([own, reference, targets.to(device).double()])


def check_counts(ranks: Sequence[StepCounts], step: int) -> None:
    """Raise if something was wrong on any rank.

    Args:
        ranks: what was counted, by rank.
        step: steps of training before this one.

    Raises:
        LossError: a loss is not finite.
        UsageError: no rank has a target.
    """
    so_far = f"after {step} step{'s' * (step != 1)} of training"
    for column, name in enumerate(("loss of the model", "loss of the reference model")):
        where = [rank for rank, counts in enumerate(ranks) if counts[column]]
        if not where:
            continue
        on = "" if len(ranks) == 1 else f" (on rank {', '.join(map(str, where))} of {len(ranks)})"
        raise LossError(f"{so_far}, the {name} is NaN or infinite{on}. {_ADVICE[column]}")
    if not any(counts.targets for counts in ranks):
        raise UsageError(
            f"{so_far}, a step has no target: all labels of its mini-batch are -100, as "
            "padding is. Look at the labels of the data"
        )


_ADVICE = (
    "The step was not taken. Start from a checkpoint before it, with a lower learning rate, gradient clipping, or a "
    "wider precision",
    "It decides which tokens are delegated, so the step was not taken. The reference model is damaged, or its "
    "precision is too narrow: evaluate it on this data",
)


def _unusable(losses: Tensor, counted: Tensor | None) -> Tensor:
    """How many of the losses are no finite numbers, a scalar."""
    unusable = ~torch.isfinite(losses)
    return (unusable if counted is None else unusable & counted).sum(dtype=torch.float64)


def _total(counts: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.float64, device=device)
