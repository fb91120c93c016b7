"""Validation losses on a model's call mask (appendix A.4.3), as torchmetrics for Composer's evaluators.

The mask is made once, over all positions of an evaluation on all ranks, when the metric is computed: so its values
depend neither on the size of batches nor on the number of ranks. Until then a metric keeps 9 bytes a position.

Composer's LanguageCrossEntropy is not usable here: it keeps <CALL> in the softmax, so that each token's loss
grows by -log(1 - p(<CALL>)).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lacy_stream.objective.losses import IGNORED_LABEL, TokenLosses, token_losses
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import CallScores, call_scores
from lacy_stream.objective.selectors import budget


def own_call_mask(scores: CallScores, valid: Tensor, fraction: float) -> Tensor:
    """The positions that a model would delegate: those to be called first, then the others, each by their score, up to
    ``fraction`` of the valid positions.

    Args:
        scores: of each position; valid: bool, same shape.

    Returns:
        bool, same shape: floor(fraction x valid) positions.
    """
    # Valid and first ones before the others, each group by its score: one stable sort after another.
    order = torch.argsort(scores.score.flatten(), descending=True, stable=True)
    groups = (scores.first.int() + valid.int() * 2).flatten()[order]
    order = order[torch.argsort(groups, descending=True, stable=True)]
    chosen = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    chosen[order] = torch.arange(len(order), device=order.device) < budget(valid, fraction)
    return chosen.view_as(valid)


class MaskModel:
    """Another model, on whose call mask losses are evaluated ("matched").

    Args:
        model: a causal language model of transformers with an entry for <CALL>; it is frozen, and moved to the device
            of the first batch.
        call_token_id: id of <CALL>.
        rank_calls_by: how its calls are ranked.
    """

    def __init__(self, model: torch.nn.Module, call_token_id: int, rank_calls_by: Rank = "probability") -> None:
        self._model, self._call_token_id = model.eval().requires_grad_(False), call_token_id
        self._rank: Rank = rank_calls_by
        self._last: tuple[Tensor, CallScores] | None = None

    def __deepcopy__(self, memo: Any) -> MaskModel:
        return self  # Composer copies metrics: the weights are shared

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> CallScores:
        """Scores [B, T] of the next tokens of a batch; computed once for all metrics of the batch."""
        ids = batch["input_ids"]
        if self._last is None or self._last[0] is not ids:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
            logits = self._model.to(ids.device)(**inputs).logits
            self._last = (ids, call_scores(logits, self._call_token_id, self._rank))
        return self._last[1]


_Asked = tuple[int, Rank]
_Found = tuple[TokenLosses, CallScores]


class _Measured:
    """What every metric needs of a batch. Composer gives all of them the same tensors, one metric after the other, so
    it is computed once; with a vocabulary of 32,000 it is most of what a metric costs."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], weakref.ref[Tensor], _Asked, _Found] | None = None

    def __call__(self, logits: Tensor, targets: Tensor, call_token_id: int, rank: Rank) -> _Found:
        """Losses and scores of each position; logits [..., V], targets [...]."""
        asked = (call_token_id, rank)
        if self._last is not None:
            of_logits, of_targets, of_asked, found = self._last
            if of_logits() is logits and of_targets() is targets and of_asked == asked:
                return found
        losses = token_losses(logits, targets, call_token_id)
        found = losses, call_scores(logits, call_token_id, rank, losses)
        self._last = weakref.ref(logits), weakref.ref(targets), asked, found
        return found


_measured = _Measured()


