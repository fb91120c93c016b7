"""MDS shards -> Document, in a canonical order that depends on (data, seed, epoch) alone.

Shards are found, downloaded, checked and decompressed by MosaicML Streaming's ``Stream``; samples are read
at random by its shard readers. ``StreamingDataset`` itself is not used: it counts samples where a packing
stream needs documents and tokens, it ends an epoch silently at a missing shard, and it keeps named shared
memory. What is left of it here is the order: Streaming's own shuffle functions, one permutation an epoch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle import get_shuffle
from streaming.base.stream import Stream
from streaming.base.world import World

from annotator import Document

log = logging.getLogger(__name__)

PREFERRED_HASHES = ("xxh64", "xxh3_64", "sha1", "md5")


class DataError(ValueError):
    """The data folder or a shard cannot be used; the message names it and says what to do."""


class Shards:
    """The documents of one MDS split, addressed by their place in an endless run of shuffled epochs.

    Args:
        local: folder with the shards, or the cache of ``remote``. Needs to be writable where shards are
            compressed or remote.
        remote: anything that Streaming can download from (``s3://…``, ``gs://…``, a mounted path), or None.
        split: sub-folder, for example ``train``.
        shuffle: reshuffle every epoch; otherwise the order of the index.
        shuffle_algo, shuffle_seed, shuffle_block_size: as in Streaming.
        text_column, id_column: names of the columns; a data set without ids gets the sample's number.

    Raises:
        DataError: no index, an empty or corrupt one, an unsafe one, or a missing column.
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        split: str | None = None,
        *,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 0,
        shuffle_block_size: int = 1 << 18,
        text_column: str = "text",
        id_column: str = "id",
        download_retry: int = 3,
        download_timeout: float = 60.0,
    ) -> None:
        self._where = os.path.join(remote or str(local), split or "")
        self._stream = Stream(
            local=str(local),
            remote=remote,
            split=split,
            keep_zip=False,
            download_retry=download_retry,
            download_timeout=download_timeout,
        )
        self._readers = self._load_index()
        self._shuffle = (shuffle_algo, shuffle_seed, shuffle_block_size) if shuffle else None
        self._text_column, self._id_column = text_column, id_column
        self._sizes = np.array([len(reader) for reader in self._readers], np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])
        self._ready: set[int] = set()
        self._orders: dict[int, NDArray[np.int64]] = {}
        columns = getattr(self._readers[0], "column_names", [text_column])
        if text_column not in columns:
            raise DataError(f"{self._where} has no column {text_column!r}; it has {sorted(columns)}")

    @property
    def digest(self) -> str:
        """Hex digest of what the documents are: the samples, sizes and hashes of each shard, and the column."""
        parts = [
            [
                len(reader),
                [[file.basename, file.bytes, file.hashes] for pair in reader.file_pairs for file in pair if file],
            ]
            for reader in self._readers
        ]
        content = json.dumps([self._text_column, parts], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def order_name(self) -> str:
        """What the order depends on beside the data, for a person: ``py1e, seed 17, block 262144``."""
        return "none" if self._shuffle is None else "{}, seed {}, block {}".format(*self._shuffle)

    def __len__(self) -> int:
        """Documents in an epoch."""
        return int(self._first[-1])

    def document(self, position: int) -> Document:
        """The document at a position >= 0 of the endless stream: epoch ``position // len(self)``.

        Raises:
            DataError: its shard is missing, damaged, or cannot be written to the cache.
        """
        epoch, index = divmod(position, len(self))
        sample = int(self._order(epoch)[index])
        shard = int(np.searchsorted(self._first, sample, side="right")) - 1
        row = self._read(shard, sample - int(self._first[shard]))
        text = row[self._text_column]
        if not isinstance(text, str):
            raise DataError(f"column {self._text_column!r} of {self._where} is {type(text).__name__}, not text")
        return Document(str(row.get(self._id_column, sample)), text)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch; the two last used are kept, since lanes cross the border one by one."""
        if self._shuffle is None:
            epoch = 0
        if epoch not in self._orders:
            if self._shuffle is None:
                order = np.arange(len(self))
            else:
                algo, seed, block_size = self._shuffle
                order = get_shuffle(algo, self._sizes, 1, seed, epoch, block_size)
            while len(self._orders) >= 2:
                del self._orders[min(self._orders)]
            self._orders[epoch] = order
        return self._orders[epoch]

    def _load_index(self) -> list[Any]:
        # Every process may be the one that downloads the index: under the lock, whoever comes first does. Streaming
        # leaves it to the first rank of a run, and two runs that fill the same cache do not know of each other.
        leader = World(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)
        try:
            with self._one_at_a_time("index.json") if self._stream.remote else nullcontext():
                readers = self._stream.get_shards(leader, allow_unsafe_types=False)
        except Exception as error:
            raise DataError(
                f"no usable MDS index at {self._where}: {error}. Make one with `lacy-stream prepare SOURCE --out DIR`."
            ) from error
        for reader in readers:
            for file in (file for pair in reader.file_pairs for file in pair if file is not None):
                if os.path.basename(file.basename) != file.basename or file.bytes < 0 or reader.samples < 0:
                    raise DataError(f"the index at {self._where} has an unsafe entry: {file.basename!r}")
        if sum(len(reader) for reader in readers) < 1:
            raise DataError(f"the data set at {self._where} is empty")
        known = set.intersection(*(set(reader.hashes) for reader in readers))
        self._stream.validate_hash = next((name for name in PREFERRED_HASHES if name in known), None)
        return readers

    def _read(self, shard: int, index: int) -> dict[str, Any]:
        """One sample of a shard, which is downloaded, checked and decompressed where it is not there yet."""
        reader = self._readers[shard]
        name = reader.file_pairs[0][0].basename
        try:
            if shard not in self._ready and not self._is_plain_local(reader):
                with self._one_at_a_time(name):
                    self._fetch(reader)
                self._ready.add(shard)
            return reader.get_item(index)
        except Exception as error:
            raise DataError(f"shard {name} of {self._where} cannot be read: {type(error).__name__}: {error}") from error

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        """Of all processes on a node that share the cache, one fetches a file and the others wait for it; the kernel
        frees the lock of a dead one."""
        folder = os.path.join(self._stream.local, self._stream.split)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f".{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_plain_local(self, reader: Any) -> bool:
        """Whether a shard lies there complete and uncompressed, as on a read-only mount: nothing to be written."""
        if self._stream.remote is not None or reader.compression:
            return False
        folder = os.path.join(self._stream.local, self._stream.split)
        paths = [(os.path.join(folder, raw.basename), raw.bytes) for raw, _ in reader.file_pairs]
        return all(os.path.isfile(path) and os.path.getsize(path) == size for path, size in paths)

    def _fetch(self, reader: Any) -> None:
        """Have a shard complete in the local folder. A copy in the cache that is cut or damaged is fetched once
        more; what is damaged at its source is an error."""
        cached = self._stream.remote not in (None, self._stream.local)
        for again in (cached, False):
            try:
                self._stream.prepare_shard(reader)
                for raw, _ in reader.file_pairs:
                    size = os.path.getsize(os.path.join(self._stream.local, self._stream.split, raw.basename))
                    if size != raw.bytes:
                        raise DataError(f"it has {size} bytes, the index says {raw.bytes}")
                return
            except Exception as error:
                if not again:
                    raise
                log.warning("shard %s is fetched again: %s", reader.file_pairs[0][0].basename, error)
                reader.evict()
