"""Validation losses (A.4.3): the model's own mask on hand-built logits, the losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from lacy_stream.metrics import CallLoss, NonCallLoss, TotalLoss, call_scores, own_call_mask

CALL, VOCABULARY = 6, 7


def logits(call_logits: list[float], others: float = 0.0) -> torch.Tensor:
    """[1, T, V]: the given <CALL> logits, every other logit equal."""
    made = torch.full((1, len(call_logits), VOCABULARY), others)
    made[0, :, CALL] = torch.tensor(call_logits)
    return made


def called(made: torch.Tensor, valid: torch.Tensor, fraction: float) -> list[int]:
    """The delegated positions of one row."""
    return own_call_mask(call_scores(made, CALL), valid, fraction)[0].nonzero().flatten().tolist()


def test_top_positions_are_cut_to_the_share() -> None:
    """Where <CALL> leads at more positions than the share, the highest <CALL> logits stay."""
    assert called(logits([5, 1, 9, 3, 7, 2, 8, 4, 6, 10]), torch.ones(1, 10, dtype=torch.bool), 0.3) == [2, 6, 9]


def test_share_is_filled_up_by_the_call_logit() -> None:
    """Positions led by <CALL> come first even with a lower <CALL> logit; the rest is filled by the logit."""
    values = logits([-1, -2, -3, -4, -5], others=0.0)
    values[0, 4] = -9.0
    values[0, 4, CALL] = -5.0  # leads here, though its <CALL> logit is the lowest
    assert called(values, torch.ones(1, 5, dtype=torch.bool), 0.4) == [0, 4]


def test_padding_is_never_delegated() -> None:
    """The share is of the valid positions, and only they are chosen."""
    valid = torch.tensor([[True] * 5 + [False] * 5])
    assert called(logits([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), valid, 0.4) == [3, 4]


def test_losses_are_their_definitions_over_batches() -> None:
    """Over two batches: total and non-call loss leave <CALL> out of the softmax (A.6), call loss does not
    (A.5); each is the mean over all its positions."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows in (3, 5):
        made = torch.randn(rows, 20, VOCABULARY, generator=generator) * 2
        targets = torch.randint(0, CALL, (rows, 20), generator=generator)
        targets[:, -1] = -100
        batches.append((made, targets))
    metrics = {kind: kind(CALL, 0.15) for kind in (TotalLoss, NonCallLoss, CallLoss)}
    expected: dict[type, list[float]] = {kind: [] for kind in metrics}
    for made, targets in batches:
        for metric in metrics.values():
            metric.update(made, targets)
        mask = own_call_mask(call_scores(made, CALL), targets != -100, 0.15)
        for row, position in (targets != -100).nonzero().tolist():
            values, target = made[row, position].double(), int(targets[row, position])
            without = -torch.log_softmax(values[:CALL], 0)[target].item()
            expected[TotalLoss].append(without)
            if mask[row, position]:
                expected[CallLoss].append(-torch.log_softmax(values, 0)[target].item())
            else:
                expected[NonCallLoss].append(without)
    assert len(expected[CallLoss]) == int(3 * 19 * 0.15) + int(5 * 19 * 0.15)
    for kind, metric in metrics.items():
        assert metric.compute().item() == pytest.approx(sum(expected[kind]) / len(expected[kind]), rel=1e-5)


def test_batch_of_padding_adds_nothing() -> None:
    """A batch of padding alone, as the last rank gets it, leaves the mean as it is."""
    for kind in (TotalLoss, NonCallLoss, CallLoss):
        metric = kind(CALL)
        made, targets = torch.randn(2, 20, VOCABULARY), torch.randint(0, CALL, (2, 20))
        metric.update(made, targets)
        before = metric.compute()
        metric.update(torch.randn(2, 20, VOCABULARY), torch.full((2, 20), -100))
        assert torch.equal(metric.compute(), before)
