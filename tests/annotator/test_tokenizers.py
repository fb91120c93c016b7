"""Tokens against SentencePiece itself, on odd text and odd ids, and the map from tokens to words."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from annotator import Annotator, FactClass, LabelledTokens
from annotator.align import classify
from annotator.facts import class_of_rule
from annotator.records import Words
from annotator.tokenizers import Tokenizer, is_tokenizer_json, open_tokenizer
from annotator.tokenizers.sentencepiece import _total_offsets

_ODD = [
    *("Marie Curie", "1987", "in 1867,", "the", "U.S.", "don't", "self-taught", "Dr.", "$5", "\u00e9", "e\u0301"),
    *("\ufb01", "\U0001f600", "\U0001f469\u200d\U0001f467", "\u4e2d\u6587", "\u0645\u0631", "\u00a0", "\u3000"),
    *("  ", " ", "\t", "\n", "\n\n", "\r\n", "\0", "\u2581", "<CALL>", "</s>", "<unk>", "<0x0A>", "\ufeff", "\u202e"),
]
odd_text = st.lists(st.sampled_from(_ODD) | st.text(max_size=3), max_size=12).map("".join)
odd_ids = st.lists(st.integers(0, 31_999) | st.integers(0, 258) | st.integers(0x80 + 3, 258), max_size=24)
UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3  # the id of <0x00>
some = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def sp(tokenizer_path: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself, with the same model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    """The tokenizer alone."""
    return open_tokenizer(tokenizer_path)


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
    tokens = classify(tokenizer.encode(text))
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
    tokens = classify(tokenizer.encode(text), *hand_built(text, *spans))
    assert tokens.offsets.tolist() == [[0, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert tokens.classes.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_white_space_words_keep_their_pieces(tokenizer: Tokenizer):
    """The extra space of a double space, and a newline, belong to white-space words, not to the next word."""
    text = "ab  7\nx"
    spans = (("ab", 0), ("7", 1), ("\n", 2), ("x", 1))
    words, classes = hand_built(text, *((word, FactClass(label)) for word, label in spans))
    tokens = classify(tokenizer.encode(text), words, classes)
    assert label_of(tokens, text)["\n"] == "OTHER"
    assert label_of(tokens, text)["7"] == label_of(tokens, text)["x"] == "FACTUAL"


def test_bytes_of_an_unknown_character_belong_to_its_word(tokenizer: Tokenizer):
    """SentencePiece spells an unknown character in bytes; all of them have the character's class."""
    text = "a \U0001f9ff b"
    tokens = classify(
        tokenizer.encode(text),
        *hand_built(text, ("a", FactClass.OTHER), ("\U0001f9ff", FactClass.FACTUAL), ("b", FactClass.OTHER)),
    )
    assert tokens.classes.tolist() == [2, 1, 1, 1, 1, 1, 2]


def test_piece_across_words_belongs_to_the_first(tokenizer: Tokenizer):
    """Where one piece covers two words, the first decides."""
    text = 'x").'
    spans = (("x", FactClass.OTHER), ('"', FactClass.FACTUAL), (")", FactClass.GRAMMATICAL), (".", FactClass.OTHER))
    tokens = classify(tokenizer.encode(text), *hand_built(text, *spans))
    assert tokens.offsets.tolist() == [[0, 1], [1, 4]]
    assert tokens.classes.tolist() == [2, 1]


def test_control_pieces_in_a_text_are_ordinary_text(tokenizer: Tokenizer):
    """A document that spells <CALL> or </s> gets the pieces of those characters."""
    text = "<CALL> </s> <s> <unk> <0x0A>"
    tokens = classify(tokenizer.encode(text))
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
    tokens = open_tokenizer(normalising).encode(text)
    assert tokens.ids.tolist() == sentencepiece.SentencePieceProcessor(model_file=str(normalising)).encode(text)
    if len(tokens):
        start, end = tokens.offsets.T
        assert start[0] == 0 and end[-1] == len(text)
        assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all() and (start <= end).all()


def test_backward_offsets_are_an_error_with_an_example():
    """A tokenizer that reorders text cannot be aligned: the error shows where."""
    with pytest.raises(ValueError, match="near 'abcdef'"):
        _total_offsets(np.array([[0, 4], [3, 2], [2, 6]], dtype=np.int32), "abcdef")


def assert_in_order(offsets: np.ndarray, ids: np.ndarray, text: str) -> None:
    """One place per id, monotone from 0 to the text's end, without gap or overlap."""
    assert offsets.dtype == np.int32 and offsets.shape == (len(ids), 2)
    start, end = [0, *offsets[:, 1].tolist()], [*offsets[:, 0].tolist(), len(text)]
    assert start == end and (offsets[:, 0] <= offsets[:, 1]).all()


