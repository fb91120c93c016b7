"""Untrusted text, made safe to print on a terminal."""

from __future__ import annotations

import io
import sys
import unicodedata

# Bidirectional embeddings, overrides and isolates show the text around them in another order than it has.
_REORDERING = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def printable(text: str) -> str:
    """Replace each character that could act on the terminal by U+FFFD.

    An escape sequence in a document must not reach the terminal. One character is replaced by one, so that offsets stay
    valid.

    These are replaced: control characters other than newline and tab; bidirectional embeddings, overrides and isolates;
    line and paragraph separators; and code points that are not characters (lone surrogates, private use, unassigned).
    Spaces of every width, soft hyphens, joiners and variation selectors stay.
    """
    return "".join(c if _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _harmless(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or (unicodedata.category(c) in ("Zs", "Cf") and c not in _REORDERING)


def accept_all_characters() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, as on an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
