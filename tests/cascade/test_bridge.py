"""The partner's token in the small model's pieces, on hand-built cases with the real tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotator.tokenizers import open_tokenizer
from lacy_stream.cascade.bridge import Candidate, first_expressible, pieces_of
from lacy_stream.cascade.vocabulary import TokenizerVocabulary, TransformersVocabulary


@pytest.fixture(scope="module")
def pieces(tokenizer_path: Path) -> TokenizerVocabulary:
    return TokenizerVocabulary(open_tokenizer(tokenizer_path))


@pytest.fixture(scope="module")
def byte_level() -> TransformersVocabulary:
    """A byte-level BPE with GPT-2's alphabet, tokens for several digits, and special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "9"), ("19", "8"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ċ", "Ċ")]
    words = ["<|end|>", *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return TransformersVocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def spelled(vocabulary: TokenizerVocabulary, ids: list[int] | None) -> list[bytes | None] | None:
    return None if ids is None else [vocabulary.spellings[id] for id in ids]


@pytest.mark.parametrize(
    ("before", "token", "expected"),
    [
        ("Marie", b" Curie", [b" Cur", b"ie"]),
        ("Plan", b"es", [b"es"]),  # encoded together it would be Pl + anes
        ("W", b"i", [b"i"]),  # no space is put before it
        ("in", b" 1987", [b" ", b"1", b"9", b"8", b"7"]),
        ("in 1", b"987", [b"9", b"8", b"7"]),  # Llama 3's three digits in a token
        ("in ", b"198", [b"1", b"9", b"8"]),  # after a lone space
        ("in ", b" 198", [b"1", b"9", b"8"]),  # of two spaces one is left
        ("the ", b" the", [b"the"]),
        ("end.", b"\n", [b"\n"]),
        ("end.", b"\n\n", [b"\n", b"\n"]),
        ("of ", "été".encode(), ["été".encode()]),
        ("a", "ꙮ".encode(), [b"\xea", b"\x99", b"\xae"]),  # no piece of its own: bytes
        ("say", b" <CALL>", [b" <", b"CALL", b">"]),  # as a text, it is not the token
        ("", b"</s>", [b"</", b"s", b">"]),
    ],
)
def test_tokens_that_can_be_expressed(
    pieces: TokenizerVocabulary, before: str, token: bytes, expected: list[bytes]
) -> None:
    """The pieces spell the partner's token, and nothing that stood before is encoded again."""
    ids = pieces_of(Candidate(token), before, pieces)
    assert spelled(pieces, ids) == expected


@pytest.mark.parametrize(
    ("before", "token"),
    [
        ("a", None),  # special
        ("a", b"\xea\x99"),  # a part of a character
        ("a", b"\xae"),
        ("a", b""),
        ("a ", b" "),  # nothing but the space that stands already
    ],
)
def test_tokens_that_cannot(pieces: TokenizerVocabulary, before: str, token: bytes | None) -> None:
    """What cannot be expressed is refused, not replaced by something else."""
    assert pieces_of(Candidate(token), before, pieces) is None


def test_the_next_best_is_taken(pieces: TokenizerVocabulary) -> None:
    """A special token and a fragment are passed over; where nothing is left there is no answer."""
    candidates = [Candidate(None, 0), Candidate(b"\xe2"), Candidate(b" born"), Candidate(b" died")]
    found = first_expressible(candidates, "was", pieces)
    assert found is not None and found[0].spelling == b" born" and spelled(pieces, found[1]) == [b" born"]
    assert first_expressible(candidates[:2], "was", pieces) is None


def test_byte_level_spellings(byte_level: TransformersVocabulary) -> None:
    """Byte-level tokens are bytes again; special tokens spell nothing, and their names in a text are text."""
    ids = byte_level.encode(" the 198é\n\n<|end|>")
    assert byte_level.spell(ids).decode() == " the 198é\n\n<|end|>"
    assert [byte_level.spellings[id] for id in ids[:3]] == [b" the", b" ", b"198"]
    assert byte_level.spellings[0] is None and 0 not in ids
    assert byte_level.encode_special("<|end|>") == [0]


def test_a_partner_with_three_digits(pieces: TokenizerVocabulary, byte_level: TransformersVocabulary) -> None:
    """A token of three digits becomes three pieces: the paper's most frequent case of several."""
    token = byte_level.encode("198")
    assert len(token) == 1
    ids = pieces_of(Candidate(byte_level.spellings[token[0]]), "born in ", pieces)
    assert spelled(pieces, ids) == [b"1", b"9", b"8"]


def test_our_exported_tokenizer_is_the_same(pieces: TokenizerVocabulary, wordy_model: Path) -> None:
    """The exported fast tokenizer and the SentencePiece file spell every id alike, <CALL> aside."""
    from transformers import AutoTokenizer

    exported = TransformersVocabulary(AutoTokenizer.from_pretrained(wordy_model))
    assert exported.same_as(pieces) and exported.spellings[32_000] is None
    assert exported.encode(" a  b\nc <CALL>") == pieces.encode(" a  b\nc <CALL>")


def test_other_vocabularies_differ(pieces: TokenizerVocabulary, byte_level: TransformersVocabulary) -> None:
    """Another tokenizer is not taken for the same."""
    assert not byte_level.same_as(pieces)
