"""Which targets are delegated and which are ignored: the nine methods that the paper compares (table 5).

    Targets of a mini-batch --selector--> Selection: call mask, ignore mask

A selector is a pure function. It sees the whole mini-batch at once, whatever its microbatches and ranks, and how many
targets it is to call and to ignore. ``call_count`` and ``ignore_count`` are scalars on the device, so that the host
need not wait for a GPU. The names in ``METHODS`` are those of recipes; any function of this form will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from annotator import FactClass
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import NEEDS, MethodName, MethodNeeds


class Targets(NamedTuple):
    """The targets of a mini-batch, all of one shape.

    loss: of the true token, <CALL> excluded, in nats, no gradient.
    token_class: uint8, ``FactClass``.
    valid: bool, those that count (no padding). What a selector marks elsewhere is dropped.
    random: uniform in [0, 1), from the run's seed, the step and the place in the mini-batch. Zeros for methods that do
        not need it.
    reference_loss: the reference model's loss of the true token; None without a reference model.
    """

    loss: Tensor
    token_class: Tensor
    valid: Tensor
    random: Tensor
    reference_loss: Tensor | None = None

    @property
    def factual(self) -> Tensor:
        """bool: the valid targets that are facts."""
        return (self.token_class == FactClass.FACTUAL) & self.valid


class Selection(NamedTuple):
    """Masks, bool, of the targets' shape. None: the method has no such mask. With an ignore mask alone, the objective
    is A.2, else A.3 or A.4."""

    call: Tensor | None = None
    ignore: Tensor | None = None


Selector = Callable[[Targets, Tensor, Tensor], Selection]


def budget(valid: Tensor, fraction: float) -> Tensor:
    """The number of positions that is ``fraction`` of the valid ones, rounded down: a scalar that stays on the device,
    so that the host need not wait for the GPU. 0.29 x 100 is 29, although it is 28.999… in floating point."""
    return torch.floor(valid.sum(dtype=torch.float64) * fraction + 1e-6)


def highest(scores: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """The ``count`` candidates with the highest scores, or all where there are fewer: bool, of the scores' shape.
    Equal scores are taken in order of position."""
    # A stable sort and not ``topk``: equal scores come in the same order on every device, and the count stays on the
    # device. Where it exceeds the candidates, others are chosen after them, which the last line drops.
    scores = scores.detach().masked_fill(~candidates, -torch.inf).flatten()
    order = torch.argsort(scores, descending=True, stable=True)
    chosen = torch.arange(len(order), device=order.device) < count
    return torch.zeros_like(chosen).scatter(0, order, chosen).view_as(candidates) & candidates


def baseline(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C = none, I = none."""
    return Selection()


def loss_based(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = v, v ~ Bernoulli(15%); I = none. Uniformly random, and here exactly 15%: a model so trained learns a
    constant <CALL> logit, and calls wherever all other logits fall below it."""
    return Selection(call=highest(targets.random, targets.valid, call_count))


def rho_1(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = 1[x ranks in the bottom 15% of L(θ) - L_RefModel]; I = none. What the reference model could not learn
    either is delegated."""
    return Selection(call=highest(_reference(targets) - targets.loss, targets.valid, call_count))


def llm_judge(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = L_LLM judge(x); I = none. All labels are taken, as they are: the judge's own share is about 15%."""
    return Selection(call=targets.factual)


def spacy(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = L_spaCy(x), of which a uniformly random part makes 15% of the targets; I = none."""
    return Selection(call=highest(targets.random, targets.factual, call_count))


def lacy(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = L_spaCy(x) · 1[x ranks in the top n% of L(θ)], n such that 15% are called; I = none."""
    return Selection(call=highest(targets.loss, targets.factual, call_count))


def spacy_refloss(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C(x) = L_spaCy(x) · 1[x ranks in the top n% of L_RefModel], n such that 15% are called; I = none."""
    return Selection(call=highest(_reference(targets), targets.factual, call_count))


def lacy_ignorefacts(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C as ``lacy``; I(x) = L_spaCy(x) · (1 - C(x)): all remaining facts, however many."""
    call = highest(targets.loss, targets.factual, call_count)
    return Selection(call, ignore=targets.factual & ~call)


def lacy_ignore(targets: Targets, call_count: Tensor, ignore_count: Tensor) -> Selection:
    """C as ``lacy``; I(x) = L_spaCy(x) · (1 - C(x)) + 1[x ranks in the top k% of L(θ) off the grammar], k such that 15%
    are ignored in all. The second part is of targets that are neither factual nor grammatical; where the remaining
    facts are more than 15%, it is empty."""
    call, facts = lacy_ignorefacts(targets, call_count, ignore_count)
    assert facts is not None
    # With more facts than the budget, the count is negative, and ``highest`` chooses none.
    others = (targets.token_class == FactClass.OTHER) & targets.valid
    return Selection(call, ignore=facts | highest(targets.loss, others, ignore_count - facts.sum()))


@dataclass(frozen=True, kw_only=True)
class Method(MethodNeeds):
    """A selector and the signals that it needs."""

    select: Selector


_SELECTORS: dict[MethodName, Selector] = {
    "baseline": baseline,
    "loss-based": loss_based,
    "rho-1": rho_1,
    "llm-judge": llm_judge,
    "spacy": spacy,
    "lacy": lacy,
    "spacy+refloss": spacy_refloss,
    "lacy+ignorefacts": lacy_ignorefacts,
    "lacy+ignore": lacy_ignore,
}
METHODS: dict[str, Method] = {name: Method(select=_SELECTORS[name], **vars(needs)) for name, needs in NEEDS.items()}


def _reference(targets: Targets) -> Tensor:
    if targets.reference_loss is None:
        raise UsageError("this method needs the loss of a reference model: give CallMask or CallObjective a reference")
    return targets.reference_loss
