"""Validation losses on a model's call mask (appendix A.4.3), as torchmetrics for Composer's evaluators.

The mask is made once, over all positions of an evaluation on all ranks, when the metric is computed: so its values
depend neither on the size of batches nor on the number of ranks. Until then a metric keeps 9 bytes a position.

Composer's LanguageCrossEntropy is not usable here: it keeps <CALL> in the softmax, so that each token's loss
grows by -log(1 - p(<CALL>)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lacy_stream.objective.losses import IGNORED_LABEL
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import CallScores, TokenScores, call_scores, own_call_mask, token_scores
from lacy_stream.objective.step_check import LossError


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
        self._scores = WeakTensorKeyDictionary()  # ids of a batch -> their scores, as long as the batch lives

    def __deepcopy__(self, memo: Any) -> MaskModel:
        return self  # Composer copies metrics: the weights are shared

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> CallScores:
        """Scores [B, T] of the next tokens of a batch; computed once for all metrics of the batch."""
        ids_BT = batch["input_ids"]
        if ids_BT not in self._scores:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
            logits_BTV = self._model.to(ids_BT.device)(**inputs).logits
            self._scores[ids_BT] = call_scores(logits_BTV, self._call_token_id, self._rank)
        return self._scores[ids_BT]


class _CachedScores(NamedTuple):
    """The scores of some logits, and what they were computed for."""

    targets: Tensor
    call_token_id: int
    rank: Rank
    scores: TokenScores


_cache = WeakTensorKeyDictionary()
"""Logits -> ``_CachedScores``, as long as the logits live. Composer gives all metrics of an evaluation the same
tensors, one metric after the other. With a vocabulary of 32,000, the losses are most of what a metric costs."""


def _scores_of(logits: Tensor, targets: Tensor, call_token_id: int, rank: Rank) -> TokenScores:
    cached: _CachedScores | None = _cache.get(logits)
    if cached is None or cached.targets is not targets or cached[1:3] != (call_token_id, rank):
        cached = _CachedScores(targets, call_token_id, rank, token_scores(logits, targets, call_token_id, rank))
        _cache[logits] = cached
    return cached.scores


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
        scores = _scores_of(logits, targets, self.call_token_id, self.rank_calls_by)
        losses = scores.losses.true[targets != IGNORED_LABEL]
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
    _on_calls: bool
    """Whether the positions are those of the mask, or all others."""
    _with_call = False
    """Whether <CALL> is in the softmax."""

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
        self._add(logits, targets)

    def _add(self, logits: Tensor, targets: Tensor, calls: CallScores | None = None) -> None:
        """Keep the losses, and the scores that decide the mask: by default those of the same logits."""
        valid, own = targets != IGNORED_LABEL, _scores_of(logits, targets, self.call_token_id, self.rank_calls_by)
        losses, calls = own.losses.true_with_call if self._with_call else own.losses.true, calls or own.calls
        # Only valid positions are kept: the mask is a share of them, over all batches and ranks.
        cast(list, self.loss).append(losses[valid])
        cast(list, self.score).append(calls.score[valid])
        cast(list, self.first).append(calls.first[valid].to(torch.uint8))  # gloo gathers no bool

    def compute(self) -> Tensor:
        loss, score, first = (dim_zero_cat(getattr(self, name)) for name in ("loss", "score", "first"))
        call = own_call_mask(CallScores(score, first > 0), torch.ones_like(first, dtype=torch.bool), self.call_fraction)
        return loss[call if self._on_calls else ~call].mean(dtype=torch.float64)


class CallLoss(_MaskedLoss):
    """Mean loss of the true token on the model's own call mask, over the whole vocabulary (A.5). Nats."""

    _on_calls, _with_call = True, True


class NonCallLoss(_MaskedLoss):
    """Mean loss of the true token off the model's own call mask, <CALL> excluded (equation A.6). Nats."""

    _on_calls = False


class _MatchedLoss(_MaskedLoss):
    """The same on the call mask of another model, ``mask_from``."""

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

    def compute(self) -> Tensor:
        """The mean.

        Raises:
            LossError: the other model's scores are NaN, so its mask would be one of chance.
        """
        if dim_zero_cat(self.score).isnan().any():
            raise LossError(
                "the model whose call mask is evaluated (eval_mask_from) gives NaN as scores of <CALL>: its weights "
                "are damaged. Name another checkpoint"
            )
        return super().compute()


class MatchedCallLoss(_MatchedLoss):
    """Mean loss of the true token on another model's call mask, <CALL> excluded: the baseline's side of figure 5, left.
    Nats. (Without calls, a baseline has nothing to put on <CALL>; leaving it out compares what the two know.)"""

    _on_calls = True


class MatchedNonCallLoss(_MatchedLoss):
    """Mean loss of the true token off another model's call mask, <CALL> excluded: figure 5, right. Nats."""

    _on_calls = False
