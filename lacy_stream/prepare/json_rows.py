"""JSON files -> rows: JSON lines, one object, or one array of objects."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from lacy_stream.files import file_errors
from lacy_stream.prepare.lines import DecompressionError, read_lines
from lacy_stream.prepare.settings import PrepareError

# What a reader yields: row number, share of the input read, and the columns or why they are unreadable.
RawRow = tuple[int, float, dict[str, Any] | str]

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE begins as UTF-16-LE does


def json_rows(path: str, size: int, *, lines_only: bool = False) -> Iterator[RawRow]:
    """Yield the rows of a file of JSON lines. The row number is the number of the line, from 1.

    A file whose first line is no object may also be one object, which is one row, or an array of objects, which are
    its rows. It is read into memory then.

    Args:
        path: the file, compressed or not.
        size: its bytes, by which the share that was read is told.
        lines_only: whether the file can only be JSON lines.

    Raises:
        PrepareError: the file is damaged, or is not UTF-8 throughout.
        FileError: the file cannot be read.
    """
    rows = _parsed_lines(path, size)
    first = next(rows, None)
    if first is None:
        return
    values = None if lines_only or isinstance(first[2], dict) else _values(path)
    if values is None:
        yield from chain([first], rows)
        return
    for number, value in enumerate(values, 1):
        yield number, number / len(values), value if isinstance(value, dict) else "not a JSON object"


def _parsed_lines(path: str, size: int) -> Iterator[RawRow]:
    for number, done, line in _numbered_lines(path, size):
        if line.strip():  # a blank line is not a row
            yield number, done, _parse_line(line)


def _parse_line(line: bytes) -> dict[str, Any] | str:
    try:
        # Where files that begin with a byte-order mark were joined, lines in the middle have one.
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError):
        return "not valid JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def _values(path: str) -> list[Any] | None:
    """The objects of a file that is one JSON value; None if it is not."""
    try:
        value = json.loads(b"".join(line for _, _, line in _numbered_lines(path, 0)).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


def _numbered_lines(path: str, size: int) -> Iterator[tuple[int, float, bytes]]:
    """Yield the number of each line, the share of the file that has been read, and the line."""
    with file_errors(path, "read"), open(path, "rb") as raw:
        number = 0
        try:
            for number, line in enumerate(read_lines(raw), 1):
                if number == 1 and line.startswith(_OTHER_ENCODINGS):
                    raise PrepareError(f"{path} is UTF-16 or UTF-32; convert it with `iconv -f UTF-16 -t UTF-8`")
                yield number, raw.tell() / max(size, 1), line
        except DecompressionError as error:
            raise PrepareError(f"{path} cannot be read after line {number}: {error}") from error
