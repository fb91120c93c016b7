"""The engine against spaCy itself: the same words, whatever the text, the tables and the neighbours."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator import Annotator
from annotator.engine import Engine, UnknownPipelineError
from annotator.engine.engine import GAP
from annotator.facts import fired_rules
from annotator.records import FactClass, Words
from annotator.tokenizers.sentencepiece import SentencePieceTokenizer, _total_offsets
from annotator.words import MAX_SEGMENT, Parser, lexical_flags

pytestmark = pytest.mark.parser

ARTICLE = (
    "Ada Lovelace\n\nAugusta Ada King, Countess of Lovelace (10 December 1815 – 27 November 1852), was an English "
    "mathematician who didn't stop at Babbage's machine: there were, she said, uses beyond pure calculation. "
)
ODD = {
    "empty": "",
    "white space": " \n\t \xa0 ",
    "one space": " ",
    "spaces at the ends": "  Paris is here.  ",
    "double spaces": "Paris  is   in\n\n France .\t Yes",
    "nul": "Paris\x00 is \x00\x00 here.",
    "emoji": "😀" * 5000,
    "families": "👩‍👩‍👧 and 👨🏽‍🚀 went to Paris ❤️.",
    "right to left": "وُلدت ماري كوري في وارسو عام 1867. מארי קירי נולדה בוורשה.",
    "chinese": "居里夫人1867年出生于华沙。她是物理学家。",
    "long word": "x" * 200_000,
    "crlf": "Paris is here.\r\nRome is not.\r\n",
    "combining": "Ame\u0301lie a\u0300 Paris, I\u0307stanbul, ﬁne ligatures",
    "call": "He wrote <CALL> in the text, and <CALL> again.",
    "emoticons": ":-) ( :) : (;:-) 8-)(ಠ_ಠ) :}-__- 10a.m. ) it's he 's",
    "addresses": "See https://example.org/a?b=c,d or mail a.b@example.org, U.S.A. e.g. i.e. $3.5m 1,000.00",
    "line separators": "one\u2028two\u3000three\x1cfour\x85five",
}


@pytest.fixture(scope="module")
def stock() -> Parser:
    """spaCy itself."""
    return Parser(engine="spacy")


@pytest.fixture(scope="module")
def fast() -> Parser:
    """The engine, not replaceable."""
    return Parser(engine="numba")


def small_engine(stock: Parser, **limits: int) -> Engine:
    """An engine with tables of the given sizes."""
    return Engine(stock._nlp, lexical_flags, **limits)


def read_stock(stock: Parser, texts: list[str]) -> Iterator[tuple[dict[str, np.ndarray], Words]]:
    """What spaCy says about each text, in its own terms and as Words."""
    from annotator.words import _read

    for text in texts:
        with stock._nlp.memory_zone():
            doc = stock._nlp(text)
            names = ["TAG", "DEP", "HEAD", "SENT_START", "ENT_IOB", "ENT_TYPE", "IDX"]
            table = doc.to_array(names).reshape(len(doc), -1).astype(np.int64)
            yield dict(zip(names, table.T, strict=True)), _read(doc, 0, stock._codes)


def read_engine(engine: Engine, stock: Parser, text: str) -> dict[str, np.ndarray]:
    """What the engine says about a text, in spaCy's terms."""
    strings = stock._nlp.vocab.strings
    ids = {name: np.array([strings.as_int(label) for label in getattr(engine, name)], dtype=np.uint64).view(np.int64)
           for name in ("tags", "labels", "entity_types")}  # fmt: skip
    found = engine.analyse([text])
    n = len(found.tag)
    space = engine._lexicon.space[found.spelling.word]
    tag = ids["tags"][found.tag]
    tag[space] = np.array(strings.as_int("_SP"), dtype=np.uint64).view(np.int64)  # the attribute ruler's last pattern
    return {
        "TAG": tag,
        "DEP": ids["labels"][found.dep],
        "HEAD": found.head - np.arange(n),
        "SENT_START": np.where(found.sent_start, 1, -1),
        "ENT_IOB": np.where(found.ent_start, 3, np.where(found.ent > 0, 1, 2)),
        "ENT_TYPE": ids["entity_types"][found.ent],
        "IDX": found.spelling.start.astype(np.int64),
    }


