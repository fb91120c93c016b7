"""Errors whose message is meant for users. Every other error is a bug, and keeps its traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable


class LacyStreamError(Exception):
    """Base class of all errors for users. The message says what is wrong, with the value, and what to do."""


class UsageError(LacyStreamError, ValueError):
    """A value, an option or the content of a file cannot be used."""


class FileError(LacyStreamError, OSError):
    """A file or folder that a user named cannot be read or written."""


def accept_all_characters() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, so that a command that has done its work does
    not fail when it says so on an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def run_command(command: Callable[[], int], program: str = "") -> int:
    """Run a command line, and report its errors by the rule that all entry points share.

    Args:
        command: returns its exit code.
        program: name to print before an error message; "" for none.

    Returns:
        The command's exit code, or 2 after an error for users, which is printed on stderr. Other errors are not
        caught.
    """
    accept_all_characters()
    try:
        return command()
    except Exception as error:
        from annotator.errors import AnnotatorError  # imports numpy, and `--help` must answer at once

        if not isinstance(error, LacyStreamError | AnnotatorError):
            raise
        print(f"{program and program + ': '}error: {error}", file=sys.stderr)
        return 2
