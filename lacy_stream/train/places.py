"""Tries every file and folder of a recipe before anything is loaded, and locks the save_folder.

A run reads and writes some of its files after hours only. What would fail then fails here, with the key of the recipe.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacy_stream.errors import FileError
from lacy_stream.files import check_writable, try_folder
from lacy_stream.recipe import Recipe, RecipeError
from lacy_stream.stream.source import missing_index

if TYPE_CHECKING:
    from torch.nn import Module

log = logging.getLogger(__name__)

LOCK = ".lacy_stream.lock"
"""File in a save_folder that the run which writes there has locked. The system unlocks it when the run ends."""
COPIES = 3
"""Numbers of a checkpoint for each weight: the weight and two moments of the optimizer, as AdamW keeps them."""
ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".lz4", ".lzma", ".lzo", ".xz", ".zst")
"""Ends of the names of compressed checkpoints, which Composer unpacks."""


def check_places(recipe: Recipe) -> None:
    """Look at all that a recipe reads from and writes to on this machine. Only the save_folder is made.

    Raises:
        RecipeError: naming the key, the path and the way out.
    """
    _check_inputs(recipe)
    if (folder := local_save_folder(recipe)) is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"save_folder: {recipe.save_folder!r} cannot be made: {_reason(error)}") from None
    for key, path in _written_folders(recipe).items():
        _try_writing(key, path)
    if recipe.loggers.file is not None:
        _try_log_file("loggers.file.filename", recipe.loggers.file.filename, recipe)


def local_save_folder(recipe: Recipe) -> Path | None:
    """The save_folder; None where there is none, or a remote one, or one whose name Composer makes up."""
    if recipe.save_folder is None or "://" in recipe.save_folder:
        return None
    name = _filled(recipe.save_folder, recipe)
    return None if "{" in name else Path(name)


def report_folder(recipe: Recipe) -> Path | None:
    """Where the report of a run is written; None where it has no folder."""
    if recipe.report_folder is not None:
        return Path(recipe.report_folder)
    folder = local_save_folder(recipe)
    return None if folder is None else folder / "report"


def other_models(recipe: Recipe) -> dict[str, str]:
    """The models that a recipe needs beside the one that it trains: key -> checkpoint file or folder."""
    named = {
        "algorithms.call_mask.reference": recipe.algorithms.call_mask.reference,
        "eval_mask_from": recipe.eval_mask_from,
    }
    return {key: path for key, path in named.items() if path is not None}


# --- what is read ---------------------------------------------------------------------------------------------


def _check_inputs(recipe: Recipe) -> None:
    for name, loader in {"train_loader": recipe.train_loader, "eval_loader": recipe.eval_loader}.items():
        for place, source in {} if loader is None else loader.dataset.sources().items():
            key = ".".join(filter(None, (name, "dataset", place, "local")))
            if source.remote is None and (problem := missing_index(source.local, source.split)):
                raise RecipeError(f"{problem} ({key})")
    if (path := recipe.load_path) is not None and "://" not in path and "{" not in path:
        _check_checkpoint("load_path", Path(path), sharded=recipe.fsdp_config is not None)
    for key, name in other_models(recipe).items():
        _check_model(key, Path(name))


def _check_model(key: str, path: Path) -> None:
    """Refuse what is neither a checkpoint nor the folder of a model."""
    if not path.exists():
        raise RecipeError(f"{key}: there is no file or folder {str(path)!r}")
    if not path.is_dir():
        _check_checkpoint(key, path)
    elif not (path / "config.json").is_file():
        raise RecipeError(f"{key}: {str(path)!r} has no config.json, so it is no model's folder. {_advice(path)}")


def _check_checkpoint(key: str, path: Path, sharded: bool = False) -> None:
    """Refuse what is no checkpoint, by its first bytes and its end. Its content is not read."""
    if not path.exists():
        raise RecipeError(f"{key}: there is no file {str(path)!r}")
    if path.is_dir():
        if sharded or (path / ".metadata").exists():  # a checkpoint of FSDP in parts
            return
        raise RecipeError(f"{key}: {str(path)!r} is a folder. {_advice(path)}")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        whole = zipfile.is_zipfile(path)
    except OSError as error:
        raise RecipeError(f"{key}: {str(path)!r} cannot be read: {_reason(error)}") from None
    if (
        whole or path.name.endswith((*ARCHIVES, ".symlink")) or start[:1] == b"\x80"
    ):  # a pickle, from before PyTorch wrote archives
        return
    if start in (b"", b"PK\x03\x04"):
        raise RecipeError(f"{key}: {str(path)!r} was not written to its end. Name another checkpoint")
    raise RecipeError(f"{key}: {str(path)!r} is no checkpoint of a run: it is no archive of PyTorch's")


def _advice(folder: Path) -> str:
    """Which file of a folder to name."""
    names = sorted(path.name for path in folder.glob("*.pt"))
    names = [name for name in names if name.startswith("latest")] or names
    return f"Name a checkpoint in it, such as {str(folder / names[-1])!r}" if names else "Name a checkpoint file"


# --- what is written ------------------------------------------------------------------------------------------


def _written_folders(recipe: Recipe) -> dict[str, Path]:
    """The folders on this machine in which a run writes: key -> path."""
    named: dict[str, Any] = {
        "save_folder": local_save_folder(recipe),
        "report_folder": report_folder(recipe),
        "annotator.label_cache": recipe.annotator.label_cache,
        "loggers.tensorboard.log_dir": None if recipe.loggers.tensorboard is None else _folder_of_tensorboard(recipe),
    }
    if recipe.profiler is not None:
        named["profiler.json_trace_handler.folder"] = recipe.profiler.json_trace_handler.get("folder")
        named["profiler.torch_prof_folder"] = recipe.profiler.further.get("torch_prof_folder")
    for name, loader in {"train_loader": recipe.train_loader, "eval_loader": recipe.eval_loader}.items():
        for place, source in {} if loader is None else loader.dataset.sources().items():
            if source.remote is not None:  # local is its cache
                named[".".join(filter(None, (name, "dataset", place, "local")))] = source.local
    return {key: _known_folder(os.fspath(path), recipe) for key, path in named.items() if path is not None}


def _folder_of_tensorboard(recipe: Recipe) -> str:
    assert recipe.loggers.tensorboard is not None
    return recipe.loggers.tensorboard.log_dir or "tensorboard_logs"  # Composer's choice


def _filled(name: str, recipe: Recipe) -> str:
    """A path with those of Composer's placeholders filled that are known before the run has a name."""
    for key, value in {"run_name": recipe.run_name, "rank": os.environ.get("RANK", "0")}.items():
        name = name.replace(f"{{{key}}}", value or f"{{{key}}}")
    return name


