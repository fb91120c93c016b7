"""``package:NAME/PATH`` -> the file of an installed package, without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_file(name: str) -> Path:
    """A path, or the file of an installed package that ``package:NAME/PATH`` stands for.

    Raises:
        ModuleNotFoundError: no such package.
    """
    if not name.startswith("package:"):
        return Path(name)
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name!r} names the package {package!r}, which is not installed")
    return Path(spec.origin).parent / inside
