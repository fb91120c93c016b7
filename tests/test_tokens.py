"""Tokens against SentencePiece itself, on odd text, and the map from tokens to words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from annotator import Annotator, FactClass, LabelledTokens
from annotator.facts import class_of_rule
from annotator.records import Words
from annotator.tokens import Tokenizer, _total_offsets

_ODD = [
    *("Marie Curie", "1987", "in 1867,", "the", "U.S.", "don't", "self-taught", "Dr.", "$5", "\u00e9", "e\u0301"),
    *("\ufb01", "\U0001f600", "\U0001f469\u200d\U0001f467", "\u4e2d\u6587", "\u0645\u0631", "\u00a0", "\u3000"),
    *("  ", " ", "\t", "\n", "\n\n", "\r\n", "\0", "\u2581", "<CALL>", "</s>", "<unk>", "<0x0A>", "\ufeff", "\u202e"),
]
odd_text = st.lists(st.sampled_from(_ODD) | st.text(max_size=3), max_size=12).map("".join)
some = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def sp(tokenizer_path: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself, with the same model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    """The tokenizer alone."""
    return Tokenizer(tokenizer_path)


def word_at(words: Words, position: int) -> int | None:
    """The word that holds a code point, by linear search."""
    for i, (start, end) in enumerate(zip(words.start, words.end, strict=True)):
        if start <= position < end:
            return i
    return None


@some
@example("")
@example(" ")
@example(" lead")
@example("trail  ")
@example("\n \n")
@given(odd_text)
def test_ids_and_offsets_on_odd_text(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor, text: str):
    """Ids are SentencePiece's for the whole text; offsets are monotone from 0 to the text's end."""
    tokens = tokenizer.label(text)
    assert tokens.ids.tolist() == sp.encode(text)
    assert (tokens.ids.dtype, tokens.classes.dtype, tokens.offsets.dtype) == (np.int32, np.uint8, np.int32)
    assert tokens.offsets.shape == (len(tokens), 2)
    assert tokens.ids.min(initial=3) >= 3, "a control id"
    if text:
        start, end = tokens.offsets.T
        assert start[0] == 0 and end[-1] == len(text)
        assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all() and (start <= end).all()
        assert (start[1:] <= end[:-1]).all(), "a gap"


@some
@example("born  in 1987\n \u4e2d 7")
@example("Marie Curie was born in 1987 ")
@given(odd_text)
def test_a_piece_has_the_class_of_its_word(annotator: Annotator, text: str):
    """A piece has the class of the word that holds its first code point other than a space.

    A piece of spaces alone, or without width, has that of the word at its end; without any, OTHER. So all
    pieces that lie inside one word (and the space before it) have the word's class.
    """
    found = annotator.explain(text)
    classes = class_of_rule(found.rules)
    for (start, end), label in zip(found.tokens.offsets.tolist(), found.tokens.classes.tolist(), strict=True):
        anchor = next((i for i in range(start, end) if text[i] != " "), end)
        word = word_at(found.words, anchor)
        assert label == (FactClass.OTHER if word is None else classes[word])


def label_of(tokens: LabelledTokens, text: str) -> dict[str, str]:
    """Covered text -> class name of the (last) token that covers it."""
    return {
        text[start:end]: FactClass(label).name
        for (start, end), label in zip(tokens.offsets.tolist(), tokens.classes.tolist(), strict=True)
    }


def hand_built(text: str, *spans: tuple[str, FactClass]) -> tuple[Words, np.ndarray]:
    """Words at the places of the given substrings, in order, and their classes."""
    starts, at = [], 0
    for word, _ in spans:
        starts.append(text.index(word, at))
        at = starts[-1] + len(word)
    empty = Words.empty()
    columns = {name: getattr(empty, name) for name in Words.__dataclass_fields__}
    columns["start"] = np.array(starts, dtype=np.int32)
    columns["end"] = np.array([s + len(w) for s, (w, _) in zip(starts, spans, strict=True)], dtype=np.int32)
    return Words(**columns), np.array([label for _, label in spans], dtype=np.uint8)


def test_space_and_digits_of_a_number_share_its_class(tokenizer: Tokenizer):
    """The lone space piece before a number counts with the number, as other words' spaces do."""
    text = "in 1987."
    spans = (("in", FactClass.GRAMMATICAL), ("1987", FactClass.FACTUAL), (".", FactClass.GRAMMATICAL))
    tokens = tokenizer.label(text, *hand_built(text, *spans))
    assert tokens.offsets.tolist() == [[0, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert tokens.classes.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_white_space_words_keep_their_pieces(tokenizer: Tokenizer):
    """The extra space of a double space, and a newline, belong to white-space words, not to the next word."""
    text = "ab  7\nx"
    spans = (("ab", 0), ("7", 1), ("\n", 2), ("x", 1))
    words, classes = hand_built(text, *((word, FactClass(label)) for word, label in spans))
    tokens = tokenizer.label(text, words, classes)
    assert label_of(tokens, text)["\n"] == "OTHER"
    assert label_of(tokens, text)["7"] == label_of(tokens, text)["x"] == "FACTUAL"


def test_bytes_of_an_unknown_character_belong_to_its_word(tokenizer: Tokenizer):
    """SentencePiece spells an unknown character in bytes; all of them have the character's class."""
    text = "a \U0001f9ff b"
    tokens = tokenizer.label(
        text, *hand_built(text, ("a", FactClass.OTHER), ("\U0001f9ff", FactClass.FACTUAL), ("b", FactClass.OTHER))
    )
    assert tokens.classes.tolist() == [2, 1, 1, 1, 1, 1, 2]


def test_piece_across_words_belongs_to_the_first(tokenizer: Tokenizer):
    """Where one piece covers two words, the first decides."""
    text = 'x").'
    spans = (("x", FactClass.OTHER), ('"', FactClass.FACTUAL), (")", FactClass.GRAMMATICAL), (".", FactClass.OTHER))
    tokens = tokenizer.label(text, *hand_built(text, *spans))
    assert tokens.offsets.tolist() == [[0, 1], [1, 4]]
    assert tokens.classes.tolist() == [2, 1]


def test_control_pieces_in_a_text_are_ordinary_text(tokenizer: Tokenizer):
    """A document that spells <CALL> or </s> gets the pieces of those characters."""
    text = "<CALL> </s> <s> <unk> <0x0A>"
    tokens = tokenizer.label(text)
    assert len(tokens) == 18
    assert tokens.ids.min() > 258, "a control or byte piece"
    assert tokens.ids.max() < tokenizer.vocab_size


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def normalising(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that changes text: NFKC, and extra spaces removed."""
    folder = tmp_path_factory.mktemp(request.param)
    corpus = folder / "corpus.txt"
    corpus.write_text("the fine text of a first file\nMarie Curie found radium in 1898\n" * 50, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "m"),
        model_type=request.param,
        vocab_size=340,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return folder / "m.model"


@some
@example("  a  \ufb01ne\u3000 te\u0301xt  ")
@example("   ")
@example("\uff8a\uff9f \u2460 \u3392 \u0958")
@given(text=odd_text)
def test_normalising_tokenizer_has_total_monotone_offsets(normalising: Path, text: str):
    """Where the model drops spaces or rewrites characters, the offsets still cover the text in order."""
    tokens = Tokenizer(normalising).label(text)
    assert tokens.ids.tolist() == sentencepiece.SentencePieceProcessor(model_file=str(normalising)).encode(text)
    if len(tokens):
        start, end = tokens.offsets.T
        assert start[0] == 0 and end[-1] == len(text)
        assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all() and (start <= end).all()


def test_backward_offsets_are_an_error_with_an_example():
    """A tokenizer that reorders text cannot be aligned: the error shows where."""
    with pytest.raises(ValueError, match="near 'abcdef'"):
        _total_offsets(np.array([[0, 4], [3, 2], [2, 6]], dtype=np.int32), "abcdef")


def test_missing_tokenizer_is_named(tmp_path: Path):
    """The error names the file and the package that brings one."""
    with pytest.raises(FileNotFoundError, match="none.model.*mistral-common"):
        Tokenizer(tmp_path / "none.model")


def test_other_tokenizer_formats_are_named(tmp_path: Path):
    """A tokenizer.json is not a SentencePiece model, and the error says so."""
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a SentencePiece model.*tokenizer\.model"):
        Tokenizer(file)
