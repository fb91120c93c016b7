"""Python imports this when it starts, if this folder is on PYTHONPATH: then it does not find the modules that the
variable HIDDEN names, as on a machine that does not have them."""

from __future__ import annotations

import os
import sys
from typing import Any


class Without:
    """A finder that does not find some modules."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, *arguments: Any) -> Any:
        return None if name in os.environ["HIDDEN"].split() else self._finder.find_spec(name, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