def assert_same(fast: Parser, stock: Parser, texts: list[str]) -> None:
    """The same Words and rules of every text, without help from spaCy."""
    before = fast.fallbacks
    for text, ours, theirs in zip(texts, fast.parse(texts), stock.parse(texts), strict=True):
        assert ours.same(theirs), text[:200]
        assert np.array_equal(fired_rules(ours), fired_rules(theirs)), text[:200]
    assert fast.fallbacks == before


def identical(one: Words, other: Words) -> bool:
    """Bit for bit."""
    arrays = ("start", "end", "form", "pos", "dep", "head", "ent", "ent_start", "sent_start", "flags", "chunks")
    return one.forms == other.forms and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in arrays
    )


@pytest.fixture(scope="module")
def annotated(shared: Path) -> list[str]:
    """208 documents of Wikipedia, as other work has annotated them."""
    with open(shared / "lmlm_spans.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 4)]


@pytest.fixture(scope="module")
def articles(shared: Path) -> list[str]:
    """40 whole articles."""
    with open(shared / "wiki_articles.jsonl.zst", "rb") as raw:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        rows = [json.loads(line) for line in itertools.islice(lines, 40)]
    return [f"{row['title']}\n\n{row['text']}" for row in rows]


@pytest.mark.slow
def test_same_annotation_of_208_documents(annotated: list[str], stock: Parser, fast: Parser) -> None:
    """On 208 documents each word has spaCy's tag, label, head, sentence start and entity, and its rule."""
    engine = fast._engine
    assert engine is not None
    words = 0
    for text, ours, (expected, theirs) in zip(
        annotated, fast.parse(annotated), read_stock(stock, annotated), strict=True
    ):
        found = read_engine(engine, stock, text)
        for name, values in expected.items():
            assert np.array_equal(found[name], values), f"{name} of {text[:60]!r}"
        assert ours.same(theirs), text[:60]
        assert np.array_equal(fired_rules(ours), fired_rules(theirs)), text[:60]
        words += len(theirs)
    assert words > 40_000
    assert fast.fallbacks == 0


@pytest.mark.slow
def test_same_words_of_whole_articles(articles: list[str], stock: Parser, fast: Parser) -> None:
    """On whole articles the words are spaCy's, with everything that is said about them."""
    assert_same(fast, stock, articles)


@pytest.mark.parametrize("name", ODD)
def test_same_words_of_odd_texts(name: str, stock: Parser, fast: Parser) -> None:
    """Odd texts give the same words in both back-ends, also inside an article."""
    texts = [ODD[name]]
    if len(ODD[name]) < 10_000:
        texts += [ARTICLE + ODD[name] + " " + ARTICLE, ODD[name] + ODD[name]]
    assert_same(fast, stock, texts)


FRAGMENTS = st.sampled_from(
    [" ", "  ", "\n", "\n\n", "\t", "\xa0", "\u3000", "\x00", "😀", ":-)", ":)", "(", ")", "-", "--", "...", ".", ",",
     "don't", "can't", "it's", "he'd", "gonna", "U.S.", "e.g.", "Mr.", "10a.m.", "http://a.b/c?d=e", "x@y.org", "$5",
     "3.5%", "1,000", "№", "中文", "日本", "I", "Paris", "Ada Lovelace", "born", "in", "1867", "there", "is", "that",
     "which", "whose", "has", "been", "and", "University", "of", "'s", "’s", "8", "D", "<CALL>", "İ"]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.tuples(FRAGMENTS, st.sampled_from([" ", " ", ""])), max_size=30), max_size=4))
def test_same_words_of_messy_texts(stock: Parser, fast: Parser, texts: list[list[tuple[str, str]]]) -> None:
    """Texts thrown together of white space, signs, contractions and names have spaCy's words."""
    assert_same(fast, stock, ["".join(a + b for a, b in text) for text in texts])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_same_words_of_any_characters(stock: Parser, fast: Parser, text: str) -> None:
    """Any characters whatever have spaCy's words."""
    assert_same(fast, stock, [text])


