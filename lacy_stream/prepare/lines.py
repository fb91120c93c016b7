"""Files, compressed or not -> their lines. The first bytes of a file tell how it is compressed, and not its name."""

from __future__ import annotations

import bz2
import importlib.util
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

CHUNK = 1 << 17  # bytes that are read and decompressed at once
MAX_ZSTD_WINDOW = 1 << 31
"""Bytes. zstd itself writes windows up to this size (--ultra --long=31); by default it reads 128 MiB only."""


class DecompressionError(Exception):
    """A file cannot be decompressed. The message says why, and does not name the file."""


def read_lines(raw: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file: plain text, or text compressed by gzip, zstd, bzip2, xz, lzma or lz4.

    Args:
        raw: the file, opened in binary mode, at its beginning.

    Raises:
        DecompressionError: the compressed data are damaged or cut short, or cannot be read here.
        OSError: the file cannot be read.
    """
    head = raw.peek(_HEAD)[:_HEAD]
    if head.startswith(_LZ4):
        yield from _lines(_lz4_blocks(raw))
    elif new := next((new for magic, new in _DECOMPRESSORS if magic.match(head)), None):
        yield from _lines(_blocks(raw, new))
    else:
        yield from raw


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text that comes in blocks, without their line ends."""
    parts: list[bytes] = []  # of a line, which may be as long as the file
    for block in blocks:
        first, *others = block.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    yield b"".join(parts)


def _blocks(raw: io.BufferedReader, new: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the text of a file of one or more compressed streams, such as `cat a.gz b.gz` makes.

    The readers of the standard library and of zstandard end silently where a stream that is not the first is damaged,
    or where the last one is cut short. That would lose documents unnoticed.

    Args:
        raw: the file.
        new: makes a decompressor of one stream.
    """
    stream, chunk = None, b""
    try:
        while chunk := chunk or raw.read(CHUNK):
            if stream is None and not (chunk := chunk.lstrip(b"\0")):  # zeros may stand between streams
                continue
            stream = stream or new()
            yield stream.decompress(chunk)
            chunk = stream.unused_data  # the next stream begins in this chunk
            stream = None if stream.eof else stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, and not of the data
            raise
        raise DecompressionError(_reason(str(error))) from error
    if stream is not None:
        raise DecompressionError("it is cut short: it ends in the middle of the compressed data")


class _Borrowed:
    """A file that its reader does not close."""

    closed = False

    def __init__(self, raw: io.BufferedReader) -> None:
        self.read = raw.read

    def close(self) -> None:
        pass


def _lz4_blocks(raw: io.BufferedReader) -> Iterator[bytes]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DecompressionError("reading lz4 needs pyarrow: pip install pyarrow")
    import pyarrow as pa

    try:
        stream = pa.CompressedInputStream(pa.PythonFile(_Borrowed(raw), mode="r"), "lz4")
        while block := stream.read(CHUNK):
            yield block
    except (pa.ArrowException, OSError) as error:
        raise DecompressionError(_reason(str(error))) from error


def _reason(error: str) -> str:
    if "too much memory" in error:
        return "its zstd window is larger than 2 GB; compress it again without --ultra --long"
    if "ictionary mismatch" in error:
        return "it was compressed with a zstd dictionary, which is not in the file; decompress it with `zstd -d -D`"
    return f"it is cut short ({error})" if "runcated" in error else f"it is damaged ({error})"


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)  # the largest window, with gzip's header


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()


_HEAD = 8  # bytes
_LZ4 = b"\x04\x22\x4d\x18"
_DECOMPRESSORS: list[tuple[re.Pattern[bytes], Callable[[], Any]]] = [
    (re.compile(rb"\x1f\x8b"), _gzip),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd),  # a frame, or one to skip
    (re.compile(rb"BZh[1-9]"), bz2.BZ2Decompressor),
    (re.compile(rb"\xfd7zXZ\0|\x5d\0\0"), lzma.LZMADecompressor),  # .xz and .lzma
]
