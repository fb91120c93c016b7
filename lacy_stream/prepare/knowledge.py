"""A SQLite file of articles, and a search for the passages of an article that are nearest to a query.

    SOURCE... --inputs.py, rows.py--> rows --build--> FILE --Knowledge--> article by title, passages by bm25

FActScore calls this its knowledge source: it checks statements about a person against the passages of the person's
article. FActScore's own file (enwiki-20230401.db) can be a source.
"""

from __future__ import annotations

import os
import re
import sqlite3
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from lacy_stream.errors import UsageError
from lacy_stream.files import replaced_file
from lacy_stream.prepare.inputs import find_inputs
from lacy_stream.prepare.rows import RefusedRows, read_rows
from lacy_stream.prepare.settings import ReadOptions
from lacy_stream.progress import SourceProgress

APPLICATION_ID = 0x4C614379  # "LaCy" in ASCII, in the header of every store
FORMAT = 1
PASSAGE_CHARACTERS = 1000
"""Length of a passage. FActScore cuts articles every 256 RoBERTa tokens, which is about as much English text."""
FACTSCORE_SEPARATOR = "####SPECIAL####SEPARATOR####"
SCHEMA = """
CREATE TABLE articles (title TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE VIRTUAL TABLE titles USING fts5(title, content='articles');
"""


