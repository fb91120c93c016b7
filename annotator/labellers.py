"""Labellers for other domains: Python callables ``text -> spans`` that replace the parser and the fact rules.

Which tokens are worth delegating depends on the domain (appendix D of the paper). The rules of appendix A.2.1 are one
approximation, for Wikipedia.

A labeller is named by an entry point of the group ``lacy_stream.labellers``, or as ``package.module:callable``. The
worker processes call it with one text at a time. It returns or yields pairs (start, end) in code points, see
``annotator.spans``, and it must give the same spans for the same text. If the name stands for a class, each worker
calls it once without arguments, and the instance is the labeller. Its constructor is the place to load what it needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import AnnotatorError
from annotator.spans import SPANS_VERSION, read_spans

GROUP = "lacy_stream.labellers"


def find_labeller(name: str) -> EntryPoint:
    """Find a labeller by name, without importing it.

    Raises:
        AnnotatorError: there is no labeller of this name, or there are several. The message lists the installed
            labellers.
    """
    module, colon, _ = name.partition(":")
    if colon:
        if not _exists(module.partition(".")[0]):
            raise AnnotatorError(
                f"labeller: {name!r}: there is no module {module!r}. Install it, or put its folder on PYTHONPATH."
            )
        return EntryPoint(name, name, GROUP)
    installed = entry_points(group=GROUP)
    found = {entry.value: entry for entry in installed if entry.name == name}
    if len(found) > 1:
        raise AnnotatorError(
            f"labeller: {name!r} is the name of several, {', '.join(found)}. Name the one that is meant."
        )
    if not found:
        known = ", ".join(sorted({entry.name for entry in installed})) or "none"
        raise AnnotatorError(
            f"labeller: {name!r} is no entry point of the group {GROUP} (installed: {known}). Install the package that "
            "brings it, or give package.module:callable."
        )
    return next(iter(found.values()))


class Labeller:
    """A labeller, imported and ready.

    Args:
        name: name of an entry point, or ``package.module:callable``.

    Raises:
        AnnotatorError: there is no such labeller, or it cannot be imported or called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        entry = find_labeller(name)
        try:
            found = entry.load()
            self._label = found() if isinstance(found, type) else found
        except Exception as error:  # the labeller's import or constructor may raise anything
            raise AnnotatorError(f"labeller: {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
        if not callable(self._label):
            raise AnnotatorError(f"labeller: {name!r} is {type(self._label).__name__}. Give a callable: text -> spans.")
        self.identity = _identity(entry, self._label)
        """Everything besides the text that its spans depend on, by name: the callable, the installed version of its
        package, its attribute ``version`` if it has one, and the hash of the file that it is written in."""

    def spans(self, text: str) -> NDArray[np.int32]:
        """Call the labeller with a text.

        Returns:
            int32 [n, 2].

        Raises:
            AnnotatorError: the labeller gave something else than spans of this text. An exception of the labeller
                itself is not caught.
        """
        found = self._label(text)
        try:
            return read_spans(found if isinstance(found, np.ndarray) else list(found), text)
        except (TypeError, ValueError) as error:
            raise AnnotatorError(f"labeller {self._name!r}: {error}") from error


def _identity(entry: EntryPoint, label: Any) -> dict[str, str]:
    """See ``Labeller.identity``."""
    # Whatever of these changes, the label cache and the checkpoints take it for another labeller.
    identity = {"labeller": entry.value, "spans": str(SPANS_VERSION)}
    if entry.dist is not None:
        identity["labeller_package"] = f"{entry.dist.name} {entry.dist.version}"
    if (version := getattr(label, "version", None)) is not None:
        identity["labeller_version"] = str(version)
    file = getattr(sys.modules.get(entry.module), "__file__", None)
    if file is not None:
        identity["labeller_file"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return identity


def _exists(module: str) -> bool:
    """Tell whether a top-level module can be imported. A module in ``sys.modules`` need not be a file."""
    return module in sys.modules or (module.isidentifier() and importlib.util.find_spec(module) is not None)
