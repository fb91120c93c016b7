"""The losses against equations A.2 to A.4 in float64, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from equations import equation_a2, equation_a4

from lacy_stream.objective import losses as losses_module
from lacy_stream.objective.losses import HiddenStates, TokenLosses, token_losses, training_loss, true_losses
from lacy_stream.objective.methods import OBJECTIVES

VOCABULARY, CALL = 41, 40


@pytest.mark.parametrize("equation", ["A.2", "A.3", "A.4"])
@pytest.mark.parametrize("call_token_id", [0, 17, 40])
def test_loss_and_gradient_are_those_of_the_equations(equation: str, call_token_id: int) -> None:
    """Value and gradient agree with the slow float64 reference, wherever <CALL> stands in the vocabulary; a target
    that is ignored sends none."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(60, VOCABULARY, dtype=torch.float64, generator=generator) * 3).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (60,), generator=generator)
    targets[targets == call_token_id] = (call_token_id + 1) % VOCABULARY
    draw = torch.rand(60, generator=generator)
    call, ignore = draw < 0.3, draw > 0.6
    if equation == "A.2":
        expected, masks = equation_a2(logits, targets, ignore, call_token_id), (None, ignore)
    elif equation == "A.3":
        ignore = torch.zeros_like(ignore)
        expected, masks = equation_a4(logits, targets, call, ignore, call_token_id), (call, None)
    else:
        expected, masks = equation_a4(logits, targets, call, ignore, call_token_id), (call, ignore)
    (expected_gradient,) = torch.autograd.grad(expected, logits)

    losses = token_losses(logits[None], targets[None], call_token_id)
    masks = [None if mask is None else mask[None] for mask in masks]
    loss = training_loss(losses, torch.ones(1, 60, dtype=torch.bool), *masks, objective="paper")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-13)
    assert (gradient[ignore] == 0).all()


def test_defer_is_cross_entropy_on_replaced_targets() -> None:
    """The loss is cross-entropy over the whole vocabulary everywhere, <CALL> being the target on the mask. It lowers
    the logit of <CALL> where that is not the target, and the paper's objective does not."""
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(60, VOCABULARY, dtype=torch.float64, generator=generator) * 3).requires_grad_()
    targets = torch.randint(0, CALL, (60,), generator=generator)
    call, valid = torch.rand(60, generator=generator) < 0.3, torch.ones(60, dtype=torch.bool)
    gradients = {}
    for objective in OBJECTIVES:
        loss = training_loss(token_losses(logits, targets, CALL), valid, call, objective=objective)
        (gradients[objective],) = torch.autograd.grad(loss, logits)
    expected = F.cross_entropy(logits, torch.where(call, CALL, targets))
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradients["defer"], expected_gradient, rtol=1e-9, atol=1e-12)
    assert (gradients["defer"][~call, CALL] > 0).all() and (gradients["paper"][~call, CALL] == 0).all()


def test_parts_of_a_mini_batch_add_up_to_its_mean() -> None:
    """A.2 over two parts, weighed by their valid targets and with the share of the whole, is A.2 of the whole."""
    generator = torch.Generator().manual_seed(2)
    losses = TokenLosses(*torch.rand(2, 50, dtype=torch.float64, generator=generator))
    ignore, valid = torch.arange(50) % 7 < 3, torch.ones(50, dtype=torch.bool)
    valid[40:45] = False
    whole = training_loss(losses, valid, None, ignore, objective="paper")
    share = (valid & ~ignore).sum() / valid.sum()
    parts = [slice(0, 20), slice(20, 50)]
    added = sum(
        valid[part].sum()
        * training_loss(
            TokenLosses(*(loss[part] for loss in losses)), valid[part], None, ignore[part], share, objective="paper"
        )
        for part in parts
    )
    torch.testing.assert_close(added / valid.sum(), whole)


