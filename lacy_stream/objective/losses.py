"""The losses of every position, and the training loss that a selection makes of them (A.2, A.3, A.4).

    logits or hidden states --token_losses--> loss of the true token, loss of <CALL> --training_loss--> scalar

Beside the logits and their gradient, no array of their size is ever held: the softmax is computed in chunks of
positions, and the gradient is written into its own buffer, chunk by chunk. Of hidden states, neither is held: the
logits of a chunk are computed where they are needed, once in each direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Objective

IGNORED_LABEL = -100


class HiddenStates(NamedTuple):
    """Logits that have not been computed: ``states @ weight.T + bias``.

    states: [..., D], what the output layer of a model takes.
    weight: [V, D]; bias: [V], or None. Of the output layer; often the weight is that of the embedding.
    entries: of the vocabulary, where the rows of the weight after them are padding, which has no logits; None: V.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    entries: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0] if self.entries is None else self.entries

    def detach(self) -> HiddenStates:
        """The same values, without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return HiddenStates(self.states.detach(), self.weight.detach(), bias, self.entries)

    def logit(self, id: int) -> Tensor:
        """The logit of one entry of the vocabulary, [...]."""
        row = F.linear(self.states, self.weight[id : id + 1], None if self.bias is None else self.bias[id : id + 1])
        return row.squeeze(-1)


Logits = Tensor | HiddenStates
"""Of each entry of the vocabulary: a tensor [..., V], or what computes it."""


def vocab_size(logits: Logits) -> int:
    return logits.vocab_size if isinstance(logits, HiddenStates) else logits.shape[-1]


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


def token_losses(logits: Logits, targets: Tensor, call_token_id: int) -> TokenLosses:
    """Both losses of every position, from one log-sum-exp.

    With L = logsumexp of all logits but <CALL>'s, c the <CALL> logit and t the target's: true = L - t and
    call = log(e^L + e^c) - c = softplus(L - c). Targets of -100 give finite values that mean nothing.
    Differentiable once, with respect to logits, or to hidden states, weight and bias.

    Args:
        logits: [..., V], or the hidden states [..., D] and the output layer that they are computed from. These are
            multiplied in the type that ``torch.autocast`` asks for.
        targets: int64 [...].

    Raises:
        UsageError: the model's vocabulary has no entry for <CALL>.
    """
    if call_token_id >= (entries := vocab_size(logits)):
        raise UsageError(
            f"call_token_id is {call_token_id}, but the model's vocabulary has {entries} entries: give "
            "the model one entry more than the tokenizer has pieces"
        )
    source = logits if isinstance(logits, HiddenStates) else (logits, None, None, None)
    true, call = cast(tuple[Tensor, Tensor], _TokenLosses.apply(*source, targets, call_token_id))
    return TokenLosses(true, call)


_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that are handled at once: 16 MB in float32 on a CPU, whose cache keeps them; on a GPU 256 MB, so that
few kernels do much each."""


def _rows_at_once(device: torch.device, entries: int) -> int:
    return max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // entries)


