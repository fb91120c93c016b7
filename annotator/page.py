"""Texts as a web page: each kind of token has a colour, and hovering over a token shows what is known about it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from annotator.terminal import printable


class PageToken(NamedTuple):
    """A piece of text.

    text:  the piece.
    kind:  the name of its kind, "" for none.
    hover: the text that is shown on hover, "" for none.
    """

    text: str
    kind: str = ""
    hover: str = ""


_STYLE = """
body { font: 1rem/1.7 Georgia, serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { font: 600 1rem sans-serif; border-bottom: 1px solid #ddd; margin-top: 2.5rem; }
h3 { font: 400 .85rem sans-serif; color: #666; }
.row { display: flex; gap: 3rem; }
.row > div { flex: 1; max-width: 46rem; }
p.text { white-space: pre-wrap; overflow-wrap: anywhere; }
p.legend span { padding: 0 .4rem; margin-right: .8rem; }
span[title]:hover { outline: 1px solid #888; }
"""


Version = tuple[str, Iterable[PageToken]]
"""A caption, "" for none, and the tokens of a text in order."""


def token_page(title: str, documents: Iterable[tuple[str, Sequence[Version]]], kinds: Mapping[str, str]) -> str:
    """Write an HTML page.

    Args:
        title: the title of the page.
        documents: for each document a heading, and one or more versions of its text, which stand side by side.
        kinds: name of a kind -> its CSS, such as ``background: #f99``. The page begins with a list of them.

    Returns:
        The page as HTML. All text is escaped.
    """
    # A kind's name may hold any characters, so that its CSS class is a number: k0, k1, ...
    numbers = {kind: f"k{number}" for number, kind in enumerate(kinds)}
    styles = "".join(f".{numbers[kind]} {{ {css} }}\n" for kind, css in kinds.items())
    legend = "".join(f'<span class="{numbers[kind]}">{_safe(kind)}</span>' for kind in kinds)
    body = "".join(
        f'<h2>{_safe(heading)}</h2>\n<div class="row">{"".join(_version(*one, numbers) for one in versions)}</div>\n'
        for heading, versions in documents
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_safe(title)}</title>\n'
        f'<style>{_STYLE}{styles}</style>\n</head>\n<body>\n<p class="legend">{legend}</p>\n{body}</body>\n</html>\n'
    )


def _version(caption: str, tokens: Iterable[PageToken], numbers: Mapping[str, str]) -> str:
    above = f"<h3>{_safe(caption)}</h3>" if caption else ""
    return f'<div>{above}<p class="text">{"".join(_span(token, numbers) for token in tokens)}</p></div>'


def _span(token: PageToken, numbers: Mapping[str, str]) -> str:
    if not token.text or not (token.kind or token.hover):
        return _safe(token.text)
    kind = f' class="{numbers[token.kind]}"' if token.kind else ""
    hover = f' title="{_safe(token.hover)}"' if token.hover else ""
    return f"<span{kind}{hover}>{_safe(token.text)}</span>"


def _safe(text: str) -> str:
    return html.escape(printable(text))
