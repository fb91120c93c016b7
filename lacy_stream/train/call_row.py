"""A row for <CALL> in the embeddings of a trained model, from which training can start.

The row of a new id gives p(<CALL>) of about 1e-8 in a trained model: 19 nats on each called token, which then rule the
first steps. What decides p(<CALL>) is the logit w·h of the output row w beside the log of the summed exponentials of
all other logits. So w is found by logistic regression over the hidden states h of a sample of text: it is the row that
training would find if a share of the positions, the call fraction, were called at random. The regression is convex.
That holds for tied embeddings too, since <CALL> is never an input in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lacy_stream.errors import UsageError
from lacy_stream.objective.call_objective import evaluating

RIDGE = 1e-4
"""Weight of the row's squared norm, as a share of the mean curvature of the loss."""
NEWTON_STEPS = 30
CONVERGED = 1e-7
"""Nats: where a step of Newton's method lowers the loss by less, it was the last."""


@torch.no_grad()
def set_call_row(model: PreTrainedModel, call_token_id: int, ids_BT: Tensor, call_fraction: float) -> float:
    """Set the row of <CALL> so that p(<CALL>) is near the call fraction, by logistic regression over a sample of text.

    The input row, where it is another one, becomes the mean of the others.

    Args:
        model: trained, with a row for <CALL>.
        ids_BT: int64; ids of text as the model was trained on, at least as many as its hidden states are wide.

    Returns:
        The mean of p(<CALL>) over the sample.

    Raises:
        UsageError: the model has no output embeddings.
    """
    head: Any = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise UsageError(f"{type(model).__name__} has no output embeddings, so <CALL> cannot be given a row")
    bias = getattr(head, "bias", None)
    sample = _sample(model, head, ids_BT, call_token_id)
    solution_D, probability = _solution(sample, call_fraction, with_bias=bias is not None)
    inputs: Any = model.get_input_embeddings().weight
    if inputs is not head.weight:
        inputs[call_token_id] = torch.cat([inputs[:call_token_id], inputs[call_token_id + 1 :]]).mean(0)
    head.weight[call_token_id] = solution_D[: head.weight.shape[1]].to(head.weight)
    if bias is not None:
        bias[call_token_id] = solution_D[-1].to(bias)
    return probability


class _Sample(NamedTuple):
    """N positions of a model: the hidden states before its output embeddings, the log of the summed exponentials of all
    logits but that of <CALL>, and the factor between output embeddings and logits. float64."""

    hidden_ND: Tensor
    others_N: Tensor
    scale: float


def _sample(model: PreTrainedModel, head: torch.nn.Module, ids_BT: Tensor, call_token_id: int) -> _Sample:
    # Some models scale the output of their head. products / squares is the factor that fits best, by least squares.
    hidden, others, products, squares = [], [], 0.0, 0.0
    with evaluating(model), _watch(head) as seen:
        for ids_T in ids_BT.to(model.device):
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float()
            hidden_TD, plain_TV = seen.pop()
            hidden.append(hidden_TD[0].double())
            products, squares = (
                products + (logits_TV * plain_TV[0]).sum().item(),
                squares + plain_TV.square().sum().item(),
            )
            logits_TV[:, call_token_id] = -torch.inf
            others.append(logits_TV.logsumexp(-1).double())
    return _Sample(torch.cat(hidden), torch.cat(others), products / squares)


def _solution(sample: _Sample, call_fraction: float, with_bias: bool) -> tuple[Tensor, float]:
    """The row of <CALL>, with its bias at the end where there is one, and the mean of p(<CALL>) that it gives."""
    inputs_ND = sample.hidden_ND * sample.scale
    if with_bias:
        inputs_ND = torch.cat([inputs_ND, torch.full_like(inputs_ND[:, :1], sample.scale)], dim=1)
    spread = call_fraction * (1 - call_fraction)  # of a target that is 1 at that share of the positions, else 0
    ridge = RIDGE * spread * inputs_ND.square().mean()

    def loss(row_D: Tensor) -> Tensor:
        # The cross-entropy of a target that is 1 at the call fraction of the positions, wherever they are.
        odds_N = inputs_ND @ row_D - sample.others_N
        return (F.softplus(odds_N) - call_fraction * odds_N).mean() + ridge * row_D.square().sum() / 2

    # Begin with the row whose logits come nearest, in the mean square, to p(<CALL>) = call_fraction at each position.
    wanted_N = sample.others_N + math.log(call_fraction / (1 - call_fraction))
    row_D = _solve(inputs_ND, torch.ones_like(wanted_N), inputs_ND.T @ wanted_N / len(wanted_N), ridge / spread)
    for _ in range(NEWTON_STEPS):
        p_N = torch.sigmoid(inputs_ND @ row_D - sample.others_N)
        gradient_D = inputs_ND.T @ (p_N - call_fraction) / len(p_N) + ridge * row_D
        step_D, before = _solve(inputs_ND, p_N * (1 - p_N), gradient_D, ridge), loss(row_D)
        # A whole step may overshoot. The loss is convex, so that some part of it does not.
        while (after := loss(row_D - step_D)) > before and step_D.abs().max() > 0:
            step_D = step_D / 2
        row_D = row_D - step_D
        if before - after < CONVERGED:
            break
    return row_D, torch.sigmoid(inputs_ND @ row_D - sample.others_N).mean().item()


def _solve(inputs_ND: Tensor, weights_N: Tensor, right_D: Tensor, ridge: Tensor) -> Tensor:
    """The solution x of (mean over N of weight · input · inputᵀ + ridge) x = right."""
    # [D, D] and not [N, N]: the sample has more positions than the states have numbers.
    moments_DD = (inputs_ND * weights_N[:, None]).T @ inputs_ND / len(inputs_ND)
    moments_DD.diagonal().add_(ridge)
    return torch.linalg.solve(moments_DD, right_D)


@contextmanager
def _watch(module: torch.nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The input and the output of each forward of a module."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output.float())))
    try:
        yield seen
    finally:
        handle.remove()
