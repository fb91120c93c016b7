"""The call mask: the rule on hand-built values, the loss against equation A.3, the Algorithm in real Trainers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel, HuggingFaceModel
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from annotator import FactClass
from lacy_stream import call_mask
from lacy_stream.call_mask import CallMask, TokenLosses, _check_call_token, lacy_loss, select_calls, token_losses

VOCABULARY, CALL, LENGTH, ROWS = 41, 40, 24, 8


# --- the rule ----------------------------------------------------------------------------------------------


def test_highest_losses_among_facts_are_called() -> None:
    """Of ten targets 20% are delegated: the two facts with the highest loss, not the highest losses."""
    loss = torch.tensor([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 0.5])
    factual = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1], dtype=torch.bool)
    call = select_calls(loss, factual, torch.ones(10, dtype=torch.bool), 0.2)
    assert call.nonzero().flatten().tolist() == [5, 7]


def test_count_is_the_floor_of_the_fraction_of_valid_targets() -> None:
    """19 of 27 targets count: 15% of 19 is 2.85, so two are delegated, and never padding."""
    loss, factual = torch.arange(27.0), torch.ones(27, dtype=torch.bool)
    valid = torch.arange(27) < 19
    assert select_calls(loss, factual, valid, 0.15).nonzero().flatten().tolist() == [17, 18]


def test_share_is_not_lost_to_rounding() -> None:
    """29% of 100 is 29, although 0.29 * 100 is 28.999999999999996."""
    ones = torch.ones(100, dtype=torch.bool)
    assert select_calls(torch.rand(100), ones, ones, 0.29).sum() == 29


def test_too_few_facts_are_all_called() -> None:
    """Where facts do not fill the share, every fact is delegated and nothing else."""
    factual = torch.zeros(4, 25, dtype=torch.bool)
    factual[1, 3] = factual[3, 20] = True
    call = select_calls(torch.rand(4, 25), factual, torch.ones(4, 25, dtype=torch.bool), 0.15)
    assert torch.equal(call, factual)


def test_equal_losses_are_taken_in_order() -> None:
    """A tie at the threshold neither exceeds nor misses the share."""
    call = select_calls(torch.ones(20), torch.ones(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool), 0.15)
    assert call.nonzero().flatten().tolist() == [0, 1, 2]


# --- the loss ----------------------------------------------------------------------------------------------


def equation_a3(logits: torch.Tensor, targets: torch.Tensor, call: torch.Tensor, call_token_id: int) -> torch.Tensor:
    """A.3 written down slowly: one target after the other, softmax by definition."""
    total = torch.zeros((), dtype=logits.dtype)
    for position, target in enumerate(targets.tolist()):
        odds = torch.exp(logits[position])
        if call[position]:
            total = total - torch.log(odds[call_token_id] / odds.sum())
        else:
            total = total - torch.log(odds[target] / (odds.sum() - odds[call_token_id]))
    return total / len(targets)


@pytest.mark.parametrize("call_token_id", [0, 17, 40])
def test_loss_and_gradient_are_those_of_equation_a3(call_token_id: int) -> None:
    """Value and gradient agree with the slow float64 reference, wherever <CALL> stands in the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(60, VOCABULARY, dtype=torch.float64, generator=generator) * 3).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (60,), generator=generator)
    targets[targets == call_token_id] = (call_token_id + 1) % VOCABULARY
    call = torch.rand(60, generator=generator) < 0.3
    expected = equation_a3(logits, targets, call, call_token_id)
    (expected_gradient,) = torch.autograd.grad(expected, logits)

    losses = token_losses(logits[None], targets[None], call_token_id)
    loss = lacy_loss(losses, call[None], torch.ones(1, 60, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-13)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handling three positions at a time gives the numbers of handling all at once."""
    logits = torch.randn(2, 10, VOCABULARY, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, CALL, (2, 10))
    weights = torch.rand(2, 2, 10, dtype=torch.float64)

    def run() -> tuple[torch.Tensor, ...]:
        losses = token_losses(logits, targets, CALL)
        total = (losses.true * weights[0] + losses.call * weights[1]).sum()
        return (*losses, *torch.autograd.grad(total, logits))

    whole = run()
    monkeypatch.setitem(call_mask._CHUNK, "cpu", 3 * VOCABULARY)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other)


def test_extreme_logits_stay_finite() -> None:
    """A <CALL> probability of almost 1 or 0 gives finite losses and gradients."""
    logits = torch.zeros(1, 2, VOCABULARY)
    logits[0, 0, CALL], logits[0, 1, CALL] = 200.0, -200.0
    logits.requires_grad_()
    losses = token_losses(logits, torch.zeros(1, 2, dtype=torch.long), CALL)
    (losses.true.sum() + losses.call.sum()).backward()
    assert torch.isfinite(torch.stack(losses)).all() and torch.isfinite(logits.grad).all()
    assert losses.call[0].tolist() == pytest.approx([0, 203.69], abs=0.01)


def test_bf16_logits_are_summed_in_fp32() -> None:
    """bf16 logits give float32 losses, equal to those of the same values in float32."""
    logits = torch.randn(1, 16, VOCABULARY).bfloat16()
    targets = torch.randint(0, CALL, (1, 16))
    half, full = token_losses(logits, targets, CALL), token_losses(logits.float(), targets, CALL)
    assert half.true.dtype == torch.float32
    torch.testing.assert_close(half.true, full.true)


def test_padding_has_no_part_in_the_mean() -> None:
    """The mean is over valid targets; a row of padding alone gives 0, not NaN."""
    losses = TokenLosses(torch.tensor([1.0, 2.0, 99.0]), torch.tensor([5.0, 6.0, 99.0]))
    call, valid = torch.tensor([False, True, False]), torch.tensor([True, True, False])
    assert lacy_loss(losses, call, valid).item() == pytest.approx((1 + 6) / 2)
    assert lacy_loss(losses, call, torch.zeros(3, dtype=torch.bool)).item() == 0


# --- the Algorithm, in Composer's Trainer ------------------------------------------------------------------


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows whose share of facts falls from 60% to 0: no microbatch has the mini-batch's share."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for row in range(count):
        ids = torch.randint(0, CALL, (LENGTH,), generator=generator)
        factual = torch.rand(LENGTH, generator=generator) < 0.6 * (1 - (row % ROWS) / (ROWS - 1))
        made.append(
            {
                "input_ids": ids,
                "labels": ids.clone(),
                "token_class": torch.where(factual, FactClass.FACTUAL, FactClass.OTHER).to(torch.uint8),
            }
        )
    return made


def gpt2() -> HuggingFaceModel:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return HuggingFaceModel(GPT2LMHeadModel(config), use_logits=True)


class UsersModel(ComposerModel):
    """A model as users have it: its own class, its own loss, no Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.head = torch.nn.Embedding(VOCABULARY, 12), torch.nn.Linear(12, VOCABULARY)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.embedding(batch["input_ids"]).cumsum(dim=1))

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


