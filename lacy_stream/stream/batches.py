"""corpus | pool | packing -> batches: the only file that knows the order of the three.

Order. There is a fixed number of ``lanes``, whatever the number of ranks and workers. Lane l owns the
documents l, l + lanes, l + 2·lanes … of the endless shuffled run of epochs, and packs them alone. Row n of
the training stream is the next row of lane n mod lanes, and rank r of R takes the rows n ≡ r (mod R). So the
rows of a global batch do not depend on R (which must divide ``lanes``) or on the number of workers, and the
position of the whole stream is two integers a lane: that is what Composer's checkpoint holds.

Time. Each lane keeps documents in the pool ahead of what the trainer has taken, up to ``prefetch_rows`` rows
in all; the lanes together are the only buffer, so memory is bounded by it. What happens inside ``__next__`` is timed
by stage, so that a run can say what it waited for.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from annotator import Document, LabelledTokens
from lacy_stream import distributed as dist
from lacy_stream.errors import UsageError
from lacy_stream.stream.corpus import Corpus, Source, open_corpus
from lacy_stream.stream.packing import START, Cursor, LanePacker, Row
from lacy_stream.stream.pool import AnnotationPool

log = logging.getLogger(__name__)

STATE_VERSION = 2


@dataclass(frozen=True)
class StreamStats:
    """Counters of one dataset on this rank since it was made.

    rows: delivered. documents_ahead: ready or being annotated ahead of the trainer.
    shards_s, annotation_s, packing_s: seconds inside ``__next__`` spent on reading shards, on waiting for the pool,
    and on packing; all that the trainer waits for but for collation.
    """

    rows: int
    documents_ahead: int
    shards_s: float
    annotation_s: float
    packing_s: float

    @property
    def wait_s(self) -> float:
        return self.shards_s + self.annotation_s + self.packing_s


class _Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds = {"shards": 0.0, "annotation": 0.0, "packing": 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class PositionError(UsageError):
    """A saved position does not fit this stream; the message names what differs."""


class AnnotatedDataset(IterableDataset):
    """Packed rows of annotated text, for a ``DataLoader`` with ``num_workers=0``.

    Args:
        corpus: the documents.
        pool: annotates them; several datasets may share it.
        max_seq_len: tokens in a row.
        lanes: see above; the number of ranks must divide it.
        prefetch_rows: rows that this rank keeps annotated ahead.
        repeat: True for training: an endless run of epochs. False for validation: each document once, the
            same rows at every iteration, the last row of each lane padded (label -100), and the number of
            rows made equal on all ranks.
        accept_changes: go on from a saved position although data, order, tokenizer, model, rules or row length are
            not those that it was saved with: a warning instead of an error.

    Iteration begins at the start of the stream, or, once ``load_state_dict`` was called, goes on where the
    loaded state or the last iteration ended: what Composer expects of a dataset that resumes itself.
    """

    def __init__(
        self,
        corpus: Corpus,
        pool: AnnotationPool,
        *,
        max_seq_len: int,
        batch_size: int,
        lanes: int = 64,
        prefetch_rows: int = 0,
        repeat: bool = True,
        accept_changes: bool = False,
    ) -> None:
        ranks = dist.get_world_size()
        if lanes % ranks:
            raise UsageError(f"lanes is {lanes} and there are {ranks} ranks; it can be shared by {_divisors(lanes)}")
        if max_seq_len < 2:
            raise UsageError(f"max_seq_len is {max_seq_len}: a row needs at least 2 tokens")
        tokenizer = pool.settings.open_tokenizer()
        eos_id = tokenizer.eos_id
        self.vocab_size = tokenizer.vocab_size
        if eos_id < 0:
            raise UsageError(
                f"the tokenizer {pool.settings.tokenizer} has no end-of-sentence piece to put between documents, and "
                "no tokenizer_config.json beside it names one: name it, by tokenizer.eos_token in a recipe or by "
                "eos_token of AnnotatorSettings"
            )
        self.pool, self.report = pool, pool.report
        self.max_seq_len = max_seq_len
        self.corpus = corpus
        self._batch_size, self._lanes, self._repeat = batch_size, lanes, repeat
        self._eos_id, self._accept_changes = eos_id, accept_changes
        self._rank, self._ranks = dist.get_global_rank(), ranks
        self._rows_ahead = max(1, -(-(prefetch_rows or 4 * batch_size) * ranks // lanes))
        self._cursors = {lane: START for lane in range(self._rank, lanes, ranks)}
        self._rows = 0  # delivered by this rank since the start of the stream
        self._resumed = False
        self._stopwatch = _Stopwatch()
        self._open: list[_Lane] = []

    def __iter__(self) -> Iterator[Row]:
        if get_worker_info() is not None:
            raise RuntimeError("AnnotatedDataset has its own processes: use it with num_workers=0")
        if not self._resumed:
            self._cursors, self._rows = dict.fromkeys(self._cursors, START), 0
        self._open = [self._lane(index, cursor) for index, cursor in self._cursors.items()]
        for rows in range(1, self._rows_ahead + 1):
            for lane in self._open:
                lane.fill(rows)
        lanes = self._open
        try:
            if self._repeat:
                yield from self._endless()
            elif self._ranks == 1:
                yield from self._once()
            else:
                yield from self._equal_on_all_ranks(self._once())
        finally:
            for lane in lanes:  # an evaluation that stops early leaves its prefetched documents in the queue
                lane.cancel()

    def _endless(self) -> Iterator[Row]:
        while True:
            lane = self._open[self._rows % len(self._open)]
            row = lane.next_row()
            assert row is not None, "an endless lane has a next row"
            self._cursors[lane.index] = lane.cursor
            self._rows += 1
            yield row

    def _once(self) -> Iterator[Row]:
        lanes = list(self._open)
        while lanes:
            for lane in list(lanes):
                row = lane.next_row()
                if row is None:
                    lanes.remove(lane)
                else:
                    yield row

    def _equal_on_all_ranks(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Full batches on every rank until the last one has no more, the missing rows being padding:
        Composer stops all ranks at the first that ends."""
        padding = LanePacker(self.max_seq_len, self._eos_id).next_row()
        while True:
            batch = list(itertools.islice(rows, self._batch_size))
            if not any(dist.all_gather_object(bool(batch))):
                return
            yield from batch
            yield from [padding] * (self._batch_size - len(batch))

    def _lane(self, index: int, cursor: Cursor) -> _Lane:
        packer = LanePacker(self.max_seq_len, self._eos_id, cursor)
        documents = self._documents(index, cursor.document)
        return _Lane(index, documents, self.pool, packer, self._rows_ahead, self._stopwatch)

    def _documents(self, lane: int, first: int) -> Iterator[Document]:
        """The documents of a lane, from its ``first``-th on."""
        for position in itertools.count(lane + first * self._lanes, self._lanes):
            if not self._repeat and position >= len(self.corpus):
                return
            yield self.corpus.document(position)

    def stats(self) -> StreamStats:
        ahead = sum(lane.documents_ahead for lane in self._open)
        return StreamStats(self._rows, ahead, *self._stopwatch.seconds.values())

    # --- resume -------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """All that the order of rows depends on; a resumed run must have the same."""
        settings = {"lanes": self._lanes, "max_seq_len": self.max_seq_len}
        return self.corpus.identity | settings | self.pool.identity

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, str]:
        """The position behind the last delivered row, on all ranks: one JSON string under one key, since
        sharded checkpoints need keys that never change. Collective where there are several ranks; the
        arguments are what Composer passes to Streaming's datasets."""
        cursors: dict[int, Cursor] = {}
        for part in dist.all_gather_object(self._cursors):
            cursors.update(part)
        state = {
            "version": STATE_VERSION,
            "rows": self._rows * self._ranks,
            "identity": self._identity(),
            "cursors": [cursors[lane] for lane in range(self._lanes)],
        }
        return {"lacy_stream": json.dumps(state)}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Go on at a saved position, on any number of ranks that divides ``lanes`` and the saved rows.

        Raises:
            PositionError: the state belongs to another stream; the message names what differs.
        """
        if not state_dict or "lacy_stream" not in state_dict:
            raise PositionError("the checkpoint holds no position of this stream: it was written by another loader")
        state = json.loads(state_dict["lacy_stream"])
        if state["version"] != STATE_VERSION:
            raise PositionError(
                f"the checkpoint's position has version {state['version']}, this lacy-stream reads {STATE_VERSION}"
            )
        self._check_identity(state["identity"])
        if state["rows"] % self._ranks:
            possible = [ranks for ranks in _divisors(self._lanes) if state["rows"] % ranks == 0]
            raise PositionError(
                f"the checkpoint is at row {state['rows']}, which {self._ranks} ranks cannot share; "
                f"these can: {possible}"
            )
        self._cursors = {lane: Cursor(*state["cursors"][lane]) for lane in self._cursors}
        self._rows = state["rows"] // self._ranks
        self._resumed = True

    def _check_identity(self, saved: Mapping[str, Any]) -> None:
        now = self._identity()
        changed = [
            f"{key}: {saved.get(key)!r} in the checkpoint, {now.get(key)!r} now"
            for key in dict.fromkeys([*now, *saved])
            if saved.get(key) != now.get(key)
        ]
        if not changed:
            return
        message = "the checkpoint belongs to another stream; " + "; ".join(changed)
        if saved.get("lanes") != now["lanes"]:
            raise PositionError(message + ". A position is one cursor a lane: with other lanes it means nothing")
        if not self._accept_changes:
            raise PositionError(message + ". To go on all the same, set accept_changes")
        log.warning("%s. The run goes on (accept_changes)", message)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


class _Lane:
    """One lane: its documents in order, submitted to the pool ahead of their use, packed into rows."""

    def __init__(
        self,
        index: int,
        documents: Iterator[Document],
        pool: AnnotationPool,
        packer: LanePacker,
        rows_ahead: int,
        stopwatch: _Stopwatch,
    ) -> None:
        self.index = index
        self._documents, self._pool, self._packer, self._rows_ahead = documents, pool, packer, rows_ahead
        self._stopwatch = stopwatch
        self._pending: deque[tuple[int, bool, Future[LabelledTokens]]] = deque()
        self._pending_tokens = 0  # estimated, or known

    @property
    def cursor(self) -> Cursor:
        return self._packer.cursor

    @property
    def documents_ahead(self) -> int:
        return len(self._pending)

    def fill(self, rows: int) -> None:
        """Have enough documents in the pool for that many rows, by estimate."""
        while self._packer.buffered + self._pending_tokens < rows * self._packer.seq_len:
            if not self._submit():
                return

    def next_row(self) -> Row | None:
        """The lane's next row; None at the end of a lane that does not repeat."""
        while self._packer.buffered < self._packer.seq_len and (self._pending or self._submit()):
            tokens, end_of_document, future = self._pending.popleft()
            with self._stopwatch.stage("annotation"):
                labelled = future.result()
            with self._stopwatch.stage("packing"):
                self._packer.add(labelled, end_of_document)
            self._pending_tokens -= tokens
        if self._packer.buffered <= 0:
            return None
        with self._stopwatch.stage("packing"):
            row = self._packer.next_row()
        self.fill(self._rows_ahead)
        return row

    def cancel(self) -> None:
        """Take what no worker has begun out of the pool's queue."""
        for *_, future in self._pending:
            future.cancel()

    def _submit(self) -> bool:
        with self._stopwatch.stage("shards"):
            document = next(self._documents, None)
        if document is None:
            return False
        raw = document.ids is None  # a row of ids has its end-of-document tokens where they belong
        self._pending.append((document.tokens, raw, self._pool.submit(document)))
        self._pending_tokens += document.tokens
        return True


