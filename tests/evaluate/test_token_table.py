"""Tables of targets on hand-built logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from annotator import FactClass
from lacy_stream.evaluate.token_table import (
    accuracy_by_loss,
    calls_by_class,
    join_tables,
    losses,
    own_mask,
    token_table,
)
from lacy_stream.objective.metrics import CallLoss, NonCallLoss, TotalLoss

CALL, VOCABULARY = 6, 7


def batch(seed: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels with padding, and classes of random rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 12, VOCABULARY, generator=generator) * 2
    labels = torch.randint(0, CALL, (rows, 12), generator=generator)
    labels[0, 8:] = -100
    return logits, labels, torch.randint(0, 3, (rows, 12), generator=generator).to(torch.uint8)


def test_table_agrees_with_the_metrics() -> None:
    """Losses from a table over two batches are those of the evaluators that a training run uses."""
    metrics = {"call_loss": CallLoss(CALL), "non_call_loss": NonCallLoss(CALL), "total_loss": TotalLoss(CALL)}
    tables = []
    for seed in (0, 1):
        logits, labels, classes = batch(seed)
        tables.append(token_table(logits, labels, classes, CALL))
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        for metric in metrics.values():
            metric.update(logits, shifted)
    table = join_tables(tables)
    assert len(table.loss) == 2 * (3 * 11 - 4)
    expected = {name: pytest.approx(metric.compute().item(), rel=1e-6) for name, metric in metrics.items()}
    assert losses(table, own_mask(table, 0.15, "probability")) == expected


def test_targets_are_shifted_with_their_classes() -> None:
    """The logits at position i stand against the label and the class of position i + 1."""
    logits = torch.zeros(1, 3, VOCABULARY)
    logits[0, 0, 4], logits[0, 1, CALL], logits[0, 1, 2] = 5.0, 9.0, 3.0
    labels, classes = torch.tensor([[1, 4, 3]]), torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    table = token_table(logits, labels, classes, CALL)
    assert table.target.tolist() == [4, 3] and table.token_class.tolist() == [1, 2]
    assert table.proposal.tolist() == [4, 2] and table.correct.tolist() == [True, False]
    assert table.call_logit.tolist() == [0, 9] and table.call_leads.tolist() == [False, True]
    others = torch.logsumexp(logits[0, :2, :CALL], -1)
    np.testing.assert_allclose(table.call_log_odds, logits[0, :2, CALL] - others, rtol=1e-5)


def test_model_without_call() -> None:
    """A vocabulary without <CALL> gives the same losses and never calls."""
    logits, labels, classes = batch(3)
    whole, without = (token_table(part, labels, classes, CALL) for part in (logits, logits[..., :CALL]))
    np.testing.assert_allclose(without.loss, whole.loss, rtol=1e-4)
    np.testing.assert_array_equal(without.loss, without.loss_with_call)
    assert not without.call_leads.any() and np.isneginf(without.call_logit).all()


def test_matched_call_loss_leaves_call_out() -> None:
    """On another model's mask, all three losses are without <CALL>."""
    table = token_table(*batch(5), CALL)
    call = np.arange(len(table.loss)) % 5 == 0
    matched = losses(table, call, own=False)
    assert matched["call_loss"] == pytest.approx(table.loss[call].mean())
    assert losses(table, call)["call_loss"] == pytest.approx(table.loss_with_call[call].mean())
    assert losses(table, call)["call_loss"] > matched["call_loss"]


def test_calls_by_class() -> None:
    """Of 4 calls, 3 are facts, of 6 facts in all: precision 3/4, recall 1/2."""
    table = token_table(*batch(6), CALL)._replace(token_class=np.array([1, 1, 1, 1, 1, 1, 0, 2, 2, 2], np.uint8))
    call = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    shares = calls_by_class(table, call)
    assert shares == {"grammatical": 0.25, "factual": 0.75, "other": 0.0, "precision": 0.75, "recall": 0.5}


def test_accuracy_by_loss() -> None:
    """Targets fall into bins by their loss, facts apart from the rest."""
    table = token_table(*batch(7, 1), CALL)._replace(
        target=np.array([1, 2, 3, 4], np.int32),
        proposal=np.array([1, 9, 3, 9], np.int32),
        loss=np.array([0.1, 0.2, 0.3, 7.0], np.float32),
        token_class=np.array([FactClass.FACTUAL, FactClass.FACTUAL, FactClass.OTHER, FactClass.GRAMMATICAL], np.uint8),
    )
    rows = accuracy_by_loss(table)
    assert rows["factual"][0] == {"from": 0.0, "to": 0.5, "targets": 2, "accuracy": 0.5}
    assert rows["other"][0]["accuracy"] == 1.0 and rows["other"][7]["targets"] == 1
    assert sum(row["targets"] for kind in rows.values() for row in kind) == 4
