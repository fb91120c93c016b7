"""The named choices of calling: which targets are delegated, what is minimised, and how a model's calls are ranked.
Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lacy_stream.errors import UsageError

Objective = Literal["defer", "paper"]
"""What is learned where <CALL> is not the target.

``defer``: -log p(x) over the whole vocabulary, <CALL> included. The model learns the true token, and that this is no
place to call. It is cross-entropy on the replaced targets, the surrogate loss of learning to defer (Mozannar and Sontag
2020).
``paper``: -log p(x) with <CALL> left out of the softmax (equations A.3 and A.4). Nothing lowers the logit of <CALL>.
"""

Rank = Literal["probability", "logit"]
"""The score by which positions are ranked for calls, the higher the sooner.

``probability``: p(<CALL>), as its log-odds, which have the same order and do not saturate.
``logit``: the logit of <CALL>, after the positions where it leads all other logits (appendix A.4.3 and A.5).
"""

Scope = Literal["global", "rank", "microbatch", "running"]
"""The tokens among which the selection is made.

``global``: the mini-batch over all ranks. ``rank``: one rank's part of it. With several microbatches, both need a first
pass without gradient.
``microbatch``: each microbatch alone.
``running``: each microbatch with those before it, as many as a step has, over all ranks. The threshold follows the
losses of the last steps, so the share of calls is that of ``global`` on average and not in each step.
"""

FusedLoss = bool | Literal["auto"]
"""Whether the loss is computed from the last hidden states, without holding the logits; ``auto``: on a GPU."""

MethodName = Literal[
    "baseline", "loss-based", "rho-1", "llm-judge", "spacy", "lacy", "spacy+refloss", "lacy+ignorefacts", "lacy+ignore"
]

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
RANKS: tuple[Rank, ...] = get_args(Rank)
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, kw_only=True)
class MethodNeeds:
    """The signals that a method looks at.

    loss: the model's own loss. facts: the labels of spaCy or of a judge, in ``token_class``. reference: the loss of a
    reference model. random: numbers that are drawn for each target.
    """

    loss: bool = False
    facts: bool = False
    reference: bool = False
    random: bool = False


NEEDS: dict[MethodName, MethodNeeds] = {
    "baseline": MethodNeeds(),
    "loss-based": MethodNeeds(random=True),
    "rho-1": MethodNeeds(loss=True, reference=True),
    "llm-judge": MethodNeeds(facts=True),
    "spacy": MethodNeeds(facts=True, random=True),
    "lacy": MethodNeeds(loss=True, facts=True),
    "spacy+refloss": MethodNeeds(facts=True, reference=True),
    "lacy+ignorefacts": MethodNeeds(loss=True, facts=True),
    "lacy+ignore": MethodNeeds(loss=True, facts=True),
}
"""The nine methods of table 5."""


def check_fractions(call_fraction: float, ignore_fraction: float) -> None:
    """Refuse shares of a mini-batch that cannot be called and ignored.

    Raises:
        UsageError: the message begins with the argument's name.
    """
    if not 0 < call_fraction < 1:
        raise UsageError(
            f"call_fraction: {call_fraction!r} must lie between 0 and 1 (the paper: 0.15; for no calls, method: "
            "baseline)"
        )
    if not 0 <= ignore_fraction <= 1 - call_fraction:
        raise UsageError(
            f"ignore_fraction: {ignore_fraction!r} must lie between 0 and what call_fraction, {call_fraction!r}, "
            "leaves of 1 (the paper: 0.15)"
        )
