"""A file of results that are written one by one, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors


class JournalError(UsageError):
    """The file is damaged or belongs to another run; the message says what differs."""


class Journal:
    """A JSONL file. The first line holds the settings that the results depend on, and each further line one result.
    A line that a killed run left unfinished is dropped when the file is opened again.

    Args:
        path: the file; it is made if missing, with its folder.
        settings: JSON values that the results depend on.

    Attributes:
        results: the results in the file, in order.

    Raises:
        JournalError: the file was written with other settings, or a line is not JSON.
        FileError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.path = Path(path)
        # As they come back from the file: a tuple becomes a list.
        settings = json.loads(json.dumps(settings))
        with file_errors(path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        self.results: list[Any] = []
        try:
            head, *self.results = [json.loads(line) for line in whole.splitlines()] or [settings]
        except ValueError as error:
            raise JournalError(f"{self.path} is damaged ({error}); remove it to start over") from error
        if head != settings:
            raise JournalError(
                f"{self.path} was written with other settings: {_difference(head, settings)}; remove it to start "
                "over, or choose another --out"
            )
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        if not whole:
            self._write(settings)

    def add(self, result: Any) -> None:
        """Append one result, which must be a JSON value."""
        self._write(result)
        self.results.append(result)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names)
