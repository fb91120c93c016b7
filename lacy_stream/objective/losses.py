"""The losses of every position, and the training loss that a selection makes of them (A.2, A.3, A.4).

    logits --token_losses--> loss of the true token, loss of <CALL> --training_loss--> scalar

Beside the logits and their gradient, no array of their size is ever held: the softmax is computed in chunks of
positions, and the gradient is written into its own buffer, chunk by chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Objective

IGNORED_LABEL = -100


class TokenLosses(NamedTuple):
    """Negative log-likelihoods in nats, float32 (or the dtype of the logits if it is wider), [B, T].

    true: of the target token, with the <CALL> logit left out of the softmax.
    call: of <CALL>, over the whole vocabulary.
    """

    true: Tensor
    call: Tensor

    def detach(self) -> TokenLosses:
        """The same losses, without gradient."""
        return TokenLosses(self.true.detach(), self.call.detach())

    @property
    def true_with_call(self) -> Tensor:
        """The loss of the target token over the whole vocabulary: -log p(x) = true - log(1 - p(<CALL>))."""
        tiny = torch.finfo(self.call.dtype).tiny  # where p(<CALL>) is 1 to the last bit
        return self.true - torch.log(-torch.expm1(-self.call.clamp(min=tiny)))

    @property
    def call_log_odds(self) -> Tensor:
        """log p(<CALL>) / (1 - p(<CALL>)), which is c - L in the terms of ``token_losses``: the inverse of
        call = softplus(L - c). It is cut at 87, where float32 has no smaller loss of <CALL>."""
        # From 30 on, log(e^x - 1) is x to the last bit. The clamp at 31 keeps the branch that is not taken finite.
        call = self.call.clamp(min=torch.finfo(self.call.dtype).tiny)
        return torch.where(call > 30, -call, -torch.log(torch.expm1(call.clamp(max=31))))


def token_losses(logits_BTV: Tensor, targets_BT: Tensor, call_token_id: int) -> TokenLosses:
    """Both losses of every position, from one log-sum-exp.

    With L = logsumexp of all logits but <CALL>'s, c the <CALL> logit and t the target's: true = L - t and
    call = log(e^L + e^c) - c = softplus(L - c). Targets of -100 give finite values that mean nothing.
    Differentiable once; beside the gradient of the logits, no second array of their size is ever held.

    Raises:
        UsageError: the model's vocabulary has no entry for <CALL>.
    """
    if call_token_id >= logits_BTV.shape[-1]:
        raise UsageError(
            f"call_token_id is {call_token_id}, but the model's vocabulary has {logits_BTV.shape[-1]} entries: give "
            "the model one entry more than the tokenizer has pieces"
        )
    true_BT, call_BT = cast(tuple[Tensor, Tensor], _TokenLosses.apply(logits_BTV, targets_BT, call_token_id))
    return TokenLosses(true_BT, call_BT)


_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that are handled at once: 16 MB in float32 on a CPU, whose cache keeps them; on a GPU 256 MB, so that
few kernels do much each."""


