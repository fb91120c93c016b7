"""A labeller that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator


def capitals(text: str) -> Iterator[tuple[int, int]]:
    """Marks words that begin with a capital or a digit."""
    start = 0
    for word in text.split(" "):
        if word[:1].isupper() or word[:1].isdigit():
            yield start, start + len(word)
        start += len(word) + 1
