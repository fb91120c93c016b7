"""Where rows come from: JSONL (plain, .gz, .zst), Parquet, Hugging Face data sets -> documents.

    SOURCE... --find_inputs--> Input --read_rows--> Row (a document, or the reason why it is none)

What becomes of the documents is the business of prepare.py.
"""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import zstandard

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PEEKED_ROWS = 100

# What a reader yields: row number, share of the input read, and the columns or why they cannot be read.
RawRow = tuple[int, float, dict[str, Any] | str]


class PrepareError(ValueError):
    """The user has to change something; the message says what and how."""


@dataclass(frozen=True)
class ReadOptions:
    """Which columns are read, and which part of a Hugging Face data set.

    `id_column` and `title_column` None: the column "id" or "title" where a source has it. Named: every
    source must have it. `title_column` "": no title.
    """

    id_column: str | None = None
    title_column: str | None = None
    text_column: str = "text"
    hf_config: str | None = None
    hf_split: str = "train"

    @property
    def columns(self) -> tuple[str, str, str]:
        """Names of the id, title and text column."""
        title = "title" if self.title_column is None else self.title_column
        return self.id_column or "id", title, self.text_column

    @property
    def required(self) -> dict[str, str]:
        """Option -> column that every source must have."""
        wanted = {"--id-column": self.id_column, "--title-column": self.title_column}
        return {"--text-column": self.text_column} | {o: c for o, c in wanted.items() if c}


@dataclass(frozen=True)
class Input:
    """One file, saved data set or hub name. `bytes` and `mtime_ns` tell a later run that it changed.

    `name` stands in made ids; `ambiguous`: another input has the same name.
    """

    kind: str  # jsonl, parquet, saved (by Dataset.save_to_disk) or hub
    path: str
    name: str
    bytes: int = 0
    mtime_ns: int = 0
    ambiguous: bool = False


@dataclass(frozen=True)
class Row:
    """One row of an input: a document (`id`, `text`), or the reason why it is `refused`.

    `number` counts from 1 (the line number in JSONL); `done` is the share of the input read so far. The id
    of a refused row is "" where it could not be read.
    """

    number: int
    done: float
    id: str = ""
    text: str = ""
    refused: str = ""


# ---------------------------------------------------------------- SOURCE -> Input


def find_inputs(sources: Sequence[str | Path]) -> list[Input]:
    """The files, saved data sets and hub names that `sources` stand for; the files of a folder sorted.

    Raises PrepareError for a missing source, an unknown suffix, a missing extra, or one file given twice.
    """
    if not sources:
        raise PrepareError("no SOURCE given")
    inputs = [found for source in sources for found in _expand(str(source))]
    for path, times in Counter(found.path for found in inputs).items():
        if times > 1:
            raise PrepareError(f"{path} is given twice")
    names = Counter(found.name for found in inputs)
    return [replace(found, ambiguous=names[found.name] > 1) for found in inputs]


