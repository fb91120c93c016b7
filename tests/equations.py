"""The equations of the paper, written down slowly: what losses are compared with."""

from __future__ import annotations

import torch


def equation_a4(
    logits: torch.Tensor, targets: torch.Tensor, call: torch.Tensor, ignore: torch.Tensor, call_token_id: int
) -> torch.Tensor:
    """A.4 written down slowly: one target after the other, softmax by definition. Without ignored targets it is A.3."""
    total = torch.zeros((), dtype=logits.dtype)
    for position, target in enumerate(targets.tolist()):
        odds = torch.exp(logits[position])
        if call[position]:
            total = total - torch.log(odds[call_token_id] / odds.sum())
        elif not ignore[position]:
            total = total - torch.log(odds[target] / (odds.sum() - odds[call_token_id]))
    return total / len(targets)


def equation_a2(logits: torch.Tensor, targets: torch.Tensor, ignore: torch.Tensor, call_token_id: int) -> torch.Tensor:
    """A.2, as slowly: the mean over what is not ignored."""
    kept = (~ignore).nonzero().flatten()
    nothing = torch.zeros(len(kept), dtype=torch.bool)
    return equation_a4(logits[kept], targets[kept], nothing, nothing, call_token_id)
