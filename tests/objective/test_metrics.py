"""Validation losses (A.4.3): the model's own mask on hand-built logits, the losses against their definitions."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import on_two_ranks

from lacy_stream.objective.losses import token_losses
from lacy_stream.objective.methods import RANKS, Rank
from lacy_stream.objective.metrics import (
    CallLoss,
    MaskModel,
    MatchedCallLoss,
    MatchedNonCallLoss,
    NonCallLoss,
    TotalLoss,
)
from lacy_stream.objective.scores import call_scores, own_call_mask

CALL, VOCABULARY = 6, 7


def logits(call_logits: list[float], others: float = 0.0) -> torch.Tensor:
    """[1, T, V]: the given <CALL> logits, every other logit equal."""
    made = torch.full((1, len(call_logits), VOCABULARY), others)
    made[0, :, CALL] = torch.tensor(call_logits)
    return made


def called(made: torch.Tensor, valid: torch.Tensor, fraction: float, rank: Rank = "logit") -> list[int]:
    """The delegated positions of one row."""
    return own_call_mask(call_scores(made, CALL, rank), valid, fraction)[0].nonzero().flatten().tolist()


def test_top_positions_are_cut_to_the_share() -> None:
    """Where <CALL> leads at more positions than the share, the highest <CALL> logits stay."""
    assert called(logits([5, 1, 9, 3, 7, 2, 8, 4, 6, 10]), torch.ones(1, 10, dtype=torch.bool), 0.3) == [2, 6, 9]


def test_share_is_filled_up_by_the_call_logit() -> None:
    """Positions led by <CALL> come first even with a lower <CALL> logit; the rest is filled by the logit."""
    values = logits([-1, -2, -3, -4, -5], others=0.0)
    values[0, 4] = -9.0
    values[0, 4, CALL] = -5.0  # leads here, though its <CALL> logit is the lowest
    assert called(values, torch.ones(1, 5, dtype=torch.bool), 0.4) == [0, 4]


def test_rank_by_probability() -> None:
    """The probability of <CALL> decides, not its logit, and not where it leads: position 1 has the highest logit and
    position 2 is led by <CALL>, but position 0 has the highest probability."""
    values = torch.zeros(1, 3, VOCABULARY)
    values[0, 0, :CALL], values[0, 0, CALL] = torch.tensor([1.0, *[-9.0] * (CALL - 1)]), 1.0  # p = 1/2
    values[0, 1, 0], values[0, 1, CALL] = 9.0, 8.0  # p = 0.27
    values[0, 2, CALL] = 0.1  # leads, p = 0.16
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert called(values, valid, 0.34, "probability") == [0]
    assert called(values, valid, 0.67, "probability") == [0, 1]
    assert called(values, valid, 0.34, "logit") == [2] and called(values, valid, 0.67, "logit") == [1, 2]


def test_a_model_without_call_has_no_scores() -> None:
    """Ranking by either is refused where the vocabulary has no entry for <CALL>."""
    for rank in RANKS:
        with pytest.raises(ValueError, match=f"none for <CALL>, 6: its calls cannot be ranked by {rank}"):
            call_scores(torch.zeros(1, 2, CALL), CALL, rank)
    with pytest.raises(ValueError, match="call_token_id is 6, but the model's vocabulary has 6 entries"):
        TotalLoss(CALL).update(torch.zeros(1, 2, CALL), torch.zeros(1, 2, dtype=torch.long))


def test_padding_is_never_delegated() -> None:
    """The share is of the valid positions, and only they are chosen."""
    valid = torch.tensor([[True] * 5 + [False] * 5])
    assert called(logits([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), valid, 0.4) == [3, 4]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and targets of two evaluation batches of different sizes, the second much more inclined to call."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for rows in (3, 5):
        values = torch.randn(rows, 20, VOCABULARY, generator=generator) * 2
        values[..., CALL] += rows
        targets = torch.randint(0, CALL, (rows, 20), generator=generator)
        targets[:, -1] = -100
        made.append((values, targets))
    return made


def test_losses_are_their_definitions_over_batches() -> None:
    """Over two batches: total and non-call loss leave <CALL> out of the softmax (A.6), call loss does not
    (A.5); the mask is one over all positions; each loss is the mean over its positions."""
    metrics = {kind: kind(CALL, 0.15) for kind in (TotalLoss, NonCallLoss, CallLoss)}
    for made, targets in batches():
        for metric in metrics.values():
            metric.update(made, targets)
    values = torch.cat([made[targets != -100] for made, targets in batches()]).double()
    wanted = torch.cat([targets[targets != -100] for _, targets in batches()])
    mask = own_call_mask(call_scores(values, CALL, "probability"), torch.ones(len(values), dtype=torch.bool), 0.15)
    assert mask.sum() == int(8 * 19 * 0.15)
    without = -torch.log_softmax(values[:, :CALL], 1).gather(1, wanted[:, None])[:, 0]
    within = -torch.log_softmax(values, 1).gather(1, wanted[:, None])[:, 0]
    expected = {TotalLoss: without.mean(), NonCallLoss: without[~mask].mean(), CallLoss: within[mask].mean()}
    for kind, metric in metrics.items():
        assert metric.compute().item() == pytest.approx(expected[kind].item(), rel=1e-5)


def test_a_batch_is_measured_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composer updates one metric after the other with the same tensors; other tensors, and the same with another id of
    <CALL>, are measured again."""
    measured = []
    monkeypatch.setattr(
        "lacy_stream.objective.scores.token_losses", lambda *a: measured.append(a[0]) or token_losses(*a)
    )
    made = [metric(2) for metric in (CallLoss, NonCallLoss, TotalLoss)]
    for logits, targets in batches():
        for metric in made:
            metric.update(logits, targets)
    assert len(measured) == len(batches())
    TotalLoss(1).update(logits, targets)
    TotalLoss(1).update(logits.clone(), targets)
    assert len(measured) == len(batches()) + 2


