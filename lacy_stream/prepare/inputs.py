"""JSONL files (plain, .gz, .zst), Parquet files and Hugging Face data sets -> rows.

    SOURCE... --find_inputs--> Input --read_rows--> SourceRow (a document, or the reason why the row was refused)

Labels that come with a row, as spans in a column or as lookup calls in its text, stay with the document.
"""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import zstandard

from annotator.spans import read_spans
from lacy_stream.files import file_errors, is_hub_name
from lacy_stream.prepare.lmlm import ValueLocation, remove_calls
from lacy_stream.prepare.settings import PrepareError, ReadOptions

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SPLIT_NAMES = ("train", "validation", "test")  # names of splits that are recognised in file names, beside --hf-split
RECORD, REFUSED = "prepare.json", "refused.jsonl"  # written by convert.py beside its shards; never read as sources
PEEKED_ROWS = 100  # rows of a JSONL file in which its columns are looked for
NAMED = 5  # number of names in a message, of a list that may be long
EXAMPLES = 5  # number of refused rows that are named for each reason

# What a reader yields: row number, share of the input read, and the columns or why they are unreadable.
RawRow = tuple[int, float, dict[str, Any] | str]


@dataclass(frozen=True)
class Input:
    """One file, saved data set or hub name."""

    kind: str
    """"jsonl", "parquet", "saved" (by Dataset.save_to_disk) or "hub"."""
    path: str
    name: str
    """The path below the given folder, or the file name. It is part of the ids of rows that have none."""
    bytes: int = 0
    """Size, from which a later run tells that the input has changed, as from ``mtime_ns``."""
    mtime_ns: int = 0
    """Time of the last change, in nanoseconds."""
    ambiguous: bool = False
    """Whether another input has the same name."""


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


# ---------------------------------------------------------------- SOURCE -> Input


def find_inputs(sources: Sequence[str | Path], options: ReadOptions) -> tuple[list[Input], list[str]]:
    """Find the files, saved data sets and hub names that `sources` stand for.

    A folder stands for the files below it, sorted by path. Hidden files are left out, and links to folders are not
    followed. If the names of files say their split, only the files of `options.hf_split` are taken.

    Returns:
        The inputs, and notes for the user.

    Raises:
        PrepareError: a source is missing, has an unknown suffix or is given twice; a package is missing; or a folder
            has no files of the split.
    """
    if not sources:
        raise PrepareError("no SOURCE given")
    split = options.hf_split
    inputs: list[Input] = []
    notes: list[str] = []
    whole: list[str] = []
    for source in map(str, sources):
        with file_errors(source, "read"):
            found, left_out = _expand(source, split)
        inputs += found
        if left_out is None:
            whole.append(source)
        elif left_out:
            notes.append(
                f"{source}: read only split {split!r} (--hf-split; files: {len(found)}), "
                f"not {_first_names(left_out)}; to read them too, name the files"
            )
    if whole and split != ReadOptions.hf_split:
        notes.append(f"--hf-split {split!r} chose nothing in {_first_names(whole)}: no splits there, so all was read")
    if options.hf_config and all(found.kind != "hub" for found in inputs):
        notes.append(f"--hf-config {options.hf_config!r} chose nothing: no SOURCE is a hub name")
    for path, times in Counter(found.path for found in inputs).items():
        if times > 1:
            raise PrepareError(f"{path} is given twice")
    names = Counter(found.name for found in inputs)
    return [replace(found, ambiguous=names[found.name] > 1) for found in inputs], notes


