"""logits -> what a model makes of each target: its losses, how much it wants to call, and which calls are its own.

There is one score of <CALL> for training, validation losses (A.4.3), pages and the cascade (A.5). Beside it stands the
uncertainty of a model that was not trained to call (i-LaCy, table 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lacy_stream.errors import UsageError
from lacy_stream.objective.losses import HiddenStates, Logits, TokenLosses, token_losses, vocab_size
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.selectors import budget

TOP = 20
"""Tokens that the entropy is taken of (i-LaCy)."""


class CallScores(NamedTuple):
    """score: float32, the higher the sooner. first: bool, positions that come before all others. Both of one shape."""

    score: Tensor
    first: Tensor


class TokenScores(NamedTuple):
    """The losses of a model at each target, and its scores of <CALL>. All of one shape."""

    losses: TokenLosses
    calls: CallScores


@torch.no_grad()
def token_scores(logits: Tensor, targets: Tensor, call_token_id: int, rank: Rank) -> TokenScores:
    """Losses and scores of logits [..., V] and their targets [...], each [...].

    Targets stand where their logits stand; ``batch.shift_labels`` makes them of labels. Those of -100 give finite
    values that mean nothing.

    Raises:
        UsageError: the model has no entry for <CALL>.
    """
    losses = token_losses(logits, targets, call_token_id)
    return TokenScores(losses, call_scores(logits, call_token_id, rank, losses))


def join_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of several parts as one, joined along their first axis."""
    losses, calls = zip(*parts, strict=True)
    return TokenScores(
        TokenLosses(*(torch.cat(column) for column in zip(*losses, strict=True))),
        CallScores(*(torch.cat(column) for column in zip(*calls, strict=True))),
    )


def call_scores(logits: Tensor, call_token_id: int, rank: Rank, losses: TokenLosses | None = None) -> CallScores:
    """Scores of logits [..., V], each [...].

    By probability, the score is the log-odds of <CALL>, and no position is first. By logit, it is the logit, and the
    positions where <CALL> leads all other logits come first (appendix A.4.3).

    Args:
        losses: of these logits, where they are known already.

    Raises:
        UsageError: the model has no entry for <CALL>.
    """
    score = call_score(logits, call_token_id, rank, losses)
    if rank == "logit":
        return CallScores(score, logits.argmax(dim=-1) == call_token_id)
    return CallScores(score, torch.zeros_like(score, dtype=torch.bool))


@torch.no_grad()
def call_score(logits: Logits, call_token_id: int, rank: Rank, losses: TokenLosses | None = None) -> Tensor:
    """The score alone, float32 [...], which takes no pass over the logits where the losses are known. Arguments and
    errors as ``call_scores``, and the logits may be hidden states."""
    if call_token_id >= (entries := vocab_size(logits)):
        raise UsageError(
            f"the model has {entries} entries in its vocabulary, and none for <CALL>, {call_token_id}: its "
            f"calls cannot be ranked by {rank}"
        )
    states = logits.states if isinstance(logits, HiddenStates) else logits
    if rank == "logit":
        return (logits.logit(call_token_id) if isinstance(logits, HiddenStates) else logits[..., call_token_id]).float()
    if losses is None:
        # The log-odds of <CALL> do not depend on the target.
        any_target = torch.zeros(states.shape[:-1], dtype=torch.long, device=states.device)
        losses = token_losses(logits, any_target, call_token_id)
    return losses.call_log_odds.float()


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
    # 3: valid and first, 2: valid, 1 and 0: not valid, which the budget never reaches.
    groups = (scores.first.int() + valid.int() * 2).flatten()[order]
    order = order[torch.argsort(groups, descending=True, stable=True)]
    chosen = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    chosen[order] = torch.arange(len(order), device=order.device) < budget(valid, fraction)
    return chosen.view_as(valid)


def uncertainty(logits_V: Tensor, *, entropy: bool) -> float:
    """A model's uncertainty about the next token, in nats: the entropy of the 20 most likely tokens, or -log p of the
    most likely one."""
    if not entropy:
        return float(-torch.log_softmax(logits_V, dim=-1).max())
    top = torch.log_softmax(logits_V.topk(min(TOP, len(logits_V))).values, dim=-1)
    return float(-(top.exp() * top).nansum())
