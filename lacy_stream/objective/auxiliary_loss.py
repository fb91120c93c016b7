"""The load-balancing loss of a mixture of experts, which is kept when the loss of the tokens is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lacy_stream.errors import UsageError

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
"""Names that models of transformers give to the weight of their load-balancing loss."""


def auxiliary_loss(model: Any, outputs: Any) -> Tensor | float:
    """The load-balancing loss times its weight, as the model adds it to its own loss where it sees labels.

    Args:
        model: of transformers, or a wrapper that holds it as ``model`` or ``module``; None if it is not known.
        outputs: of its forward. They hold the loss where the model's configuration has ``output_router_logits: true``.

    Returns:
        A scalar; 0 for a model without such a loss.

    Raises:
        UsageError: there is a loss, and no model that says its weight.
    """
    loss = outputs.get("aux_loss") if isinstance(outputs, Mapping) else getattr(outputs, "aux_loss", None)
    if loss is None:
        return 0.0
    if model is None:
        raise UsageError("the model's outputs hold an auxiliary loss: give begin_step the model, which says its weight")
    networks = list(_unwrapped(model))
    for name in COEFFICIENTS:
        for holder in [*networks, *(getattr(network, "config", None) for network in networks)]:
            if (weight := getattr(holder, name, None)) is not None:
                return weight * loss
    raise UsageError(
        f"{type(networks[-1]).__name__} has an auxiliary loss and none of the attributes {', '.join(COEFFICIENTS)}: "
        "its loss cannot be replaced by that of the call mask"
    )


def _unwrapped(model: Any) -> Iterator[Any]:
    """A model, and what its wrappers hold: DistributedDataParallel as ``module``, Composer's as ``model``."""
    while model is not None:
        yield model
        model = getattr(model, "module", None) or (None if hasattr(model, "config") else getattr(model, "model", None))
