"""Generated texts as JSONL records, from which a run can be resumed, on the terminal, and as an HTML page."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from annotator import page
from annotator.terminal import printable
from lacy_stream.cascade.articles import Articles, with_article
from lacy_stream.cascade.texts import PARTNER, Generation, Prompt, Token
from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors, is_json_lines, write_text

PARTNER_STYLE = "bold white on red"


def record(generation: Generation) -> dict[str, Any]:
    """Turn a generation into a JSON object.

    Each of its ``tokens`` is a list [text, writer, score, threshold]. An infinite threshold, which calls always or
    never, becomes null.
    """
    return {
        "prompt": generation.prompt,
        "text": generation.text,
        "call_rate": round(generation.call_rate, 6),
        "finish": generation.finish,
        "skipped": generation.skipped,
        "fallbacks": generation.fallbacks,
        "prompt_scores": generation.prompt_scores,
        "ended_at_call": generation.ended_at_call,
        "tokens": [
            [t.text, t.writer, t.score, t.threshold if t.threshold is None or math.isfinite(t.threshold) else None]
            for t in generation.tokens
        ],
    }


def from_record(value: dict[str, Any]) -> Generation:
    """Turn a JSON object of ``record`` back into a generation."""
    tokens = [Token(*token) for token in value["tokens"]]
    names = ("prompt", "text", "finish", "skipped", "prompt_scores", "fallbacks", "ended_at_call")
    return Generation(tokens=tokens, **{name: value[name] for name in names})


def read_prompts(path: str | os.PathLike[str], articles: Articles | None = None, template: str = "") -> list[Prompt]:
    """Read the prompts of a file. Empty prompts are kept; generation skips them and names them.

    Args:
        path: a file of JSON lines, objects with "prompt" and optionally "title", the title of the article; or a text
            file with one prompt a line. Its name tells which (``files.is_json_lines``).
        articles: articles for the partner to read first; None for no articles.
        template: see ``with_article``; "" for its default.

    Raises:
        UsageError: the file has no prompts, a line is not such an object, or a title is missing.
        FileError: the file cannot be read.
    """
    prompts = []
    with file_errors(path, "read"), open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            text, title = line.rstrip("\r\n"), None
            if is_json_lines(path):
                try:
                    row = json.loads(line)
                    text, title = row["prompt"], row.get("title")
                except (ValueError, LookupError, TypeError, AttributeError):
                    text = None
                if not isinstance(text, str) or not isinstance(title, str | None):
                    raise UsageError(f'{os.fspath(path)}, line {number}: expected an object with "prompt"')
            prompts.append(as_prompt(text, title, articles, template))
    if not prompts:
        raise UsageError(f"{os.fspath(path)} holds no prompts; write one a line")
    return prompts


def as_prompt(text: str, title: str | None, articles: Articles | None, template: str) -> Prompt:
    """Make a prompt, with its article if there are articles."""
    if articles is None or not text.strip():
        return Prompt(text)
    return with_article(text, title, articles, **({"template": template} if template else {}))


def style_token(token: Token, colour: bool) -> Text:
    """Format a token for the terminal. Tokens of the partner are red, or in ⟦ ⟧ without colour."""
    text = printable(token.text)
    if token.writer != PARTNER or not text:
        return Text(text)
    ink = text.lstrip()
    space = text[: len(text) - len(ink)]
    return Text.assemble(space, (ink, PARTNER_STYLE)) if colour else Text(f"{space}⟦{ink}⟧")


def generations_to_html(generations: Iterable[Generation]) -> str:
    """Make a page of all texts. The partner's tokens are marked, and adjacent ones share a mark."""
    pages = []
    for number, generation in enumerate(generations, start=1):
        about = generation.skipped or f"{generation.call_rate:.0%} by the partner"
        pages.append((f"{number}: {about}", [("", _page_tokens(generation))]))
    return page.token_page("lacy-stream: the partner's tokens", pages, {"the partner's": "background: #ff9a9a"})


def _page_tokens(generation: Generation) -> Iterator[page.PageToken]:
    yield page.PageToken(generation.prompt)
    for writer, tokens in itertools.groupby(generation.tokens, key=lambda token: token.writer):
        text = "".join(token.text for token in tokens)
        ink = text.lstrip() if writer == PARTNER else ""
        yield page.PageToken(text[: len(text) - len(ink)])
        yield page.PageToken(ink, "the partner's")


def write_page(generations: Iterable[Generation], path: str | os.PathLike[str]) -> None:
    """Write the page of ``generations_to_html``."""
    write_text(path, generations_to_html(generations), errors="replace")
