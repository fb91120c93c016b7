"""SOURCE... -> inputs: the files, saved data sets and hub names that are to be read, and what is passed over."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lacy_stream.files import file_errors, is_hub_name
from lacy_stream.prepare.json_rows import json_rows
from lacy_stream.prepare.settings import PrepareError, ReadOptions

# The case of suffixes does not matter. JSON may be compressed; how, is read in the file itself (see lines.py).
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".lzma", ".lz4")
KNOWN = ".jsonl, .ndjson and .json (also with .gz, .zst, .bz2, .xz or .lz4 after it), and .parquet"
SPLIT_NAMES = ("train", "validation", "test")  # names of splits that are recognised in file names, beside --hf-split
RECORD, REFUSED = "prepare.json", "refused.jsonl"  # written by convert.py beside its shards; never read as sources
NAMED = 5  # number of names in a message, of a list that may be long
PEEKED_ROWS = 100  # rows of a .json file in which the column of texts is looked for

# What stands beside data. All else that is not read is named.
_OTHER_SUFFIXES = frozenset(
    ".md .rst .bib .cff .py .sh .ipynb .yaml .yml .toml .cfg .png .jpg .jpeg .gif .svg .lock .md5 .sha256 .crc".split()
)
_OTHER_STEMS = frozenset(
    "readme license licence notice copying authors changelog makefile md5sums sha256sums _success".split()
)


@dataclass(frozen=True)
class Input:
    """One file, saved data set or hub name."""

    kind: str
    """One of FORMATS, "saved" (by Dataset.save_to_disk) or "hub"."""
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
class _Expansion:
    """What one source stands for."""

    inputs: list[Input]
    left_out: list[str] | None = None
    """What was left out because of --hf-split; None if the source has no splits."""
    unread: Mapping[str, list[str]] = field(default_factory=dict)
    """Kind -> names of what looks like data and cannot be read."""


# ---------------------------------------------------------------- SOURCE -> Input


def find_inputs(sources: Sequence[str | Path], options: ReadOptions) -> tuple[list[Input], list[str]]:
    """Find the files, saved data sets and hub names that `sources` stand for.

    A folder stands for the files below it, sorted by path. Hidden files are left out, and links to folders are not
    followed. If the names of files say their split, only the files of `options.hf_split` are taken. A `.json` file of
    a folder is taken if it holds objects with the column of texts.

    Returns:
        The inputs, and notes for the user, which name what was passed over.

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
            found = _expand(source, options)
        inputs += found.inputs
        if found.left_out is None:
            whole.append(source)
        elif found.left_out:
            notes.append(
                f"{source}: read only split {split!r} (--hf-split; files: {len(found.inputs)}), "
                f"not {_first_names(found.left_out)}; to read them too, name the files"
            )
        if found.unread:
            notes.append(f"{source}: {_unread_text(found.unread)}; known are {KNOWN}")
    if whole and split != ReadOptions.hf_split:
        notes.append(f"--hf-split {split!r} chose nothing in {_first_names(whole)}: no splits there, so all was read")
    if options.hf_config and all(found.kind != "hub" for found in inputs):
        notes.append(f"--hf-config {options.hf_config!r} chose nothing: no SOURCE is a hub name")
    for path, times in Counter(found.path for found in inputs).items():
        if times > 1:
            raise PrepareError(f"{path} is given twice")
    names = Counter(found.name for found in inputs)
    return [replace(found, ambiguous=names[found.name] > 1) for found in inputs], notes