def test_losses_do_not_depend_on_the_batches() -> None:
    """Row by row, or all at once: the same values."""
    for kind in (TotalLoss, NonCallLoss, CallLoss):
        whole, single = kind(CALL, 0.15), kind(CALL, 0.15)
        for made, targets in batches():
            whole.update(made, targets)
            for row in range(len(made)):
                single.update(made[row : row + 1], targets[row : row + 1])
        torch.testing.assert_close(single.compute(), whole.compute(), rtol=1e-12, atol=0)


@pytest.mark.process
def test_two_ranks_have_the_value_of_one(tmp_path: Path) -> None:
    """Two processes with a batch each, of different sizes, agree on the value that one process finds."""
    alone = {kind.__name__: kind(CALL, 0.15) for kind in (TotalLoss, NonCallLoss, CallLoss)}
    for metric in alone.values():
        for batch in batches():
            metric.update(*batch)
    on_two_ranks(_rank, tmp_path)
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, alone[name].compute(), rtol=1e-12, atol=0)


def _rank(rank: int, folder: Path) -> None:
    metrics = {kind.__name__: kind(CALL, 0.15) for kind in (TotalLoss, NonCallLoss, CallLoss)}
    for metric in metrics.values():
        metric.update(*batches()[rank])
    torch.save({name: metric.compute() for name, metric in metrics.items()}, folder / f"{rank}.pt")


class Echo(torch.nn.Module):
    """A model whose logits are known: row n of a table for token n."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.calls = table, 0

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(logits=self.table[input_ids])


def test_matched_losses_use_the_other_models_mask() -> None:
    """A baseline's losses on and off the mask of another model, whose forward pass runs once for both metrics."""
    generator = torch.Generator().manual_seed(4)
    table, ids = (
        torch.randn(CALL, VOCABULARY, generator=generator),
        torch.randint(0, CALL, (2, 30), generator=generator),
    )
    own, labels = (
        torch.randn(2, 30, VOCABULARY, generator=generator),
        torch.randint(0, CALL, (2, 30), generator=generator),
    )
    other = MaskModel(Echo(table), CALL)
    metrics = [kind(CALL, 0.15, mask_from=other) for kind in (MatchedCallLoss, MatchedNonCallLoss)]
    for metric in copy.deepcopy(metrics), metrics:
        for one in metric:
            one.update(batch={"input_ids": ids}, outputs=own, labels=labels)
    assert other._model.calls == 1
    mask = own_call_mask(call_scores(table[ids], CALL, "probability"), torch.ones(2, 30, dtype=torch.bool), 0.15)
    losses = -torch.log_softmax(own[..., :CALL], -1).gather(2, labels[..., None])[..., 0]
    assert metrics[0].compute().item() == pytest.approx(losses[mask].mean().item(), rel=1e-5)
    assert metrics[1].compute().item() == pytest.approx(losses[~mask].mean().item(), rel=1e-5)


def test_mask_of_a_model_without_call_is_refused() -> None:
    """A model that has no entry for <CALL> has no call mask."""
    with pytest.raises(ValueError, match="6 entries in its vocabulary, and none for <CALL>, 6"):
        MaskModel(Echo(torch.randn(CALL, CALL)), CALL)({"input_ids": torch.zeros(1, 3, dtype=torch.long)})


def test_batch_of_padding_adds_nothing() -> None:
    """A batch of padding alone, as the last rank gets it, leaves the mean as it is."""
    for kind in (TotalLoss, NonCallLoss, CallLoss):
        metric = kind(CALL)
        made, targets = torch.randn(2, 20, VOCABULARY), torch.randint(0, CALL, (2, 20))
        metric.update(made, targets)
        before = metric.compute()
        metric.update(torch.randn(2, 20, VOCABULARY), torch.full((2, 20), -100))
        assert torch.equal(metric.compute(), before)
