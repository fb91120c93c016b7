"""Callback: how the stream keeps up with the trainer, and the recipe inside each checkpoint."""

from __future__ import annotations

import time
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from lacy_stream.batches import AnnotatedDataset
from lacy_stream.pool import PoolStats


class StreamMonitor(Callback):
    """Logs at every batch, for this rank:

    - ``stream/data_wait_s``: seconds that the trainer waited for rows;
    - ``stream/data_wait_fraction``: the same, as a share of the time since the last batch ended;
    - ``stream/tokens_per_s_per_core``: annotated tokens per second of a worker's CPU time, since start;
    - ``stream/queue_depth``: documents that wait for a worker;
    - ``stream/documents_ahead``: documents submitted and not yet packed;
    - ``stream/worker_restarts``: workers that died or hung and were replaced;
    - ``stream/quarantined``: documents that go without fact labels because they could not be annotated.

    Args:
        recipe: text of the recipe, stored in every checkpoint so that it can be used without other files;
            beside it stands one line about the annotation so far.
    """

    def __init__(self, recipe: str = "") -> None:
        self.recipe = recipe
        self.annotation = ""
        self._batch_end = time.perf_counter()
        self._wait_s = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._batch_end = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        dataset = getattr(state.train_dataloader, "dataset", None)
        if not isinstance(dataset, AnnotatedDataset):
            return
        now = time.perf_counter()
        stats, pool = dataset.stats(), dataset.pool.stats()
        waited, elapsed = stats.wait_s - self._wait_s, now - self._batch_end
        self._wait_s, self._batch_end = stats.wait_s, now
        self.annotation = describe_rate(pool)
        logger.log_metrics(
            {
                "stream/data_wait_s": waited,
                "stream/data_wait_fraction": waited / elapsed,
                "stream/tokens_per_s_per_core": pool.tokens_per_s_per_core,
                "stream/queue_depth": pool.queued,
                "stream/documents_ahead": stats.documents_ahead,
                "stream/worker_restarts": pool.restarts,
                "stream/quarantined": pool.quarantined,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "annotation": self.annotation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: a resumed run may have changed its recipe."""


def describe_rate(stats: PoolStats) -> str:
    """One line for people, beside the paper's figure (table 2: 152 h per 1B tokens on one core)."""
    rate = stats.tokens_per_s_per_core
    hours = 1e9 / rate / 3600 if rate else float("inf")
    return (
        f"annotated {stats.documents:,} documents, {stats.tokens:,} tokens: {rate:,.0f} tokens/s per core, "
        f"{hours:,.0f} h per 1B tokens (the paper: 1,827 tokens/s, 152 h)"
    )