def _expand(source: str, split: str) -> tuple[list[Input], list[str] | None]:
    """Find the inputs of one source, and what was left out of it because of `split`: None if it has no splits."""
    path = Path(source).expanduser()
    if path.is_dir():
        folder = path.absolute()
        is_saved = any((folder / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json"))
        return _expand_saved(folder, split) if is_saved else _expand_folder(folder, split)
    if path.exists():
        if not path.name.endswith(SUFFIXES) or not path.is_file():
            raise PrepareError(f"{source}: unknown suffix or no file; known are {', '.join(SUFFIXES)}")
        left_out = [] if _split_name(Path(path.name), split) == split else None
        return [_file(path.absolute(), path.name)], left_out
    if source.endswith(SUFFIXES) or not is_hub_name(source):
        raise PrepareError(f"{source} does not exist")
    _need("datasets", f"{source} does not exist here; looking for it on the Hugging Face hub")
    return [Input("hub", source, source)], []


def _expand_saved(folder: Path, split: str) -> tuple[list[Input], list[str] | None]:
    """Describe a folder written by `save_to_disk` of a Dataset, or of a DatasetDict, which is checked on reading."""
    _need("datasets", f"reading {folder}")
    stats = [path.stat() for path in folder.rglob("*.arrow")]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    has_split = (folder / "dataset_dict.json").exists() or _saved_split(folder) == split
    return [Input("saved", str(folder), folder.name, size, changed)], [] if has_split else None


def _saved_split(folder: Path) -> str | None:
    """The split that a saved Dataset names as its own, if any."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8")).get("_split")
    except (OSError, ValueError, AttributeError):
        return None


def _expand_folder(folder: Path, split: str) -> tuple[list[Input], list[str] | None]:
    files = sorted(_files_below(folder))
    if not files:
        raise PrepareError(
            f"{folder} and its sub-folders hold neither {', '.join('*' + suffix for suffix in SUFFIXES)} "
            "nor a data set saved by Hugging Face datasets"
        )
    splits = {path: _split_name(path.relative_to(folder), split) for path in files}
    left_out = None
    if any(splits.values()):
        files = [path for path in files if splits[path] == split]
        left_out = list(dict.fromkeys(name or path.name for path, name in splits.items() if name != split))
        if not files:
            raise PrepareError(
                f"{folder} has no files of split {split!r} (--hf-split); it has {_first_names(left_out)}; "
                "choose one of its splits, or name the files to read"
            )
    return [_file(path, path.relative_to(folder).as_posix()) for path in files], left_out


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files with a known suffix in `folder` and below, without hidden ones, as in .git and .cache."""

    def fail(error: OSError) -> None:  # by default, os.walk leaves out folders that it cannot list
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            is_ours = name == REFUSED and RECORD in names
            if name.endswith(SUFFIXES) and not name.startswith(".") and not is_ours and path.is_file():
                yield path


def _split_name(path: Path, split: str) -> str:
    """Find the split that a path names: `split` or one of SPLIT_NAMES; "" for none.

    The file name counts first (SPLIT.jsonl, or SPLIT and a number as in SPLIT-00000-of-00001.parquet), and then the
    nearest folder that is named SPLIT.
    """
    names = [name for name in (split, *SPLIT_NAMES) if name]
    stem = next(path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix))
    if match := re.fullmatch(rf"({'|'.join(map(re.escape, names))})([-._]?\d.*)?", stem):
        return match[1]
    return next((folder for folder in reversed(path.parts[:-1]) if folder in names), "")


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _file(path: Path, name: str) -> Input:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    if kind == "parquet":
        _need("pyarrow", f"reading {path}")
    stat = path.stat()
    return Input(kind, str(path), name, stat.st_size, stat.st_mtime_ns)


def _need(module: str, purpose: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise PrepareError(f"{purpose} needs {module}: pip install {module}")


# ---------------------------------------------------------------- Input -> SourceRow


def read_rows(source: Input, options: ReadOptions) -> Iterator[SourceRow]:
    """Yield every row, in file order. The text of a document is its title, a blank line, and its body.

    Raises:
        PrepareError: the input is damaged, a required column is missing, or made ids would clash.
        FileError: the input cannot be read.
    """
    readers = {"jsonl": _jsonl_rows, "parquet": _parquet_rows, "saved": _saved_rows, "hub": _hub_rows}
    for number, done, fields in readers[source.kind](source, options):
        if isinstance(fields, str):
            yield SourceRow(number, done, refused=fields)
        else:
            yield _read_fields(number, done, fields, source, options)


def _read_fields(number: int, done: float, fields: dict[str, Any], source: Input, options: ReadOptions) -> SourceRow:
    id, title, body = (fields.get(column) if column else None for column in options.columns)
    if type(id) is int:  # not isinstance, since a bool is not an id
        id = str(id)
    if id is not None and not isinstance(id, str):
        return SourceRow(number, done, refused="id is neither a string nor an integer")
    if problem := _string_problem("id", id):
        return SourceRow(number, done, refused=problem)
    id = _unless_blank(id) or _make_id(number, source)
    if problem := _string_problem("text", body) or _string_problem("title", title):
        return SourceRow(number, done, id, refused=problem)
    title, text = _unless_blank(title), _unless_blank(body)
    if not text:
        return SourceRow(number, done, id, refused="no text" if body is None else "empty text")
    title = f"{title}\n\n" if title else ""
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


def _read_labels(
    text: str, fields: dict[str, Any], options: ReadOptions
) -> tuple[str, list[tuple[int, int]], Counter[ValueLocation]]:
    """Read the text, its factual spans, and how they were found. Raises ValueError with one of a few reasons."""
    if options.inline_calls:
        return remove_calls(text)
    value = fields.get(options.spans_column or "")
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


# ---------------------------------------------------------------- JSONL


def _jsonl_rows(source: Input, options: ReadOptions) -> Iterator[RawRow]:
    rows = _parsed_lines(source)
    # JSONL has no schema, so a column counts as present if one of the first rows has it.
    head = list(islice(rows, PEEKED_ROWS))
    present = {name: None for _, _, fields in head if isinstance(fields, dict) for name in fields}
    if present:
        _used_columns(present, source, options)
    yield from chain(head, rows)


def _parsed_lines(source: Input) -> Iterator[RawRow]:
    with file_errors(source.path, "read"), open(source.path, "rb") as raw:
        number = 0
        try:
            for number, line in enumerate(_lines(raw, source.path), 1):
                if line.strip():  # a blank line is not a row
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
    """Yield the lines of a file of one or more zstd frames. Raises EOFError if the last frame is cut short.

    The stream_reader of zstandard ends silently in this case, which would lose documents unnoticed.
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
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    # Arrow does not check UTF-8 on reading, and to_pylist would fail on the whole batch for one bad byte. Turned into
    # lone surrogates, such bytes reach the check that refuses this one row.
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