def _known_folder(name: str, recipe: Recipe) -> Path:
    """The folder of this name, or the one above the first placeholder that is not known."""
    known, placeholder, _ = _filled(name, recipe).partition("{")
    return Path(known + "_").parent if placeholder else Path(known)


def _try_log_file(key: str, name: str, recipe: Recipe) -> None:
    """Refuse a file that cannot be written, or whose folder cannot."""
    if "{" in _filled(name, recipe):
        _try_writing(key, _known_folder(name, recipe))
        return
    try:
        check_writable(_filled(name, recipe))
    except FileError as error:
        raise RecipeError(f"{key}: {error}") from None


def _try_writing(key: str, folder: Path) -> None:
    """Refuse a folder in which nothing can be written."""
    try:
        try_folder(folder)
    except OSError as error:
        raise RecipeError(
            f"{key}: {str(folder)!r} cannot be written: {_reason(error)}. Name a folder in which this user may write"
        ) from None


def warn_of_little_room(folder: Path, model: Module) -> None:
    """Warn where a checkpoint of a model will hardly fit the disk. Its size is an estimate: see ``COPIES``."""
    needed = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        log.warning(
            "save_folder: a checkpoint takes about %.2f GB, and %s has %.2f GB free. Make room before the first one",
            needed / 1e9, folder, free / 1e9,
        )  # fmt: skip


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a save_folder for the time of a run: two runs would delete and replace one another's checkpoints.

    On a file system without locks there is only a warning.

    Raises:
        RecipeError: another run has locked it.
    """
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RecipeError(
                f"save_folder: another run writes to {str(folder)!r} ({file.read().strip()}). Wait until it ends, or "
                "name another folder. If one run was meant, start it once: `composer -n RANKS RECIPE` starts its ranks"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that one run at a time writes to it", folder, error)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
