"""MDS splits -> documents, in an order that depends on (data, seed, epoch) alone.

A corpus is one or several streams: folders of MDS shards with raw text, or with token ids that another tool has made
(LLM Foundry's ``tokens`` column). The weight of a stream says how many of its samples an epoch has, in the terms of
MosaicML Streaming: a ``proportion`` of the epoch, ``repeat`` times the size of the stream, or ``choose`` samples.

A stream of 100 samples with ``repeat: 2.3`` gives each sample twice, and 30 samples once more. The 30 are drawn at
random, and every epoch draws others. Then Streaming's shuffle functions mix the samples of all streams.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle import get_shuffle
from streaming.base.stream import Stream

from annotator import Document
from annotator.spans import SPANS_VERSION
from annotator.tokenizers.rows import wider_type
from lacy_stream.errors import UsageError
from lacy_stream.stream.report import Report
from lacy_stream.stream.shards import DataError, Shards
from lacy_stream.stream.source import Source

DEFAULT_NAME = "data"
"""Name of a single stream that has none."""


class Order(NamedTuple):
    """The order of the samples of an epoch, in the terms of MosaicML Streaming."""

    algo: str | None = None
    """Streaming's shuffle algorithm; None for no shuffling."""
    seed: int = 0
    """Seed of the shuffling and of the random choice of samples."""
    block_size: int = 1 << 18
    """Samples that are shuffled among one another, for the algorithms that work by blocks."""

    def __str__(self) -> str:
        return "none" if self.algo is None else f"{self.algo}, seed {self.seed}, block {self.block_size}"


UNSHUFFLED = Order()


