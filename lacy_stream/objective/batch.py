"""A batch and a model's outputs -> targets and logits: the only place that shifts labels against logits.

A loader's labels stand where their tokens stand. The logits at position i are about the token at position i + 1. Every
other file of this room takes targets, which stand where their logits stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from annotator import FactClass
from lacy_stream.errors import UsageError
from lacy_stream.objective.losses import IGNORED_LABEL, HiddenStates, Logits

Batch = Mapping[str, Tensor]
"""Tensors [B, T]: ``input_ids`` int64, ``labels`` int64 and ``token_class`` uint8, as ``annotated_dataloader`` yields
them; more keys do no harm."""


def check_batch(batch: Any) -> None:
    """Refuse a batch that nobody annotated.

    Raises:
        UsageError: it has no ``labels`` or no ``token_class``.
    """
    keys = sorted(batch) if isinstance(batch, Mapping) else []
    for key in ("labels", "token_class"):
        if key not in keys:
            raise UsageError(f"the batch has no {key!r} (it has {keys}): use annotated_dataloader")


def shift_labels(labels_BT: Tensor, classes_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of each position [B, T] and their classes [B, T]. The last position of a row has no target.

    Args:
        labels_BT: int64, not shifted, ``IGNORED_LABEL`` where there is nothing to predict.
        classes_BT: uint8, ``FactClass`` of each token.
    """
    # Logits at position t predict the label at t + 1. The rows keep their length, so that masks fit the logits.
    targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)
    return targets_BT, F.pad(classes_BT[:, 1:], (0, 1), value=int(FactClass.OTHER))


def logits_of(outputs: Any) -> Logits:
    """The logits [B, T, V] in what a model's forward returned: the tensor itself, or its ``logits``, by key or by name.
    Or the ``HiddenStates`` that were given in their place.

    Raises:
        UsageError: there are none.
    """
    if isinstance(outputs, HiddenStates):
        return outputs
    logits = outputs if isinstance(outputs, Tensor) else None
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif logits is None:
        logits = getattr(outputs, "logits", None)
    if isinstance(logits, HiddenStates):
        return logits
    if logits is None or logits.ndim != 3:
        raise UsageError(
            f"the model's forward returned {type(outputs).__name__} without logits [B, T, V]: the call mask needs "
            "them (turn off a fused loss that does not keep the logits)"
        )
    return logits