def collate(rows: Sequence[Row], mask_padding: bool = False) -> dict[str, torch.Tensor]:
    """Rows -> ``input_ids`` int64, ``labels`` int64 (-100 on padding) and ``token_class`` uint8, all [B, T];
    with ``mask_padding``, also ``attention_mask`` int64. Labels are the input ids: the shift by one is the
    loss's business, as in transformers."""
    ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    batch = {
        "input_ids": ids,
        "labels": ids.clone(),
        "token_class": torch.from_numpy(np.stack([row.classes for row in rows])),
    }
    if mask_padding:
        lengths = torch.tensor([row.length for row in rows])
        padding = torch.arange(ids.shape[1])[None, :] >= lengths[:, None]
        batch["labels"][padding] = -100  # what PyTorch's losses ignore
        # The first position stays visible: a row of padding alone would give an empty softmax, NaN.
        batch["attention_mask"] = (~padding).long()
        batch["attention_mask"][:, 0] = 1
    return batch


def _collate_with_mask(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return collate(rows, mask_padding=True)


class UnsizedDataLoader(DataLoader):
    """A DataLoader that does not claim to have a length: nobody knows the rows before the text is tokenised.
    Composer refuses to evaluate on all of a loader that has ``__len__`` and then cannot say it."""

    __len__ = None  # type: ignore[assignment]


def annotated_dataloader(
    data: str | os.PathLike[str] | Mapping[str, Source],
    pool: AnnotationPool,
    *,
    batch_size: int,
    max_seq_len: int,
    repeat: bool = True,
    lanes: int = 64,
    prefetch_rows: int = 0,
    accept_changes: bool = False,
    **corpus: Any,
) -> DataLoader:
    """A DataLoader for Composer's Trainer (or any loop) over MDS shards.

    Args:
        data, corpus: see ``open_corpus``: a folder, with ``split``, ``remote``, ``shuffle`` and so on; or several
            streams by name.
        pool: the worker processes; share one between training and validation.
        batch_size: rows per batch on this rank.
        max_seq_len, lanes, prefetch_rows, repeat, accept_changes: see ``AnnotatedDataset``.
    """
    dataset = AnnotatedDataset(
        open_corpus(data, report=pool.report, **corpus),
        pool,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        lanes=lanes,
        prefetch_rows=prefetch_rows,
        repeat=repeat,
        accept_changes=accept_changes,
    )
    return UnsizedDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate if repeat else _collate_with_mask,
        generator=torch.Generator(),  # a DataLoader draws a seed for its workers: not from the run's generator
    )
