"""The options of `prepare`, and the error for its users. This file imports no NumPy, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lacy_stream.errors import UsageError


class PrepareError(UsageError):
    """The user has to change something. The message names it and the way out."""


@dataclass(frozen=True)
class ReadOptions:
    """The columns that are read, and the part of a Hugging Face data set. If the id or title column has no name, it is
    `id` or `title`, in the sources that have it.

    Raises:
        PrepareError: a value that cannot be used.
    """

    id_column: str | None = None
    """Column with the ids. Default: `id` in the sources that have it; elsewhere, FILE:ROW is the id. '' makes FILE:ROW
    the id everywhere, for files whose ids restart in each."""

    title_column: str | None = None
    """Column with the titles; '' for no titles."""

    text_column: str = "text"
    """Column with the texts."""

    hf_config: str | None = None
    """Configuration (subset) of a hub name, such as 20231101.en. In a folder, name its subfolder as SOURCE instead."""

    hf_split: str = "train"
    """Split to read, where a SOURCE has splits."""

    spans_column: str | None = None
    """Column with the facts: pairs [[start, end], ...] of code points of the text column."""

    inline_calls: Literal["lmlm"] | None = None
    """The text column holds the lookup calls of LMLM, [dblookup('E', 'R') -> V] V or
    <|db_entity|>E<|db_relationship|>R<|db_return|>V<|db_end|> V. The values V are facts."""

    def __post_init__(self) -> None:
        if self.inline_calls not in (None, "lmlm"):
            raise PrepareError(f"--inline-calls is {self.inline_calls!r}; known is 'lmlm'")
        if self.inline_calls and self.spans_column:
            raise PrepareError(
                "--spans-column and --inline-calls both say which characters are facts; give one of them"
            )

    @property
    def labelled(self) -> bool:
        """Whether documents come with spans."""
        return bool(self.spans_column or self.inline_calls)

    @property
    def columns(self) -> tuple[str, str, str]:
        """Names of the id, title and text column."""
        title = "title" if self.title_column is None else self.title_column
        return "id" if self.id_column is None else self.id_column, title, self.text_column

    @property
    def required(self) -> dict[str, str]:
        """Option -> column that every source must have."""
        wanted = {
            "--id-column": self.id_column,
            "--title-column": self.title_column,
            "--spans-column": self.spans_column,
        }
        return {"--text-column": self.text_column} | {o: c for o, c in wanted.items() if c}


@dataclass(frozen=True)
class ShardOptions(ReadOptions):
    """All options that decide which bytes are written. They are kept in prepare.json.

    Raises:
        PrepareError: a value that cannot be used.
    """

    val_fraction: float = 0.1
    """Share of the documents that is held out in DIR/val, chosen by a hash of the id alone; 0 for none."""

    size_limit: Annotated[int, "SIZE"] = 1 << 26
    """Bytes per shard before compression, also written as 512kb or 64mb."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.val_fraction < 1:
            raise PrepareError(
                f"--val-fraction is {self.val_fraction}; it is the share of documents held out for "
                "validation, from 0 up to but not including 1"
            )
        if not 0 < self.size_limit < 1 << 32:
            raise PrepareError(f"--size-limit is {self.size_limit} bytes; it must lie between 1 and 2^32 - 1")
