"""The index of an MDS data set, which nobody vouches for: every value is checked before it is believed, and what an
index says of a file is checked when the file is there.
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

INDEX = "index.json"
PREFERRED_HASHES = ("xxh64", "xxh3_64", "sha1", "md5")
LARGEST_SHARD = 2**32 - 1
"""Bytes; MDS counts them in 32 bits."""


class DataError(UsageError):
    """The data folder or a shard cannot be used; the message names it and says what to do."""


class Damaged(ValueError):
    """A file is not what the index says, or the index itself is none."""


def describe(error: BaseException) -> str:
    if isinstance(error, DataError | Damaged):
        return str(error)
    cause = getattr(error, "last_exception", None)  # boto3's RetriesExceededError does not say it
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text} ({cause})" if cause else text


def parse_index(data: bytes, local: str, split: str) -> list[MDSReader]:
    """The shards of an index, of which every value was checked.

    Raises:
        Damaged: the first thing that is wrong.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{INDEX} is empty or corrupt: {error}") from error
    if not isinstance(index, dict) or index.get("version") != 2 or not isinstance(index.get("shards"), list):
        raise Damaged(f"{INDEX} is no MDS index of version 2")
    readers = []
    for number, entry in enumerate(index["shards"]):
        try:
            readers.append(_parse_entry(entry, local, split))
        except Exception as error:
            raise Damaged(f"{INDEX} has an unsafe entry, number {number}: {describe(error)}") from error
    if sum(reader.samples for reader in readers) < 1:
        raise Damaged("the data set is empty")
    if any(reader.column_names != readers[0].column_names for reader in readers):
        raise Damaged(f"the shards of {INDEX} have different columns")
    names = [file.basename for reader in readers for file in reader.file_pairs[0] if file]
    if len(set(names)) < len(names):
        raise Damaged(f"{INDEX} has an unsafe entry: {max(names, key=names.count)!r} twice")
    return readers


def _parse_entry(entry: Any, local: str, split: str) -> MDSReader:
    """One shard of an index.

    Raises:
        Exception: of any kind, since Streaming's own checks are among these.
    """
    names, encodings, sizes = entry["column_names"], entry["column_encodings"], entry["column_sizes"]
    _require(_all(names, str) and len(set(names)) == len(names), "column_names", names)
    _require(_all(encodings, str) and len(encodings) == len(names), "column_encodings", encodings)
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
    # The table at the start of a shard has a number of 4 bytes a sample, and two more.
    _require(_is_count(entry["samples"], entry["raw_data"]["bytes"] // 4 - 2), "samples", entry["samples"])
    return MDSReader.from_json(local, split, entry)


def _check_entry(file: Any) -> None:
    name, hashes = file["basename"], file["hashes"]
    parts = name.split("/")  # merged indices have sub-folders
    safe = all(part and not part.startswith(".") and part.isprintable() and len(part) < 200 for part in parts)
    _require(safe and parts[-1] != INDEX, "file name", name)
    _require(_is_count(file["bytes"], LARGEST_SHARD), "bytes", file["bytes"])
    _require(isinstance(hashes, dict) and _all([*hashes, *hashes.values()], str), "hashes", hashes)


def _require(holds: bool, field: str, value: Any) -> None:
    if not holds:
        raise Damaged(f"{field} {str(value)[:200]!r}")


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


# --- what an index says of a file -------------------------------------------------------------------------------


def known_hash(file: FileInfo) -> str | None:
    """The best hash that the index has of a file."""
    return next((name for name in (*PREFERRED_HASHES, *file.hashes) if name in file.hashes and is_hash(name)), None)


def check_file(data: bytes, file: FileInfo) -> None:
    """Raises: Damaged: not the size or the hash that the index says."""
    if len(data) != file.bytes:
        raise Damaged(f"{file.basename} has {len(data)} bytes, the index says {file.bytes}")
    name = known_hash(file)
    if name is not None and get_hash(name, data) != file.hashes[name]:
        raise Damaged(f"{file.basename} is damaged: its {name} is not that of the index")


def check_raw(data: bytes, reader: MDSReader) -> None:
    check_file(data, reader.raw_data)
    check_table(data, reader)


def check_table(data: bytes, reader: MDSReader) -> None:
    """Check the table at the start of a shard: the number of samples, and where each one begins and ends.

    Raises:
        Damaged: another number than in the index, or places that lie outside the file.
    """
    name, samples = reader.raw_data.basename, reader.samples
    table = np.frombuffer(data, "<u4", samples + 2)
    if table[0] != samples:
        raise Damaged(f"{name} has {table[0]} samples, the index says {samples}")
    if table[1] < 4 * (samples + 2) or table[-1] > reader.raw_data.bytes or (table[2:] < table[1:-1]).any():
        raise Damaged(f"{name} is damaged: its samples lie outside it")
