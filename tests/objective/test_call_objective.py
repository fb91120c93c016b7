"""The loss of a step without a trainer: microbatches of any sizes, and calls in the wrong order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from annotator import FactClass
from lacy_stream.errors import UsageError
from lacy_stream.objective.batch import Batch
from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.objective.losses import HiddenStates
from lacy_stream.objective.methods import RANKS, Rank, Scope
from lacy_stream.objective.selectors import Selection, Targets, highest

VOCABULARY, CALL, LENGTH = 23, 22, 14


class Words(nn.Module):
    """A small model of no library, with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.head = nn.Embedding(VOCABULARY, 12), nn.Linear(12, VOCABULARY)
        self.dropout = nn.Dropout(dropout)

    def hidden(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(input_ids).cumsum(dim=1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))


def batch() -> dict[str, Tensor]:
    """Seven rows of very different lengths, the rest of each padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, CALL, (7, LENGTH), generator=generator)
    labels = ids.masked_fill(torch.arange(LENGTH) >= torch.tensor([14, 3, 9, 14, 5, 1, 12])[:, None], -100)
    return {
        "input_ids": ids,
        "labels": labels,
        "token_class": torch.randint(0, 3, ids.shape, generator=generator).byte(),
    }


def split(whole: Batch, *sizes: int) -> list[dict[str, Tensor]]:
    parts = {key: value.split(sizes) for key, value in whole.items()}
    return [{key: part[number] for key, part in parts.items()} for number in range(len(sizes))]


def gradient(microbatches: list[dict[str, Tensor]], objective: CallObjective) -> Tensor:
    """The sum of the gradients of a step's microbatches."""
    model = Words().double()
    objective.begin_step(0, microbatches, model)
    for microbatch in microbatches:
        objective(model(microbatch["input_ids"]), microbatch).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


def hidden_states(model: Words, microbatch: Batch) -> HiddenStates:
    return HiddenStates(model.hidden(microbatch["input_ids"]), model.head.weight, model.head.bias)


def easiest(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """Ignores and never calls: equation A.2."""
    return Selection(ignore=highest(-targets.loss, targets.valid, 2 * ignore_count))


@pytest.mark.parametrize("method", ["baseline", "lacy", "spacy", "lacy+ignore", easiest])
def test_gradients_of_padded_microbatches_add_up(method) -> None:
    """Microbatches of 3, 1, 1 and 2 rows, some nearly all padding, add up to the gradient of the whole mini-batch."""
    whole = gradient([batch()], CallObjective(CALL, method=method))
    parts = gradient(split(batch(), 3, 1, 1, 2), CallObjective(CALL, method=method))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)  # shares are float32
    assert whole.abs().max() > 0.01


def test_one_microbatch_is_the_mean_over_its_targets() -> None:
    """Alone in its step, a microbatch has the loss that trainers get who weigh microbatches themselves."""
    objective, logits = CallObjective(CALL), Words()(batch()["input_ids"])
    objective.begin_step(0, [batch()])
    alone = objective(logits, batch())
    objective.begin_step(0, [batch()])
    assert torch.equal(alone, objective.mean_loss(logits, batch())) and objective.metrics()["call_fraction"] > 0.1


class HostCopies(TorchDispatchMode):
    """Counts what makes the host wait for a device: copies from it, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seen: list[str] = []
        for name in ("cpu", "tolist", "numpy", "item"):
            monkeypatch.setattr(Tensor, name, self._watched(name, getattr(Tensor, name)))

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *arguments: (self.seen.append(name), original(tensor, *arguments))[1]

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        name, indices = function.overloadpacket.__name__, arguments[1] if len(arguments) > 1 else ()
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in indices)
        if name in self.WAITS or by_mask:
            self.seen.append(name)
        return function(*arguments, **(settings or {}))


@pytest.mark.parametrize("method", ["lacy", "spacy", "lacy+ignore", "rho-1"])
@pytest.mark.parametrize("sizes", [(7,), (3, 4)])
@pytest.mark.parametrize("scope", ["global", "running"])
def test_a_step_waits_for_the_device_once(
    method: str, sizes: tuple[int, ...], scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the losses, the metrics and the time of a reference model are one copy to the host, in every way to
    call the objective."""
    reference = Words() if method == "rho-1" else None
    objective, model = CallObjective(CALL, method=method, scope=scope, reference=reference), Words()
    for step, whole_loss in enumerate((objective, objective.mean_loss)):
        with HostCopies(monkeypatch) as copies:
            objective.begin_step(step, split(batch(), *sizes), model)
            for microbatch in split(batch(), *sizes):
                whole_loss(model(microbatch["input_ids"]), microbatch).backward()
            objective.check_step()
            metrics = objective.metrics()
        assert copies.seen == ["tolist"] and metrics["rest_loss"] > 0
        monkeypatch.undo()


