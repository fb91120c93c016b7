"""A step whose losses are no numbers is an error on every rank, before the optimizer learns from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import on_two_ranks
from test_call_objective import CALL, Words, batch, gradient, split
from torch import Tensor, nn

from lacy_stream.errors import UsageError
from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.objective.metrics import MaskModel, MatchedCallLoss
from lacy_stream.objective.step_check import LossError


class Broken(nn.Module):
    """A model whose logits are ``value`` at one position of one row."""

    def __init__(self, value: float, row: int = 0) -> None:
        super().__init__()
        self.words, self.value, self.row = Words(), value, row

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        logits = self.words(input_ids).clone()
        logits[self.row, 1] = self.value
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sizes", [(7,), (2, 5)])
@pytest.mark.parametrize("method", ["baseline", "lacy"])
def test_loss_that_is_no_number(value: float, sizes: tuple[int, ...], method: str) -> None:
    """One loss of a mini-batch that is NaN or infinite is an error that says after how many steps, in whichever
    microbatch it is."""
    model, objective = Broken(value), CallObjective(CALL, method=method)
    microbatches = split(batch(), *sizes)
    objective.begin_step(12, microbatches, model)
    with pytest.raises(LossError, match="after 12 steps of training, the loss of the model is NaN or infinite. The st"):
        for microbatch in microbatches:
            objective(model(microbatch["input_ids"]), microbatch)


def test_loss_of_padding_does_not_count() -> None:
    """What a model makes of padding is no error: row 5 of the batch has no target."""
    model, objective = Broken(float("nan"), row=5), CallObjective(CALL)
    objective.begin_step(0, [batch()], model)
    assert objective(model(batch()["input_ids"]), batch()).isfinite()


@pytest.mark.parametrize("sizes", [(7,), (2, 5)])
@pytest.mark.parametrize("method", ["rho-1", "spacy+refloss"])
def test_mask_is_not_chosen_by_nan(sizes: tuple[int, ...], method: str) -> None:
    """A reference model that gives NaN decides nothing: the loss itself would be finite."""
    model = Words()
    objective = CallObjective(CALL, method=method, reference=Broken(float("nan")))
    microbatches = split(batch(), *sizes)
    objective.begin_step(3, microbatches, model)
    with pytest.raises(LossError, match="after 3 steps of training, the loss of the reference model is NaN"):
        for microbatch in microbatches:
            objective(model(microbatch["input_ids"]), microbatch)


def test_check_can_be_turned_off() -> None:
    """The check of losses can be turned off."""
    model, objective = Broken(float("nan")), CallObjective(CALL, check_losses=False)
    objective.begin_step(0, [batch()], model)
    assert objective(model(batch()["input_ids"]), batch()).isnan()


def test_microbatch_of_padding_alone_adds_nothing() -> None:
    """A microbatch without a target leaves the gradient of the mini-batch as it is; a step of nothing else is refused,
    since nothing could be learned from it."""
    whole = batch()
    padding = {key: value[:2].clone() for key, value in whole.items()}
    padding["labels"][:] = -100
    objective = CallObjective(CALL, method="baseline")
    torch.testing.assert_close(gradient([whole, padding], objective), gradient([whole], objective))
    with pytest.raises(UsageError, match="after 0 steps of training, a step has no target: all labels .* are -100"):
        gradient([padding, padding], objective)


def test_mask_of_a_damaged_model_is_no_mask() -> None:
    """Validation on another model's calls refuses a model whose scores are NaN."""
    whole, model = batch(), Words()
    damaged = Broken(float("nan"))
    metric = MatchedCallLoss(CALL, mask_from=MaskModel(damaged, CALL))
    metric.update(whole, model(whole["input_ids"]), whole["labels"])
    with pytest.raises(LossError, match="eval_mask_from.* gives NaN as scores of <CALL>"):
        metric.compute()


def _rank(rank: int, folder: Path) -> None:
    objective, model = CallObjective(CALL, method="spacy", scope="rank"), Broken(float("nan")) if rank else Words()
    microbatches = split(batch(), 2, 5)
    objective.begin_step(5, microbatches, model)
    try:
        for microbatch in microbatches:
            objective(model(microbatch["input_ids"]), microbatch)
    except LossError as error:
        (folder / f"rank{rank}").write_text(str(error))


@pytest.mark.process
def test_nan_on_one_rank_ends_all(tmp_path: Path) -> None:
    """Every rank has the same error, which names the rank with the NaN: none waits for another one."""
    on_two_ranks(_rank, tmp_path)
    for rank in (0, 1):
        message = (tmp_path / f"rank{rank}").read_text()
        assert message.startswith(
            "after 5 steps of training, the loss of the model is NaN or infinite (on rank 1 of 2)"
        )
