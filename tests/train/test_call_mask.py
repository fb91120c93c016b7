"""The call mask in real Trainers: every method, any microbatches, two ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel, HuggingFaceModel
from equations import equation_a4
from processes import on_two_ranks
from torch.utils.data import DataLoader, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel

from annotator import FactClass
from lacy_stream.objective.call_objective import ObjectiveError
from lacy_stream.objective.losses import token_losses
from lacy_stream.objective.minibatch import uniform
from lacy_stream.objective.scores import call_scores, own_call_mask
from lacy_stream.objective.selectors import METHODS, Selection, Targets, highest
from lacy_stream.train.call_mask import CallMask, _check_call_token
from lacy_stream.train.model import known_to_be_causal

pytestmark = pytest.mark.model

VOCABULARY, CALL, LENGTH, ROWS = 41, 40, 24, 8


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
    with known_to_be_causal():
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
    equation_a4(logits, targets, call, torch.zeros_like(call), CALL).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.5 * parameter.grad
    fit(trained, steps=1, objective="paper")
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-12)


def reference() -> torch.nn.Module:
    """Another model of the same vocabulary, without an entry for <CALL>."""
    torch.manual_seed(11)
    return GPT2LMHeadModel(GPT2Config(vocab_size=CALL, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=1))


def masks(method: str) -> dict[str, object]:
    """The settings of a method; or of scope ``running``, which is a name here, too."""
    if method == "running":
        return {"scope": "running"}
    return {"method": method, "reference": reference() if METHODS[method].reference else None}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_weights_for_any_microbatch_size(method: str) -> None:
    """1 and 4 microbatches give the same weights after two steps, and the same counts."""
    whole, parts = gpt2(), gpt2()
    logs = [fit(whole, 8, **masks(method)), fit(parts, 2, **masks(method))]
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    for name in ("call_fraction", "ignore_fraction", "factual_fraction"):
        assert logs[0][name] == logs[1][name]
    shares = {"baseline": 0, "llm-judge": logs[0]["factual_fraction"][0]}
    assert logs[0]["call_fraction"][0] == pytest.approx(shares.get(method, EXACT))
    assert (logs[0]["ignore_fraction"][0] > 0.1) == ("ignore" in method)


def test_reference_moves_nothing_but_the_mask() -> None:
    """The reference model is frozen, has no gradient, is no part of the trained model, and its cost is logged."""
    model, judge = gpt2(), reference()
    before, names = weights(judge), list(model.state_dict())
    log = fit(model, method="spacy+refloss", reference=judge)
    assert torch.equal(weights(judge), before) and all(part.grad is None for part in judge.parameters())
    assert list(model.state_dict()) == names and not judge.training
    assert all(0 < seconds < 60 for seconds in log["reference_s"])


def test_rho_1_calls_where_the_reference_is_worse() -> None:
    """In the Trainer, the delegated targets are those with the lowest loss minus reference loss."""
    model, judge = gpt2(), reference().eval()
    batch = {key: torch.stack([row[key] for row in rows(ROWS)]) for key in rows(1)[0]}
    targets = batch["labels"][:, 1:]
    with torch.no_grad():
        own = token_losses(model.model(batch["input_ids"]).logits[:, :-1], targets, CALL).true
        its = F.cross_entropy(judge(batch["input_ids"]).logits[:, :-1].transpose(1, 2), targets, reduction="none")
    chosen = highest(its - own, torch.ones_like(targets, dtype=torch.bool), torch.tensor(int(0.15 * targets.numel())))
    log = fit(model, steps=1, method="rho-1", reference=judge)
    assert log["called_token_loss"][0] == pytest.approx(own[chosen].mean().item(), rel=1e-4)


@pytest.mark.parametrize("method", ["loss-based", "spacy"])
def test_random_choice_is_the_runs_own(method: str) -> None:
    """The seed decides on the draw; each step draws again, and the global generator is left alone."""
    runs = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        runs[name] = gpt2()
        log = fit(runs[name], method=method, seed=seed)
    assert torch.equal(weights(runs["one"]), weights(runs["again"]))
    assert not torch.equal(weights(runs["one"]), weights(runs["other"]))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    CallMask(CALL, method=method, seed=5).objective.begin_step(
        1, [{"labels": torch.zeros(2, 3), "token_class": torch.zeros(2, 3)}]
    )
    assert torch.equal(torch.rand(1), expected) and log["call_fraction"][1] == pytest.approx(EXACT)
    assert not torch.equal(uniform(5, 1, torch.zeros(2, 3)), uniform(5, 2, torch.zeros(2, 3)))


def test_ignored_targets_get_no_gradient_in_the_trainer() -> None:
    """One SGD step of lacy+ignore moves the weights by the gradient of A.4."""
    trained, expected = UsersModel().double(), UsersModel().double()
    batch = {key: torch.stack([row[key] for row in rows(ROWS)]) for key in rows(1)[0]}
    logits, targets = expected(batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    classes = batch["token_class"][:, 1:].flatten()
    true = token_losses(logits[None], targets[None], CALL).true[0]
    of = Targets(true.detach(), classes, torch.ones_like(targets, dtype=torch.bool), torch.zeros(len(targets)))
    count = torch.tensor(int(0.15 * len(targets)))
    call, ignore = METHODS["lacy+ignore"].select(of, count, count)
    equation_a4(logits, targets, call, ignore, CALL).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.5 * parameter.grad
    fit(trained, steps=1, method="lacy+ignore", objective="paper")
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-12)


def test_ignoring_alone_is_equation_a2_for_any_microbatch_size() -> None:
    """A selector of one's own that ignores and never calls: the mean over what is learned, whatever the parts."""

    def easiest(targets: Targets, call_count: torch.Tensor, ignore_count: torch.Tensor) -> Selection:
        return Selection(ignore=highest(-targets.loss, targets.factual, 2 * ignore_count))

    whole, parts, plain = gpt2(), gpt2(), gpt2()
    fit(whole, 8, method=easiest)
    fit(parts, 3, method=easiest)
    fit(plain, 8, method="baseline")
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights(plain), weights(whole), rtol=1e-3, atol=1e-5)