def test_running_scope_calls_as_often_on_average() -> None:
    """Each microbatch is selected with those before it, as many as a step has: over the steps, the share of calls is
    the fraction, though facts are spread unevenly; a step that was broken off leaves no trace; and a run that continues
    from the state makes the calls of one that did not stop."""
    whole, model = batch(), Words()
    whole["labels"] = whole["input_ids"].clone()
    whole["token_class"][:3], whole["token_class"][3:] = FactClass.FACTUAL, FactClass.OTHER
    microbatches = split(whole, 3, 2, 2)

    def step(objective: CallObjective, number: int, parts: int = 3) -> float:
        objective.begin_step(number, microbatches, None)
        losses = [objective.mean_loss(model(part["input_ids"]), part) for part in microbatches[:parts]]
        return torch.stack(losses).sum().item()

    alone, running = (CallObjective(CALL, scope=scope) for scope in ("microbatch", "running"))
    for number in range(4):
        step(alone, number), step(running, number)
    targets = whole["labels"][:, 1:].numel()
    assert running.metrics()["call_fraction"] == pytest.approx(int(0.15 * targets) / targets)
    assert alone.metrics()["call_fraction"] < 0.1

    resumed, broken = CallObjective(CALL, scope="running"), CallObjective(CALL, scope="running")
    first = step(broken, 0)
    step(broken, 1, parts=1)
    resumed.load_state_dict(broken.state_dict())
    assert step(resumed, 1) == step(broken, 1) != first


@pytest.mark.parametrize("rank", RANKS)
def test_hidden_states_train_as_logits_do(rank: Rank) -> None:
    """Gradients, masks and metrics are those of the logits, in both passes."""
    microbatches, found = split(batch(), 3, 4), []
    for fused in (False, True):
        objective, model = CallObjective(CALL, rank_calls_by=rank), Words().double()

        def forward(part: Batch, fused: bool = fused, model: Words = model) -> Tensor | HiddenStates:
            return hidden_states(model, part) if fused else model(part["input_ids"])

        objective.begin_step(0, microbatches, model, forward)
        for microbatch in microbatches:
            objective(forward(microbatch), microbatch).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]
        found.append((gradients, objective.metrics()))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1]) and found[0][1]["call_fraction"] > 0.1


def test_loss_of_a_mixture_of_experts_is_added() -> None:
    """The weight comes from the model that begin_step was given, wrapped or not; without one, the loss is refused."""
    objective, whole = CallObjective(CALL), batch()
    model = Words()
    plain = model(whole["input_ids"])
    outputs = {"logits": plain, "aux_loss": torch.tensor(3.0)}
    model.config = SimpleNamespace(router_aux_loss_coef=0.5)  # type: ignore[assignment]
    wrapper = nn.Module()
    wrapper.module = model
    for given in (model, wrapper):
        objective.begin_step(0, [whole], given)
        without = objective(plain, whole)
        objective.begin_step(0, [whole], given)
        assert objective(outputs, whole).item() == pytest.approx(without.item() + 1.5)
    objective.begin_step(0, [whole])
    with pytest.raises(UsageError, match="hold an auxiliary loss: give begin_step the model"):
        objective(outputs, whole)