@some
@example("")
@example(" ")
@example("  lead")
@example("\U0001f9ff\0\t\n \u2581")
@given(odd_text)
def test_decode_gives_the_text_and_the_places_back(tokenizer: Tokenizer, text: str):
    """Ids of a text decode to it, and to the offsets that encode gives; U+2581 is a space to SentencePiece."""
    encoded = tokenizer.encode(text)
    decoded = tokenizer.decode(encoded.ids)
    assert decoded.text == text.replace("\u2581", " ")
    assert decoded.offsets.tolist() == encoded.offsets.tolist()


def test_decode_gives_real_texts_back(tokenizer: Tokenizer, shared: Path):
    """All 830 documents of dwiki come back from their ids, with every offset."""
    with open(shared / "lmlm_spans.jsonl", encoding="utf-8") as file:
        encoded = [tokenizer.encode(json.loads(line)["text"]) for line in file]
    assert len(encoded) == 830
    for pieces in encoded:
        decoded = tokenizer.decode(pieces.ids)
        assert decoded.text == pieces.text and np.array_equal(decoded.offsets, pieces.offsets)


@some
@example([BOS, 264, 264, EOS])
@example([FIRST_BYTE + 0x20, 264])
@given(odd_ids)
def test_decode_of_any_ids(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor, ids: list[int]):
    """Whatever the ids, the places are in order and the text is SentencePiece's, which spells <unk> otherwise, and
    lets a control piece part the bytes of a character."""
    row = np.array(ids, dtype=np.int32)
    decoded = tokenizer.decode(row)
    assert_in_order(decoded.offsets, row, decoded.text)
    assert decoded.control.tolist() == [id in (BOS, EOS) for id in ids]
    if UNK not in ids and not {BOS, EOS} & set(ids[1:-1]):
        assert decoded.text == sp.decode(ids)


def test_places_of_bytes_control_and_unknown_pieces(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor):
    """A character's last byte has its width, a stray byte is one U+FFFD, as is <unk>, and </s> has no width."""
    (a,), (b,) = sp.encode("a"), sp.encode("b")
    ids = [BOS, a, *(FIRST_BYTE + byte for byte in b"\xf0\x9f\xa7\xbf\xe2\x96"), UNK, b, FIRST_BYTE + 0xBF, EOS]
    decoded = tokenizer.decode(np.array(ids, dtype=np.int32))
    assert decoded.text == "a\U0001f9ff\ufffd\ufffd\ufffd b\ufffd"
    ends = [0, 1, 1, 1, 1, 2, 3, 4, 5, 7, 8, 8]
    assert decoded.offsets.tolist() == [[start, end] for start, end in zip([0, *ends], ends)]


def test_decode_drops_one_space_at_the_beginning(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor):
    """A part from the middle of a text loses the space before its first word, and no more."""
    ids = np.array(sp.encode("Ada  wrote letters"), dtype=np.int32)
    texts = {tokenizer.decode(ids[start:]).text for start in range(len(ids))}
    assert {"Ada  wrote letters", " wrote letters", "wrote letters", "letters"} <= texts
    assert tokenizer.decode(ids[-1:]).offsets.tolist() == [[0, 7]]


