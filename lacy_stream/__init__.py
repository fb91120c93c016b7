"""LaCy pretraining as a stream: annotation inside the data path, a <CALL> mask inside Composer or any other trainer.

The names below are loaded when they are first used, so that worker processes and the command line, which
import this package, do not import torch and composer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lacy_stream.errors import LacyStreamError
    from lacy_stream.objective.call_objective import CallObjective
    from lacy_stream.objective.losses import HiddenStates, token_losses, training_loss
    from lacy_stream.objective.metrics import (
        CallLoss,
        MaskModel,
        MatchedCallLoss,
        MatchedNonCallLoss,
        NonCallLoss,
        TotalLoss,
    )
    from lacy_stream.objective.selectors import METHODS, Selection, Targets, highest
    from lacy_stream.objective.step_check import LossError
    from lacy_stream.recipe import Recipe, RecipeError, load_recipe
    from lacy_stream.stream.batches import AnnotatedDataset, PositionError, annotated_dataloader
    from lacy_stream.stream.corpus import Corpus, open_corpus
    from lacy_stream.stream.pool import AnnotationPool
    from lacy_stream.stream.quarantine import AnnotationError
    from lacy_stream.stream.report import Report
    from lacy_stream.stream.shards import DataError
    from lacy_stream.stream.source import Source
    from lacy_stream.stream.workers.remote_settings import RemoteSettings
    from lacy_stream.train.call_mask import CallMask
    from lacy_stream.train.monitor import StreamMonitor
    from lacy_stream.train.record import RunRecord

_MODULES = {
    "stream.batches": ("AnnotatedDataset", "PositionError", "annotated_dataloader"),
    "train.call_mask": ("CallMask",),
    "stream.corpus": ("Corpus", "open_corpus"),
    "errors": ("LacyStreamError",),
    "objective.call_objective": ("CallObjective",),
    "objective.losses": ("HiddenStates", "token_losses", "training_loss"),
    "objective.step_check": ("LossError",),
    "objective.metrics": ("CallLoss", "MaskModel", "MatchedCallLoss", "MatchedNonCallLoss", "NonCallLoss", "TotalLoss"),
    "train.monitor": ("StreamMonitor",),
    "stream.pool": ("AnnotationPool",),
    "stream.quarantine": ("AnnotationError",),
    "stream.workers.remote_settings": ("RemoteSettings",),
    "recipe": ("Recipe", "RecipeError", "load_recipe"),
    "train.record": ("RunRecord",),
    "stream.report": ("Report",),
    "objective.selectors": ("METHODS", "Selection", "Targets", "highest"),
    "stream.shards": ("DataError",),
    "stream.source": ("Source",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AnnotatedDataset",
    "AnnotationError",
    "AnnotationPool",
    "CallLoss",
    "CallMask",
    "CallObjective",
    "Corpus",
    "DataError",
    "HiddenStates",
    "LacyStreamError",
    "LossError",
    "METHODS",
    "MaskModel",
    "MatchedCallLoss",
    "MatchedNonCallLoss",
    "NonCallLoss",
    "PositionError",
    "Recipe",
    "RecipeError",
    "RemoteSettings",
    "Report",
    "RunRecord",
    "Selection",
    "Source",
    "StreamMonitor",
    "Targets",
    "TotalLoss",
    "annotated_dataloader",
    "highest",
    "load_recipe",
    "open_corpus",
    "token_losses",
    "training_loss",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"lacy_stream.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