def test_loss_with_call_in_the_softmax() -> None:
    """The loss of the true token over the whole vocabulary is cross-entropy, also where <CALL> has almost all of it."""
    logits = torch.randn(1, 30, VOCABULARY, dtype=torch.float64)
    logits[0, :3, CALL] = torch.tensor([-90.0, 30.0, 60.0], dtype=torch.float64)
    targets = torch.randint(0, CALL, (1, 30))
    expected = F.cross_entropy(logits[0], targets[0], reduction="none")
    torch.testing.assert_close(token_losses(logits, targets, CALL).true_with_call[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_of_call(dtype: torch.dtype) -> None:
    """They are the logit of <CALL> against the log-sum-exp of the others, where p(<CALL>) rounds to 0 or 1, too."""
    logits = torch.zeros(1, 7, VOCABULARY, dtype=dtype)
    logits[0, :, CALL] = torch.tensor([-1e4, -80.0, -5.0, 0.0, 5.0, 40.0, 80.0], dtype=dtype)
    expected = logits[..., CALL] - torch.logsumexp(logits[..., :CALL].double(), dim=-1).to(dtype)
    found = token_losses(logits, torch.zeros(1, 7, dtype=torch.long), CALL).call_log_odds
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_losses_of_a_model_without_call() -> None:
    """A vocabulary that ends before <CALL> gives plain cross-entropy; one that has it leaves it out."""
    logits, targets = torch.randn(2, 9, VOCABULARY), torch.randint(0, CALL, (2, 9))
    expected = F.cross_entropy(logits[..., :CALL].flatten(0, 1), targets.flatten(), reduction="none").view(2, 9)
    torch.testing.assert_close(true_losses(logits[..., :CALL], targets, CALL), expected)
    torch.testing.assert_close(true_losses(logits, targets, CALL), expected)


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
    monkeypatch.setitem(losses_module._CHUNK, "cpu", 3 * VOCABULARY)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("with_bias", [False, True])
def test_hidden_states_are_their_logits(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of hidden states, weight and bias are those that go through the logits, with and without
    chunks of positions and of entries, and for a model without an entry for <CALL>."""
    generator = torch.Generator().manual_seed(6)
    shapes = [(2, 10, 8), (VOCABULARY, 8), (VOCABULARY,)][: 3 if with_bias else 2]
    parts = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]
    targets = torch.randint(0, CALL, (2, 10), generator=generator)
    weights = torch.rand(2, 2, 10, dtype=torch.float64, generator=generator)
    hidden, logits = HiddenStates(*parts), F.linear(*parts)
    torch.testing.assert_close(hidden.logit(CALL), logits[..., CALL])
    for chunk, entries in ((losses_module._CHUNK["cpu"], losses_module._ENTRIES["cpu"]), (3 * VOCABULARY, 7)):
        monkeypatch.setitem(losses_module._CHUNK, "cpu", chunk)
        monkeypatch.setitem(losses_module._ENTRIES, "cpu", entries)
        found = []
        for source in (hidden, logits):
            losses = token_losses(source, targets, 17)
            total = (losses.true * weights[0] + losses.call * weights[1]).sum()
            found.append([*losses, *torch.autograd.grad(total, parts, retain_graph=True)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
        without = HiddenStates(parts[0], parts[1][:CALL], parts[2][:CALL] if with_bias else None)
        torch.testing.assert_close(true_losses(without, targets, CALL), true_losses(logits[..., :CALL], targets, CALL))


@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_that_pad_the_vocabulary_have_no_part(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows of the weight, however large, change no loss and no gradient, and their own gradient is zero."""
    shapes = [(2, 10, 8), (VOCABULARY, 8), (VOCABULARY,)][: 3 if with_bias else 2]
    parts = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    padding = [torch.full((5, *part.shape[1:]), 300.0, dtype=torch.float64) for part in parts[1:]]
    padded = [parts[0], *(torch.cat([part.detach(), more]).requires_grad_() for part, more in zip(parts[1:], padding))]
    targets, found = torch.randint(0, CALL, (2, 10)), []
    monkeypatch.setitem(losses_module._CHUNK, "cpu", 3 * VOCABULARY)
    for mine in (parts, padded):
        hidden = HiddenStates(mine[0], mine[1], mine[2] if with_bias else None, VOCABULARY)
        losses = token_losses(hidden, targets, CALL)
        found.append([*losses, *torch.autograd.grad(losses.true.sum() + 2 * losses.call.sum(), mine)])
        torch.testing.assert_close(true_losses(hidden, targets, VOCABULARY), true_losses(F.linear(*parts), targets, 99))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other[: len(one)], one)
        assert not other[len(one) :].any()


def test_hidden_states_under_autocast() -> None:
    """In bf16, the losses are those of the bf16 logits, and gradients of the weight are summed in float32."""
    states, weight = torch.randn(1, 64, 32, requires_grad=True), torch.randn(VOCABULARY, 32, requires_grad=True)
    targets = torch.randint(0, CALL, (1, 64))
    gradients = []
    for fused in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            losses = token_losses(HiddenStates(states, weight) if fused else F.linear(states, weight), targets, CALL)
        gradients.append(
            (losses.true.detach(), *torch.autograd.grad(losses.true.mean() + losses.call.mean(), (states, weight)))
        )
    assert torch.equal(gradients[0][0], gradients[1][0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


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
    assert training_loss(losses, valid, call, objective="paper").item() == pytest.approx((1 + 6) / 2)
    assert training_loss(losses, torch.zeros(3, dtype=torch.bool), call, objective="paper").item() == 0
    assert training_loss(losses, torch.zeros(3, dtype=torch.bool), None, call, objective="paper").item() == 0