def test_special_cases_over_two_chunks(stock: Parser, fast: Parser) -> None:
    """A special case that would reach over two chunks is seen, and only such chunks are tokenised together."""
    engine = fast._engine
    assert engine is not None
    before = engine.stats()["chunks_tokenised_together"]
    assert_same(fast, stock, [ARTICLE])
    assert engine.stats()["chunks_tokenised_together"] == before
    assert_same(fast, stock, [": (;:-)", "(;=] =(=3", "8-)(ಠ_ಠ) :}-__-", "<33:-) :-D:D"])
    assert_same(fast, stock, [ARTICLE + "(;=] =(=3 " + ARTICLE + ": (;:-)  <33:-) :-D:D \n" + ARTICLE, "8am): (;:* "])
    assert engine.stats()["chunks_tokenised_together"] > before


def test_long_text_is_split_alike(stock: Parser, fast: Parser) -> None:
    """A text of several segments is cut where spaCy's back-end cuts it."""
    text = ARTICLE * (MAX_SEGMENT // len(ARTICLE) + 3)
    assert len(text) > MAX_SEGMENT
    assert_same(fast, stock, [text])


def test_alone_and_among_others(annotated: list[str], fast: Parser) -> None:
    """A text has bit-identical words alone, among others, in another order, and from an engine that knows no word."""
    texts = annotated[:40]
    alone = [next(fast.parse([text])) for text in texts]
    among = list(fast.parse(texts))
    backwards = list(fast.parse(texts[::-1]))[::-1]
    fresh = list(Parser(engine="numba").parse(texts[:10]))
    assert all(map(identical, alone, among))
    assert all(map(identical, alone, backwards))
    assert all(map(identical, alone, fresh))


def test_vectors_do_not_depend_on_the_place(
    annotated: list[str], fast: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the labels only: the vectors that they come from are bit-identical alone and among others."""
    engine = fast._engine
    assert engine is not None
    made: list[np.ndarray] = []
    for network in engine._networks:
        finish = network.finish
        monkeypatch.setattr(network, "finish", lambda rows, finish=finish: made.append(finish(rows)) or made[-1])

    def vectors(texts: list[str]) -> list[list[bytes]]:
        made.clear()
        first_word = engine.analyse(texts).spelling.first_word
        begin = first_word[:-1] + GAP * np.arange(1, len(texts) + 1)
        return [[out[b : b + n].tobytes() for out in made] for b, n in zip(begin, np.diff(first_word), strict=True)]

    texts = annotated[:8]
    assert vectors(texts) == [vectors([text])[0] for text in texts]
    assert vectors(texts[::-1]) == vectors(texts)[::-1]


def test_tables_are_bounded(annotated: list[str], stock: Parser) -> None:
    """Small tables are emptied by half when they are full, keep frequent words, and change no word."""
    engine = small_engine(stock, max_chunks=400, max_vectors=64)
    texts = annotated[:12]
    expected = list(stock.parse(texts))
    for _ in range(2):
        for text, theirs in zip(texts, expected, strict=True):
            assert engine.words([(text, 0)])[0].same(theirs)
            # The limit holds between two batches: one text may go beyond it.
            assert engine._lexicon.chunks <= 400 + len(text)
    stats = engine.stats()
    assert stats["chunk_evictions"] > 3 and stats["vector_evictions"] > 3
    assert stats["words"] < 2000
    engine._lexicon._evict()
    asked = engine._lexicon.new
    engine.words([("the of and in was the of and in was end", 0)])
    assert engine._lexicon.new - asked <= 1
    assert len(engine._vectors.embedded[0]) == 65


def test_memory_stays_flat(stock: Parser) -> None:
    """Ever new words leave the tables at their limits, and the vocabulary as it was."""
    engine = small_engine(stock, max_chunks=500, max_vectors=64)
    engine.words([(ARTICLE, 0)])
    vocab, tokenizer = stock._nlp.vocab, engine._lexicon._tokenizer
    before = len(vocab.strings), len(vocab)  # the second counts all that ever was in it
    for batch in range(10):
        engine.words([(" ".join(f"word{batch}x{i}q" for i in range(400)), 0)])
        assert engine._lexicon.chunks <= 500 + 400
        assert len(engine._lexicon._number) <= 1000
        assert len(engine._lexicon.forms) <= 1000
        assert engine._lexicon._tokenised <= 500 + 400
        assert len(engine._lexicon._tokenizer.vocab) <= 3000
    assert (len(vocab.strings), len(vocab)) == before
    assert engine._lexicon._tokenizer is not tokenizer


def test_failing_text_goes_to_spacy(
    stock: Parser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that makes the engine fail is annotated by spaCy, counted and named; its neighbours are not."""
    parser = Parser(engine="numba")
    engine = parser._engine
    assert engine is not None
    whole = engine.analyse

    def fails(texts: list[str]):
        if any("poison" in text for text in texts):
            raise MemoryError("too much")
        return whole(texts)

    monkeypatch.setattr(engine, "analyse", fails)
    texts = [ARTICLE, "A poison is here.", "Rome is in Italy."]
    with caplog.at_level(logging.WARNING):
        ours = list(parser.parse(texts))
    assert all(a.same(b) for a, b in zip(ours, stock.parse(texts), strict=True))
    assert parser.stats()["fallbacks"] == 1
    assert [r for r in caplog.records if "A poison is here." in r.getMessage() and "MemoryError" in r.getMessage()]


def test_tables_survive_a_failing_tokenizer(stock: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the tokenizer fails in the middle of a batch, the tables are as good as new."""
    engine = small_engine(stock)
    engine.words([("Paris is here.", 0)])
    with monkeypatch.context() as patch:
        patch.setattr(engine._lexicon, "_enter", lambda table: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.words([("Something else entirely.", 0)])
    assert engine.words([(ARTICLE, 0)])[0].same(next(stock.parse([ARTICLE])))


def test_unknown_pipeline_is_left_to_spacy(stock: Parser, tmp_path: Path) -> None:
    """A pipeline of another structure is run by spaCy with one warning, and refused by name if the engine must."""
    nlp = stock._nlp
    settings_of_parser = nlp.get_pipe("parser").cfg
    width = settings_of_parser["beam_width"]
    settings_of_parser["beam_width"] = 2
    try:
        with pytest.raises(UnknownPipelineError, match="settings of parser"):
            small_engine(stock)
        nlp.to_disk(tmp_path / "beam")
    finally:
        settings_of_parser["beam_width"] = width
    with pytest.warns(RuntimeWarning, match="cannot run this pipeline.*settings of parser") as caught:
        parser = Parser(str(tmp_path / "beam"))
    assert len(caught) == 1
    assert parser.engine == "spacy"
    assert len(next(parser.parse(["Paris is here."]))) == 4
    with pytest.raises(ValueError, match="engine: auto or spacy"):
        Parser(str(tmp_path / "beam"), engine="numba")


def test_disagreement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reads the sample in another way than spaCy is not used."""
    from annotator.engine import engine as module

    right = module.parse

    def wrong(features, weights, *rest):
        bias = weights.state_bias
        raised = bias + np.float32(3) * np.arange(len(bias), dtype=np.float32)
        return right(features, weights._replace(state_bias=raised), *rest)

    monkeypatch.setattr(module, "parse", wrong)
    with pytest.warns(RuntimeWarning, match="disagree on the sample"):
        assert Parser().engine == "spacy"


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba cannot be imported, spaCy does the work, with a warning."""
    monkeypatch.setitem(sys.modules, "annotator.engine", None)
    with pytest.warns(RuntimeWarning, match="annotator.engine"):
        assert Parser().engine == "spacy"


def test_annotator_chooses(tokenizer_path: Path, annotator: Annotator) -> None:
    """The Annotator takes the engine by itself, labels every token alike in both, and tells them by fingerprint."""
    plain = Annotator(tokenizer_path, engine="spacy")
    texts = [*(text for text in ODD.values() if len(text) < 5000), ARTICLE]
    for ours, theirs in zip(annotator.annotate(texts), plain.annotate(texts), strict=True):
        assert np.array_equal(ours.classes, theirs.classes)
        assert np.array_equal(ours.ids, theirs.ids)
    assert annotator.stats()["chunk_hit_rate"] > 0
    assert plain.stats()["fallbacks"] == 0 and "chunk_hit_rate" not in plain.stats()
    assert annotator.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="engine: got 'fast'"):
        Annotator(tokenizer_path, engine="fast")


@pytest.mark.parametrize("name", ODD)
def test_offsets_by_spelling(name: str, tokenizer_path: Path) -> None:
    """Where the pieces spell the text, their places are those that SentencePiece itself tells."""
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    for text in (ODD[name], f"{ARTICLE}{ODD[name]}"):
        ids, pairs = tokenizer._encode(text)
        pieces = tokenizer.encode(text)
        assert pieces.ids.tolist() == ids
        assert np.array_equal(pieces.offsets, _total_offsets(np.array(pairs, dtype=np.int32).reshape(-1, 2), text))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_tokenizer_that_rewrites_the_text(kind: str, tmp_path: Path) -> None:
    """With a tokenizer that rewrites text and drops spaces, both back-ends give the same labels in the same places,
    in order from the first code point to the last."""
    (tmp_path / "corpus.txt").write_text((ARTICLE + "fine print, founded in 1867\n") * 40, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "m"), model_type=kind, vocab_size=360,
        byte_fallback=True, hard_vocab_limit=False, normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    ours, theirs = (Annotator(tmp_path / "m.model", engine=engine) for engine in ("numba", "spacy"))
    texts = [*(text for text in ODD.values() if len(text) < 5000), f"  {ARTICLE}  ﬁne\u3000①  ㎏\n\n{ARTICLE} "]
    for text, fast, slow in zip(texts, ours.annotate(texts), theirs.annotate(texts), strict=True):
        for name in ("ids", "classes", "offsets"):
            assert np.array_equal(getattr(fast, name), getattr(slow, name)), f"{name} of {text[:60]!r}"
        if len(fast):
            start, end = fast.offsets.T
            assert start[0] == 0 and end[-1] == len(text) and (start <= end).all()
            assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all()
    assert (fast.classes == FactClass.FACTUAL).sum() > 10


@pytest.mark.parametrize("engine", ["numba", "spacy"])
def test_lone_surrogate_is_named(engine: str, tokenizer_path: Path) -> None:
    """What is no text is an error with its place, in both back-ends, and the next text is annotated."""
    annotator = Annotator(tokenizer_path, engine=engine)
    with pytest.raises(ValueError, match=r"text 1: lone surrogate U\+D800 at code point 4"):
        annotator.annotate(["Paris", "Rome\ud800"])
    (labelled,) = annotator.annotate([b"Paris \xff".decode(errors="replace")])
    assert labelled.offsets[-1, 1] == 7


STARTS = (
    "import sys, time; sys.modules['torch'] = None\n"
    "from annotator.words import Parser\n"
    "parser = Parser(engine='numba')\n"
    "print(len(next(parser.parse(['Paris is here.']))), sum(name.split('.')[0] == 'torch' for name in sys.modules) - 1)"
)


@pytest.mark.slow
def test_cold_starts_at_once(tmp_path: Path) -> None:
    """Of two processes that start at once with an empty cache, one compiles, and the other waits for it; both say so.
    They leave a cache to a third."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", STARTS], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    said = []
    for process in [start(), start()]:
        out, err = process.communicate(timeout=900)
        assert (process.returncode, out.split()) == (0, ["4", "0"]), err
        said.append(err)
    one, other = sorted(said)
    assert "another process is compiling the annotation engine: waiting for it" in one
    assert "compiling the annotation engine: about half a minute, once" in other and "another" not in other
    out, err = start().communicate(timeout=300)
    assert out.split() == ["4", "0"]
    assert "compiling" not in err
