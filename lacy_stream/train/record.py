"""Callback: keeps the recipe and the annotation of a run in each of its checkpoints."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from lacy_stream.train.monitor import dataset_of, describe_rate


class RunRecord(Callback):
    """Keeps the recipe of a run in its checkpoints, so that they can be used without other files, and one line about
    the annotation so far.

    Args:
        recipe: its text.
    """

    def __init__(self, recipe: str) -> None:
        self._recipe, self._annotation = recipe, ""

    def batch_end(self, state: State, logger: Logger) -> None:
        if (dataset := dataset_of(state)) is not None:
            self._annotation = describe_rate(dataset.pool.stats(), dataset.pool.settings.finds_facts)

    def state_dict(self) -> dict[str, Any]:
        return {"recipe": self._recipe, "annotation": self._annotation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: a resumed run may have changed its recipe."""
