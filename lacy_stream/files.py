"""Files and folders that users name: clear errors, atomic writing, fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lacy_stream.errors import FileError

AnyPath = str | os.PathLike[str]


@contextmanager
def file_errors(path: AnyPath, doing: Literal["read", "written"]) -> Iterator[None]:
    """Turn the errors of reading or writing a file into one that names it.

    Args:
        path: the file or folder.
        doing: what the ``with`` block does to it.

    Raises:
        FileError: replaces an OSError or a UnicodeDecodeError of the block.
    """
    try:
        yield
    except FileError:
        raise
    except UnicodeDecodeError as error:
        raise FileError(f"{os.fspath(path)} is not UTF-8: {error}. Save it as UTF-8") from error
    except OSError as error:
        check = "its permissions" if doing == "read" else "its permissions and the room on its disk"
        raise FileError(f"{os.fspath(path)} cannot be {doing}: {error.strerror or error}. Check {check}") from error


def try_folder(folder: AnyPath) -> None:
    """Write a file that vanishes at once, in a folder or, where it is still to be made, in the nearest one above it.

    Raises:
        OSError: this is not possible.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    tempfile.TemporaryFile(dir=there).close()


def check_writable(path: AnyPath) -> None:
    """Try whether a file can be written, before the work whose result it will hold. Nothing is changed.

    Raises:
        FileError: it is a folder, or cannot be written.
    """
    path = Path(path)
    with file_errors(path, "written"):
        if path.is_dir():
            raise FileError(f"{path} is a folder: name a file in it")
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))
        try_folder(path.parent)


def read_text(path: AnyPath) -> str:
    """Read a UTF-8 file, without the byte order mark that some editors put at its beginning.

    Raises:
        FileError: it cannot be read.
    """
    with file_errors(path, "read"):
        return Path(path).read_text(encoding="utf-8-sig")


def write_text(path: AnyPath, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 file. After an error the file is what it was before.

    Args:
        errors: what to do with lone surrogates, as in ``str.encode``.

    Raises:
        FileError: it cannot be written.
    """
    with file_errors(path, "written"), replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


@contextmanager
def replaced_file(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` when the block ends. After an error ``path`` is what
    it was before. Only one process at a time may write the same file.

    Raises:
        FileError: the folder cannot be made, or the file cannot be replaced.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with file_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
    try:
        yield partial
        with file_errors(path, "written"):
            os.replace(partial, path)  # atomic: a reader sees the old file or the new one
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: AnyPath) -> Iterator[Path]:
    """Yield the path of a folder that the block makes. It is renamed to ``path`` when the block ends. After an error
    there is no such folder.

    Raises:
        FileError: ``path`` exists, or cannot be written.
    """
    path = Path(path)
    if os.path.exists(path):
        raise FileError(f"{path} exists: name a new folder, or remove it")
    with file_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent, path.name) as scratch:
            yield scratch / path.name
            os.replace(scratch / path.name, path)  # fails if somebody has filled such a folder in the meantime


@contextmanager
def scratch_folder(folder: AnyPath, name: str) -> Iterator[Path]:
    """Yield a new temporary folder ``.NAME.XXXXXXXX.part`` inside ``folder``, and remove it at the end."""
    path = tempfile.mkdtemp(dir=folder, prefix=f".{name}.", suffix=".part")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def file_fingerprint(path: AnyPath) -> str:
    """Digest a file, or all files of a folder, by name, size and time of change. The content is not read, since models
    have gigabytes. A model that was trained or exported again still has a new fingerprint.

    Returns:
        16 hex digits. For a path that does not exist, such as a hub name, they depend on the name alone.
    """
    if not os.path.exists(path):
        return hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
    path = Path(path).resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def is_json_lines(path: AnyPath) -> bool:
    """Whether a file's name says that each of its lines is JSON."""
    return os.fspath(path).lower().endswith((".jsonl", ".ndjson", ".jsonlines"))


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8. One with a lone surrogate, which JSON can spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_line(value: Any) -> str:
    """A value as JSON on one line, in plain characters where they can be written as UTF-8, and escaped where not."""
    line = json.dumps(value, ensure_ascii=False)
    return line if is_unicode(line) else json.dumps(value)


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name of the Hugging Face hub."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
