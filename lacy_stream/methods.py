"""The named choices of calling: what is minimised, and how a model's calls are ranked. Free of torch."""

from __future__ import annotations

from typing import Literal, get_args

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

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
RANKS: tuple[Rank, ...] = get_args(Rank)
