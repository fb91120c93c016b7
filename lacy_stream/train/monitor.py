"""Callback: how the stream keeps up with the trainer."""

from __future__ import annotations

import logging
import math
import time
from typing import Protocol, runtime_checkable

from composer.core import Callback, State
from composer.loggers import Logger

from lacy_stream import distributed as dist
from lacy_stream.stream.batches import StreamStats
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.stream.pool_stats import PoolStats, remote_metrics
from lacy_stream.stream.report import Report

log = logging.getLogger(__name__)

WAITS_LITTLE = 0.02
"""Below this share of the time, the stream keeps up."""


class StreamMonitor(Callback):
    """Logs at every batch, for this rank:

    - ``stream/data_wait_s``: seconds that the trainer waited for rows;
    - ``stream/data_wait_max_s``: the same on the rank that waited longest, for which all others wait;
    - ``stream/data_wait_fraction``: the wait as a share of the time since the last batch ended;
    - ``stream/wait_shards_s``, ``stream/wait_annotation_s``, ``stream/wait_packing_s``: the wait by its cause;
    - ``stream/tokens_per_s_per_core``: annotated tokens per second of a worker's CPU time, since start, and
      ``stream/slowest_worker_tokens_per_s``, that of the slowest worker;
    - ``stream/queue_depth``: documents that wait for a worker;
    - ``stream/documents_ahead``: documents submitted and not yet packed;
    - ``stream/cached_fraction``: documents that came from the label cache, as a share of all;
    - ``stream/unseparated_rows``: rows of token ids without a control token, as a share of all since start; absent for
      raw text;
    - ``stream/chunk_hit_rate``, ``stream/vector_hit_rate``: what the engine found in its tables of chunks and of word
      vectors, as a share of what it looked up, mean over the workers; absent where spaCy annotates;
    - with remote workers: ``stream/workers_ready``, the workers that are there; ``stream/workers_wanted``;
      ``stream/remote_machines``, ``stream/remote_cores`` (CPU seconds per second since start), and
      ``stream/machine/ADDRESS/tokens_per_s_per_core`` for each machine;
    - ``stream/worker_restarted``, ``stream/document_quarantined``, ``stream/document_skipped``,
      ``stream/engine_fallback``, ``stream/download_retried`` and so on: how often each event of the ``Report``
      happened.

    At the end of training ``summary`` says in words what the run waited for.
    """

    def __init__(self) -> None:
        self.summary = ""
        self._start: tuple[float, StreamStats] | None = None
        self._last: tuple[float, StreamStats] | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        dataset = dataset_of(state)
        if dataset is not None:
            self._start = self._last = (time.perf_counter(), dataset.stats())

    def batch_end(self, state: State, logger: Logger) -> None:
        dataset = dataset_of(state)
        if dataset is None or self._last is None:
            return
        (then, before), now, stats = self._last, time.perf_counter(), dataset.stats()
        self._last = (now, stats)
        pool = dataset.pool.stats()
        waited = stats.wait_s - before.wait_s
        (longest,) = dist.all_reduce_on_host([waited], "MAX")
        rates = [worker.tokens_per_s for worker in pool.workers if worker.tokens]
        metrics = {
            "data_wait_s": waited,
            "data_wait_max_s": longest,
            "data_wait_fraction": waited / (now - then),
            "wait_shards_s": stats.shards_s - before.shards_s,
            "wait_annotation_s": stats.annotation_s - before.annotation_s,
            "wait_packing_s": stats.packing_s - before.packing_s,
            "tokens_per_s_per_core": pool.tokens_per_s_per_core,
            "slowest_worker_tokens_per_s": min(rates, default=0.0),
            "queue_depth": pool.queued,
            "documents_ahead": stats.documents_ahead,
            "cached_fraction": pool.cached / max(pool.documents, 1),
        }
        if stats.rows_of_ids:
            metrics["unseparated_rows"] = stats.unseparated_rows / stats.rows_of_ids
        metrics |= pool.hit_rates | remote_metrics(pool) | dataset.report.counts()
        logger.log_metrics({f"stream/{name}": value for name, value in metrics.items()})

    def fit_end(self, state: State, logger: Logger) -> None:
        dataset = dataset_of(state)
        if dataset is not None and self._start is not None:
            start, before = self._start
            self.summary = describe_wait(
                time.perf_counter() - start, before, dataset.stats(), dataset.pool.stats(), dataset.max_seq_len
            )
            log.info(self.summary)


@runtime_checkable
class AnnotatedStream(Protocol):
    """The annotated data of a run: an ``AnnotatedDataset``, or a DataLoader that labels the batches of another one."""

    pool: AnnotationPool

    @property
    def report(self) -> Report: ...

    @property
    def max_seq_len(self) -> int: ...

    def stats(self) -> StreamStats: ...


def dataset_of(state: State) -> AnnotatedStream | None:
    """The stream that a run trains on; None where nothing is annotated."""
    loader = state.train_dataloader
    streams = (loader, getattr(loader, "dataset", None))
    return next((stream for stream in streams if isinstance(stream, AnnotatedStream)), None)


def describe_rate(stats: PoolStats, parsed: bool) -> str:
    """One line for people, beside the paper's figure (table 2: 152 h per 1B tokens on one core).

    Args:
        parsed: False for a pool that only tokenises, whose rate is not to be compared.
    """
    cached = f" ({stats.cached:,} from the label cache)" if stats.cached else ""
    documents = f"{stats.documents:,} documents{cached}"
    if not stats.tokens:
        return f"{documents}, nothing to annotate"
    rate = stats.tokens_per_s_per_core
    if not parsed:
        return f"{documents}, {stats.tokens:,} tokens tokenised, not parsed: {rate:,.0f} tokens/s per core"
    return (
        f"{documents}, {stats.tokens:,} tokens annotated: {rate:,.0f} tokens/s per core, "
        f"{1e9 / rate / 3600:,.0f} h per 1B tokens (the paper: 1,827 tokens/s, 152 h)"
    )


def describe_wait(elapsed_s: float, before: StreamStats, after: StreamStats, pool: PoolStats, max_seq_len: int) -> str:
    """Say in words how long a run waited for data, and which stage was its bottleneck.

    Args:
        elapsed_s: wall time of the run.
        before, after: counters of this rank's dataset at its start and end.
    """
    waits = {
        "reading shards": after.shards_s - before.shards_s,
        "annotation": after.annotation_s - before.annotation_s,
        "packing": after.packing_s - before.packing_s,
    }
    waited = sum(waits.values())
    cause = max(waits, key=lambda name: waits[name])
    text = f"the trainer waited for data {waited:.1f} s of {elapsed_s:.1f} s ({waited / elapsed_s:.1%}): " + ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in waits.items()
    )
    if waited <= WAITS_LITTLE * elapsed_s:
        return text + ". The bottleneck was the trainer: the stream kept up"
    text += f". The bottleneck was {cause}"
    if cause == "annotation" and pool.tokens:
        # The trainer's own speed: its tokens in the time in which it did not wait.
        tokens_per_s = (after.rows - before.rows) * max_seq_len / max(elapsed_s - waited, 1e-9)
        cores = math.ceil(tokens_per_s / pool.tokens_per_s_per_core)
        text += (
            f": without waiting, this rank would take {tokens_per_s:,.0f} tokens/s, the work of about {cores} cores "
            f"(it has {pool.ready if pool.remote else len(pool.workers)} workers)"
        )
    elif cause == "reading shards":
        text += ": give predownload a larger value, or bring the data nearer"
    return text