class _Rows:
    """Rows of logits, chunk by chunk: those that are there, or those of hidden states."""

    def __init__(
        self,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        entries: int | None,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        self.states_ND = states.reshape(-1, states.shape[-1])
        rows = states.shape[-1] if weight is None else len(weight)
        self.entries = rows if entries is None else entries
        self.size = _rows_at_once(states.device, rows)
        self.dtype = torch.promote_types(states.dtype, torch.float32)
        kind = states.device.type
        autocast = torch.is_autocast_enabled(kind) and states.dtype != torch.float64
        self.product_dtype = product_dtype or (torch.get_autocast_dtype(kind) if autocast else states.dtype)
        # In the type of the product, once for all chunks.
        self.weight, self.bias = (None if part is None else part.to(self.product_dtype) for part in (weight, bias))

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows and their logits in ``dtype``, with those of padding [n, rows of the weight]. The caller may change
        them where there is a weight."""
        for start in range(0, len(self.states_ND), self.size):
            rows = slice(start, start + self.size)
            part = self.states_ND[rows]
            if self.weight is not None:
                part = F.linear(part.to(self.product_dtype), self.weight, self.bias)
            yield rows, part.to(self.dtype)


_ENTRIES = {"cpu": 1 << 12, "cuda": 1 << 15}
"""Entries of the vocabulary whose weight gradients are computed at once: for all of 32,000, a product in bf16 is
half as large as the sum in float32. On a GPU, few kernels do much each."""


def _add_product(total_VD: Tensor, left_NV: Tensor, right_ND: Tensor) -> None:
    """Add left.T @ right to a total of another type."""
    size = _ENTRIES.get(total_VD.device.type, _ENTRIES["cuda"])
    for total, left in zip(total_VD.split(size), left_NV.split(size, dim=1), strict=True):
        total += left.T @ right_ND


class _TokenLosses(torch.autograd.Function):
    """The arithmetic of ``token_losses``, in chunks of positions."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        entries: int | None,
        targets: Tensor,
        call_token_id: int,
    ) -> tuple[Tensor, Tensor]:
        logits = _Rows(states, weight, bias, entries)
        targets_N = targets.reshape(-1).clamp(min=0)  # -100 is no index; what it gives is not used
        found = []
        for rows, logits_NV in logits.chunks():
            # All logits but that of <CALL>: those before it, and those after it.
            others = torch.logsumexp(logits_NV[:, :call_token_id], dim=1)
            if call_token_id + 1 < logits.entries:
                after_NV = logits_NV[:, call_token_id + 1 : logits.entries]
                others = torch.logaddexp(others, torch.logsumexp(after_NV, dim=1))
            target = logits_NV.gather(1, targets_N[rows, None]).squeeze(1)
            found.append(torch.stack([others, target, logits_NV[:, call_token_id]]))
        normaliser_N, target_N, call_N = torch.cat(found, dim=1) if found else states.new_zeros(3, 0)
        ctx.save_for_backward(states, weight, bias, targets_N, normaliser_N, call_N)
        ctx.call_token_id, ctx.entries, ctx.product_dtype = call_token_id, entries, logits.product_dtype
        return (normaliser_N - target_N).view(targets.shape), F.softplus(normaliser_N - call_N).view(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_true: Tensor, grad_call: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets_N, normaliser_N, call_logit_N = ctx.saved_tensors
        # The type of the product is that of the forward: autocast is off here.
        logits = _Rows(states, weight, bias, ctx.entries, ctx.product_dtype)
        true_N, call_N = grad_true.reshape(-1), grad_call.reshape(-1)
        # d softplus(L - c) is sigmoid(L - c) dL - sigmoid(L - c) dc, and dL is the softmax without <CALL>.
        call_N = call_N * torch.sigmoid(normaliser_N - call_logit_N)
        weight_N = true_N + call_N
        grad_states_ND = torch.empty_like(logits.states_ND)
        # The sum over the chunks is kept in float32, also where each product is in bf16.
        grad_weight = None if weight is None else torch.zeros_like(weight, dtype=logits.dtype)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=logits.dtype)
        for rows, logits_NV in logits.chunks():
            # The softmax without <CALL>, times the weight. In the column of <CALL> this means nothing, and it is
            # overwritten.
            reused = None if logits.weight is None else logits_NV
            grad_NV = torch.sub(logits_NV, normaliser_N[rows, None], out=reused).exp_().mul_(weight_N[rows, None])
            grad_NV[:, logits.entries :] = 0  # padding
            grad_NV[:, ctx.call_token_id] = -call_N[rows]
            grad_NV.scatter_add_(1, targets_N[rows, None], -true_N[rows, None])
            if logits.weight is None or grad_weight is None:
                grad_states_ND[rows] = grad_NV  # rounded once where the logits are bf16
                continue
            if grad_bias is not None:
                grad_bias += grad_NV.sum(0)
            grad_NV = grad_NV.to(logits.product_dtype)
            grad_states_ND[rows] = grad_NV @ logits.weight
            _add_product(grad_weight, grad_NV, logits.states_ND[rows].to(logits.product_dtype))
        return (
            grad_states_ND.view(states.shape),
            None if weight is None or grad_weight is None else grad_weight.to(weight.dtype),
            None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


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


@torch.no_grad()
def true_losses(logits: Logits, targets: Tensor, call_token_id: int) -> Tensor:
    """``token_losses(…).true`` without gradient, also for a model without an entry for <CALL>: the vocabulary then ends
    before ``call_token_id``. [...], as the targets."""
    if call_token_id < vocab_size(logits):
        return token_losses(logits, targets, call_token_id).true
    rows_of = _Rows(*(logits if isinstance(logits, HiddenStates) else (logits, None, None, None)))
    targets_N = targets.reshape(-1).clamp(min=0)
    entries = rows_of.entries
    parts = [F.cross_entropy(part[:, :entries], targets_N[rows], reduction="none") for rows, part in rows_of.chunks()]
    return torch.cat(parts).view_as(targets)
