"""A table of what a model does at each target of a held-out set, and losses from it (A.4.3, figures 3 and 5).

logits --token_table--> arrays [n] --losses--> call, non-call and total loss, on its own mask or another's
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotator import FactClass
from lacy_stream.objective.batch import shift_labels
from lacy_stream.objective.losses import IGNORED_LABEL, true_losses
from lacy_stream.objective.methods import Rank
from lacy_stream.objective.scores import CallScores, call_scores, own_call_mask, token_scores


class TokenTable(NamedTuple):
    """Columns [n] with one entry for each target. Losses are in nats."""

    target: NDArray[np.int32]
    """int32 [n]: id of the target."""
    token_class: NDArray[np.uint8]
    """uint8 [n]: its ``FactClass``."""
    loss: NDArray[np.float32]
    """float32 [n]: its loss, with <CALL> excluded from the softmax."""
    loss_with_call: NDArray[np.float32]
    """float32 [n]: its loss over the whole vocabulary."""
    proposal: NDArray[np.int32]
    """int32 [n]: the most likely token other than <CALL>."""
    call_logit: NDArray[np.float32]
    """float32 [n]: the logit of <CALL>; -inf for a model without it."""
    call_log_odds: NDArray[np.float32]
    """float32 [n]: log p / (1 - p) of <CALL>; -inf for a model without it."""
    call_leads: NDArray[np.bool_]
    """bool [n]: whether <CALL> has the highest logit of all; False for a model without it."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool [n]: whether the model proposes the target."""
        return self.proposal == self.target


@torch.no_grad()
def token_table(logits_BTV: Tensor, labels_BT: Tensor, token_class_BT: Tensor, call_token_id: int) -> TokenTable:
    """Make the table of one batch.

    Args:
        logits_BTV: float [B, T, V], with or without an entry for <CALL>.
        labels_BT: int64 [B, T], as the loader yields them: not shifted, -100 on padding.
        token_class_BT: uint8 [B, T], the ``FactClass`` of each label.
        call_token_id: id of <CALL>, which equals the number of pieces.
    """
    targets_BT, classes_BT = shift_labels(labels_BT, token_class_BT)
    valid_BT = targets_BT != IGNORED_LABEL
    if call_token_id < logits_BTV.shape[-1]:
        losses, by_logit = token_scores(logits_BTV, targets_BT, call_token_id, "logit")
        by_probability = call_scores(logits_BTV, call_token_id, "probability", losses)
        loss_BT, with_call_BT = losses.true, losses.true_with_call
        calls = by_logit.score, by_probability.score, by_logit.first
    else:
        loss_BT = with_call_BT = true_losses(logits_BTV, targets_BT, call_token_id)
        never_BT = torch.full_like(loss_BT, -torch.inf)
        calls = never_BT, never_BT, torch.zeros_like(valid_BT)
    proposal_BT = logits_BTV[..., :call_token_id].argmax(-1)
    columns = (targets_BT, classes_BT, loss_BT, with_call_BT, proposal_BT, *calls)
    return TokenTable(*(_array(column[valid_BT], hint) for column, hint in zip(columns, _DTYPES, strict=True)))


_DTYPES = (np.int32, np.uint8, np.float32, np.float32, np.int32, np.float32, np.float32, np.bool_)


def _array(values: Tensor, dtype: type) -> NDArray:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy().astype(dtype)


def join_tables(tables: Iterable[TokenTable]) -> TokenTable:
    """Concatenate the tables of several batches."""
    return TokenTable(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))


def own_mask(table: TokenTable, fraction: float, rank: Rank) -> NDArray[np.bool_]:
    """The targets that the model itself delegates, see ``scores.own_call_mask``: bool [n]."""
    # Ranked by probability, no position comes before the others, so ``first`` is False everywhere.
    by_logit = rank == "logit"
    score, first = (table.call_logit, table.call_leads) if by_logit else (table.call_log_odds, table.call_leads & False)
    scores = CallScores(torch.from_numpy(score), torch.from_numpy(first))
    return own_call_mask(scores, torch.ones(len(table.loss), dtype=torch.bool), fraction).numpy()


def losses(table: TokenTable, call: NDArray[np.bool_], own: bool = True) -> dict[str, float]:
    """Compute the mean losses on a call mask, off the mask, and over all targets, in nats (A.5, A.6).

    Args:
        table: n targets.
        call: bool [n], the mask.
        own: False if the mask is that of another model ("matched"). <CALL> is then also excluded from the call loss.
    """
    called = (table.loss_with_call if own else table.loss)[call]
    return {
        "call_loss": float(called.mean(dtype=np.float64)),
        "non_call_loss": float(table.loss[~call].mean(dtype=np.float64)),
        "total_loss": float(table.loss.mean(dtype=np.float64)),
    }


def calls_by_class(table: TokenTable, call: NDArray[np.bool_]) -> dict[str, float]:
    """Compute the share of calls in each ``FactClass``, and precision and recall of calls as guesses of facts."""
    counts = np.bincount(table.token_class[call], minlength=len(FactClass))
    facts = table.token_class == FactClass.FACTUAL
    shares = {kind.name.lower(): float(counts[kind] / max(call.sum(), 1)) for kind in FactClass}
    return shares | {
        "precision": float((facts & call).sum() / max(call.sum(), 1)),
        "recall": float((facts & call).sum() / max(facts.sum(), 1)),
    }


LOSS_BINS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, np.inf)
"""Edges in nats."""

LOSS_BIN_NAMES = tuple(
    f"{low:g}–{high:g}" if high < np.inf else f"≥{low:g}" for low, high in zip(LOSS_BINS, LOSS_BINS[1:])
)


def accuracy_by_loss(table: TokenTable) -> dict[str, list[dict[str, float]]]:
    """Compute the left side of figure 3: the accuracy of greedy proposals in each bin of the loss, for factual and for
    other targets."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, kind in (("factual", True), ("other", False)):
        among = (table.token_class == FactClass.FACTUAL) == kind
        rows[name] = []
        for low, high in zip(LOSS_BINS, LOSS_BINS[1:]):
            inside = among & (table.loss >= low) & (table.loss < high)
            count = int(inside.sum())
            accuracy = float(table.correct[inside].mean()) if count else float("nan")
            rows[name].append({"from": low, "to": high, "targets": count, "accuracy": accuracy})
    return rows
