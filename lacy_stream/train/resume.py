"""Repairs the folder of a run that was killed, so that the run can be resumed."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from lacy_stream.files import replaced_file
from lacy_stream.stream.report import Report

LATEST = "latest-rank0.pt"


def mend_save_folder(folder: str | os.PathLike[str], report: Report) -> None:
    """Make ``latest-rank0.pt`` point to the newest whole checkpoint, so that ``autoresume`` finds it.

    Composer writes a checkpoint under its final name, removes the link and makes a new one. A run that is killed in
    between leaves half a file or no link, and is refused when it is started again. Half a file is deleted, which also
    makes room on a full disk: a whole one ends with the directory of a zip archive. A file of another kind is set aside
    as ``NAME.unfinished``. Call it on one process, before the Trainer is made.
    """
    folder = Path(folder)
    link = folder / LATEST
    if link.is_dir():  # sharded checkpoints are folders: theirs is another layout
        return
    whole: dict[int, Path] = {}
    for path in folder.glob("ep*-ba*-rank0.pt"):
        batch = re.fullmatch(r"ep\d+-ba(\d+)-rank0\.pt", path.name)
        if batch is not None and zipfile.is_zipfile(path):
            whole[int(batch[1])] = path
        elif batch is not None and _is_half(path):
            path.unlink()
            report.add("half_checkpoint_deleted", path.name, "the run ended while it was written")
        elif batch is not None:
            path.rename(path.with_name(f"{path.name}.unfinished"))
            report.add("checkpoint_set_aside", path.name, "it is no checkpoint")
    if whole and (not link.is_symlink() or os.readlink(link) != whole[max(whole)].name):
        with replaced_file(link) as new:
            new.symlink_to(whole[max(whole)].name)


def _is_half(path: Path) -> bool:
    """Whether a file, which is not a whole zip archive, is the beginning of one."""
    with open(path, "rb") as file:
        return file.read(4) in (b"", b"PK\x03\x04")