@pytest.fixture(scope="session")
def spaceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts no space before a text, has no byte pieces, and has a padding piece."""
    folder = tmp_path_factory.mktemp("spaceless")
    corpus = folder / "corpus.txt"
    corpus.write_text("the fine text of a first file\nMarie Curie found radium\n" * 50, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=3,
        minloglevel=2,
    )
    return folder / "m.model"


@pytest.mark.parametrize("text", ["the file", " the file", "  the file", " "])
def test_decode_keeps_the_space_of_a_tokenizer_that_adds_none(spaceless: Path, text: str):
    """Where no space is put before a text, none is dropped."""
    tokenizer = open_tokenizer(spaceless)
    assert tokenizer.decode(tokenizer.encode(text).ids).text == text


def test_padding_is_grammatical(spaceless: Path):
    """A padding piece spells nothing and is never a fact; a character that the model cannot spell is U+FFFD."""
    tokenizer = open_tokenizer(spaceless)
    ids = np.append(tokenizer.encode("a\u4e2d").ids, np.int32([2, 3, 3]))
    text, padding = tokenizer.segments(ids)
    assert (text.text, padding.text) == ("a\ufffd", "")
    assert classify(padding).classes.tolist() == [FactClass.GRAMMATICAL] * 2


def test_unknown_pieces_that_fill_a_row_up_are_padding(tokenizer: Tokenizer, sp: sentencepiece.SentencePieceProcessor):
    """Two or more unknown pieces at an end of a segment spell nothing and are grammatical, also around control pieces;
    inside, and alone, they stand for text."""
    ids = sp.encode("in 1867")
    for before, after in (([], [UNK] * 5), ([UNK] * 3, []), ([BOS, UNK, UNK], [UNK, UNK, EOS])):
        (segment,) = tokenizer.segments(np.array([*before, *ids, *after]))
        assert segment.text == "in 1867"
        assert segment.control.tolist() == [True] * len(before) + [False] * len(ids) + [True] * len(after)
        assert_in_order(segment.offsets, segment.ids, segment.text)
    (nothing,) = tokenizer.segments(np.array([UNK] * 4))
    assert nothing.text == "" and classify(nothing).classes.tolist() == [FactClass.GRAMMATICAL] * 4
    for row in ([*ids, UNK], [UNK, *ids], [*ids, UNK, UNK, *ids]):
        (segment,) = tokenizer.segments(np.array(row))
        assert segment.text.count("\ufffd") == row.count(UNK) and not segment.control.any()


@some
@given(st.lists(st.integers(0, 300) | st.just(EOS), max_size=24))
def test_segments_are_cut_at_control_ids(tokenizer: Tokenizer, ids: list[int]):
    """Segments joined are the row; each ends with the only </s>, or begins with the only <s>, that it holds."""
    segments = tokenizer.segments(np.array(ids, dtype=np.int64))
    assert [id for segment in segments for id in segment.ids.tolist()] == ids
    assert all(segment.ids.dtype == np.int32 for segment in segments)
    assert all(EOS not in segment.ids[:-1] for segment in segments)
    assert all(BOS not in segment.ids[1:] for segment in segments)
    assert all(before.ids[-1] == EOS or after.ids[0] == BOS for before, after in pairwise(segments))
    for segment in segments:
        assert_in_order(segment.offsets, segment.ids, segment.text)


def test_rows_are_cut_at_any_control_id(tokenizer: Tokenizer, spaceless: Path):
    """Documents that are separated by the beginning of the next one, or by padding, are segments of their own, so that
    their first mentions are found; an unknown piece is a part of its text."""
    the = tokenizer.encode("the file").ids.tolist()
    for row, texts in [
        ([BOS, *the, BOS, *the], ["the file"] * 2),
        ([*the, BOS, *the, EOS], ["the file"] * 2),
        ([BOS, *the, EOS, BOS, *the, EOS], ["the file"] * 2),
        ([*the, UNK, *the], ["the file\ufffd the file"]),
    ]:
        assert [segment.text for segment in tokenizer.segments(np.array(row))] == texts
    padded = open_tokenizer(spaceless)
    the, pad = padded.encode("the").ids.tolist(), 3
    assert [s.text for s in padded.segments(np.array([*the, pad, pad, *the, pad]))] == ["the", "the"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([5, 6, -100, -100], "token id -100 at position 2, as padding.*column of the labels"),
        ([5, 6, 7, 8, 9, 32_003], "token id 32003 at position 5.*as those of added tokens do"),
        (np.array([5, 6, 7, 8], np.int32).view(np.int64), "Read as int32, .*Set token_encoding_type: int32"),
        (np.array([5, 6, 7, 8], np.uint16).view(np.int64), "Read as uint16, .*Set token_encoding_type: uint16"),
        ([70_000, 5, 90_000, 100_000], "70000 at position 0, .*not the one that made this data"),
    ],
)
def test_causes_of_an_id_outside_the_vocabulary(tokenizer: Tokenizer, row: list[int], message: str):
    """Padding, added tokens, another integer type, and another tokenizer are told apart."""
    with pytest.raises(ValueError, match=message):
        tokenizer.segments(np.array(row))


@pytest.mark.parametrize("bad", [32_000, -1, 2**32 + 5])
def test_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, bad: int):
    """The error names the id, its position and the way out."""
    ids = np.array([5, 6, bad, 32_001])
    for read in (tokenizer.decode, tokenizer.segments):
        with pytest.raises(ValueError, match=f"token id {bad} at position 2, .*0 to 31999.*give the tokenizer of the"):
            read(ids)


@pytest.mark.parametrize("row", [np.int64(5), np.array([[5, 6]]), np.array([5.0, 6.0])], ids=["id", "rows", "floats"])
def test_what_is_no_row_of_ids_is_named(tokenizer: Tokenizer, row: np.ndarray):
    """An id, several rows, or floats in place of a row of ids."""
    with pytest.raises(ValueError, match="(int|float)64 of shape .* instead of a row of token ids"):
        tokenizer.segments(row)


def test_missing_tokenizer_is_named(tmp_path: Path):
    """The error names the file and the package that brings one."""
    with pytest.raises(FileNotFoundError, match="none.model.*mistral-common"):
        open_tokenizer(tmp_path / "none.model")


def test_other_files_are_named(tmp_path: Path):
    """A file that is no tokenizer is named."""
    (tmp_path / "notes.model").write_text("no tokenizer")
    with pytest.raises(ValueError, match="notes.model is not a SentencePiece model"):
        open_tokenizer(tmp_path / "notes.model")


def test_kind_is_told_by_content(tokenizer_path: Path, tmp_path: Path):
    """A tokenizer is what its file holds, whatever the file's name."""
    model = tmp_path / "model.json"
    model.write_bytes(tokenizer_path.read_bytes())
    assert not is_tokenizer_json(model) and open_tokenizer(model).vocab_size == 32_000
    (tmp_path / "fast.model").write_text('{"version": "1.0"}')
    assert is_tokenizer_json(tmp_path / "fast.model")
