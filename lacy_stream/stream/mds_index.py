"""An untrusted MDS index -> validated shard readers.

Every value of an index is checked before it is used: a hostile index could name files outside the data set, or claim
sizes that do not fit. What it says about a file is checked when the file is there.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from streaming.base.compression import is_compression
from streaming.base.format.base.reader import FileInfo
from streaming.base.format.mds.encodings import is_mds_encoding
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash, is_hash

from lacy_stream.errors import UsageError
from lacy_stream.stream.source import INDEX

PREFERRED_HASHES = ("xxh64", "xxh3_64", "sha1", "md5")
LARGEST_SHARD = 2**32 - 1
"""Size in bytes that MDS can count in 32 bits."""


class DataError(UsageError):
    """A data folder or a shard cannot be used; the message names it and says what to do."""


class DamageError(ValueError):
    """A file differs from what the index says about it, or the index is not a valid one."""


def describe_error(error: BaseException) -> str:
    """Say what an error was, with its type unless it is an error of lacy-stream."""
    if isinstance(error, DataError | DamageError):
        return str(error)
    cause = getattr(error, "last_exception", None)  # boto3's RetriesExceededError hides its cause here
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text} ({cause})" if cause else text


def parse_index(data: bytes, local: str, split: str) -> list[MDSReader]:
    """Parse an index and check every value.

    Args:
        data: content of the file.
        local: folder of the data set.
        split: its sub-folder, or "".

    Returns:
        A reader for each shard, in order.

    Raises:
        DamageError: names the first thing that is wrong.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{INDEX} is empty or corrupt: {error}") from error
    if not isinstance(index, dict) or index.get("version") != 2 or not isinstance(index.get("shards"), list):
        raise DamageError(f"{INDEX} is not an MDS index of version 2")
    readers = []
    for number, entry in enumerate(index["shards"]):
        try:
            readers.append(_parse_entry(entry, local, split))
        except Exception as error:
            raise DamageError(f"{INDEX} has an unsafe entry, number {number}: {describe_error(error)}") from error
    if sum(reader.samples for reader in readers) < 1:
        raise DamageError("the data set is empty")
    if any(reader.column_names != readers[0].column_names for reader in readers):
        raise DamageError(f"the shards of {INDEX} have different columns")
    names = [file.basename for reader in readers for file in reader.file_pairs[0] if file]
    if len(set(names)) < len(names):
        raise DamageError(f"{INDEX} has an unsafe entry: {max(names, key=names.count)!r} twice")
    return readers


def _parse_entry(entry: Any, local: str, split: str) -> MDSReader:
    """Check one shard of an index.

    Raises:
        Exception: of any kind, because an entry may have any form, and Streaming has checks of its own.
    """
    names, encodings, sizes = entry["column_names"], entry["column_encodings"], entry["column_sizes"]
    _require(_all(names, str) and len(set(names)) == len(names), "column_names", names)
    _require(_all(encodings, str) and len(encodings) == len(names), "column_encodings", encodings)
    # The encoding pkl unpickles what it reads, which can run code.
    for encoding in encodings:
        _require(encoding.split(":")[0] != "pkl" and is_mds_encoding(encoding), "column encoding", encoding)
    _require(isinstance(sizes, list) and len(sizes) == len(names), "column_sizes", sizes)
    for size in sizes:
        _require(size is None or _is_count(size, LARGEST_SHARD), "column size", size)
    _check_entry(entry["raw_data"])
    compression = entry["compression"] or None
    _require(compression is None or is_compression(compression), "compression", compression)
    _require((entry["zip_data"] is None) == (compression is None), "zip_data", entry["zip_data"])
    if compression is not None:
        _check_entry(entry["zip_data"])
    # The table at the start of a shard has 4 bytes for each sample, and 8 more: the number of samples and the end.
    _require(_is_count(entry["samples"], entry["raw_data"]["bytes"] // 4 - 2), "samples", entry["samples"])
    return MDSReader.from_json(local, split, entry)


def _check_entry(file: Any) -> None:
    name, hashes = file["basename"], file["hashes"]
    parts = name.split("/")  # the index of merged data sets names files in sub-folders
    # A leading dot would allow "..", and the names of the helper files that ``shards`` removes.
    safe = all(part and not part.startswith(".") and part.isprintable() and len(part) < 200 for part in parts)
    _require(safe and parts[-1] != INDEX, "file name", name)
    _require(_is_count(file["bytes"], LARGEST_SHARD), "bytes", file["bytes"])
    _require(isinstance(hashes, dict) and _all([*hashes, *hashes.values()], str), "hashes", hashes)


def _require(holds: bool, field: str, value: Any) -> None:
    if not holds:
        raise DamageError(f"{field} {str(value)[:200]!r}")


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit  # isinstance would admit True


# --- what an index says of a file -------------------------------------------------------------------------------


def known_hash(file: FileInfo) -> str | None:
    """The name of the best hash that the index has for a file; None without a usable one."""
    return next((name for name in (*PREFERRED_HASHES, *file.hashes) if name in file.hashes and is_hash(name)), None)


def check_file(data: bytes, file: FileInfo) -> None:
    """Check the content of a file against the index.

    Raises:
        DamageError: its size or its hash differs.
    """
    if len(data) != file.bytes:
        raise DamageError(f"{file.basename} has {len(data)} bytes, but the index says {file.bytes}")
    name = known_hash(file)
    if name is not None and get_hash(name, data) != file.hashes[name]:
        raise DamageError(f"{file.basename} is damaged: its {name} differs from the one in the index")


def check_raw(data: bytes, reader: MDSReader) -> None:
    """Check the whole raw file of a shard: size, hash and table of samples.

    Raises:
        DamageError: one of them is wrong.
    """
    check_file(data, reader.raw_data)
    check_table(data, reader)


def check_table(data: bytes, reader: MDSReader) -> None:
    """Check the table at the start of a shard: the number of samples, and where each one begins and ends.

    Args:
        data: the beginning of the raw file, at least as long as the table.

    Raises:
        DamageError: the number differs from the index, or a sample would lie outside the file.
    """
    name, samples = reader.raw_data.basename, reader.samples
    table = np.frombuffer(data, "<u4", samples + 2)
    if table[0] != samples:
        raise DamageError(f"{name} has {table[0]} samples, but the index says {samples}")
    # For 3 samples the table is [3, begin 0, begin 1, begin 2, end 2]. That is 5 numbers of 4 bytes, so begin 0 >= 20.
    if table[1] < 4 * (samples + 2) or table[-1] > reader.raw_data.bytes or (table[2:] < table[1:-1]).any():
        raise DamageError(f"{name} is damaged: its samples lie outside it")