class TotalLoss(Metric):
    """Mean loss of the true token over all positions, <CALL> excluded from the softmax. Nats."""

    full_state_update = False

    def __init__(self, call_token_id: int, call_fraction: float = 0.15, rank_calls_by: Rank = "probability") -> None:
        super().__init__()
        self.call_token_id = call_token_id
        self.rank_calls_by: Rank = rank_calls_by  # plays no part here; all metrics share what is measured
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """logits [B, T, V]; targets [B, T], shifted, -100 where nothing is to be predicted."""
        losses = _measured(logits, targets, self.call_token_id, self.rank_calls_by)[0].true[targets != IGNORED_LABEL]
        self.total += losses.sum(dtype=torch.float64)
        self.count += losses.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class _MaskedLoss(Metric):
    """Mean loss of the true token on a part of the positions that a call mask decides.

    Args:
        call_token_id: id of <CALL>.
        call_fraction: share of the positions that the mask delegates.
        rank_calls_by: the score by which they are chosen.
    """

    full_state_update = False

    def __init__(self, call_token_id: int, call_fraction: float = 0.15, rank_calls_by: Rank = "probability") -> None:
        super().__init__()
        self.call_token_id, self.call_fraction = call_token_id, call_fraction
        self.rank_calls_by: Rank = rank_calls_by
        self.loss: list[Tensor] | Tensor
        self.score: list[Tensor] | Tensor
        self.first: list[Tensor] | Tensor
        for name in ("loss", "score", "first"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """logits [B, T, V]; targets [B, T], shifted, -100 where nothing is to be predicted."""
        self._add(logits, targets, _measured(logits, targets, self.call_token_id, self.rank_calls_by)[1])

    def compute(self) -> Tensor:
        loss, score, first = (dim_zero_cat(getattr(self, name)) for name in ("loss", "score", "first"))
        call = own_call_mask(CallScores(score, first > 0), torch.ones_like(first, dtype=torch.bool), self.call_fraction)
        return loss[self._wanted(call)].mean(dtype=torch.float64)

    def _add(self, logits: Tensor, targets: Tensor, scores: CallScores) -> None:
        valid = targets != IGNORED_LABEL
        values = self._values(_measured(logits, targets, self.call_token_id, self.rank_calls_by)[0])
        cast(list, self.loss).append(values[valid])
        cast(list, self.score).append(scores.score[valid])
        cast(list, self.first).append(scores.first[valid].to(torch.uint8))  # gloo gathers no bool

    def _values(self, losses: TokenLosses) -> Tensor:
        raise NotImplementedError

    def _wanted(self, call: Tensor) -> Tensor:
        raise NotImplementedError


class CallLoss(_MaskedLoss):
    """Mean loss of the true token on the model's own call mask, over the whole vocabulary (A.5). Nats."""

    def _values(self, losses: TokenLosses) -> Tensor:
        return losses.true_with_call

    def _wanted(self, call: Tensor) -> Tensor:
        return call


class NonCallLoss(_MaskedLoss):
    """Mean loss of the true token off the model's own call mask, <CALL> excluded (equation A.6). Nats."""

    def _values(self, losses: TokenLosses) -> Tensor:
        return losses.true

    def _wanted(self, call: Tensor) -> Tensor:
        return ~call


class _Matched(_MaskedLoss):
    """Of a loss: on the call mask of another model, ``mask_from``."""

    needs_batch = True  # Composer's sign that `update` takes the whole batch

    def __init__(
        self,
        call_token_id: int,
        call_fraction: float = 0.15,
        rank_calls_by: Rank = "probability",
        *,
        mask_from: MaskModel,
    ) -> None:
        super().__init__(call_token_id, call_fraction, rank_calls_by)
        self._mask_from = mask_from

    def update(self, batch: Mapping[str, Tensor], outputs: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """batch: with ``input_ids`` [B, T]; outputs: this model's logits [B, T, V]; labels [B, T], shifted."""
        self._add(outputs, labels, self._mask_from(batch))


class MatchedCallLoss(_Matched):
    """Mean loss of the true token on another model's call mask, <CALL> excluded: the baseline's side of figure 5, left.
    Nats. (Without calls, a baseline has nothing to put on <CALL>; leaving it out compares what the two know.)"""

    def _values(self, losses: TokenLosses) -> Tensor:
        return losses.true

    def _wanted(self, call: Tensor) -> Tensor:
        return call


class MatchedNonCallLoss(_Matched):
    """Mean loss of the true token off another model's call mask, <CALL> excluded: figure 5, right. Nats."""

    def _values(self, losses: TokenLosses) -> Tensor:
        return losses.true

    def _wanted(self, call: Tensor) -> Tensor:
        return ~call