def _expand(source: str, options: ReadOptions) -> _Expansion:
    """Find the inputs of one source."""
    path = Path(source).expanduser()
    if path.is_dir():
        folder = path.absolute()
        is_set = (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
        if is_set or (folder / "dataset_dict.json").exists():
            return _expand_saved(folder, options.hf_split)
        return _expand_folder(folder, options)
    if path.exists():
        kind, stem = _format(path.name)
        if not kind or not path.is_file():
            raise PrepareError(f"{source}: unknown suffix or no file; known are {KNOWN}")
        is_split = _split_name(Path(path.name), options.hf_split) == options.hf_split
        return _Expansion([_file(path.absolute(), path.name)], [] if is_split else None)
    if _format(source)[0] or not is_hub_name(source):
        raise PrepareError(f"{source} does not exist")
    _need("datasets", f"{source} does not exist here; looking for it on the Hugging Face hub")
    return _Expansion([Input("hub", source, source)])


def _expand_saved(folder: Path, split: str) -> _Expansion:
    """Describe a folder written by `save_to_disk` of a Dataset, or of a DatasetDict, which is checked on reading."""
    _need("datasets", f"reading {folder}")
    stats = [path.stat() for path in folder.rglob("*.arrow")]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    found = [Input("saved", str(folder), folder.name, size, changed)]
    if (folder / "dataset_dict.json").exists():
        return _Expansion(found, [name for name in _splits_of_dict(folder) if name != split])
    return _Expansion(found, [] if _saved_split(folder) == split else None)


def _splits_of_dict(folder: Path) -> list[str]:
    """The splits that a saved DatasetDict names; none if its list cannot be read."""
    try:
        return list(map(str, json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _saved_split(folder: Path) -> str | None:
    """The split that a saved Dataset names as its own, if any."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8")).get("_split")
    except (OSError, ValueError, AttributeError):
        return None


def _expand_folder(folder: Path, options: ReadOptions) -> _Expansion:
    split = options.hf_split
    files, unread = _files_below(folder, options.text_column)
    if not files:
        raise PrepareError(
            f"{folder} and its sub-folders hold neither {KNOWN}, nor a data set saved by Hugging Face datasets"
            + (f" ({_unread_text(unread)})" if unread else "")
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
    return _Expansion([_file(path, path.relative_to(folder).as_posix()) for path in files], left_out, unread)


def _files_below(folder: Path, text_column: str) -> tuple[list[Path], dict[str, list[str]]]:
    """The files in a folder and below that can be read, sorted, and kind -> names of others that look like data."""
    files: list[Path] = []
    unread: dict[str, list[str]] = defaultdict(list)
    for path in sorted(_visible(folder)):
        kind, stem = _format(path.name)
        if kind == "json" and path.name.lower().endswith(".json") and not _holds_texts(path, text_column):
            kind = ""
        if kind and path.is_file():
            files.append(path)
        elif label := _unread_label(path):
            unread[label].append(path.relative_to(folder).as_posix())
    return files, dict(unread)


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files and the links to folders in `folder` and below, without hidden ones, as in .git and .cache, and
    without what prepare itself writes beside its shards."""

    def fail(error: OSError) -> None:  # by default, os.walk leaves out folders that it cannot list
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        ours = {RECORD, REFUSED} if RECORD in names else set()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*names, *links]:
            if not name.startswith(".") and name not in ours:
                yield Path(parent, name)


def _unread_label(path: Path) -> str:
    """The kind of a file that is not read, for a message; "" if it does not look like data."""
    if path.is_dir():
        return "links to folders"
    if not path.is_file():
        return "broken links"
    of_json = ".json" in "".join(path.suffixes[-2:-1]).lower()  # .jsonl.br, whose compression is not known
    suffixes = "".join(path.suffixes[-2:] if of_json or path.suffix.lower() in COMPRESSIONS else path.suffixes[-1:])
    stem = path.name.removesuffix(suffixes).lower()
    if path.suffix.lower() in _OTHER_SUFFIXES or stem in _OTHER_STEMS:
        return ""
    return suffixes.lower() or "no suffix"


def _unread_text(unread: Mapping[str, list[str]]) -> str:
    return "not read: " + "; ".join(f"{len(names)} x {kind} ({_first_names(names)})" for kind, names in unread.items())


def _holds_texts(path: Path, text_column: str) -> bool:
    """Whether one of the first objects of a .json file has the column of texts. Folders have .json files of settings,
    too."""
    try:
        first = islice(json_rows(str(path), 0), PEEKED_ROWS)
        return any(isinstance(fields, dict) and text_column in fields for _, _, fields in first)
    except PrepareError:
        return False


def _format(name: str) -> tuple[str, str]:
    """The format that a file name says, one of the values of FORMATS or "", and the name without its suffixes."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in COMPRESSIONS:
        stem, suffix = os.path.splitext(stem)
        return (FORMATS.get(suffix.lower(), ""), stem) if suffix.lower() != ".parquet" else ("", stem)
    return FORMATS.get(suffix.lower(), ""), stem


def _split_name(path: Path, split: str) -> str:
    """Find the split that a path names: `split` or one of SPLIT_NAMES; "" for none. Case does not matter.

    The file name counts first (SPLIT.jsonl, or SPLIT and a number as in SPLIT-00000-of-00001.parquet), and then the
    nearest folder that is named SPLIT.
    """
    names = {name.lower(): name for name in reversed([split, *SPLIT_NAMES]) if name}
    if match := re.fullmatch(rf"({'|'.join(map(re.escape, names))})([-._]?\d.*)?", _format(path.name)[1].lower()):
        return names[match[1]]
    return next((names[folder.lower()] for folder in reversed(path.parts[:-1]) if folder.lower() in names), "")


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _file(path: Path, name: str) -> Input:
    kind, _ = _format(path.name)
    if kind == "parquet":
        _need("pyarrow", f"reading {path}")
    stat = path.stat()
    return Input(kind, str(path), name, stat.st_size, stat.st_mtime_ns)


def _need(module: str, purpose: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise PrepareError(f"{purpose} needs {module}: pip install {module}")
