"""The models of an evaluation: their labels in tables, and how they were trained."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lacy_stream.errors import UsageError
from lacy_stream.files import is_hub_name, is_json_lines
from lacy_stream.train.checkpoint import describe_training, read_recipe


def labels(paths: Sequence[str]) -> dict[str, str]:
    """Make a label for each model.

    The label is the name of the folder, of the file or of the hub model. For a checkpoint (.pt) it is the name of the
    run. If several checkpoints are of one run, their own names are added.

    Args:
        paths: checkpoints, folders, files of texts or hub names.

    Returns:
        Label -> path.

    Raises:
        UsageError: a model does not exist and cannot be a hub name, or is given twice.
    """
    labelled: dict[str, str] = {}
    seen: set[Path] = set()
    for path in paths:
        if not os.path.exists(path) and not is_hub_name(path):
            raise UsageError(
                f"{path} does not exist: give a checkpoint, such as runs/NAME/latest-rank0.pt, or a folder"
            )
        absolute = Path(os.path.abspath(path))
        if absolute in seen:
            raise UsageError(f"{path} is given twice")
        seen.add(absolute)
        label = absolute.parent.name if absolute.suffix == ".pt" else absolute.name.removesuffix(".jsonl")
        whole = "-".join(absolute.parts[1:])
        numbered = (f"{whole}-{number}" for number in itertools.count(2))
        for longer in itertools.chain((label, f"{label}-{absolute.stem}", whole), numbered):
            if longer not in labelled:
                labelled[longer] = path
                break
    return labelled


def labels_of_both(models: Sequence[str], baselines: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Make labels for two lists of models. A model may be in both lists, and has one label then.

    Returns:
        Label -> path, of either list. Different models have different labels.

    Raises:
        UsageError: as ``labels``, for either list.
    """
    for paths in (models, baselines):
        labels(paths)
    first = {os.path.abspath(path): path for path in models}
    both = labels([*models, *(path for path in baselines if os.path.abspath(path) not in first)])
    label_of = {os.path.abspath(path): label for label, path in both.items()}
    return (
        {label_of[os.path.abspath(path)]: path for path in models},
        {label_of[os.path.abspath(path)]: path for path in baselines},
    )


def training_notes(models: Mapping[str, str]) -> list[str]:
    """Write a sentence about each model on how it was trained to call, if that is known.

    Args:
        models: label -> path. Files of texts and hub models are left out.
    """
    recipes = {label: read_recipe(path) for label, path in models.items() if not is_json_lines(path)}
    return [f"{label}: {describe_training(recipe)}." for label, recipe in recipes.items() if recipe is not None]
