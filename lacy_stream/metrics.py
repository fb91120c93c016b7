"""Validation losses on the model's own call mask (appendix A.4.3), as torchmetrics for Composer's evaluators.

Composer's LanguageCrossEntropy is not usable here: it keeps <CALL> in the softmax, so that each token's loss
grows by -log(1 - p(<CALL>)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lacy_stream.call_mask import IGNORED_LABEL, budget, token_losses


class CallScores(NamedTuple):
    """How much a model wants to delegate each position: its <CALL> logit (float32), and whether that leads."""

    logit: Tensor
    leads: Tensor


def call_scores(logits: Tensor, call_token_id: int) -> CallScores:
    """Scores of logits [..., V], each [...]."""
    return CallScores(logits[..., call_token_id].float(), logits.argmax(dim=-1) == call_token_id)


def own_call_mask(scores: CallScores, valid: Tensor, fraction: float) -> Tensor:
    """The positions that a model would delegate: those where <CALL> leads, cut or filled up to ``fraction`` of
    the valid positions by the <CALL> logit.

    Args:
        scores: of each position; valid: bool, same shape.

    Returns:
        bool, same shape: floor(fraction x valid) positions.
    """
    # Valid and led first, each group by its <CALL> logit: one stable sort after another.
    order = torch.argsort(scores.logit.flatten(), descending=True, stable=True)
    groups = (scores.leads.int() + valid.int() * 2).flatten()[order]
    order = order[torch.argsort(groups, descending=True, stable=True)]
    chosen = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    chosen[order] = torch.arange(len(order), device=order.device) < budget(valid, fraction)
    return chosen.view_as(valid)


class _MaskedLoss(Metric):
    """Mean of a loss over the positions of a mask that is made in each evaluation batch.

    Args:
        call_token_id: id of <CALL>.
        call_fraction: share of the positions that the model may delegate.
    """

    full_state_update = False

    def __init__(self, call_token_id: int, call_fraction: float = 0.15) -> None:
        super().__init__()
        self.call_token_id, self.call_fraction = call_token_id, call_fraction
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """logits [B, T, V]; targets [B, T], shifted, -100 where nothing is to be predicted."""
        values = self._values(logits, targets, targets != IGNORED_LABEL)
        self.total += values.sum(dtype=torch.float64)
        self.count += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.count

    def _values(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """The losses that are averaged, [n]."""
        raise NotImplementedError

    def _own_calls(self, logits: Tensor, valid: Tensor) -> Tensor:
        return own_call_mask(call_scores(logits, self.call_token_id), valid, self.call_fraction)


class TotalLoss(_MaskedLoss):
    """Mean loss of the true token over all positions, <CALL> excluded from the softmax. Nats."""

    def _values(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        return token_losses(logits, targets, self.call_token_id).true[valid]


class NonCallLoss(_MaskedLoss):
    """Mean loss of the true token off the model's own call mask, <CALL> excluded (equation A.6). Nats."""

    def _values(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        kept = valid & ~self._own_calls(logits, valid)
        return token_losses(logits, targets, self.call_token_id).true[kept]


class CallLoss(_MaskedLoss):
    """Mean loss of the true token on the model's own call mask, over the whole vocabulary (A.5). Nats."""

    def _values(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        calls = self._own_calls(logits, valid)
        return F.cross_entropy(logits[calls].float(), targets[calls], reduction="none")
