"""Inputs -> rows: each a document, or the reason why it is none.

Labels that come with a row, as spans in a column or as lookup calls in its text, stay with the document.
"""

from __future__ import annotations

import datetime
import difflib
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from typing import Any

from annotator.records import title_line
from annotator.spans import read_spans
from lacy_stream.prepare.inputs import Input
from lacy_stream.prepare.json_rows import RawRow, json_rows
from lacy_stream.prepare.lmlm import ValueLocation, remove_calls
from lacy_stream.prepare.settings import PrepareError, ReadOptions

PEEKED_ROWS = 100  # rows of a JSON file in which its columns are looked for
EXAMPLES = 5  # number of refused rows that are named for each reason


@dataclass(frozen=True)
class SourceRow:
    """One row of an input: a document, or the reason why it was refused."""

    number: int
    """Number of the row, from 1; in JSONL, the number of the line."""
    done: float
    """Share of the input that has been read so far, 0 to 1."""
    id: str = ""
    """"" if the row was refused before its id could be read."""
    text: str = ""
    refused: str = ""
    """Why the row was refused; "" if it is a document."""
    spans: list[tuple[int, int]] | None = None
    """Spans [start, end) of the facts, in code points of ``text``; None if documents have no labels."""
    value_locations: Counter[ValueLocation] = field(default_factory=Counter)
    """Number of the row's lookup calls by how their value was found."""


@dataclass
class RefusedRows:
    """The number of rows that were refused for one reason, and the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: str) -> None:
        """Count a row; ``row`` is its name for people."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)


def read_rows(source: Input, options: ReadOptions) -> Iterator[SourceRow]:
    """Yield every row, in file order. The text of a document is its title, a blank line, and its body.

    Raises:
        PrepareError: the input is damaged, a required column is missing, or made ids would clash.
        FileError: the input cannot be read.
    """
    readers = {
        "jsonl": _json_rows,
        "json": _json_rows,
        "parquet": _parquet_rows,
        "saved": _saved_rows,
        "hub": _hub_rows,
    }
    for number, done, fields in readers[source.kind](source, options):
        if isinstance(fields, str):
            yield SourceRow(number, done, refused=fields)
        else:
            yield _read_fields(number, done, fields, source, options)


def _read_fields(number: int, done: float, fields: dict[str, Any], source: Input, options: ReadOptions) -> SourceRow:
    id, title, body = (fields.get(column) if column else None for column in options.columns)
    try:
        id = _id_text(id)
    except ValueError as error:
        return SourceRow(number, done, refused=str(error))
    if problem := _string_problem("id", id):
        return SourceRow(number, done, refused=problem)
    id = _unless_blank(id) or _make_id(number, source)
    title, body = _decoded(title), _decoded(body)
    if problem := _string_problem("text", body) or _string_problem("title", title):
        return SourceRow(number, done, id, refused=problem)
    title, text = title_line(title), _unless_blank(body)
    if not text:
        return SourceRow(number, done, id, refused="no text" if body is None else "empty text")
    if not options.labelled:
        return SourceRow(number, done, id, title + text)
    try:
        text, spans, value_locations = _read_labels(text, fields, options)
    except ValueError as error:
        return SourceRow(number, done, id, refused=str(error))
    if not _unless_blank(text):
        return SourceRow(number, done, id, refused="nothing but lookup calls")
    spans = [(start + len(title), end + len(title)) for start, end in spans]
    return SourceRow(number, done, id, title + text, spans=spans, value_locations=value_locations)


def _id_text(id: Any) -> str | None:
    """An id as text; None for none. A number that is whole is written without a point: pandas makes floats of integers
    where a row has none.

    Raises:
        ValueError: it is neither a string nor a number.
    """
    if id is None or isinstance(id, str):
        return id
    if isinstance(id, bytes):
        try:
            return id.decode("utf-8")
        except UnicodeDecodeError:
            return id.hex()
    if isinstance(id, float | Decimal):
        if math.isnan(id):
            return None
        return str(int(id)) if math.isfinite(id) and id == int(id) else str(id)
    if isinstance(id, int | uuid.UUID | datetime.date) and not isinstance(id, bool):
        return str(id)
    raise ValueError("id is neither a string nor a number")


