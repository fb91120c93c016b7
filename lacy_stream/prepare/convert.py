"""Documents -> MDS shards in OUT/train and OUT/val.

    SOURCE... --inputs.py, rows.py--> SourceRow --is_validation--> train or val shard
                                       a row that is not a document, or an id seen before -> refused.jsonl

Everything is written into a hidden folder next to OUT, `.NAME.prepare`, and renamed at the end. So OUT is complete or
absent, whatever happens to the process.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lacy_stream.files import file_errors
from lacy_stream.prepare.inputs import RECORD, REFUSED, Input, find_inputs
from lacy_stream.prepare.lmlm import ValueLocation
from lacy_stream.prepare.rows import RefusedRows, SourceRow, read_rows
from lacy_stream.prepare.settings import PrepareError, ShardOptions
from lacy_stream.progress import SourceProgress

if TYPE_CHECKING:
    from streaming import MDSWriter

TOOL = "lacy-stream prepare"
FORMAT = 1  # raise it when the same sources and options begin to give other shards
CALLS_FORMAT = 2  # the same for sources with lookup calls
SPLITS = ("train", "val")
DUPLICATE = "duplicate id"  # why a row is refused
LOCK, DATA, OLD = "lacy-stream.lock", "data", "old"  # names inside the hidden folder
LOCK_TRIES, LOCK_PAUSE = 100, 0.01  # seconds
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the text of such an error does not name a file


# ---------------------------------------------------------------- results


@dataclass
class Count:
    """The number of documents, and of their characters with titles."""

    documents: int = 0
    characters: int = 0


@dataclass
class Summary:
    """The counts of what a run has written."""

    train: Count = field(default_factory=Count)
    val: Count = field(default_factory=Count)
    refused: dict[str, RefusedRows] = field(default_factory=dict)
    """Reason -> the rows that were refused for it. OUT/refused.jsonl lists all of them."""
    warnings: list[str] = field(default_factory=list)
    spans: int = 0
    """Number of spans that the documents came with."""
    calls: dict[str, int] = field(default_factory=dict)
    """Number of lookup calls in the texts, by how their values were found (`lmlm.ValueLocation`)."""
    already_prepared: bool = False
    """True if the data set was there already, and nothing was written."""

    @property
    def documents(self) -> int:
        return self.train.documents + self.val.documents

    @property
    def characters(self) -> int:
        return self.train.characters + self.val.characters

    @property
    def refused_rows(self) -> int:
        return sum(refused.count for refused in self.refused.values())


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    options: ShardOptions | None = None,
    overwrite: bool = False,
    on_progress: Callable[[SourceProgress], None] | None = None,
) -> Summary:
    """Write documents as MDS shards to `out`/train and `out`/val.

    The shards have the columns id and text, and the column spans (JSON) if documents come with labels. They are
    compressed with zstd and hashed. Documents are written in the order of the sources, and the same input gives the
    same bytes.

    Args:
        sources: JSON files (lines, or one array of objects; compressed or not), Parquet files, folders of such files,
            folders written by `Dataset.save_to_disk`, or hub names "owner/name". See `find_inputs`.
        out: the folder.
        options: columns, split and shard size.
        overwrite: whether to replace a data set that an earlier run has written to `out`.
        on_progress: called every 100 rows.

    Returns:
        The counts, which are also in `out`/prepare.json. If `out` already holds these sources with these options,
        nothing is written, and `already_prepared` is True.

    Raises:
        PrepareError: the user has to change something. `out` is then untouched.
        FileError: a source or `out` cannot be read.
    """
    options = options or ShardOptions()
    inputs, source_notes = find_inputs(sources, options)
    out = Path(out).expanduser().resolve()
    made_by = CALLS_FORMAT if options.inline_calls else FORMAT
    plan = {"format": made_by, "options": asdict(options), "sources": [asdict(i) for i in inputs]}
    with file_errors(out, "read"):
        summary = _existing(out, plan, overwrite)
    if summary is not None:
        return summary
    with _work_folder(out) as (work, notes):
        # Again under the lock: another run may have finished since the first look.
        summary = _existing(out, plan, overwrite)
        if summary is None:
            with _name_disk_errors(work):
                summary = _write(inputs, options, work / DATA, on_progress)
                summary.warnings = source_notes + summary.warnings
                _write_record(work / DATA, plan, summary)
                _publish(work, out)
        summary.warnings = notes + summary.warnings
    return summary


# ---------------------------------------------------------------- the hold-out


def id_hash(id: str) -> int:
    """Hash an id to 64 bits: BLAKE2b with an 8-byte digest of its UTF-8 bytes, big-endian."""
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8"), digest_size=8).digest(), "big")


def is_validation(id: str, fraction: float) -> bool:
    """Whether a document is held out: id_hash / 2^64 < fraction.

    This depends on the id alone, and not on the order, on other documents or on a seed. A document that is held out at
    one fraction is also held out at every larger one.
    """
    return id_hash(id) < fraction * 2.0**64


# ---------------------------------------------------------------- documents -> shards


def _write(
    inputs: list[Input], options: ShardOptions, data: Path, on_progress: Callable[[SourceProgress], None] | None
) -> Summary:
    """Write the shards and refused.jsonl into the new folder `data`."""
    data.mkdir()
    summary = Summary(calls={how.value: 0 for how in ValueLocation} if options.inline_calls else {})
    writers: dict[str, MDSWriter] = {}
    # Hashes of ids take less memory than the ids. Among 100 million ids, the chance that two have one hash is 0.03%.
    seen: set[int] = set()
    with open(data / REFUSED, "w", encoding="utf-8") as refused:
        for source, row in _all_rows(inputs, options, summary, on_progress):
            reason = row.refused or (DUPLICATE if id_hash(row.id) in seen else "")
            if reason:
                _refuse(reason, row, source, summary, refused)
                continue
            seen.add(id_hash(row.id))
            held_out = is_validation(row.id, options.val_fraction)
            split, count = ("val", summary.val) if held_out else ("train", summary.train)
            if split not in writers:  # a folder is made with its first document, so it is never empty
                writers[split] = _shard_writer(data / split, options)
            labels = {"spans": json.dumps(row.spans)} if options.labelled else {}
            writers[split].write({"id": row.id, "text": row.text, **labels})
            count.documents += 1
            count.characters += len(row.text)
            summary.spans += len(row.spans or ())
            for how, calls in row.value_locations.items():
                summary.calls[how.value] += calls
    if not summary.documents:
        raise PrepareError(f"no document in the sources{_refused_text(summary)}")
    for writer in writers.values():
        writer.finish()
    summary.warnings += _id_warnings(summary, inputs, options) + _split_warnings(summary, options)
    return summary


def _all_rows(
    inputs: list[Input], options: ShardOptions, summary: Summary, on_progress: Callable[[SourceProgress], None] | None
) -> Iterator[tuple[Input, SourceRow]]:
    """Yield the rows of all inputs, and call `on_progress` every 100 rows."""
    total = 0 if any(source.kind == "hub" for source in inputs) else sum(source.bytes for source in inputs)
    before = 0
    for source in inputs:
        for index, row in enumerate(read_rows(source, options)):
            if on_progress and index % 100 == 0:
                done = (before + row.done * source.bytes) / total if total else None
                on_progress(SourceProgress(source.name, done, summary.documents, summary.refused_rows))
            yield source, row
        before += source.bytes


def _shard_writer(folder: Path, options: ShardOptions) -> MDSWriter:
    from streaming import MDSWriter

    class Writer(MDSWriter):
        def flush_shard(self) -> None:
            # If the first document is larger than the limit, MDSWriter first flushes a shard without documents.
            if self.new_samples:
                super().flush_shard()

    return Writer(
        columns={"id": "str", "text": "str"} | ({"spans": "str"} if options.labelled else {}),
        out=str(folder),
        compression="zstd",
        hashes=["sha1", "xxh64"],
        size_limit=options.size_limit,
    )


def _refuse(reason: str, row: SourceRow, source: Input, summary: Summary, file: IO[str]) -> None:
    where = f"{source.name} row {row.number}"
    summary.refused.setdefault(reason, RefusedRows()).add(f"{row.id} ({where})" if row.id else where)
    line = {"source": source.path, "row": row.number, "id": row.id or None, "reason": reason}
    file.write(json.dumps(line) + "\n")


def _refused_text(summary: Summary) -> str:
    lines = [f"  {r.count} x {reason}: {', '.join(r.examples)}" for reason, r in summary.refused.items()]
    return "\n".join(["; every row was refused:", *lines]) if lines else ": they hold no rows"


def _id_warnings(summary: Summary, inputs: list[Input], options: ShardOptions) -> list[str]:
    if DUPLICATE not in summary.refused or len(inputs) < 2 or options.id_column == "":
        return []
    return [
        f"{summary.refused[DUPLICATE].count:,} rows have the id of an earlier row and were refused; if ids restart "
        "in each file, --id-column '' makes ids of file names and rows"
    ]


def _split_warnings(summary: Summary, options: ShardOptions) -> list[str]:
    why = f"--val-fraction {options.val_fraction}, {summary.documents} documents in all"
    empty = [] if summary.train.documents else ["train"]
    if options.val_fraction and not summary.val.documents:
        empty.append("val")
    return [f"no document fell into {split} ({why}), so there is no folder {split}" for split in empty]


# ---------------------------------------------------------------- complete or absent


@contextmanager
def _work_folder(out: Path) -> Iterator[tuple[Path, list[str]]]:
    """Make and lock the folder `.NAME.prepare` next to `out`, and remove it at the end. Yields the folder and notes.

    The kernel releases the lock of a dead process, so a folder that can be locked has no living owner.

    Raises:
        PrepareError: another run holds the lock, or the folder cannot be made.
    """
    work = out.parent / f".{out.name}.prepare"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(work, out)
    except OSError as error:
        raise PrepareError(f"cannot make {error.filename or work}: {error.strerror}; choose another --out") from error
    try:
        found = _clean(work, out)
        yield work, [f"removed what an interrupted run had left in {work}"] if found else []
    finally:
        _clean(work, out)
        (work / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # the next run may already have put its own lock there
            work.rmdir()
        os.close(lock)


@contextmanager
def _name_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into a PrepareError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise PrepareError(f"cannot write to {folder}: {error.strerror}; make room or choose another --out") from error


def _lock(work: Path, out: Path) -> int:
    """Make `work` and lock it; returns the descriptor of the lock. Raises OSError if it cannot be made."""
    lost: OSError | None = None
    for _ in range(LOCK_TRIES):
        if lost is not None:
            time.sleep(LOCK_PAUSE)
        try:
            work.mkdir(exist_ok=True)
            if any(path.name != LOCK for path in work.iterdir()) and not (work / LOCK).exists():
                raise PrepareError(
                    f"{work} is in the way and was not made by `{TOOL}`; move it or choose another --out"
                )
            lock = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError) as error:
            # Either an earlier run has just removed its folder, or the folder cannot be made: some file systems raise
            # the same error for both.
            lost = error
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(work / LOCK)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise PrepareError(f"another run is writing {out}; wait for it or choose another --out") from None
        except FileNotFoundError as error:
            lost = error
        os.close(lock)  # this locked a file that its owner had just removed
    raise lost or FileNotFoundError(errno.ENOENT, "it is removed again and again", str(work))


def _clean(work: Path, out: Path) -> bool:
    """Remove an unfinished data set, and put the previous one back if --overwrite was stopped between two renames.

    Returns:
        Whether there was anything to do.
    """
    found = any((work / name).exists() for name in (OLD, DATA))
    if (work / OLD).exists() and not out.exists():
        os.replace(work / OLD, out)
    for name in (OLD, DATA):
        if (work / name).exists():
            shutil.rmtree(work / name)
    return found


def _publish(work: Path, out: Path) -> None:
    """Replace `out` by work/data. The data is synced to disk before it gets its name."""
    for path in [*(work / DATA).rglob("*"), work / DATA]:
        _sync(path)
    # If the process is killed between the two renames, ``_clean`` puts the old data set back.
    if out.exists() and any(out.iterdir()):
        os.replace(out, work / OLD)
    os.replace(work / DATA, out)
    _sync(out.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the data set of an earlier run


def _write_record(data: Path, plan: dict[str, Any], summary: Summary) -> None:
    record = {"tool": TOOL, "plan": plan, "summary": asdict(summary)}
    (data / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _existing(out: Path, plan: dict[str, Any], overwrite: bool) -> Summary | None:
    """Look for a data set in `out` that an earlier run has made by the same plan.

    Returns:
        Its summary; None if `out` may be written.

    Raises:
        PrepareError: `out` holds something else; with `overwrite`, something that this tool has not written.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = _read_record(out)
    if record is None:
        raise PrepareError(f"{out} exists and was not written by `{TOOL}`; remove it yourself or choose another --out")
    if overwrite:
        strange = sorted({path.name for path in out.iterdir()} - {*SPLITS, RECORD, REFUSED})
        if strange:
            raise PrepareError(
                f"{out} holds {', '.join(strange)}, which was not written by `{TOOL}`; "
                "remove it yourself or choose another --out"
            )
        return None
    problems = "; ".join(_problems(out, record, plan))
    if problems:
        raise PrepareError(f"{out} exists, but {problems}; use --overwrite or choose another --out")
    return _read_summary(record["summary"])


def _read_record(out: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("tool") == TOOL else None


def _problems(out: Path, record: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    """Yield the reasons why the data set in `out` is not what `plan` would write."""
    there = record["plan"]
    if there["format"] != plan["format"]:
        yield "it was written by another version of this tool"
        return
    for split in SPLITS:
        if record["summary"][split]["documents"] and not (out / split / "index.json").is_file():
            yield f"{split}/index.json is missing"
    for name, value in plan["options"].items():
        if there["options"].get(name) != value:
            yield f"{name} was {there['options'].get(name)!r} and is {value!r}"
    before, now = ({source["path"]: source for source in p["sources"]} for p in (there, plan))
    if list(before) != list(now):
        yield "it was made from other sources"
    elif changed := [path for path in now if before[path] != now[path]]:
        yield f"these sources changed since: {', '.join(changed)}"


def _read_summary(saved: dict[str, Any]) -> Summary:
    refused = {reason: RefusedRows(**value) for reason, value in saved["refused"].items()}
    train, val = Count(**saved["train"]), Count(**saved["val"])
    spans, calls = saved.get("spans", 0), saved.get("calls", {})  # an earlier version did not write them
    return Summary(train, val, refused, saved["warnings"], spans, calls, already_prepared=True)
