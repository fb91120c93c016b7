"""The models of one evaluation: what they are called in its tables, and whether they are still the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lacy_stream.checkpoint import describe_training, read_recipe
from lacy_stream.sources import is_hub_name


def labels(paths: Sequence[str]) -> dict[str, str]:
    """Label -> path. The label is the name of the folder, file or hub model, of a checkpoint (.pt) that of its run;
    several checkpoints of one run are told apart by their own names.

    Raises:
        ValueError: a model does not exist and cannot be a hub name, or is given twice.
    """
    labelled: dict[str, str] = {}
    for path in paths:
        if path in labelled.values():
            raise ValueError(f"{path} is given twice")
        if not os.path.exists(path) and not is_hub_name(path):
            raise ValueError(
                f"{path} does not exist: give a checkpoint, such as runs/NAME/latest-rank0.pt, or a folder"
            )
        absolute = Path(os.path.abspath(path))
        label = absolute.parent.name if absolute.suffix == ".pt" else absolute.name.removesuffix(".jsonl")
        for longer in (label, f"{label}-{absolute.stem}", "-".join(absolute.parts[1:])):
            if longer not in labelled:
                labelled[longer] = path
                break
    return labelled


def training_notes(models: Mapping[str, str]) -> list[str]:
    """A sentence on how each model was trained to call, where that is known.

    Args:
        models: label -> path. Texts and models of the hub are passed over.
    """
    recipes = {label: read_recipe(path) for label, path in models.items() if not path.endswith(".jsonl")}
    return [f"{label}: {describe_training(recipe)}." for label, recipe in recipes.items() if recipe is not None]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Short digest of names, sizes and times of change of a file, or of all files of a folder: a model that was trained
    on or exported again is another one, without its gigabytes being read. A hub name stands for itself."""
    if not os.path.exists(path):
        return hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
    path = Path(path).resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
