"""The knowledge store: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from lacy_stream.cli.main import main
from lacy_stream.prepare.knowledge import Knowledge, KnowledgeError, build, passages, rank

FILLER = "The archive of the town keeps letters, maps and photographs of no particular interest to anybody. " * 12


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """JSONL with two articles, one title twice, a row without a title and one without text."""
    long = f"Ada Lovelace was a mathematician.\n{FILLER}\nShe died of cancer in London in 1852.\n{FILLER}"
    rows = [
        {"title": "Ada Lovelace", "text": long},
        {"title": "Zoë_Example ", "text": "Zoë is a painter."},
        {"title": "Ada Lovelace", "text": "another text"},
        {"text": "nobody's text"},
        {"title": "Nothing", "text": ""},
    ]
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_articles_by_title(articles: Path, tmp_path: Path):
    """The first article of a title is kept; titles match whatever the form of their accents, spaces and underscores."""
    built = build([articles], tmp_path / "k.db")
    assert built.articles == 2
    assert {reason: (r.count, r.examples) for reason, r in built.refused.items()} == {
        "title seen before": (1, ["Ada Lovelace"]),
        "no title": (1, ["articles.jsonl:4"]),
        "empty text": (1, ["Nothing"]),
    }
    knowledge = Knowledge(tmp_path / "k.db")
    assert knowledge.articles == 2
    assert knowledge.article("Ada Lovelace").startswith("Ada Lovelace was a mathematician.")
    assert knowledge.article("Zoe\u0308 Example") == "Zoë is a painter."
    assert knowledge.article("ada lovelace") is None
    assert knowledge.nearest_titles("Ada (countess)") == ["Ada Lovelace"]


def test_search_finds_the_passage_of_a_fact(articles: Path, tmp_path: Path):
    """The passage that holds a fact's words leads, found through their stems; an article that is missing has none."""
    build([articles], tmp_path / "k.db")
    knowledge = Knowledge(tmp_path / "k.db")
    found = knowledge.search("Ada Lovelace", "cancers", 2)
    assert len(found) == 2 and "died of cancer" in found[0] and "died of cancer" not in found[1]
    assert knowledge.search("Nobody", "anything") == []
    assert knowledge.search("Zoë Example", '"? AND ( NEAR') == ["Zoë is a painter."]


def test_passages_are_whole_words_in_order():
    """Passages are at most 1,000 characters, lose no word and keep their order."""
    parts = passages(FILLER)
    assert len(parts) > 1 and max(map(len, parts)) <= 1000
    assert " ".join(parts).split() == FILLER.split()


def test_rank_keeps_texts_without_a_match():
    """Texts that share no word with the query follow in their own order, so that there is always evidence."""
    texts = ["alpha", "one beta", "gamma", "delta", "beta beta"]
    assert rank(texts, "Beta!") == ["beta beta", "one beta", "alpha", "gamma", "delta"]
    assert rank(["alpha", "beta"], "") == ["alpha", "beta"]


def test_factscores_own_file(tmp_path: Path):
    """A file in FActScore's layout is a source: its passage marks are gone, its words are all there."""
    with sqlite3.connect(tmp_path / "enwiki.db") as store:
        store.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
        text = "<s>Ada was born</s>####SPECIAL####SEPARATOR####<s> in London.</s>"
        store.execute("INSERT INTO documents VALUES ('Ada', ?)", (text,))
    build([tmp_path / "enwiki.db"], tmp_path / "k.db")
    assert Knowledge(tmp_path / "k.db").article("Ada") == "Ada was born in London."


def test_errors_leave_nothing_behind(articles: Path, tmp_path: Path):
    """What cannot be built or opened is an error with the way out, and no half file stays."""
    before = sorted(tmp_path.iterdir())
    (tmp_path / "none.jsonl").write_text('{"title": "x", "text": ""}\n')
    for source, message in (("none.jsonl", "1 x empty text"), ("enwiki.xml.bz2", "wikiextractor"), ("a.db", "exist")):
        with pytest.raises(KnowledgeError, match=message):
            build([tmp_path / source], tmp_path / "k.db")
    (tmp_path / "none.jsonl").unlink()
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(KnowledgeError, match="knowledge build"):
        Knowledge(tmp_path / "k.db")
    with pytest.raises(KnowledgeError, match="is no store"):
        Knowledge(articles)
    build([articles], tmp_path / "k.db")
    with pytest.raises(KnowledgeError, match="exists"):
        build([articles], tmp_path / "k.db")


def test_command_builds_and_reports(articles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`knowledge build` prints the counts and the refused rows; a second run is one message."""
    command = ["knowledge", "build", str(articles), "--out", str(tmp_path / "k.db")]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())  # a long path breaks the line elsewhere
    assert "2 articles" in printed and "title seen before" in printed
    assert main(command) == 2
    assert "exists; remove it" in capsys.readouterr().err


def test_real_biographies(shared: Path, tmp_path: Path):
    """On real Wikipedia text every page comes back by its title, and a fact's passage is found."""
    build([shared / "knowledge_pages.jsonl.zst"], tmp_path / "k.db")
    knowledge = Knowledge(tmp_path / "k.db")
    assert knowledge.articles == 15
    found = knowledge.search("Roberto Clemente", "Roberto Clemente died in a plane crash.", 5)
    assert len(found) == 5 and "crash" in found[0] and max(map(len, found)) <= 1000
    assert knowledge.nearest_titles("Henry VII") == ["Henry VII of England"]