def test_what_is_called_and_ignored_is_logged_by_class() -> None:
    """The shares by FactClass of what is called and of what is ignored each add up to 1."""
    log = fit(gpt2(), method="lacy+ignore", ignore_fraction=0.3)
    assert log["calls_factual"] == [1.0, 1.0] and log["calls_other"] == [0.0, 0.0]
    assert log["ignored_grammatical"] == [0.0, 0.0] and 0 < log["ignored_factual"][0] < 1
    assert log["ignored_factual"][0] + log["ignored_other"][0] == pytest.approx(1)
    log = fit(gpt2(), method="loss-based")
    assert 0 < log["calls_factual"][0] < 1 and log["calls_factual"][0] + log["calls_other"][0] == pytest.approx(1)


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


def test_defer_learns_that_calls_are_rare() -> None:
    """With the paper's objective, <CALL> becomes the likeliest token where it is no target, too; with ``defer``, its
    mean probability comes near the share of the calls."""
    probability = {}
    for objective in ("paper", "defer"):
        model = gpt2()
        fit(model, steps=60, objective=objective)
        with torch.no_grad():
            ids = torch.stack([row["input_ids"] for row in rows(ROWS)])
            probability[objective] = model.model(ids).logits.softmax(-1)[..., CALL].mean().item()
    assert probability["defer"] == pytest.approx(0.15, abs=0.1) and probability["paper"] > 0.5


@pytest.mark.parametrize("rank", ["probability", "logit"])
def test_precision_is_of_the_models_own_calls(rank: str) -> None:
    """Precision is the share of the model's highest-ranked 15% that the mask wants, from the logits before the step."""
    model = gpt2()
    batch = rows(ROWS)
    ids, classes = (torch.stack([row[name] for row in batch]) for name in ("input_ids", "token_class"))
    with torch.no_grad():
        logits = model.model(ids).logits[:, :-1]
    losses = token_losses(logits, ids[:, 1:], CALL)
    valid = torch.ones_like(losses.true, dtype=torch.bool)
    count = torch.tensor(int(0.15 * valid.sum()))
    wanted = highest(losses.true, classes[:, 1:] == FactClass.FACTUAL, count)
    scores = call_scores(logits, CALL, rank)._replace(first=torch.zeros_like(valid))  # type: ignore[arg-type]
    own = own_call_mask(scores, valid, 0.15)
    log = fit(model, steps=1, rank_calls_by=rank)
    assert log["precision"] == [pytest.approx((wanted & own).sum().item() / own.sum().item())]
    assert log["chance"] == [pytest.approx(EXACT)] and log["call_fraction"] == log["chance"]
    probability = torch.exp(-losses.call)
    assert log["call_probability"] == [pytest.approx(probability.mean().item(), rel=1e-4)]
    assert log["call_majority"] == [pytest.approx((probability > 0.5).float().mean().item())]


def test_call_fraction_warmup() -> None:
    """The share of calls grows linearly to its value, with microbatches and without; a negative warm-up is refused."""
    for microbatch in (ROWS, 2):
        calls = fit(gpt2(), microbatch=microbatch, steps=6, call_fraction_warmup=4)["call_fraction"]
        targets = ROWS * (LENGTH - 1)
        expected = [int(0.15 * min(1, step / 4) * targets + 1e-6) / targets for step in range(1, 7)]
        assert calls == pytest.approx(expected), microbatch
    with pytest.raises(ValueError, match="call_fraction_warmup is -1: give a number of batches"):
        CallMask(CALL, call_fraction_warmup=-1)


def test_warns_once_where_call_leads_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """With the paper's objective <CALL> soon leads at all targets: one warning, with the way out."""
    fit(gpt2(), steps=60, objective="defer")
    assert not [record for record in caplog.records if "most likely token" in record.message]
    fit(gpt2(), steps=60, objective="paper")
    (warning,) = [record.message for record in caplog.records if "most likely token" in record.message]
    assert "use objective 'defer'" in warning


