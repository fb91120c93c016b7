"""A stream of documents as people name it, in recipes and in Python. Free of torch."""

from __future__ import annotations

import os

from pydantic import model_validator

from lacy_stream.schema import NotNegative, NotNegativeFloat, Section

WEIGHTS = ("proportion", "repeat", "choose")
"""Keys that weigh a source beside others."""


class Source(Section):
    """MDS shards with raw text, or with token ids in ``tokens_column``, and how their rows are read.

    Of the weights ``proportion``, ``repeat`` and ``choose`` at most one may be given; they mean what they mean in
    MosaicML Streaming. Without any, an epoch has each sample once.
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
    """Column with the names of documents. Where there is no such column, a document is named by its number."""
    tokens_column: str | None = None
    """Column with token ids of a fixed length, which are used instead of the text: an array, or bytes as LLM Foundry
    writes them. Each row is labelled as a text of its own."""
    token_encoding_type: str = "int64"
    """Integer type of the token ids where `tokens_column` holds bytes."""
    annotate: bool = True
    """`false` for data that is to have no calls, such as code: it is only tokenised."""
    spans_column: str | None = None
    """Column that says which parts of the text are factual, for labels that were made elsewhere; the texts are then not
    parsed. Spans that do not fit their text leave that document without fact labels, and the report names it."""
    proportion: NotNegativeFloat | None = None
    """Weight: this share of an epoch."""
    repeat: NotNegativeFloat | None = None
    """Weight: each sample so many times an epoch."""
    choose: NotNegative | None = None
    """Weight: so many samples an epoch."""

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
