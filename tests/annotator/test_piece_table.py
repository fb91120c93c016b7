"""The table of pieces against SentencePiece itself, and the models that it must not be used with."""

from __future__ import annotations

import functools
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from annotator.tokenizers.piece_table import PieceTable, is_separable
from annotator.tokenizers.sentencepiece import SentencePieceTokenizer

CORPUS = "the fine text of a first file of the first text\nMarie Curie found radium in 1898, the  fine   file\n" * 50
KNOWN = st.sampled_from(["the", "fine", "fi", "Curie", "1898", " ", "  ", "   ", "\n", "\t", "\0", "中", "\u2581", "é"])
SEPARABLE = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
OTHERS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "no bytes": {"byte_fallback": False},
    "normalised": {"normalization_rule_name": "nmt_nfkc"},
    "spaces dropped": {"remove_extra_whitespaces": True},
    "no space before": {"add_dummy_prefix": False},
    "space as suffix": {"treat_whitespace_as_suffix": True},
    "pieces over spaces": {"split_by_whitespace": False},
    "symbols of the user's": {"user_defined_symbols": ["of the"]},
}


def train(folder: Path, **options: Any) -> Path:
    """A small model."""
    corpus = folder / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    settings: dict[str, Any] = {"vocab_size": 330, "hard_vocab_limit": False, "minloglevel": 2} | SEPARABLE | options
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "m"), **settings)
    return folder / "m.model"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose pieces are those of its chunks."""
    return train(tmp_path_factory.mktemp("separable"))


def counted(tokenizer: SentencePieceTokenizer, limit: int) -> tuple[PieceTable, list[str]]:
    """A table of the given limit, and what it asks the tokenizer for."""
    asked: list[str] = []

    def encode(text: str) -> tuple[np.ndarray, np.ndarray] | None:
        asked.append(text)
        return tokenizer._encode_spelled(text)

    return PieceTable(encode, limit), asked


def test_separable_models(small: Path, tokenizer_path: Path) -> None:
    """The models that the table is for are known by their files."""
    assert is_separable(small.read_bytes())
    assert is_separable(tokenizer_path.read_bytes())


@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name: str, tmp_path: Path) -> None:
    """A model that differs in one thing has no table, and the pieces that SentencePiece gives."""
    path = train(tmp_path, **OTHERS[name])
    assert not is_separable(path.read_bytes())
    tokenizer = SentencePieceTokenizer(path)
    text = "the fine  file of the first text "
    assert tokenizer._table is None
    assert tokenizer.encode(text).ids.tolist() == sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(
        text
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([" "])
@example(["the", " "])
@example([" ", "the", "   ", "中", " "])
@given(st.lists(KNOWN | st.text(max_size=2), max_size=12))
def test_pieces_of_any_text(small: Path, tokenizer_path: Path, parts: list[str]) -> None:
    """Pieces and their places are SentencePiece's, from a new table, one that knows the text, and a full one."""
    text = "".join(parts)
    for path in (small, tokenizer_path):
        tokenizer = _tokenizer(path)
        expected = tokenizer._encode(text)[0]
        whole = tokenizer._encode_spelled(text)
        table, _ = counted(tokenizer, limit=2)
        for found in (table.pieces(text), table.pieces(text), tokenizer._table.pieces(text)):  # type: ignore[union-attr]
            assert (found is None) == (whole is None)
            if found is not None and whole is not None:
                assert found[0].tolist() == expected and found[1].tolist() == whole[1].tolist()
                assert found[0].dtype == found[1].dtype == np.int32
        assert tokenizer.encode(text).ids.tolist() == expected


@functools.cache
def _tokenizer(path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(path)


def test_real_texts(tokenizer_path: Path, shared: Path) -> None:
    """830 documents and 30 articles have SentencePiece's pieces, seen and unseen."""
    with open(shared / "lmlm_spans.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    with open(shared / "wiki_articles.jsonl.zst", "rb") as raw:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        texts += [json.loads(line)["text"] for line in itertools.islice(lines, 30)]
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    for text in texts:
        ids, ends = tokenizer._encode_spelled(text) or pytest.fail(f"{text[:60]!r} is not spelled")
        for _ in range(2):
            pieces = tokenizer.encode(text)
            assert np.array_equal(pieces.ids, ids) and np.array_equal(pieces.offsets[:, 1], ends)


def test_known_chunks_are_not_asked_for(small: Path) -> None:
    """Only what is new goes to SentencePiece, together; white space is part of the next chunk."""
    table, asked = counted(_tokenizer(small), limit=100)
    table.pieces("the fine file")
    assert sorted(asked.pop().split(" ")) == ["file", "fine", "the"]
    table.pieces("fine the first the")
    assert asked.pop() == "first"
    table.pieces("file the  first")
    assert asked == [" first"]


@pytest.mark.parametrize("end", [" ", "  ", "   "])
def test_spaces_behind_known_chunks(small: Path, end: str) -> None:
    """Spaces at the end of a text whose words are all known are encoded as after a word."""
    tokenizer = _tokenizer(small)
    table, _ = counted(tokenizer, limit=100)
    table.pieces("the fine file")
    for _ in range(2):
        found = table.pieces(f"the file{end}")
        assert found is not None and found[0].tolist() == tokenizer._encode(f"the file{end}")[0]
        assert found[1][-1] == len(f"the file{end}")


def test_table_is_bounded(small: Path) -> None:
    """Ever new chunks leave at most two full tables, in which what is in use stays; a long chunk is not kept."""
    table, asked = counted(_tokenizer(small), limit=50)
    for number in range(500):
        table.pieces(f"the {number}")
        assert len(table) <= 2 * 51
    assert not any("the" in text.split(" ") for text in asked[1:])
    table.pieces("x" * 1000)
    table.pieces("x" * 1000)
    assert asked[-2:] == ["x" * 1000] * 2
