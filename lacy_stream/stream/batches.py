"""corpus | pool | packing -> batches. Only this file knows the order of the three.

Order. A stream has a fixed number of ``lanes``, whatever the number of ranks and workers. Lane l owns the documents l,
l + lanes, l + 2·lanes, … of the endless sequence of epochs, and packs them by itself. Row n of the training stream is
the next row of lane n mod lanes, and rank r of R takes the rows n ≡ r (mod R). With 4 lanes and 2 ranks:

    row    0  1  2  3  4  5  6  7
    lane   0  1  2  3  0  1  2  3      lane 1 has the documents 1, 5, 9, …
    rank   0  1  0  1  0  1  0  1      rank 1 owns the lanes 1 and 3

So the rows of a global batch depend neither on R, which must divide ``lanes``, nor on the number of workers. The
position of the whole stream is two integers for each lane. Composer's checkpoint holds them.

Time. Each lane keeps documents in the pool ahead of the trainer, up to ``prefetch_rows`` rows for all lanes of a rank
together. There is no other buffer, so this bounds the memory. The stages inside ``__next__`` are timed, so that a run
can say what it waited for.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from annotator import Document, LabelledTokens
from lacy_stream import distributed as dist
from lacy_stream.errors import UsageError
from lacy_stream.stream.contents import Contents
from lacy_stream.stream.corpus import Corpus, Source, open_corpus
from lacy_stream.stream.packing import START, Cursor, LanePacker, Row
from lacy_stream.stream.pool import AnnotationPool

log = logging.getLogger(__name__)

STATE_VERSION = 2


@dataclass(frozen=True)
class StreamStats:
    """Counters of one dataset on this rank since it was made. The times are seconds inside ``__next__``."""

    rows: int
    """Rows delivered since the start of the stream."""
    documents_ahead: int
    """Documents ahead of the trainer, annotated or not."""
    shards_s: float
    """Time spent on reading shards."""
    annotation_s: float
    """Time spent on waiting for the pool."""
    packing_s: float
    """Time spent on packing."""
    rows_of_ids: int = 0
    """Rows of token ids that were packed."""
    unseparated_rows: int = 0
    """Those of them without a control token: each is labelled as one text."""

    @property
    def wait_s(self) -> float:
        """Seconds that the trainer waited for rows; collation is not included."""
        return self.shards_s + self.annotation_s + self.packing_s


class _Stopwatch:
    """Adds up seconds by stage."""

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
    """A saved position does not fit this stream; the message names the difference."""


class AnnotatedDataset(IterableDataset):
    """Packed rows of annotated text, for a ``DataLoader`` with ``num_workers=0``.

    Iteration starts at the beginning of the stream. After ``load_state_dict``, it continues where the loaded state or
    the last iteration ended. This is what Composer expects of a dataset that resumes itself.

    Args:
        corpus: the documents.
        pool: annotates the documents; several datasets may share it.
        max_seq_len: tokens in a row, at least 2.
        batch_size: rows in a batch on this rank.
        lanes: number of lanes, see above; the number of ranks must divide it.
        prefetch_rows: rows that this rank keeps annotated ahead; 0 for four batches.
        repeat: True for training: an endless sequence of epochs. False for validation: each document once, and the same
            rows at every iteration. The last row of each lane is then padded (label -100), and every rank delivers
            the same number of rows.
        accept_changes: with True, a saved position is accepted, with a warning, even if the data, order, tokenizer,
            model, rules or row length have changed since it was saved.

    Raises:
        UsageError: the arguments do not fit the number of ranks, a row is too short, or the tokenizer has no
            end-of-text token.
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
        # Rows ahead in each lane: this rank has lanes / ranks lanes, and the quotient is rounded up.
        self._rows_ahead = max(1, -(-(prefetch_rows or 4 * batch_size) * ranks // lanes))
        # The position of this rank: a cursor for each of its lanes, and the number of rows it has delivered.
        self._cursors = {lane: START for lane in range(self._rank, lanes, ranks)}
        self._rows = 0
        self._resumed = False  # whether an iteration continues from this position
        self._stopwatch = _Stopwatch()
        self._open: list[_Lane] = []
        self._contents = Contents(tokenizer, len(corpus), lanes // ranks)

    def __iter__(self) -> Iterator[Row]:
        if get_worker_info() is not None:
            raise RuntimeError("AnnotatedDataset has its own processes: use it with num_workers=0")
        if not self._resumed:
            self._cursors, self._rows = dict.fromkeys(self._cursors, START), 0
        self._open = [self._lane(index, cursor) for index, cursor in self._cursors.items()]
        # Row by row through all lanes, so that the first rows to be delivered are the first to be annotated.
        for rows in range(1, self._rows_ahead + 1):
            for lane in self._open:
                lane.fill(rows)
        lanes = self._open
        try:
            if self._repeat:
                yield from self._endless()
            else:
                yield from self._pass()
        finally:
            for lane in lanes:  # otherwise an evaluation that stops early would leave its documents in the queue
                lane.cancel()

    def _endless(self) -> Iterator[Row]:
        """Take rows from the lanes in turn, and move the position with each of them."""
        while True:
            lane = self._open[self._rows % len(self._open)]
            row = lane.next_row()
            assert row is not None, "an endless lane has a next row"
            self._contents.add_row(row.ids, self.pool.quarantine)
            self._cursors[lane.index] = lane.cursor
            self._rows += 1  # before the yield: a state that is saved now points after this row
            yield row

    def _pass(self) -> Iterator[Row]:
        """Yield the rows of each document once, on all ranks equally many.

        Raises:
            DataError: no document has text.
        """
        before = self._contents.documents_with_text
        yield from self._once() if self._ranks == 1 else self._equal_on_all_ranks(self._once())
        if not any(dist.all_gather_object(self._contents.documents_with_text > before)):
            raise self._contents.empty_pass(self.pool.quarantine)

    def _once(self) -> Iterator[Row]:
        """Take rows from the lanes in turn, until all lanes have ended."""
        lanes = list(self._open)
        while lanes:
            for lane in list(lanes):
                row = lane.next_row()
                if row is None:
                    lanes.remove(lane)
                else:
                    yield row

    def _equal_on_all_ranks(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield full batches on every rank until the last rank has no more rows. Missing rows are replaced by padding,
        since Composer stops all ranks when the first one ends."""
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
        return _Lane(index, documents, self.pool, packer, self._rows_ahead, self._stopwatch, self._contents)

    def _documents(self, lane: int, first: int) -> Iterator[Document]:
        """Yield the documents of a lane, starting with its document number ``first``."""
        for position in itertools.count(lane + first * self._lanes, self._lanes):
            if not self._repeat and position >= len(self.corpus):
                return
            yield self.corpus.document(position)

    def stats(self) -> StreamStats:
        """The counters of this dataset."""
        ahead = sum(lane.documents_ahead for lane in self._open)
        seconds, contents = self._stopwatch.seconds, self._contents
        return StreamStats(
            rows=self._rows,
            documents_ahead=ahead,
            shards_s=seconds["shards"],
            annotation_s=seconds["annotation"],
            packing_s=seconds["packing"],
            rows_of_ids=contents.rows_of_ids,
            unseparated_rows=contents.unseparated_rows,
        )

    # --- resume -------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """Everything that the rows and their order depend on. A resumed run must have the same identity."""
        settings = {"lanes": self._lanes, "max_seq_len": self.max_seq_len}
        return self.corpus.identity | settings | self.pool.identity

    def state_dict(self, num_samples: int | None = None, from_beginning: bool = True) -> dict[str, str]:
        """Return the position of all ranks after the last delivered row.

        The state is one JSON string under one key, because sharded checkpoints need keys that never change. With
        several ranks all of them must call this together. The arguments are not used: Composer passes them to
        Streaming's datasets.
        """
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

    def load_state_dict(self, state_dict: Mapping[str, Any] | None) -> None:
        """Continue at a saved position. The number of ranks may differ from the saved run's, as long as it divides
        ``lanes`` and the number of saved rows.

        The state of another loader has no position: with ``accept_changes``, the stream starts at its beginning.

        Raises:
            PositionError: the state belongs to another stream, or the ranks cannot share its rows.
        """
        if not state_dict or "lacy_stream" not in state_dict:
            self._begin_after_another_loader()
            return
        state = json.loads(state_dict["lacy_stream"])
        if state["version"] != STATE_VERSION:
            raise PositionError(
                f"the checkpoint's position has version {state['version']}, and this lacy-stream reads {STATE_VERSION}"
            )
        self._check_identity(state["identity"])
        if state["rows"] % self._ranks:
            possible = [ranks for ranks in _divisors(self._lanes) if state["rows"] % ranks == 0]
            raise PositionError(
                f"the checkpoint is at row {state['rows']}, which {self._ranks} ranks cannot share; "
                f"use one of these numbers of ranks: {possible}"
            )
        self._cursors = {lane: Cursor(*state["cursors"][lane]) for lane in self._cursors}
        self._rows = state["rows"] // self._ranks
        self._resumed = True

    def _begin_after_another_loader(self) -> None:
        message = "the checkpoint holds no position of this stream: another loader has written it"
        if not self._accept_changes:
            raise PositionError(
                f"{message}. To take its weights, optimizer and step, and start this stream at its beginning, set "
                "accept_changes: true for the loader; to take its weights alone, set load_weights_only: true"
            )
        log.warning("%s. The stream starts at its beginning (accept_changes)", message)

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
            raise PositionError(message + ". A position has a cursor for each lane, so lanes must not change")
        if not self._accept_changes:
            raise PositionError(message + ". To continue all the same, set accept_changes")
        log.warning("%s. The run continues (accept_changes)", message)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


class _Pending(NamedTuple):
    """A document that waits to be packed. tokens: an estimate for a text, exact for a row of ids."""

    id: str
    tokens: int
    is_row: bool
    labels: Future[LabelledTokens]


class _Lane:
    """One lane: submits its documents to the pool ahead of their use, and packs them into rows in order.

    Args:
        index: number of the lane.
        documents: the documents of the lane, starting with that of the packer's cursor.
        rows_ahead: rows that are kept in the pool after each delivered row.
        contents: looks at the documents that are packed.
    """

    def __init__(
        self,
        index: int,
        documents: Iterator[Document],
        pool: AnnotationPool,
        packer: LanePacker,
        rows_ahead: int,
        stopwatch: _Stopwatch,
        contents: Contents,
    ) -> None:
        self.index = index
        self._documents, self._pool, self._packer, self._rows_ahead = documents, pool, packer, rows_ahead
        self._stopwatch, self._contents = stopwatch, contents
        self._pending: deque[_Pending] = deque()
        self._pending_tokens = 0  # of the pending documents

    @property
    def cursor(self) -> Cursor:
        return self._packer.cursor

    @property
    def documents_ahead(self) -> int:
        return len(self._pending)

    def fill(self, rows: int) -> None:
        """Submit documents until the lane has enough for ``rows`` rows, by estimate."""
        while self._packer.buffered + self._pending_tokens < rows * self._packer.seq_len:
            if not self._submit():
                return

    def next_row(self) -> Row | None:
        """Wait for the lane's next row; None at the end of a finite lane."""
        without_tokens = 0  # documents, one after another
        while self._packer.buffered < self._packer.seq_len and (self._pending or self._submit()):
            document = self._pending.popleft()
            with self._stopwatch.stage("annotation"):
                labelled = document.labels.result()
            with self._stopwatch.stage("packing"):
                before = self._packer.buffered
                self._packer.add(labelled, end_of_document=not document.is_row)
                self._contents.add_document(document.id, labelled, document.is_row)
            self._pending_tokens -= document.tokens
            without_tokens = without_tokens + 1 if self._packer.buffered == before else 0
            if without_tokens:
                self._contents.check_lane(without_tokens, self._pool.quarantine)
        if self._packer.buffered <= 0:
            return None
        with self._stopwatch.stage("packing"):
            row = self._packer.next_row()
        self.fill(self._rows_ahead)
        return row

    def cancel(self) -> None:
        """Withdraw the documents that no worker has begun."""
        for document in self._pending:
            document.labels.cancel()

    def _submit(self) -> bool:
        with self._stopwatch.stage("shards"):
            document = next(self._documents, None)
        if document is None:
            return False
        is_row = document.ids is not None  # it brings its own end-of-document tokens
        self._pending.append(_Pending(document.id, document.tokens, is_row, self._pool.submit(document)))
        self._pending_tokens += document.tokens
        return True


def collate(rows: Sequence[Row], mask_padding: bool = False) -> dict[str, torch.Tensor]:
    """Make a batch of rows.

    Args:
        rows: B rows of T tokens.
        mask_padding: whether to add an attention mask and to take padding out of the labels.

    Returns:
        ``input_ids`` int64 [B, T], ``labels`` int64 [B, T] and ``token_class`` uint8 [B, T]. With ``mask_padding``, the
        labels are -100 on padding, and there is ``attention_mask`` int64 [B, T], 1 for tokens and 0 for padding. Labels
        equal the input ids, and the loss shifts them by one, as in transformers.
    """
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
        # The first position always stays visible: in a row of padding, the softmax over no positions would be NaN.
        batch["attention_mask"] = (~padding).long()
        batch["attention_mask"][:, 0] = 1
    return batch


def _collate_with_mask(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return collate(rows, mask_padding=True)


class AnnotatedDataLoader(DataLoader):
    """A DataLoader of an ``AnnotatedDataset``, with the protocol of torchdata's StatefulDataLoader.

    It has no length, since the number of rows is only known when all text is tokenised. Composer checks for
    ``__len__``. If it exists but fails, Composer refuses to evaluate on the whole loader.
    """

    dataset: AnnotatedDataset
    __len__ = None  # type: ignore[assignment]

    def state_dict(self) -> dict[str, str]:
        """The position after the last batch that was taken, on all ranks. Collective where there are several ranks; the
        rows are loaded in this process, so that none are ahead of the position."""
        return self.dataset.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any] | None) -> None:
        """Let the next iteration continue at a saved position, on any number of ranks that divides ``lanes`` and the
        saved rows.

        Raises:
            PositionError: the state belongs to another stream; the message names what differs.
        """
        self.dataset.load_state_dict(state_dict)


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
) -> AnnotatedDataLoader:
    """Make a DataLoader over MDS shards, for any trainer.

    Composer's checkpoints hold its position. Other loops save ``state_dict()`` and load it again.

    Args:
        data: a folder of MDS shards, or name -> ``Source`` for several streams.
        pool: annotates the documents; training and validation may share one.
        batch_size: rows in a batch on this rank.
        max_seq_len, lanes, prefetch_rows, repeat, accept_changes: see ``AnnotatedDataset``.
        corpus: further arguments of ``open_corpus``, such as ``split``, ``remote`` and ``shuffle``.

    Returns:
        A loader that yields batches as ``collate`` makes them, with ``mask_padding`` unless ``repeat``.

    Raises:
        DataError, UsageError: see ``open_corpus`` and ``AnnotatedDataset``.
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
    return AnnotatedDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate if repeat else _collate_with_mask,
        generator=torch.Generator(),  # a DataLoader draws a seed from it, which must not disturb the run's generator
    )