_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032\uff07`\u00b4"), "'")


class KnowledgeError(UsageError):
    """A store or its sources cannot be used; the message says why, and what to do."""


@dataclass
class BuildSummary:
    """The counts of what a build has written."""

    articles: int = 0
    characters: int = 0
    refused: dict[str, RefusedRows] = field(default_factory=dict)
    """Reason -> the rows that were refused for it."""
    notes: list[str] = field(default_factory=list)
    """What of the sources was not read."""

    def refuse(self, reason: str, what: str) -> None:
        """Count a refused row; ``what`` is its name for people."""
        self.refused.setdefault(reason, RefusedRows()).add(what)


class Knowledge:
    """A store of ``build``, opened for reading. Safe to use from several threads.

    Args:
        path: the file.

    Raises:
        KnowledgeError: there is no such file, or it is not a store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise KnowledgeError(f"{self.path} does not exist; make it with `lacy-stream knowledge build`")
        try:
            with closing(self._connect()) as store:
                identity = [
                    store.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
                ]
                self.articles: int = store.execute("SELECT count(*) FROM articles").fetchone()[0]
        except sqlite3.DatabaseError:
            identity = []
        if identity != [APPLICATION_ID, FORMAT]:
            raise KnowledgeError(f"{self.path} is no store of this version's `lacy-stream knowledge build`")

    def article(self, title: str) -> str | None:
        """The text of the article with this title (after ``normal_title``), or None. A title with the other kind of
        apostrophe comes second: "Flann O'Brien" for "Flann O’Brien"."""
        exact = normal_title(title)
        straight = exact.translate(_APOSTROPHES)
        titles = dict.fromkeys([exact, straight, straight.replace("'", "\u2019")])
        with closing(self._connect()) as store:
            for one in titles:
                if (row := store.execute("SELECT text FROM articles WHERE title = ?", (one,)).fetchone()) is not None:
                    return row[0]
        return None

    def nearest_titles(self, title: str, count: int = 3) -> list[str]:
        """Find the titles that are most similar to this one, for messages about missing articles."""
        with closing(self._connect()) as store:
            rows = store.execute(
                "SELECT title FROM titles WHERE titles MATCH ? ORDER BY bm25(titles) LIMIT ?", (_any_word(title), count)
            )
            return [row[0] for row in rows]

    def search(self, title: str, query: str, count: int = 5) -> list[str]:
        """Find the passages of an article that are nearest to a query by bm25.

        Word frequencies are those of the article, as in FActScore. A word that is rare in all of Wikipedia, such as the
        person's own name, says little about the passages of one article.

        Returns:
            At most ``count`` passages, nearest first. If fewer match, the first passages of the article follow. Empty
            if there is no such article.
        """
        text = self.article(title)
        return [] if text is None else rank(passages(text), query)[:count]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)


def normal_title(title: str) -> str:
    """Normalise a title as it is stored: Unicode NFC, single spaces, none at the ends, no underscores."""
    return " ".join(unicodedata.normalize("NFC", title).replace("_", " ").split())


def passages(text: str) -> list[str]:
    """Cut a text at white space into passages of at most PASSAGE_CHARACTERS."""
    return textwrap.wrap(text, PASSAGE_CHARACTERS, replace_whitespace=False, break_on_hyphens=False)


def rank(texts: list[str], query: str) -> list[str]:
    """Sort texts by bm25 (SQLite's FTS5, with Porter's stemmer). Texts without a word of the query come last."""
    with closing(sqlite3.connect(":memory:")) as store:
        store.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
        store.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", enumerate(texts))
        rows = store.execute(
            "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY bm25(texts), rowid", (_any_word(query),)
        )
        found = [row[0] for row in rows]
    return [texts[i] for i in [*found, *(i for i in range(len(texts)) if i not in found)]]


def _any_word(text: str) -> str:
    """Make an FTS5 query that matches any word of a text. Without words, it matches nothing."""
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", text))) or '""'


# ---------------------------------------------------------------- sources -> store


def build(
    sources: Sequence[str | Path],
    out: str | os.PathLike[str],
    *,
    options: ReadOptions | None = None,
    on_progress: Callable[[SourceProgress], None] | None = None,
) -> BuildSummary:
    """Write the articles of the sources as a store. After an error there is no such file.

    Args:
        sources: JSON or Parquet files as ``prepare`` reads them, folders of them, hub names, or a SQLite file in
            FActScore's layout (.db). Of several articles with one title, the first is taken.
        out: the file.
        options: columns; ``title_column`` None stands for "title".
        on_progress: called every 100 rows.

    Raises:
        KnowledgeError: `out` exists, or no row is an article.
        PrepareError: a source cannot be read.
    """
    out = Path(out)
    if out.exists():
        raise KnowledgeError(f"{out} exists; remove it, or choose another --out")
    built = BuildSummary()
    with replaced_file(out) as partial:
        with closing(sqlite3.connect(partial)) as store:
            # No journal and no waiting for the disk: after a failure the unfinished file is thrown away.
            store.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {SCHEMA}")
            for title, text in _articles([str(s) for s in sources], options or ReadOptions(), built, on_progress):
                row = (normal_title(title), text)
                if store.execute("INSERT OR IGNORE INTO articles (title, text) VALUES (?, ?)", row).rowcount:
                    built.articles += 1
                    built.characters += len(text)
                else:
                    built.refuse("title seen before", title)
            if not built.articles:
                reasons = "; ".join(f"{r.count} x {reason}" for reason, r in built.refused.items())
                raise KnowledgeError(f"no article in the sources ({reasons or 'they hold no rows'})")
            store.execute("INSERT INTO titles (titles) VALUES ('rebuild')")
            store.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            store.execute(f"PRAGMA user_version = {FORMAT}")
            store.commit()
    return built


def _articles(
    sources: list[str], options: ReadOptions, built: BuildSummary, on_progress: Callable[[SourceProgress], None] | None
) -> Iterator[tuple[str, str]]:
    """Yield title and text of every article, and count the rows that are not articles as refused."""
    wikitext = [source for source in sources if re.search(r"\.xml(\.bz2|\.gz|\.7z)?$", source)]
    if wikitext:
        raise KnowledgeError(
            f"{wikitext[0]} is wikitext, which has to be made plain text first: run `wikiextractor --json` on it, or "
            "take the Parquet files of wikimedia/wikipedia on the Hugging Face hub"
        )
    for source in [source for source in sources if source.endswith(".db")]:
        yield from _report_progress(_factscore_articles(Path(source)), built, on_progress)
    others = [source for source in sources if not source.endswith(".db")]
    if others:
        yield from _report_progress(_row_articles(others, options, built), built, on_progress)


def _report_progress(
    articles: Iterable[tuple[str, float | None, str, str]],
    built: BuildSummary,
    on_progress: Callable[[SourceProgress], None] | None,
) -> Iterator[tuple[str, str]]:
    for number, (source, done, title, text) in enumerate(articles):
        if on_progress is not None and number % 100 == 0:
            on_progress(SourceProgress(source, done, built.articles, sum(r.count for r in built.refused.values())))
        yield title, text


def _row_articles(
    sources: list[str], options: ReadOptions, built: BuildSummary
) -> Iterator[tuple[str, float | None, str, str]]:
    """Yield source, share read, title and text of the rows of JSONL, Parquet and hub names. The title is read as the
    id, because it names an article."""
    columns = ReadOptions(
        id_column=options.title_column or "title",
        title_column="",
        text_column=options.text_column,
        hf_config=options.hf_config,
        hf_split=options.hf_split,
    )
    inputs, built.notes = find_inputs(sources, columns)
    total = sum(source.bytes for source in inputs)
    before = 0
    for source in inputs:
        for row in read_rows(source, columns):
            made_id = f"{source.name}:{row.number}"
            if row.refused or row.id == made_id:
                built.refuse(row.refused.replace("id is", "title is") or "no title", row.id or made_id)
                continue
            yield source.name, (before + row.done * source.bytes) / total if total else None, row.id, row.text
        before += source.bytes


def _factscore_articles(path: Path) -> Iterator[tuple[str, float | None, str, str]]:
    """The same for a file in FActScore's layout: documents(title, text), with passages between <s> and </s>."""
    if not path.is_file():
        raise KnowledgeError(f"{path} does not exist")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
        try:
            total = store.execute("SELECT count(*) FROM documents").fetchone()[0]
            for number, (title, text) in enumerate(store.execute("SELECT title, text FROM documents")):
                parts = (part.replace("<s>", "").replace("</s>", "") for part in text.split(FACTSCORE_SEPARATOR))
                yield path.name, number / total, title, "".join(parts).strip()
        except sqlite3.DatabaseError as error:
            raise KnowledgeError(f"{path} does not have FActScore's layout, documents(title, text): {error}") from error
