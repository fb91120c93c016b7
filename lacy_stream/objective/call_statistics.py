"""Statistics of a mini-batch's call mask: sums over microbatches and ranks, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from annotator import FactClass
from lacy_stream.objective.losses import TokenLosses
from lacy_stream.objective.selectors import Selection, budget, highest

CLASSES = len(FactClass)


class _Sums(NamedTuple):
    """Sums over the valid targets, float64, on the device.

    tokens_C, calls_C, ignored_C: [3], targets by ``FactClass``.
    would_call, wanted_of_these: scalars; the targets that the model would call now, and those of them in the call mask.
    call_probability, call_majority: scalars; p(<CALL>), and the targets where it is more than a half.
    call_loss, called_token_loss, ignored_token_loss, rest_loss: scalars, nats; see ``CallObjective``.
    """

    tokens_C: Tensor
    calls_C: Tensor
    ignored_C: Tensor
    would_call: Tensor
    wanted_of_these: Tensor
    call_probability: Tensor
    call_majority: Tensor
    call_loss: Tensor
    called_token_loss: Tensor
    ignored_token_loss: Tensor
    rest_loss: Tensor


class CallStatistics:
    """Sums of one mini-batch, which stay on the device: nothing waits for a GPU.

    Args:
        call_fraction: share of the targets that the model is taken to call, for ``precision``.
    """

    def __init__(self, call_fraction: float) -> None:
        self._call_fraction = call_fraction
        self._sums: _Sums | None = None
        self._lowest_called_loss: Tensor | None = None

    @torch.no_grad()
    def add(self, losses: TokenLosses, score: Tensor, selection: Selection, token_class: Tensor, valid: Tensor) -> None:
        """Add one microbatch.

        Args:
            losses: of each target. score: of <CALL> there, the higher the sooner it is called.
            selection: the masks. token_class: uint8, ``FactClass``. valid: bool. All of one shape.
        """
        nothing = torch.zeros_like(valid)
        call, ignore = (nothing if mask is None else mask for mask in selection)
        # The model's own calls are counted within the microbatch: a ranking over all of them would be another pass.
        own = highest(score, valid, budget(valid, self._call_fraction))
        probability = torch.exp(-losses.call)
        by_class = [token_class == fact_class for fact_class in FactClass]
        counts = [torch.stack([(mask & part).sum() for part in by_class]) for mask in (valid, call, ignore)]
        scalars = (
            own.sum(),
            (own & call).sum(),
            (probability * valid).sum(),
            ((probability > 0.5) & valid).sum(),
            (losses.call * call).sum(),
            *((losses.true * mask).sum() for mask in (call, ignore, valid & ~call & ~ignore)),
        )
        # In float64, since float32 counts exactly to 16 million only.
        sums = _Sums(*(value.double() for value in (*counts, *scalars)))
        # Infinity where nothing is called, so that a minimum with other parts is that of the others.
        lowest = losses.true.masked_fill(~call, torch.inf).min()
        if self._sums is None or self._lowest_called_loss is None:
            self._sums, self._lowest_called_loss = sums, lowest
        else:
            self._sums = _Sums(*(old + new for old, new in zip(self._sums, sums)))
            self._lowest_called_loss = torch.minimum(self._lowest_called_loss, lowest)

    def values(self) -> Tensor | None:
        """The sums of this rank and its lowest called loss, float64 [C], for ``metrics``; None if nothing was added."""
        if self._sums is None or self._lowest_called_loss is None:
            return None
        return torch.cat([value.reshape(-1) for value in (*self._sums, self._lowest_called_loss.double())])

    @staticmethod
    def metrics(ranks: Sequence[Sequence[float]]) -> dict[str, float]:
        """The metrics of a mini-batch, see ``CallObjective``.

        Args:
            ranks: ``values`` of all ranks.
        """
        *totals, _ = (sum(column) for column in zip(*ranks, strict=True))
        tokens_C, calls_C, ignored_C = (totals[start : start + CLASSES] for start in range(0, 3 * CLASSES, CLASSES))
        sums = dict(zip(_Sums._fields[3:], totals[3 * CLASSES :], strict=True))
        tokens, calls, ignored = sum(tokens_C), sum(calls_C), sum(ignored_C)
        found = {
            "call_fraction": calls / max(tokens, 1),
            "ignore_fraction": ignored / max(tokens, 1),
            "factual_fraction": tokens_C[FactClass.FACTUAL] / max(tokens, 1),
            "rest_loss": sums["rest_loss"] / max(tokens - calls - ignored, 1),
            "call_probability": sums["call_probability"] / max(tokens, 1),
            "call_majority": sums["call_majority"] / max(tokens, 1),
        }
        if calls:
            found |= {
                "call_loss": sums["call_loss"] / calls,
                "called_token_loss": sums["called_token_loss"] / calls,
                "threshold": min(values[-1] for values in ranks),
                "precision": sums["wanted_of_these"] / max(sums["would_call"], 1),
                "chance": calls / tokens,
            }
            found |= {f"calls_{kind.name.lower()}": calls_C[kind] / calls for kind in FactClass}
        if ignored:
            found["ignored_token_loss"] = sums["ignored_token_loss"] / ignored
            found |= {f"ignored_{kind.name.lower()}": ignored_C[kind] / ignored for kind in FactClass}
        return found