def test_first_pass_is_an_evaluation() -> None:
    """The first pass has no dropout, takes no random numbers, keeps no graph, and puts each module's mode back."""
    model, seen = Words(dropout=0.5), []

    def forward(microbatch: Batch) -> dict[str, Tensor]:
        seen.append((model.dropout.training, torch.is_grad_enabled()))
        return {"logits": model(microbatch["input_ids"])}

    model.embedding.eval()  # frozen by the user
    before = torch.get_rng_state()
    CallObjective(CALL).begin_step(0, split(batch(), 4, 3), model, forward)
    assert seen == [(False, False)] * 2 and torch.equal(torch.get_rng_state(), before)
    assert model.training and model.dropout.training and not model.embedding.training


def test_methods_that_need_no_loss_need_no_model() -> None:
    """Facts drawn at random are selected without a forward pass; the hardest facts are not."""
    CallObjective(CALL, method="spacy").begin_step(0, split(batch(), 4, 3))
    with pytest.raises(ValueError, match="'lacy' needs the losses of all 2 microbatches .*give begin_step the model"):
        CallObjective(CALL, method="lacy").begin_step(0, split(batch(), 4, 3))


def test_step_decides_on_draws_and_warm_up() -> None:
    """The draw and the share of calls depend on the number of the step alone: a resumed run continues with both."""
    shares, fresh = [], CallObjective(CALL, method="spacy", call_fraction_warmup=4, call_fraction=0.3)
    for step in (0, 1, 7):
        losses = []
        for objective in (fresh, CallObjective(CALL, method="spacy", call_fraction_warmup=4, call_fraction=0.3)):
            objective.begin_step(step, [batch()])
            losses.append(objective(Words()(batch()["input_ids"]), batch()))
        assert losses[0] == losses[1]
        shares.append(fresh.metrics()["call_fraction"])
    valid = (batch()["labels"][:, 1:] != -100).sum().item()
    assert shares == pytest.approx([int(0.3 * part * valid) / valid for part in (1 / 4, 2 / 4, 1)])


def test_losses_that_were_not_announced_are_refused() -> None:
    """A loss without a step, or of one microbatch too many, would be weighed wrongly."""
    objective, logits = CallObjective(CALL), Words()(batch()["input_ids"])
    with pytest.raises(ValueError, match="the step has 0 rows, and this microbatch is beyond them: call begin_step"):
        objective(logits, batch())
    assert objective.metrics() == {}
    objective.begin_step(0, [batch()])
    objective(logits, batch())
    with pytest.raises(ValueError, match="the step has 7 rows, and this microbatch is beyond them"):
        objective(logits, batch())


def test_microbatches_that_cannot_be_joined_are_refused() -> None:
    """Rows of two lengths, no microbatch at all, and rows that nobody annotated are refused with the way out."""
    short = {key: value[:, :9] for key, value in batch().items()}
    with pytest.raises(ValueError, match=r"the rows of a step have the lengths \[9, 14\]: pad all of them"):
        CallObjective(CALL).begin_step(0, [batch(), short], Words())
    with pytest.raises(ValueError, match="a step needs at least one microbatch"):
        CallObjective(CALL).begin_step(0, [], Words())
    with pytest.raises(ValueError, match="no 'token_class'.*annotated_dataloader"):
        CallObjective(CALL).begin_step(0, [{"labels": batch()["labels"]}], Words())


def test_classes_move_with_their_labels() -> None:
    """Where only the third token is a fact, the call is made at the position before it, and nowhere else."""
    whole = batch() | {"labels": batch()["input_ids"], "token_class": torch.zeros(7, LENGTH, dtype=torch.uint8)}
    whole["token_class"][:, 2] = FactClass.FACTUAL
    objective = CallObjective(CALL, call_fraction=0.5)
    logits = Words()(whole["input_ids"]).detach().requires_grad_()
    objective.begin_step(0, [whole])
    objective(logits, whole).backward()
    assert objective.metrics()["call_fraction"] == pytest.approx(1 / (LENGTH - 1))
    assert ((logits.grad[..., CALL] < 0).nonzero()[:, 1] == 1).all() and (logits.grad[:, 1, CALL] < 0).all()  # type: ignore[index]
