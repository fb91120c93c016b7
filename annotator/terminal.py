"""Text of strangers on a terminal."""

from __future__ import annotations

import unicodedata

# Embeddings, overrides and isolates: they show the text around them in another order than it has.
_REORDERING = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def printable(text: str) -> str:
    """The text with each character that could act on the terminal replaced by U+FFFD, one for one: an escape sequence
    in a document must not reach the terminal, and offsets stay valid.

    Replaced are control characters but newline and tab, bidirectional embeddings, overrides and isolates, line and
    paragraph separators, and what is no character (lone surrogates, private use, unassigned). Spaces of every width,
    soft hyphens, joiners and variation selectors stay.
    """
    return "".join(c if _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _harmless(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or (unicodedata.category(c) in ("Zs", "Cf") and c not in _REORDERING)
