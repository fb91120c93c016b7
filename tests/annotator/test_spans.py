"""Spans that were made elsewhere: checked, and aligned with real SentencePiece tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotator import Annotator, Document, FactClass
from annotator.spans import factual_tokens, read_spans

TEXT = "Ada was born in 1815.\nShe \U0001f600 wrote."


@pytest.fixture(scope="module")
def plain(tokenizer_path: Path) -> Annotator:
    """An annotator without a parser: all facts come from the spans."""
    return Annotator(tokenizer_path, model=None)


def facts(annotator: Annotator, text: str, spans: Any) -> list[str]:
    """The factual pieces, as they stand in the text."""
    (tokens,) = annotator.label([Document("x", text, spans=json.dumps(spans))])
    return [text[start:end] for start, end in tokens.offsets[tokens.classes == FactClass.FACTUAL].tolist()]


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "[[0, 3], [16, 20]]",
        [[0, 3], [16, 20]],
        [(0, 3), (16, 20)],
        [0, 3, 16, 20],
        np.array([[0, 3], [16, 20]], np.uint16),
        np.array([0, 3, 16, 20]),
    ],
)
def test_every_form_of_spans(value: Any) -> None:
    """JSON, lists and arrays, in pairs or one after the other, are the same int32 pairs."""
    spans = read_spans(value, TEXT)
    assert spans.tolist() == [[0, 3], [16, 20]] and spans.dtype == np.int32


@pytest.mark.parametrize("value", ["[]", [], np.zeros((0, 2), np.int64), np.zeros(0)])
def test_no_spans(value: Any) -> None:
    """A text without a fact has an empty list of them."""
    assert read_spans(value, TEXT).shape == (0, 2)


def test_borders_of_the_text() -> None:
    """A span may be the whole text, and empty at either end of it."""
    assert len(read_spans([[0, len(TEXT)], [0, 0], [len(TEXT), len(TEXT)]], TEXT)) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[[0, 3]", r"'\[\[0, 3\]' is not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "not pairs of integers"),
        ("7", "not pairs of integers"),
        ("[[0, 3], [5]]", "not pairs of integers"),
        ("[[0, 3, 5]]", "not pairs of integers"),
        ("[0, 3, 5]", "not pairs of integers"),
        ("[[[0, 3]]]", "not pairs of integers"),
        ('[["0", "3"]]', "not pairs of integers"),
        ("[[0.0, 3.0]]", "not pairs of integers"),
        ("[[true, 3]]", "not pairs of integers"),
        ("[[0, 1e999]]", "not pairs of integers"),
        ('{"start": 0, "end": 3}', "not pairs of integers"),
        (np.array([[True, False]]), "not pairs of integers"),
        (5, "not pairs of integers"),
        ("[[0, 3], [-1, 2]]", rf"\(-1, 2\) is no span of a text of {len(TEXT)} code points"),
        ("[[5, 3]]", r"\(5, 3\) is no span"),
        (f"[[0, {len(TEXT) + 1}]]", rf"\(0, {len(TEXT) + 1}\) is no span.*not bytes"),
        (f"[[0, {1 << 40}]]", r"\(0, 1099511627776\) is no span"),
        (f"[[0, {1 << 70}]]", "not pairs of integers"),
    ],
)
def test_bad_spans_are_named(value: Any, message: str) -> None:
    """What is no list of pairs, or does not lie in the text, is an error with the value and the way out."""
    with pytest.raises(ValueError, match=message):
        read_spans(value, TEXT)


# --- alignment ----------------------------------------------------------------------------------------------------


def test_rules_on_hand_built_pieces() -> None:
    """Any covered code point but white space counts; spaces and pieces without width count with what follows."""
    text = "ab 19\n c"
    pieces = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 7], [7, 8]], np.int32)

    def covered(*spans: tuple[int, int]) -> list[int]:
        found = factual_tokens(pieces, text, np.array(spans, np.int32).reshape(-1, 2))
        assert found.dtype == np.bool_
        return np.flatnonzero(found).tolist()

    assert covered() == []
    assert covered((1, 2)) == [1]
    assert covered((3, 4)) == [2, 3], "the space before a digit"
    assert covered((0, 3)) == [0, 1], "not the space after the last letter, though it is covered"
    assert covered((4, 7)) == [4], "no line's end, no space before what is not covered"
    assert covered((7, 8)) == [6, 7, 8], "the piece without width, too"
    assert covered((3, 5), (0, 1), (4, 8), (2, 2)) == [0, 2, 3, 4, 6, 7, 8], "overlapping, unsorted, empty"


def test_real_pieces(plain: Annotator) -> None:
    """Words, digits with their lone space, and bytes of an emoji, as SentencePiece cuts them."""
    assert facts(plain, TEXT, [[16, 20]]) == [" ", "1", "8", "1", "5"]
    assert "".join(facts(plain, TEXT, [[0, 3]])) == "Ada"
    assert facts(plain, TEXT, [[17, 18]]) == ["8"], "only the piece that is covered"
    assert "".join(facts(plain, TEXT, [[26, 27]])) == " \U0001f600" and len(facts(plain, TEXT, [[26, 27]])) > 1
    assert facts(plain, TEXT, [[21, 22], [3, 4], [27, 28]]) == [], "white space alone is no fact"
    assert facts(plain, TEXT, []) == facts(plain, "", []) == []


def test_part_of_a_piece_marks_it(plain: Annotator) -> None:
    """One covered letter is enough, as a token cannot be delegated in part."""
    text = "She was American."
    (tokens,) = plain.annotate([text])
    assert [8, 16] in (tokens.offsets + [[1, 0]]).tolist(), "American is one piece, with its space"
    assert facts(plain, text, [[10, 11]]) == [" American"]


def test_spans_stand_in_for_the_parser(annotator: Annotator) -> None:
    """In a batch, a document with spans has theirs and no other facts, its neighbours have the parser's, and one that
    is not to be annotated has none."""
    texts = ["Ada Lovelace was born in London.", "Charles Babbage was born in London.", "Anna lived in Rome."]
    documents = [
        Document("spans", texts[0], spans="[[4, 12]]"),
        Document("parsed", texts[1]),
        Document("neither", texts[2], annotate=False, spans="[[0, 4]]"),
        Document("parsed, too", texts[2]),
    ]
    spans, parsed, neither, too = annotator.label(documents)
    assert "".join(texts[0][a:b] for a, b in spans.offsets[spans.classes == FactClass.FACTUAL]) == " Lovelace"
    assert set(spans.classes.tolist()) == {FactClass.FACTUAL, FactClass.OTHER}
    for tokens, text in ((parsed, texts[1]), (too, texts[2])):
        np.testing.assert_array_equal(tokens.classes, annotator.annotate([text])[0].classes)
    assert set(neither.classes.tolist()) == {FactClass.OTHER}


def test_bad_spans_name_their_document(plain: Annotator) -> None:
    """The error says which document it is."""
    with pytest.raises(ValueError, match=r"document 'b': spans: \(0, 99\) is no span"):
        plain.label([Document("a", "fine", spans="[]"), Document("b", "bad", spans="[[0, 99]]")])


def test_share_of_the_llm_judge(plain: Annotator, shared: Path) -> None:
    """On 830 articles that LMLM's annotator has judged, 15.7% of the tokens are delegated; the paper says 15%."""
    rows = [json.loads(line) for line in (shared / "lmlm_spans.jsonl").read_text(encoding="utf-8").splitlines()]
    labelled = plain.label([Document(row["id"], row["text"], spans=json.dumps(row["spans"])) for row in rows])
    classes = np.concatenate([tokens.classes for tokens in labelled])
    assert len(rows) == 830 and np.mean(classes == FactClass.FACTUAL) == pytest.approx(0.157, abs=0.0005)
