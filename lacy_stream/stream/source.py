"""The description of a source of documents, in a recipe or in Python. This file does not import torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import model_validator

from lacy_stream.schema import NotNegative, NotNegativeFloat, Section

WEIGHTS = ("proportion", "repeat", "choose")
"""Keys that set the share of a source among several."""


class Source(Section):
    """A folder of MDS shards with raw text, or with token ids in ``tokens_column``, and how to read its rows.

    At most one of the weights ``proportion``, ``repeat`` and ``choose`` may be given. They have the meaning that they
    have in MosaicML Streaming. Without a weight, an epoch has each sample once.
    """

    local: str | os.PathLike[str]
    """Folder of MDS shards; with `remote`, the cache of those shards."""
    remote: str | None = None
    """Where the shards come from: `s3://…` and the other places that MosaicML Streaming can download from."""
    split: str | None = None
    """Subfolder of `local` and of `remote`, such as `train`."""
    text_column: str = "text"
    """Column with the raw text."""
    id_column: str = "id"
    """Column with the names of documents. If there is no such column, the name is the number of the sample."""
    tokens_column: str | None = None
    """Column with rows of token ids of a fixed length, to use instead of the text. A value is an array, or bytes as LLM
    Foundry writes them. A row is cut at end-of-sequence, beginning-of-sequence and other control ids, and each part is
    labelled as a text of its own."""
    token_encoding_type: str = "int64"
    """Integer type of the token ids if `tokens_column` holds bytes."""
    annotate: bool = True
    """`false` for data without calls, such as code: documents are tokenised but not annotated."""
    spans_column: str | None = None
    """Column with the factual spans of the text, for labels that were made elsewhere; the texts are then not parsed. A
    document whose spans do not fit its text gets no fact labels, and the report names it."""
    proportion: NotNegativeFloat | None = None
    """Weight: the share of an epoch."""
    repeat: NotNegativeFloat | None = None
    """Weight: how many times an epoch has each sample."""
    choose: NotNegative | None = None
    """Weight: the number of samples in an epoch."""

    @model_validator(mode="after")
    def _check_source(self) -> Source:
        if self.spans_column is not None and self.tokens_column is not None:
            raise ValueError(f"spans_column: {self.spans_column!r} counts characters of a text; tokens_column has none")
        if self.spans_column is not None and not self.annotate:
            raise ValueError(
                f"spans_column: {self.spans_column!r} brings labels, and annotate: false wants none; leave one out"
            )
        given = [key for key in WEIGHTS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: {' and '.join(given)} exclude one another; keep one of them")
        return self


INDEX = "index.json"
"""File that lists the shards of an MDS folder."""


def missing_index(local: str | os.PathLike[str], split: str | None) -> str | None:
    """What is wrong with a local folder of shards that has no index, and the way out; None where there is one."""
    folder, parent = Path(local, split or ""), Path(local)
    if (folder / INDEX).exists():
        return None
    splits = sorted(path.parent.name for path in parent.glob(f"*/{INDEX}"))
    what = f"there is no {INDEX}" if folder.is_dir() else "there is no such folder"
    if splits:
        way = f"{parent} has the split{'s' * (len(splits) > 1)} {', '.join(splits)}: set split to one of them"
    elif (parent / INDEX).exists():
        way = f"{parent} has one itself: leave split out"
    else:
        way = "Make one with `lacy-stream prepare SOURCE --out DIR`"
    return f"no usable MDS index at {folder}: {what}. {way}"