def _decoded(value: Any) -> Any:
    """Bytes as a string; bytes that are no UTF-8 become lone surrogates, for which the row is refused."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _read_labels(
    text: str, fields: dict[str, Any], options: ReadOptions
) -> tuple[str, list[tuple[int, int]], Counter[ValueLocation]]:
    """Read the text, its factual spans, and how they were found. Raises ValueError with one of a few reasons."""
    if options.inline_calls:
        return remove_calls(text)
    value = _decoded(fields.get(options.spans_column or ""))
    if value is None:
        raise ValueError("no spans")
    try:
        spans = read_spans(value, text)
    except ValueError:
        raise ValueError("spans are not pairs [start, end) of code points of the text") from None
    return text, [(start, end) for start, end in spans.tolist()], Counter()


def _string_problem(column: str, value: Any) -> str:
    """Say what is wrong with a value that should be a string or None; "" if it is good."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return f"{column} is not a string"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: "\ud800" in JSON, or broken bytes in Parquet
        return "invalid UTF-8"
    return ""


def _unless_blank(value: str | None) -> str:
    """The value itself; "" for None and for white space only."""
    return value if value and value.strip() else ""


def _make_id(number: int, source: Input) -> str:
    """Make the id of a row that has none."""
    if source.ambiguous:
        raise PrepareError(
            f"row {number} of {source.path} has no id, and ids made from file name and row would clash with "
            f"those of another {source.name}; rename one of the files or name a column with --id-column"
        )
    return f"{source.name}:{number}"


def _used_columns(present: Iterable[str], source: Input, options: ReadOptions) -> list[str]:
    """Select the `present` columns that are read. Raises PrepareError if a required column is absent."""
    present = list(present)
    for option, column in options.required.items():
        if column not in present:
            nearest = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise PrepareError(
                f"{source.path} has no column {column!r} ({option}); it has {', '.join(map(repr, present))}{hint}"
            )
    return sorted({*options.columns, options.spans_column} & {*present})


# ---------------------------------------------------------------- JSON


def _json_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    rows = json_rows(source.path, source.bytes, lines_only=source.kind == "jsonl")
    # JSON has no schema, so a column counts as present if one of the first rows has it.
    head = list(islice(rows, PEEKED_ROWS))
    present = {name: None for _, _, fields in head if isinstance(fields, dict) for name in fields}
    if present:
        _used_columns(present, source, options)
    yield from chain(head, rows)


# ---------------------------------------------------------------- Parquet and Hugging Face data sets


def _parquet_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            used = _used_columns(file.schema_arrow.names, source, options)
            batches = file.iter_batches(batch_size=1024, columns=used)
            yield from _arrow_rows(batches, file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise PrepareError(f"{source.path} cannot be read as Parquet: {error}") from error


def _saved_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(source.path)
    except (OSError, ValueError) as error:
        raise PrepareError(f"{source.path} cannot be read as a saved data set: {error}") from error
    if isinstance(data, DatasetDict):
        if options.hf_split not in data:
            raise PrepareError(
                f"{source.path} has no split {options.hf_split!r} (--hf-split); it has {', '.join(map(repr, data))}"
            )
        data = data[options.hf_split]
    data = data.select_columns(_used_columns(data.column_names, source, options))
    tables: Any = data.with_format("arrow").iter(batch_size=1024)
    yield from _arrow_rows((batch for table in tables for batch in table.to_batches()), len(data))


def _arrow_rows(batches: Iterable[Any], total: int) -> Iterator[RawRow]:
    """Yield the rows of pyarrow record batches, which have `total` rows in all."""
    number = 0
    for batch in batches:
        columns = [_column_values(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, number / total, dict(zip(batch.schema.names, values, strict=True))


def _column_values(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_fixed_size_binary(column.type):  # raw bytes, such as a UUID or a digest
        return [None if value is None else _hex(value) for value in column.to_pylist()]
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    # Arrow does not check UTF-8 on reading, and to_pylist would fail on the whole batch for one bad byte. In bytes, it
    # costs one row.
    return (column.cast(pa.large_binary()) if is_text else column).to_pylist()


def _hex(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()


def _hub_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        data = load_dataset(source.path, options.hf_config, split=options.hf_split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise PrepareError(
            f"{source.path} is neither a file nor a folder here, and the Hugging Face hub did not "
            f"deliver it (config {options.hf_config}, split {options.hf_split}): {error}"
        ) from error
    for number, fields in enumerate(data, 1):
        if number == 1:
            _used_columns(fields, source, options)
        yield number, 0.0, fields