def _rows_at_once(logits_NV: Tensor) -> int:
    return max(1, _CHUNK.get(logits_NV.device.type, _CHUNK["cuda"]) // logits_NV.shape[1])


class _TokenLosses(torch.autograd.Function):
    """The arithmetic of ``token_losses``, in chunks of positions."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, targets_BT: Tensor, call_token_id: int) -> tuple[Tensor, Tensor]:
        logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
        targets_N = targets_BT.reshape(-1).clamp(min=0)  # -100 is no index; what it gives is not used
        dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
        parts = []
        for rows in logits_NV.split(_rows_at_once(logits_NV)):
            rows = rows.to(dtype)
            # All logits but that of <CALL>: those before it, and those of rows after it that pad the vocabulary.
            part = torch.logsumexp(rows[:, :call_token_id], dim=1)
            if call_token_id + 1 < rows.shape[1]:
                part = torch.logaddexp(part, torch.logsumexp(rows[:, call_token_id + 1 :], dim=1))
            parts.append(part)
        normaliser_N = torch.cat(parts)
        target_logit_N = logits_NV.gather(1, targets_N[:, None]).squeeze(1).to(dtype)
        call_logit_N = logits_NV[:, call_token_id].to(dtype)
        ctx.save_for_backward(logits_NV, targets_N, normaliser_N)
        ctx.call_token_id, ctx.shape = call_token_id, logits_BTV.shape
        shape = targets_BT.shape
        return (normaliser_N - target_logit_N).view(shape), F.softplus(normaliser_N - call_logit_N).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_true: Tensor, grad_call: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, targets_N, normaliser_N = ctx.saved_tensors
        call_token_id = ctx.call_token_id
        true_N, call_N = grad_true.reshape(-1), grad_call.reshape(-1)
        # d softplus(L - c) is sigmoid(L - c) dL - sigmoid(L - c) dc, and dL is the softmax without <CALL>.
        call_N = call_N * torch.sigmoid(normaliser_N - logits_NV[:, call_token_id].to(normaliser_N.dtype))
        weight_N = true_N + call_N
        grad_NV = torch.empty_like(logits_NV)
        size = _rows_at_once(logits_NV)
        for rows, out, targets, normaliser, weight, true, call in zip(
            *(whole.split(size) for whole in (logits_NV, grad_NV, targets_N, normaliser_N, weight_N, true_N, call_N)),
            strict=True,
        ):
            # The softmax without <CALL>, times the weight. In the column of <CALL> this means nothing, and it is
            # overwritten.
            grad = (rows - normaliser[:, None]).exp_().mul_(weight[:, None])
            grad[:, call_token_id] = -call
            grad.scatter_add_(1, targets[:, None], -true[:, None])
            out.copy_(grad)  # rounded once where the logits are bf16
        return grad_NV.view(ctx.shape), None, None


def training_loss(
    losses: TokenLosses,
    valid: Tensor,
    call: Tensor | None = None,
    ignore: Tensor | None = None,
    learned_share: Tensor | None = None,
    *,
    objective: Objective,
) -> Tensor:
    """The loss of a selection: <CALL> is the target on the call mask, the true token elsewhere. Targets on the ignore
    mask have no loss.

    With a call mask, the sum is divided by the number of valid targets, ignored ones included (equations A.3 and
    A.4). With an ignore mask alone, by the number of those that are not ignored (A.2).

    Args:
        losses: of each position, any shape.
        valid: bool, same shape: the targets that count (no padding).
        call, ignore: bool, same shape, disjoint; None for no such mask.
        learned_share: for A.2, the share of valid targets that are not ignored. Default, that of these positions; for
            a part of a mini-batch, that of the whole, so that the parts weigh as their valid targets do.
        objective: with a call mask, whether <CALL> is in the softmax where it is not the target (``defer``), or left
            out (``paper``).

    Returns:
        A scalar; 0 where nothing is valid.
    """
    loss = losses.true
    if call is not None:
        loss = torch.where(call, losses.call, losses.true_with_call if objective == "defer" else losses.true)
    counted = valid if ignore is None else valid & ~ignore
    divisor = valid.sum().clamp(min=1)
    if call is None and ignore is not None:
        share = counted.sum() / divisor if learned_share is None else learned_share
        divisor = (divisor * share).clamp(min=1e-9)
    return torch.where(counted, loss, 0).sum() / divisor


def true_losses(logits_BTV: Tensor, targets_BT: Tensor, call_token_id: int) -> Tensor:
    """``token_losses(…).true`` without gradient, also for a model without an entry for <CALL>: the vocabulary then ends
    before ``call_token_id``. [B, T]."""
    with torch.no_grad():
        if call_token_id < logits_BTV.shape[-1]:
            return token_losses(logits_BTV, targets_BT, call_token_id).true
        logits_NV, targets_N = logits_BTV.reshape(-1, logits_BTV.shape[-1]), targets_BT.reshape(-1)
        size = _rows_at_once(logits_NV)
        parts = [
            F.cross_entropy(rows.to(torch.promote_types(rows.dtype, torch.float32)), targets, reduction="none")
            for rows, targets in zip(logits_NV.split(size), targets_N.clamp(min=0).split(size), strict=True)
        ]
        return torch.cat(parts).view_as(targets_BT)
