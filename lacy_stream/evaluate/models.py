"""The models of one evaluation, and what they are called in its tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lacy_stream.errors import UsageError
from lacy_stream.files import is_hub_name
from lacy_stream.train.checkpoint import describe_training, read_recipe


def labels(paths: Sequence[str]) -> dict[str, str]:
    """Label -> path. The label is the name of the folder, file or hub model, of a checkpoint (.pt) that of its run;
    several checkpoints of one run are told apart by their own names.

    Raises:
        UsageError: a model does not exist and cannot be a hub name, or is given twice.
    """
    labelled: dict[str, str] = {}
    for path in paths:
        if path in labelled.values():
            raise UsageError(f"{path} is given twice")
        if not os.path.exists(path) and not is_hub_name(path):
            raise UsageError(
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
