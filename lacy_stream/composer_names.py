"""The names of Composer's optimizers, schedulers, callbacks, loggers and algorithms, read without importing Composer,
which takes 12 s."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["optimizer", "scheduler", "callbacks", "loggers", "algorithms"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PACKAGES: dict[Kind, str] = {
    "optimizer": "optim",
    "scheduler": "optim",
    "callbacks": "callbacks",
    "loggers": "loggers",
    "algorithms": "algorithms",
}
SUFFIXES: dict[Kind, str] = {"scheduler": "Scheduler", "loggers": "Logger"}
"""Endings that may be left out of a name."""
FOUNDRY = {
    "cosine_with_warmup": "CosineAnnealingWithWarmupScheduler",
    "linear_decay_with_warmup": "LinearWithWarmupScheduler",
}
"""LLM Foundry's names for Composer's schedulers, where they are others."""


def class_name(kind: Kind, name: str) -> str | None:
    """The class of Composer that a recipe names, None where there is none: ``lr_monitor`` and ``LRMonitor`` are
    LRMonitor, and ``mlflow`` is MLFlowLogger."""
    if kind == "scheduler" and name in FOUNDRY:
        return FOUNDRY[name]
    for known in _classes(kind):
        if _fold(name) in (_fold(known), _fold(_short(kind, known))):
            return known
    return None


def nearest_name(kind: Kind, name: str, ours: tuple[str, ...]) -> str:
    """The name that was probably meant, among Composer's and some of our own, in the same style of writing."""
    # A name in small letters is compared with names in small letters, so that the advice has the user's style.
    classes = list(_classes(kind))
    if name != name.lower():
        known = [*classes, *ours]
    else:
        known = [*ours, *(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _short(kind, name)).lower() for name in classes)]
    return difflib.get_close_matches(name, known, n=1, cutoff=0)[0]


@cache
def _classes(kind: Kind) -> tuple[str, ...]:
    spec = importlib.util.find_spec("composer")
    assert spec is not None and spec.submodule_search_locations, "mosaicml is a dependency"
    file = Path(spec.submodule_search_locations[0]) / PACKAGES[kind] / "__init__.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["__all__"]:
            names = [name for name in ast.literal_eval(node.value) if name[:1].isupper()]
            if PACKAGES[kind] == "optim":
                names = [name for name in names if name.endswith("Scheduler") == (kind == "scheduler")]
            return tuple(names)
    raise AssertionError(f"{file} has no __all__")


def _short(kind: Kind, name: str) -> str:
    return name.removesuffix(SUFFIXES.get(kind, "")) or name


def _fold(name: str) -> str:
    return name.replace("_", "").lower()