def _expand(source: str) -> list[Input]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _expand_folder(path.absolute())
    if path.exists():
        if not path.name.endswith(SUFFIXES) or not path.is_file():
            raise PrepareError(f"{source}: unknown suffix or no file; known are {', '.join(SUFFIXES)}")
        return [_file(path.absolute())]
    if source.endswith(SUFFIXES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise PrepareError(f"{source} does not exist")
    _need("datasets", "hf", f"{source} does not exist here; looking for it on the Hugging Face hub")
    return [Input("hub", source, source)]


def _expand_folder(folder: Path) -> list[Input]:
    if any((folder / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json")):
        _need("datasets", "hf", f"reading {folder}")
        stats = [path.stat() for path in folder.rglob("*.arrow")]
        size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        return [Input("saved", str(folder), folder.name, size, changed)]
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
    if not files:
        raise PrepareError(
            f"{folder} holds neither {', '.join('*' + suffix for suffix in SUFFIXES)} "
            "nor a data set saved by Hugging Face datasets"
        )
    return [_file(path) for path in files]


def _file(path: Path) -> Input:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    if kind == "parquet":
        _need("pyarrow", "parquet", f"reading {path}")
    stat = path.stat()
    return Input(kind, str(path), path.name, stat.st_size, stat.st_mtime_ns)


def _need(module: str, extra: str, purpose: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise PrepareError(f"{purpose} needs {module}: pip install 'lacy-stream[{extra}]'")


# ---------------------------------------------------------------- Input -> Row


def read_rows(source: Input, options: ReadOptions) -> Iterator[Row]:
    """Every row, in file order. A document's text is title, blank line, body.

    Raises PrepareError for damage, for a missing column, and where made ids would clash.
    """
    readers = {"jsonl": _jsonl_rows, "parquet": _parquet_rows, "saved": _saved_rows, "hub": _hub_rows}
    for number, done, fields in readers[source.kind](source, options):
        if isinstance(fields, str):
            yield Row(number, done, refused=fields)
        else:
            yield _read_fields(number, done, fields, source, options)


def _read_fields(number: int, done: float, fields: dict[str, Any], source: Input, options: ReadOptions) -> Row:
    id, title, body = (fields.get(column) if column else None for column in options.columns)
    if type(id) is int:  # a bool is none
        id = str(id)
    if problem := _string_problem("id", id):
        return Row(number, done, refused=problem)
    id = _unless_blank(id) or _make_id(number, source)
    if problem := _string_problem("text", body) or _string_problem("title", title):
        return Row(number, done, id, refused=problem)
    title, text = _unless_blank(title), _unless_blank(body)
    if not text:
        return Row(number, done, id, refused="no text" if body is None else "empty text")
    return Row(number, done, id, f"{title}\n\n{text}" if title else text)


def _string_problem(column: str, value: Any) -> str:
    """What is wrong with a value that should be a string or None; "" when it is one of them."""
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
    """The value as it is; "" for None and for white space only."""
    return value if value and value.strip() else ""


def _make_id(number: int, source: Input) -> str:
    if source.ambiguous:
        raise PrepareError(
            f"row {number} of {source.path} has no id, and ids made from file name and row would clash with "
            f"those of another {source.name}; rename one of the files or name a column with --id-column"
        )
    return f"{source.name}:{number}"


def _used_columns(present: Iterable[str], source: Input, options: ReadOptions) -> list[str]:
    """Those of the `present` columns that are read. Raises PrepareError when a required one is absent."""
    present = list(present)
    for option, column in options.required.items():
        if column not in present:
            nearest = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise PrepareError(
                f"{source.path} has no column {column!r} ({option}); it has {', '.join(map(repr, present))}{hint}"
            )
    return sorted({*options.columns} & {*present})


# ---------------------------------------------------------------- JSONL


def _jsonl_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    rows = _parsed_lines(source)
    # JSONL has no schema: a column exists when one of the first rows has it.
    head = list(islice(rows, PEEKED_ROWS))
    present = {name: None for _, _, fields in head if isinstance(fields, dict) for name in fields}
    if present:
        _used_columns(present, source, options)
    yield from chain(head, rows)


def _parsed_lines(source: Input) -> Iterator[RawRow]:
    with open(source.path, "rb") as raw:
        number = 0
        try:
            for number, line in enumerate(_lines(raw, source.path), 1):
                if line.strip():  # a blank line is no row
                    yield number, raw.tell() / max(source.bytes, 1), _parse_line(line, number)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise PrepareError(f"{source.path} is damaged after line {number}: {error}") from error


def _parse_line(line: bytes, number: int) -> dict[str, Any] | str:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError):
        return "not valid JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def _lines(raw: IO[bytes], path: str) -> Iterable[bytes]:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    return _zstd_lines(raw) if path.endswith(".zst") else raw


def _zstd_lines(raw: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file of one or more zstd frames; EOFError when the last frame is cut short.

    zstandard's own stream_reader ends silently there, which would lose documents without a word.
    """
    frame, chunk, line = None, b"", b""
    while chunk := chunk or raw.read(1 << 17):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        *lines, line = (line + frame.decompress(chunk)).split(b"\n")
        yield from lines
        chunk = frame.unused_data  # the next frame begins in this chunk
        frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends in the middle of a zstd frame")
    yield line


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
    """Rows of pyarrow record batches, `total` in all."""
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
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    # Arrow does not check UTF-8 on reading, and to_pylist would give up the whole batch for one bad
    # byte. As lone surrogates such bytes reach the check that refuses the one row.
    values = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


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