class Corpus:
    """The documents of one or several streams, addressed by their position in an endless sequence of epochs.

    Args:
        sources: name -> source. With several streams, the name becomes part of the ids of documents.
        order: order of the samples in an epoch.
        epoch_size: documents in an epoch, if streams are weighted by ``proportion``; by default, the samples of all
            streams together.
        predownload: number of documents ahead of the one asked for whose shards are fetched in the background.
        storage: further arguments of ``Shards``.

    Raises:
        DataError: a stream cannot be opened (see ``Shards``), a column is missing, or the weights contradict one
            another.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        order: Order = UNSHUFFLED,
        *,
        epoch_size: int | None = None,
        predownload: int = 1000,
        **storage: Any,
    ) -> None:
        if not sources:
            raise DataError("a corpus needs at least one stream")
        self.order = order
        self._names, self._sources = list(sources), list(sources.values())
        self._shards = [Shards(s.local, s.remote, s.split, **storage) for s in self._sources]
        for shards, source in zip(self._shards, self._sources, strict=True):
            _check_column(shards, source)
        self._choose = self._samples_per_epoch(epoch_size)
        # Samples are numbered through all streams. With streams of 100 and 50 samples, _first is [0, 100, 150], and the
        # sample 120 is number 20 of the second stream.
        self._first = np.cumsum([0, *(len(shards) for shards in self._shards)])
        self._epochs: dict[int, NDArray[np.int64]] = {}
        self._predownload = predownload
        self._foreseen = 0  # the shards of all documents before this position have been asked for

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the documents and their order depend on, as text that can be compared and read."""
        data = [
            f"{choose} of {len(shards)} documents, {shards.digest}, column {source.tokens_column or source.text_column}"
            + (", cut at control ids" if source.tokens_column else "")
            + ("" if source.annotate else ", not annotated")
            + (f", spans (rule {SPANS_VERSION}) in column {source.spans_column}" if source.spans_column else "")
            for shards, source, choose in zip(self._shards, self._sources, self._choose, strict=True)
        ]
        named = dict(zip(self._names, data, strict=True))
        return {"data": named if len(data) > 1 else data[0], "shuffle": str(self.order)}

    def __len__(self) -> int:
        """Number of documents in an epoch."""
        return sum(self._choose)

    def document(self, position: int) -> Document:
        """Read the document at a position of the endless sequence.

        Args:
            position: 0 or more. The document is number ``position % len(self)`` of epoch ``position // len(self)``.

        Raises:
            DataError: the shard is missing or damaged, it cannot be written to the cache, or the column does not hold
                what the source says.
        """
        self._look_ahead(position)
        epoch, index = divmod(position, len(self))
        sample = int(self._epoch(epoch)[index])
        # The last stream whose first sample is at or before this one.
        stream = int(np.searchsorted(self._first, sample, side="right")) - 1
        sample -= int(self._first[stream])
        row, source = self._shards[stream].read(sample), self._sources[stream]
        name = str(row.get(source.id_column, sample))
        if len(self._sources) > 1:
            name = f"{self._names[stream]}/{name}"
        where = self._shards[stream].where
        if source.tokens_column is not None:
            return Document(name, "", _ids(row[source.tokens_column], source, where), source.annotate)
        text = row[source.text_column]
        if not isinstance(text, str):
            raise DataError(f"column {source.text_column!r} of {where} is {type(text).__name__}, not text")
        spans = None if source.spans_column is None else _spans(row[source.spans_column], source, where)
        return Document(name, text, annotate=source.annotate, spans=spans)

    def _look_ahead(self, position: int) -> None:
        """Start to fetch the shards of the next documents, up to the end of the epoch.

        This is done once for every ``predownload // 2`` documents. With 1000 it is done at position 0 for the documents
        1 to 1000, at position 500 for the documents 501 to 1500, and so on.
        """
        if not self._predownload or position + self._predownload // 2 < self._foreseen:
            return
        epoch, index = divmod(position, len(self))
        samples = self._epoch(epoch)[index + 1 : index + 1 + self._predownload]
        self._foreseen = position + self._predownload
        for shards, first, end in zip(self._shards, self._first[:-1], self._first[1:], strict=True):
            shards.prefetch((samples[(samples >= first) & (samples < end)] - first).tolist())

    def _samples_per_epoch(self, epoch_size: int | None) -> list[int]:
        """Number of samples that each stream gives to an epoch, by Streaming's rules for weights."""
        sizes = np.array([len(shards) for shards in self._shards], np.int64)
        try:
            weighted = [
                Stream(local=str(s.local), proportion=s.proportion, repeat=s.repeat, choose=s.choose)
                for s in self._sources
            ]
            with np.errstate(invalid="ignore"):  # 0 / 0 in an epoch without a document, which is refused below
                # This sets ``choose`` of each stream to its samples in an epoch.
                Stream.apply_weights(weighted, sizes, epoch_size, self.order.seed)
        except ValueError as error:
            raise DataError(f"the weights of the streams {', '.join(self._names)}: {error}") from None
        chosen = [int(stream.choose) for stream in weighted]
        if sum(chosen) < 1:
            raise DataError(f"the weights of the streams {', '.join(self._names)} give an epoch without a document")
        return chosen

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """int64 [len(self)]: the samples of an epoch in order, numbered through all streams.

        Two epochs are kept, because the lanes of a dataset do not all reach the end of an epoch at the same time.
        """
        # Without shuffling and without samples chosen at random, all epochs are the same.
        repeats_itself = self.order.algo is None and all(
            choose % len(shards) == 0 for choose, shards in zip(self._choose, self._shards, strict=True)
        )
        epoch = 0 if repeats_itself else epoch
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._arrange(epoch)
        return self._epochs[epoch]

    def _arrange(self, epoch: int) -> NDArray[np.int64]:
        """Choose the samples of an epoch and shuffle them.

        Streaming shuffles positions, not samples: it is told how many of the chosen samples lie in each shard, so that
        samples of one shard stay close together, and it returns a permutation of the positions in ``samples``.
        """
        chosen = [part for stream in range(len(self._shards)) for part in self._chosen(stream, epoch)]
        samples = np.concatenate([part for part, _ in chosen])
        algo, seed, block_size = self.order
        if algo is None:
            return samples
        sizes = np.concatenate([sizes for _, sizes in chosen])
        # One canonical node: lanes deal the documents out to ranks, and not Streaming's nodes.
        return samples[get_shuffle(algo, sizes, 1, seed, epoch, block_size)]

    def _chosen(self, stream: int, epoch: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the samples that a stream gives to an epoch, part by part: int64 [n] samples, numbered through all
        streams, and int64 [shards] numbers of them in each shard.

        Every whole repetition of the stream is a part of its own. A rest is drawn at random without replacement. For
        shards of 3, 2 and 4 samples and the drawn samples [0, 2, 6], the parts in shards are [2, 0, 1]. The zero is
        left out, and so the sizes are [2, 1].
        """
        shards, first = self._shards[stream], self._first[stream]
        repeats, rest = divmod(self._choose[stream], len(shards))
        for _ in range(repeats):
            yield first + np.arange(len(shards)), shards.sizes
        if rest:
            # A resumed run arranges an epoch without those before it, so the draw depends on the number of the epoch.
            random = np.random.default_rng((self.order.seed, epoch, stream))
            drawn = np.sort(random.choice(len(shards), rest, replace=False))
            shard = np.searchsorted(np.cumsum(shards.sizes), drawn, side="right")
            sizes = np.bincount(shard)
            yield first + drawn, sizes[sizes > 0]


def open_corpus(
    data: str | os.PathLike[str] | Mapping[str, Source],
    *,
    shuffle: bool = False,
    shuffle_algo: str = "py1e",
    shuffle_seed: int = 0,
    shuffle_block_size: int = 1 << 18,
    epoch_size: int | None = None,
    predownload: int = 1000,
    download_retry: int = 3,
    download_timeout: float = 60.0,
    report: Report | None = None,
    **source: Any,
) -> Corpus:
    """Open a corpus with the argument names of LLM Foundry's recipes.

    Args:
        data: a folder, which the arguments in ``source`` describe further; or name -> source for several streams.
        shuffle, shuffle_algo, shuffle_seed, shuffle_block_size: see ``Order``.
        epoch_size, predownload: see ``Corpus``.
        download_retry, download_timeout, report: see ``Shards``.
        source: arguments of a ``Source``, without ``local``.

    Raises:
        DataError: see ``Corpus``.
        UsageError: ``source`` is given together with several streams.
    """
    if isinstance(data, Mapping):
        if source:
            raise UsageError(f"{', '.join(source)}: set it for each of the streams {', '.join(data)}, not beside them")
        sources = data
    else:
        sources = {DEFAULT_NAME: Source(local=data, **source)}
    return Corpus(
        sources,
        Order(shuffle_algo if shuffle else None, shuffle_seed, shuffle_block_size),
        epoch_size=epoch_size,
        predownload=predownload,
        download_retry=download_retry,
        download_timeout=download_timeout,
        report=report,
    )


def _check_column(shards: Shards, source: Source) -> None:
    column = source.tokens_column or source.text_column
    if column not in shards.columns:
        hint = "; for token ids, set tokens_column: tokens" if "tokens" in shards.columns else ""
        raise DataError(f"{shards.where} has no column {column!r}; it has {sorted(shards.columns)}{hint}")
    if source.spans_column is not None:
        _check_spans_column(shards, source)
    if source.tokens_column is not None:
        try:
            if np.dtype(source.token_encoding_type).kind not in "iu":
                raise TypeError
        except TypeError:
            raise DataError(
                f"token_encoding_type is {source.token_encoding_type!r}; it must be an integer type such as int64"
            ) from None


def _check_spans_column(shards: Shards, source: Source) -> None:
    column = source.spans_column
    if column not in shards.columns:
        raise DataError(
            f"{shards.where} has no column {column!r}; it has {sorted(shards.columns)}. `lacy-stream prepare` writes "
            "one with --spans-column or --inline-calls"
        )


def _spans(value: Any, source: Source, where: str) -> str | NDArray[np.integer]:
    """Return the spans of one row as the data set has them. The annotator checks that they fit the text."""
    if isinstance(value, list):  # the column has MDS's type json
        value = json.dumps(value)
    if not isinstance(value, str | np.ndarray):
        raise DataError(f"column {source.spans_column!r} of {where} is {type(value).__name__}, neither JSON nor array")
    return value


def _ids(value: Any, source: Source, where: str) -> NDArray[np.integer]:
    """Read the token ids of one row: integers [n], n >= 1."""
    if isinstance(value, bytes):
        dtype = np.dtype(source.token_encoding_type)
        if len(value) % dtype.itemsize:
            raise DataError(
                f"column {source.tokens_column!r} of {where} has a row of {len(value)} bytes, which is not a "
                f"multiple of the size of {dtype}: set token_encoding_type to the type that the ids were written in"
            )
        value = np.frombuffer(value, dtype)
        if (wider := wider_type(value)) is not None:
            raise DataError(
                f"column {source.tokens_column!r} of {where} has a row of {len(value)} ids of type {dtype}, in which "
                f"zeros follow upon each id: they were written as {len(value) * dtype.itemsize * 8 // int(wider[3:])} "
                f"ids of type {wider}. Set token_encoding_type: {wider}"
            )
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        raise DataError(f"column {source.tokens_column!r} of {where} is {type(value).__name__}, not token ids")
    if not len(value):
        raise DataError(f"column {source.tokens_column!r} of {where} has a row without token ids")
    return value  # in its own type: a cast to int32 could turn an id out of range into a valid one
