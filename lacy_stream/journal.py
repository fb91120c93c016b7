"""A file of results that are written one by one, so that an interrupted run can be resumed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors, json_line


class JournalError(UsageError):
    """The file is damaged, belongs to another run or is being written; the message says what is in the way."""


class Journal:
    """A JSONL file that one process at a time writes. The first line holds the settings that the results depend on, and
    each further line one result. A line that a killed run left unfinished is dropped when the file is opened again.

    It is a context manager, which closes the file.

    Args:
        path: the file; it is made if missing, with its folder.
        settings: JSON values that the results depend on. A file without results takes them over.
        if_known: names of settings that are compared only where both values are known. A value that is not known is
            None.

    Attributes:
        results: the results in the file, in order.

    Raises:
        JournalError: the file was written with other settings, a line is not JSON, or another process writes the file.
        FileError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: dict[str, Any], *, if_known: Collection[str] = ()
    ) -> None:
        self.path = Path(path)
        # As they come back from the file: a tuple becomes a list.
        settings = json.loads(json.dumps(settings))
        with file_errors(path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
            try:
                self._lock = _locked(self.path, self._file.fileno())
                self.results: list[Any] = self._read(settings, if_known)
            except BaseException:
                self._file.close()
                raise

    def add(self, result: Any) -> None:
        """Append one result, which must be a JSON value."""
        self._write(result)
        self.results.append(result)

    def close(self) -> None:
        """Close the file, so that another process can write it."""
        if not self._file.closed:
            self._lock.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, settings: dict[str, Any], if_known: Collection[str]) -> list[Any]:
        """Read the results, and bring the file to the end of its last whole line."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise JournalError(f"{self.path} is damaged ({error}); remove it to start over") from error
        head = lines[0] if lines else settings
        if not isinstance(head, dict) or not (lines or json_line(settings).encode().startswith(data)):
            raise JournalError(f"{self.path} is no file of results: choose another --out")
        results = lines[1:]
        if not results and head.keys() == settings.keys():
            os.truncate(self.path, 0)
            self._write(settings)
            return []
        now = {name: head.get(name) for name in if_known if settings.get(name) is None or head.get(name) is None}
        if (difference := _difference(head, settings | now)) != "":
            raise JournalError(
                f"{self.path} was written with other settings: {difference}; remove it to start over, or choose "
                "another --out"
            )
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return results

    def _write(self, value: Any) -> None:
        self._file.write(f"{json_line(value)}\n".encode())
        self._file.flush()


def _locked(path: Path, file: int) -> Path:
    """Lock a journal that is open for writing. The kernel releases the lock of a process that dies.

    Returns:
        The file beside it that names the process.

    Raises:
        JournalError: another process has locked it.
    """
    holder = path.with_name(f".{path.name}.writer")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            who = holder.read_text(encoding="utf-8")
        except OSError:
            who = "another process"
        raise JournalError(
            f"{path} is being written by {who}: wait for it to end, end it, or choose another --out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        warnings.warn(f"{path}: its file system has no locks. See that one process at a time writes it", stacklevel=2)
    started = datetime.now().isoformat(sep=" ", timespec="seconds")
    holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {started}", encoding="utf-8")
    return holder


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names)
