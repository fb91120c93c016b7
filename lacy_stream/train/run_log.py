"""The log file of a run, which keeps the files of earlier runs."""

from __future__ import annotations

import itertools
from pathlib import Path

from composer.core import State
from composer.loggers import FileLogger, Logger


class RunLog(FileLogger):
    """Composer's FileLogger, which would overwrite the log of the run that is resumed, or that had the same name: an
    earlier ``log.txt`` is renamed to ``log.1.txt``, the next one to ``log.2.txt``."""

    def init(self, state: State, logger: Logger) -> None:
        self._run_name = state.run_name  # which ``filename`` holds
        keep_earlier(Path(self.filename))
        super().init(state, logger)


def keep_earlier(path: Path) -> None:
    """Rename a file, if it is there, to the first free name with a number before its suffix."""
    if path.exists():
        numbered = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
        path.rename(next(name for name in numbered if not name.exists()))