def test_checkpoint_of_another_objective_is_refused(tmp_path: Path) -> None:
    """The state of a checkpoint names its objective. Another one is refused, unless changes are accepted; a baseline
    has no calls, so its objective does not matter."""

    model = gpt2()
    Trainer(
        model=model,
        train_dataloader=DataLoader(rows(ROWS), batch_size=ROWS),
        max_duration="1ba",
        algorithms=[CallMask(CALL, objective="paper")],
        save_folder=str(tmp_path),
        progress_bar=False,
        device="cpu",
    ).fit()
    saved = next(tmp_path.glob("ep*.pt"))
    state = dict(torch.load(saved, weights_only=False)["state"]["algorithms"])["CallMask"]
    assert (state["objective"], state["method"]) == ("paper", "lacy")
    for mask, refused in [
        ({"objective": "defer"}, True),
        ({"objective": "paper"}, False),
        ({"objective": "defer", "accept_changes": True}, False),
        ({"objective": "defer", "method": "baseline"}, False),
    ]:
        algorithm = CallMask(CALL, **mask)  # type: ignore[arg-type]
        if refused:
            with pytest.raises(ObjectiveError, match="'paper', and this run has 'defer'.*accept_changes"):
                algorithm.load_state_dict(state)
        else:
            algorithm.load_state_dict(state)


ON_TWO_RANKS = ("lacy", "spacy", "lacy+ignore", "rho-1", "running")


class HalfOfTheRows(IterableDataset):
    """Every second row of two mini-batches. Composer asks no sampler of an iterable."""

    def __init__(self, rank: int) -> None:
        self.rows = rows(ROWS * 2)[rank::2]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.rows)


def _train_half(rank: int, folder: Path) -> None:
    """Train on every second row with each method, and save the weights and the fractions of calls."""
    trained = {}
    for method in ON_TWO_RANKS:
        model, log = gpt2(), Log()
        Trainer(
            model=model,
            train_dataloader=DataLoader(HalfOfTheRows(rank), batch_size=ROWS // 2),
            max_duration="2ba",
            optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
            algorithms=[CallMask(CALL, **masks(method))],
            loggers=[log.memory],
            device_train_microbatch_size=2,
            progress_bar=False,
            device="cpu",
        ).fit()
        trained[method] = (weights(model), log["call_fraction"])
    torch.save(trained, folder / f"rank{rank}.pt")


@pytest.mark.process
def test_two_ranks_train_the_same_weights(tmp_path: Path) -> None:
    """Two gloo ranks with half of each mini-batch, in microbatches of 2 rows, end with one rank's weights, random
    choices and the inexact ones of a running threshold included."""
    alone, fractions = {method: gpt2() for method in ON_TWO_RANKS}, {}
    for method, model in alone.items():
        fractions[method] = fit(model, microbatch=4, **masks(method))["call_fraction"]
    on_two_ranks(_train_half, tmp_path)
    for rank in (0, 1):
        for method, (trained, found) in torch.load(tmp_path / f"rank{rank}.pt").items():
            assert found == pytest.approx([EXACT, EXACT] if method != "running" else fractions[method])
            torch.testing.assert_close(trained, weights(alone[method]), rtol=1e-4, atol=1e-6)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_fraction_is_refused(fraction: float) -> None:
    """A call fraction outside (0, 1) is an error that names the value."""
    with pytest.raises(ValueError, match="call_fraction: .*between 0 and 1"):
        CallMask(CALL, call_fraction=fraction)


@pytest.mark.parametrize("fraction", [-0.1, 0.86, float("nan")])
def test_fractions_that_exceed_one_are_refused(fraction: float) -> None:
    """What is called and what is ignored are parts of one whole."""
    with pytest.raises(ValueError, match="ignore_fraction: .*call_fraction, 0.15, leaves of 1"):
        CallMask(CALL, ignore_fraction=fraction)


def test_method_without_its_reference_is_refused() -> None:
    """rho-1 without a reference model stops before training."""
    with pytest.raises(ValueError, match="'rho-1' needs a reference model"):
        CallMask(CALL, method="rho-1")


def test_reference_of_another_vocabulary_is_refused() -> None:
    """A reference model whose vocabulary is another one stops the first step and says which it must be."""
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="vocabulary has 50 entries: it must be that of the tokenizer, 40"):
        fit(gpt2(), method="rho-1", reference=other)


def test_mask_of_another_shape_is_refused() -> None:
    """A selector that returns numbers instead of flags, or another shape, is told what the mask must be."""

    def losses(targets: Targets, call_count: torch.Tensor, ignore_count: torch.Tensor) -> Selection:
        return Selection(call=targets.loss)

    with pytest.raises(ValueError, match="call mask is torch.float32 .*must be bool"):
        fit(gpt2(), method=losses)


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
