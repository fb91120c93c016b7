"""shards | pool | packing -> batches: the only file that knows the order of the three.

Order. There is a fixed number of ``lanes``, whatever the number of ranks and workers. Lane l owns the
documents l, l + lanes, l + 2·lanes … of the endless shuffled run of epochs, and packs them alone. Row n of
the training stream is the next row of lane n mod lanes, and rank r of R takes the rows n ≡ r (mod R). So the
rows of a global batch do not depend on R (which must divide ``lanes``) or on the number of workers, and the
position of the whole stream is two integers a lane: that is what Composer's checkpoint holds.

Time. Each lane keeps documents in the pool ahead of what the trainer has taken, up to ``prefetch_rows`` rows
in all; the lanes together are the only buffer, so memory is bounded by it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from annotator import Annotator, Document, LabelledTokens
from lacy_stream.packing import START, Cursor, LanePacker, Row
from lacy_stream.pool import AnnotationPool
from lacy_stream.shards import Shards

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class StreamStats:
    """Counters of one dataset on this rank: seconds that ``__next__`` waited for the pool, rows delivered,
    and documents that are ready or being annotated ahead of the trainer."""

    wait_s: float
    rows: int
    documents_ahead: int


class PositionError(ValueError):
    """A saved position does not fit this stream; the message names what differs."""


class AnnotatedDataset(IterableDataset):
    """Packed rows of annotated text, for a ``DataLoader`` with ``num_workers=0``.

    Args:
        shards: the documents.
        pool: annotates them; several datasets may share it.
        max_seq_len: tokens in a row.
        lanes: see above; the number of ranks must divide it.
        prefetch_rows: rows that this rank keeps annotated ahead.
        repeat: True for training: an endless run of epochs. False for validation: each document once, the
            same rows at every iteration, the last row of each lane padded (label -100), and the number of
            rows made equal on all ranks.

    Iteration begins at the start of the stream, or, once ``load_state_dict`` was called, goes on where the
    loaded state or the last iteration ended: what Composer expects of a dataset that resumes itself.
    """

    def __init__(
        self,
        shards: Shards,
        pool: AnnotationPool,
        *,
        max_seq_len: int,
        batch_size: int,
        lanes: int = 64,
        prefetch_rows: int = 0,
        repeat: bool = True,
    ) -> None:
        ranks = dist.get_world_size()
        if lanes % ranks:
            divisors = [r for r in range(1, lanes + 1) if lanes % r == 0]
            raise ValueError(f"lanes is {lanes} and there are {ranks} ranks; it can be shared by {divisors}")
        if max_seq_len < 2:
            raise ValueError(f"max_seq_len is {max_seq_len}: a row needs at least 2 tokens")
        eos_id = Annotator(pool.tokenizer, model=None).eos_id
        if eos_id < 0:
            raise ValueError(f"the tokenizer {pool.tokenizer} has no end-of-sentence piece to put between documents")
        self.pool = pool
        self.max_seq_len = max_seq_len
        self._shards, self._batch_size, self._lanes, self._repeat = shards, batch_size, lanes, repeat
        self._eos_id = eos_id
        self._rank, self._ranks = dist.get_global_rank(), ranks
        self._rows_ahead = max(1, -(-(prefetch_rows or 4 * batch_size) * ranks // lanes))
        self._cursors = {lane: START for lane in range(self._rank, lanes, ranks)}
        self._rows = 0  # delivered by this rank since the start of the stream
        self._resumed = False
        self._wait_s = 0.0
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
            row = self._timed_row(lane)
            assert row is not None, "an endless lane has a next row"
            self._cursors[lane.index] = lane.cursor
            self._rows += 1
            yield row

    def _once(self) -> Iterator[Row]:
        lanes = list(self._open)
        while lanes:
            for lane in list(lanes):
                row = self._timed_row(lane)
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
        return _Lane(index, self._documents(index, cursor.document), self.pool, packer, self._rows_ahead)

    def _documents(self, lane: int, first: int) -> Iterator[Document]:
        """The documents of a lane, from its ``first``-th on."""
        for position in itertools.count(lane + first * self._lanes, self._lanes):
            if not self._repeat and position >= len(self._shards):
                return
            yield self._shards.document(position)

    def _timed_row(self, lane: _Lane) -> Row | None:
        start = time.perf_counter()
        row = lane.next_row()
        self._wait_s += time.perf_counter() - start
        return row

    def stats(self) -> StreamStats:
        return StreamStats(self._wait_s, self._rows, sum(lane.documents_ahead for lane in self._open))

    # --- resume -------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """All that the order of rows depends on; a resumed run must have the same."""
        return {
            "data": f"{len(self._shards)} documents, {self._shards.digest}",
            "shuffle": self._shards.order_name,
            "lanes": self._lanes,
            "max_seq_len": self.max_seq_len,
            "annotator": self.pool.fingerprint(),
        }

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, str]:
        """The position behind the last delivered row, on all ranks: one JSON string under one key, since
        sharded checkpoints need keys that never change. Collective where there are several ranks; the
        arguments are what Composer passes to Streaming's datasets."""
        cursors: dict[int, Cursor] = {}
        for part in dist.all_gather_object(self._cursors):
            cursors.update(part)
        state = {
            "version": 1,
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
        identity = self._identity()
        changed = [
            f"{key}: {state['identity'].get(key)!r} in the checkpoint, {value!r} now"
            for key, value in identity.items()
            if state["identity"].get(key) != value
        ]
        if changed:
            raise PositionError("the checkpoint belongs to another stream; " + "; ".join(changed))
        if state["rows"] % self._ranks:
            raise PositionError(f"the checkpoint is at row {state['rows']}, which {self._ranks} ranks cannot share")
        self._cursors = {lane: Cursor(*state["cursors"][lane]) for lane in self._cursors}
        self._rows = state["rows"] // self._ranks
        self._resumed = True


class _Lane:
    """One lane: its documents in order, submitted to the pool ahead of their use, packed into rows."""

    def __init__(
        self, index: int, documents: Iterator[Document], pool: AnnotationPool, packer: LanePacker, rows_ahead: int
    ) -> None:
        self.index = index
        self._documents, self._pool, self._packer, self._rows_ahead = documents, pool, packer, rows_ahead
        self._pending: deque[tuple[int, Future[LabelledTokens]]] = deque()
        self._pending_tokens = 0  # estimated

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
            tokens, future = self._pending.popleft()
            self._packer.add(future.result())
            self._pending_tokens -= tokens
        if self._packer.buffered <= 0:
            return None
        row = self._packer.next_row()
        self.fill(self._rows_ahead)
        return row

    def cancel(self) -> None:
        """Take what no worker has begun out of the pool's queue."""
        for _, future in self._pending:
            future.cancel()

    def _submit(self) -> bool:
        document = next(self._documents, None)
        if document is None:
            return False
        tokens = len(document.text) // _CHARACTERS_PER_TOKEN + 1
        self._pending.append((tokens, self._pool.submit(document)))
        self._pending_tokens += tokens
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
    local: str | os.PathLike[str],
    pool: AnnotationPool,
    *,
    batch_size: int,
    max_seq_len: int,
    split: str | None = None,
    remote: str | None = None,
    repeat: bool = True,
    lanes: int = 64,
    prefetch_rows: int = 0,
    **shards: Any,
) -> DataLoader:
    """A DataLoader for Composer's Trainer (or any loop) over raw text in MDS shards.

    Args:
        local, remote, split, shards: see ``Shards``.
        pool: the worker processes; share one between training and validation.
        batch_size: rows per batch on this rank.
        max_seq_len, lanes, prefetch_rows, repeat: see ``AnnotatedDataset``.
    """
    dataset = AnnotatedDataset(
        Shards(local, remote, split, **shards),
        pool,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        lanes=lanes,
        prefetch_rows=prefetch_rows,
        repeat=repeat,
    )
    return UnsizedDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate if repeat else _collate_with_mask,
        generator=torch.Generator(),  # a DataLoader draws a seed for its workers: not from the run's generator
    )
