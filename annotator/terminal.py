"""Text of strangers on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each control character but newline and tab replaced by U+FFFD, one for one: an escape sequence
    in a document must not reach the terminal, and offsets stay valid."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
