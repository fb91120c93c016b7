"""logits -> how much a model wants to delegate each position: one score for training, validation losses (A.4.3), pages
and the cascade (A.5), and the uncertainty of a model that was not trained to call (i-LaCy, table 9)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lacy_stream.errors import UsageError
from lacy_stream.objective.losses import TokenLosses, token_losses
from lacy_stream.objective.methods import Rank

TOP = 20
"""Tokens that the entropy is taken of (i-LaCy)."""


class CallScores(NamedTuple):
    """score: float32, the higher the sooner. first: bool, positions that come before all others. Both of one shape."""

    score: Tensor
    first: Tensor


@torch.no_grad()
def call_scores(logits: Tensor, call_token_id: int, rank: Rank, losses: TokenLosses | None = None) -> CallScores:
    """Scores of logits [..., V], each [...].

    By probability, the score is the log-odds of <CALL>, and no position is first. By logit, it is the logit, and the
    positions where <CALL> leads all other logits come first (appendix A.4.3).

    Args:
        losses: of these logits, where they are known already.

    Raises:
        ValueError: the model has no entry for <CALL>.
    """
    if call_token_id >= logits.shape[-1]:
        raise UsageError(
            f"the model has {logits.shape[-1]} entries in its vocabulary, and none for <CALL>, {call_token_id}: its "
            f"calls cannot be ranked by {rank}"
        )
    if rank == "logit":
        return CallScores(logits[..., call_token_id].float(), logits.argmax(dim=-1) == call_token_id)
    if losses is None:
        any_target = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        losses = token_losses(logits, any_target, call_token_id)
    score = losses.call_log_odds.float()
    return CallScores(score, torch.zeros_like(score, dtype=torch.bool))


def uncertainty(logits_V: Tensor, *, entropy: bool) -> float:
    """Of the next token, in nats: the entropy of the 20 most likely tokens, or -log p of the most likely one."""
    if not entropy:
        return float(-torch.log_softmax(logits_V, dim=-1).max())
    top = torch.log_softmax(logits_V.topk(min(TOP, len(logits_V))).values, dim=-1)
    return float(-(top.exp() * top).nansum())