class Log(Callback):
    """Keeps every value of the call mask's metrics."""

    def __init__(self) -> None:
        self.memory = InMemoryLogger()

    def __getitem__(self, name: str) -> list[float]:
        return [value for _, value in self.memory.data[f"call_mask/{name}"]]


def fit(model: ComposerModel, microbatch: int = ROWS, steps: int = 2, **mask: object) -> Log:
    log = Log()
    Trainer(
        model=model,
        train_dataloader=DataLoader(rows(ROWS * steps), batch_size=ROWS),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        algorithms=[CallMask(CALL, **mask)],
        loggers=[log.memory],
        device_train_microbatch_size=microbatch,
        progress_bar=False,
        device="cpu",
    ).fit()
    return log


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


EXACT = int(0.15 * ROWS * (LENGTH - 1)) / (ROWS * (LENGTH - 1))


@pytest.mark.parametrize("make", [gpt2, UsersModel])
def test_same_weights_for_any_microbatch_size(make) -> None:
    """1, 2 and 4 microbatches give the same weights after two steps and an exact share, in a Hugging Face
    model and in a user's own."""
    models = {}
    for microbatch in (8, 4, 2):
        models[microbatch] = make()
        assert fit(models[microbatch], microbatch)["call_fraction"] == pytest.approx([EXACT, EXACT])
    torch.testing.assert_close(weights(models[4]), weights(models[8]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(models[2]), weights(models[8]), rtol=1e-4, atol=1e-6)
    alone = make()
    share = fit(alone, 2, scope="microbatch")["call_fraction"]
    assert share[0] < EXACT, "each microbatch alone cannot fill its share on this data"
    assert not torch.allclose(weights(alone), weights(models[8]), rtol=1e-4, atol=1e-6)


def test_uneven_microbatches_give_the_same_weights() -> None:
    """A last microbatch that is smaller than the others changes nothing."""
    whole, uneven = gpt2(), gpt2()
    fit(whole, 8)
    fit(uneven, 3)
    torch.testing.assert_close(weights(uneven), weights(whole), rtol=1e-4, atol=1e-6)


def test_first_step_follows_equation_a3() -> None:
    """One SGD step in the Trainer moves the weights by the gradient of A.3 with the mask of the rule."""
    trained, expected = UsersModel().double(), UsersModel().double()
    batch = {key: torch.stack([row[key] for row in rows(ROWS)]) for key in rows(1)[0]}
    logits, targets = expected(batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    factual = batch["token_class"][:, 1:].flatten() == FactClass.FACTUAL
    true = torch.stack([-torch.log_softmax(row[:CALL], 0)[target] for row, target in zip(logits, targets, strict=True)])
    count = int(0.15 * len(true))
    call = torch.zeros(len(true), dtype=torch.bool)
    call[torch.topk(true.masked_fill(~factual, -1.0), count).indices] = True
    equation_a3(logits, targets, call, CALL).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.5 * parameter.grad
    fit(trained, steps=1)
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-12)


def test_baseline_is_cross_entropy_without_call() -> None:
    """The baseline method trains as plain cross-entropy over the vocabulary without <CALL>, and calls nothing."""

    class WithoutCall(UsersModel):
        def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().loss(outputs[..., :CALL], batch)

    baseline, plain = UsersModel(), WithoutCall()
    log = fit(baseline, method="baseline")
    assert log["call_fraction"] == [0.0, 0.0]
    Trainer(
        model=plain,
        train_dataloader=DataLoader(rows(ROWS * 2), batch_size=ROWS),
        max_duration="2ba",
        optimizers=torch.optim.SGD(plain.parameters(), lr=0.5),
        progress_bar=False,
        device="cpu",
    ).fit()
    torch.testing.assert_close(weights(baseline), weights(plain), rtol=1e-4, atol=1e-6)


def test_what_is_logged() -> None:
    """Each batch logs the shares, the losses on and off the mask, and the lowest loss that was delegated."""
    log = fit(gpt2(), microbatch=2)
    factual = torch.stack([row["token_class"][1:] == FactClass.FACTUAL for row in rows(ROWS)]).float().mean().item()
    assert log["factual_fraction"][0] == pytest.approx(factual)
    assert log["called_token_loss"][0] > log["rest_loss"][0] > 0
    assert 0 < log["threshold"][0] < log["called_token_loss"][0]
    assert log["call_loss"][1] < log["call_loss"][0], "the model learns to call"


def test_model_is_put_back_as_it_was() -> None:
    """After fit the model computes its own loss again."""
    model = UsersModel()
    fit(model)
    assert "loss" not in model.__dict__ and model.loss.__func__ is UsersModel.loss


def test_model_is_put_back_after_a_fit_that_failed() -> None:
    """A fit that breaks off leaves no trace once another one has ended."""
    model = UsersModel()
    with pytest.raises(ValueError, match="token_class"):
        Trainer(
            model=model,
            train_dataloader=DataLoader([{"labels": torch.zeros(4)}]),
            max_duration="1ba",
            algorithms=[CallMask(CALL)],
            progress_bar=False,
            device="cpu",
        ).fit()
    fit(model)
    assert "loss" not in model.__dict__


def test_two_ranks_train_the_same_weights(tmp_path: Path) -> None:
    """Two gloo ranks with half of each mini-batch, in microbatches of 2 rows, end with one rank's weights."""
    alone = gpt2()
    fit(alone)
    script = tmp_path / "two_ranks.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from composer import Trainer
from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset
from test_call_mask import CALL, ROWS, CallMask, Log, gpt2, rows, weights

dist.initialize_dist("cpu")
if __name__ == "__main__":
    model, log, rank = gpt2(), Log(), dist.get_global_rank()
    mine = [row for number, row in enumerate(rows(ROWS * 2)) if number % 2 == rank]

    class Mine(IterableDataset):
        def __iter__(self):
            return iter(mine)

    Trainer(model=model, train_dataloader=DataLoader(Mine(), batch_size=ROWS // 2), max_duration="2ba",
            optimizers=torch.optim.SGD(model.parameters(), lr=0.5), algorithms=[CallMask(CALL)],
            loggers=[log.memory], device_train_microbatch_size=2, progress_bar=False, device="cpu").fit()
    torch.save((weights(model), log["call_fraction"]), {str(tmp_path)!r} + f"/rank{{rank}}.pt")
""")
    run = subprocess.run(
        [sys.executable, "-m", "composer.cli.launcher", "-n", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in (0, 1):
        trained, fractions = torch.load(tmp_path / f"rank{rank}.pt")
        assert fractions == pytest.approx([EXACT, EXACT])
        torch.testing.assert_close(trained, weights(alone), rtol=1e-4, atol=1e-6)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_fraction_is_refused(fraction: float) -> None:
    """A call fraction outside (0, 1) is an error that names the value."""
    with pytest.raises(ValueError, match="call_fraction is .*between 0 and 1"):
        CallMask(CALL, call_fraction=fraction)


@pytest.mark.parametrize("argument", [{"method": "spaacy"}, {"scope": "node"}])
def test_unknown_choice_is_refused(argument: dict[str, str]) -> None:
    """An unknown method or scope is an error that lists the choices."""
    with pytest.raises(ValueError, match="choose one of"):
        CallMask(CALL, **argument)


def test_call_id_outside_the_vocabulary_is_refused() -> None:
    """A <CALL> id that the model has no logit for stops the first step and says what to do."""
    with pytest.raises(ValueError, match="call_token_id is 41, but the model's vocabulary has 41"):
        Trainer(
            model=gpt2(),
            train_dataloader=DataLoader(rows(ROWS), batch_size=ROWS),
            max_duration="1ba",
            algorithms=[CallMask(41)],
            progress_bar=False,
            device="cpu",
        ).fit()


def test_call_id_that_is_a_piece_is_refused() -> None:
    """An id of <CALL> that the tokenizer uses for a piece is refused where the data set says how many pieces it has."""
    with pytest.raises(ValueError, match="call_token_id is 19999, which is one of the 32000 pieces.*32000 or more"):
        _check_call_token(19_999, SimpleNamespace(vocab_size=32_000))
    _check_call_token(32_000, SimpleNamespace(vocab_size=32_000))
    _check_call_token(5, ["a data set that does not say"])


def test_batch_without_classes_is_refused() -> None:
    """A batch that nobody annotated stops the first step, naming the key and the loader that makes it."""
    plain = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(ROWS)]
    with pytest.raises(ValueError, match="no 'token_class'.*annotated_dataloader"):
        Trainer(
            model=gpt2(),
            train_dataloader=DataLoader(plain, batch_size=ROWS),
            max_duration="1ba",
            algorithms=[CallMask(CALL)],
            progress_bar=False,
            device="cpu",
        ).fit()


def test_model_without_logits_is_refused() -> None:
    """A model whose forward yields no logits stops the first step and says why."""

    class Opaque(UsersModel):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(batch).mean()}

    with pytest.raises(ValueError, match="without logits"):
        fit(Opaque())
