"""Validation losses by their names in a Foundry YAML. Foundry makes metrics without arguments; the call mask tells them
which token is ``<CALL>``."""

from __future__ import annotations

from typing import Any

from composer.models import HuggingFaceModel
from torch import Tensor

from lacy_stream.errors import UsageError
from lacy_stream.objective import metrics
from lacy_stream.objective.methods import Rank

UNKNOWN = -1


class _CallMaskMetric:
    """A metric that learns its settings from the run's call mask."""

    call_token_id: int

    def __init__(self) -> None:
        super().__init__(UNKNOWN)  # pyright: ignore[reportCallIssue]

    def update(self, logits: Tensor, targets: Tensor) -> None:
        if self.call_token_id == UNKNOWN:
            raise UsageError(
                f"the metric {type(self).__name__} takes the id of <CALL> from algorithms.call_mask, and the run has "
                "none: add it, or leave the metric out"
            )
        super().update(logits, targets)  # pyright: ignore[reportAttributeAccessIssue]


class TotalLoss(_CallMaskMetric, metrics.TotalLoss):
    """``total_loss``: see ``objective.metrics.TotalLoss``."""


class CallLoss(_CallMaskMetric, metrics.CallLoss):
    """``call_loss``: see ``objective.metrics.CallLoss``."""


class NonCallLoss(_CallMaskMetric, metrics.NonCallLoss):
    """``non_call_loss``: see ``objective.metrics.NonCallLoss``."""


def tell_metrics(model: HuggingFaceModel, call_token_id: int, call_fraction: float, rank_calls_by: Rank) -> None:
    """Tell a model's metrics which token is <CALL>, before Composer copies them."""
    found: list[Any] = [*model.get_metrics(is_train=True).values(), *model.get_metrics(is_train=False).values()]
    for metric in found:
        if isinstance(metric, _CallMaskMetric):
            metric.call_token_id = call_token_id
            metric.rank_calls_by = rank_calls_by  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(metric, metrics.CallLoss | metrics.NonCallLoss):
                metric.call_fraction = call_fraction
