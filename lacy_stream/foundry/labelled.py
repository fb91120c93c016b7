"""A DataLoader of Foundry's, whose batches are labelled ahead of their use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from annotator import Document, FactClass, LabelledTokens
from annotator.tokenizers.rows import wider_type
from lacy_stream.errors import UsageError
from lacy_stream.stream.batches import StreamStats
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.stream.report import Report

Batch = MutableMapping[str, Any]


@dataclass(frozen=True)
class Borders:
    """Where a row is cut into documents, beside the tokenizer's own end-of-sequence id: after ``eos_id`` and before
    ``bos_id``."""

    eos_id: int | None = None
    bos_id: int | None = None

    def cut(self, row: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The documents of a row [n], none of them empty; joined they are the row."""
        borders = np.zeros(len(row) + 1, dtype=bool)
        if self.eos_id is not None:
            borders[1:] |= row == self.eos_id
        if self.bos_id is not None:
            borders[:-1] |= row == self.bos_id
        return [part for part in np.split(row, np.flatnonzero(borders)) if len(part)]


class LabelledLoader(DataLoader):
    """A DataLoader like another one, whose batches also have ``token_class`` uint8 [B, T] (``FactClass`` values).

    Dataset, order, workers and the position in checkpoints are those of the other loader: Composer asks the dataset
    for its position by the number of samples that were trained on, not read.

    Args:
        loader: yields batches with ``input_ids`` int64 [B, T] and, if there is padding, ``attention_mask`` [B, T].
            Padding is OTHER.
        pool: labels the rows.
        lookahead: batches that are read, and are being labelled, ahead of the one that is taken.
        borders: where rows are cut into documents.
    """

    def __init__(self, loader: DataLoader, pool: AnnotationPool, lookahead: int, borders: Borders) -> None:
        super().__init__(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=None if isinstance(loader.dataset, IterableDataset) else loader.sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        self.pool = pool
        self._lookahead, self._borders = lookahead, borders
        self._rows_read = self._rows_taken = 0
        self._reading_s = self._waiting_s = 0.0
        self._ahead: deque[tuple[Batch, list[_Row]]] = deque()

    @property
    def report(self) -> Report:
        return self.pool.report

    @property
    def max_seq_len(self) -> int:
        """Tokens in a row."""
        return self.dataset.max_seq_len  # pyright: ignore[reportAttributeAccessIssue]

    def stats(self) -> StreamStats:
        """Counters since the loader was made; what the other loader takes is counted as reading shards."""
        documents = sum(len(row.futures) for _, rows in self._ahead for row in rows)
        return StreamStats(self._rows_taken, documents, self._reading_s, self._waiting_s, 0.0)

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        ahead = self._ahead = deque()
        try:
            while True:
                # The batch that is taken next, and as many as ``lookahead`` after it.
                while len(ahead) <= self._lookahead and (batch := self._read(batches)) is not None:
                    ahead.append((batch, self._submit(batch)))
                if not ahead:
                    return
                yield self._label(*ahead.popleft())
        finally:
            for _, rows in ahead:  # an epoch that stops early leaves them in the queue
                for row in rows:
                    row.cancel()

    def _read(self, batches: Iterator[Batch]) -> Batch | None:
        start = time.perf_counter()
        batch = next(batches, None)
        self._reading_s += time.perf_counter() - start
        return batch

    def _submit(self, batch: Batch) -> list[_Row]:
        ids_BT: NDArray[np.int64] = batch["input_ids"].numpy()
        mask = batch.get("attention_mask")
        real_BT = np.ones(ids_BT.shape, dtype=bool) if mask is None else mask.numpy().astype(bool)
        rows = []
        for ids_T, real_T in zip(ids_BT, real_BT, strict=True):
            self._rows_read += 1
            _check_width(ids_T)
            parts = self._borders.cut(ids_T[real_T])
            futures = [self.pool.submit(Document(f"row {self._rows_read}", "", part.copy())) for part in parts]
            rows.append(_Row(real_T, futures))
        return rows

    def _label(self, batch: Batch, rows: list[_Row]) -> Batch:
        start = time.perf_counter()
        batch["token_class"] = torch.from_numpy(np.stack([row.classes() for row in rows]))
        self._waiting_s += time.perf_counter() - start
        self._rows_taken += len(rows)
        return batch


def _check_width(ids_T: NDArray[np.int64]) -> None:
    """Refuse ids of which each is followed by 0, since Foundry has read them in too narrow an integer type."""
    for narrow in (np.int32, np.int16):
        if (wider := wider_type(ids_T.astype(narrow))) is not None:
            raise UsageError(
                "train_loader.dataset.token_encoding_type: zeros follow upon each token id of a row, so the ids were "
                f"written in a wider integer type. Set it to {wider}, or to the type that the data were written in"
            )


@dataclass(frozen=True)
class _Row:
    """A row on its way to its labels. real: bool [T], false on padding; futures: of its documents, in order."""

    real: NDArray[np.bool_]
    futures: list[Future[LabelledTokens]]

    def classes(self) -> NDArray[np.uint8]:
        """uint8 [T]."""
        found = [future.result().classes for future in self.futures]
        classes = np.full(len(self.real), int(FactClass.OTHER), dtype=np.uint8)
        labels = np.concatenate(found) if found else classes[:0]
        if len(labels) != np.count_nonzero(self.real):
            raise UsageError(
                "the annotator's tokenizer cannot read the token ids of a row; the log says which id. Give the file of "
                "the tokenizer that made the data as annotator.tokenizer"
            )
        classes[self.real] = labels
        return classes

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()
