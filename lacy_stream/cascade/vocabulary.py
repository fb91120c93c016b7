"""Vocabularies as bytes: what each token id spells, for tokenizers of the annotator and of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from annotator.errors import AnnotatorError
from annotator.packages import package_file
from annotator.tokenizers import Tokenizer, open_tokenizer
from lacy_stream.errors import UsageError
from lacy_stream.train.checkpoint import CallingModel

SPECIAL_NAME = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z_]*[A-Z]{2,}[A-Za-z_]*(_?\d+)?\]|\[control_\d+\]|\[gMASK\]")
"""Names that special tokens have: <|im_end|>, </s>, <end_of_turn>, [INST], [TOOL_CALLS]."""


class Vocabulary:
    """A tokenizer whose pieces are seen as bytes."""

    spellings: list[bytes | None]
    """The bytes that each id spells in UTF-8, [V]. A piece may be a part of a character. Ids that do not stand for text
    (control, special, unknown) have None."""
    adds_space: bool
    """Whether the tokenizer puts a space before each text, which does not belong to the text."""
    ids: dict[str, int]
    """Name of a piece, as the tokenizer's file spells it -> id."""

    def encode(self, text: str) -> list[int]:
        """Encode a whole text, without special tokens."""
        raise NotImplementedError

    def encode_special(self, text: str) -> list[int]:
        """Encode a whole text in which names of special tokens stand for these tokens."""
        raise NotImplementedError

    def spell(self, ids: Sequence[int]) -> bytes:
        """Decode the ids of a whole text to bytes. Special ids add nothing."""
        data = b"".join(self.spellings[id] or b"" for id in ids)
        return data[1:] if self.adds_space and data.startswith(b" ") else data

    def continuation(self, text: str) -> list[int] | None:
        """Encode a text that continues another one, so that no space is put before it.

        Returns:
            The ids; None if no ids spell exactly this text.
        """
        ids = self.encode(text)
        if self.adds_space:
            # A line break is a piece of its own, so what follows is encoded without a space before it.
            start = self.encode("\n")
            ids = self.encode("\n" + text)
            if ids[: len(start)] != start:
                return None
            ids = ids[len(start) :]
        # An unknown piece, or a character that was normalised, shows in the spelling.
        spelled = [self.spellings[id] for id in ids]
        return ids if None not in spelled and b"".join(s or b"" for s in spelled) == text.encode() else None

    def same_as(self, other: Vocabulary) -> bool:
        """Whether all pieces have the same ids and spellings in both vocabularies. One of them may have one more id at
        the end, such as <CALL>."""
        shared = min(len(self.spellings), len(other.spellings))
        apart = abs(len(self.spellings) - len(other.spellings))
        return (
            apart <= 1 and self.adds_space == other.adds_space and self.spellings[:shared] == other.spellings[:shared]
        )


class TokenizerVocabulary(Vocabulary):
    """The vocabulary of a tokenizer of the annotator, with which a model can be trained."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.spellings = tokenizer.spellings()
        self.adds_space = tokenizer.adds_space
        self.ids = {name: id for id, name in enumerate(tokenizer.pieces())}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids.tolist()

    encode_special = encode


class TransformersVocabulary(Vocabulary):
    """The vocabulary of a fast tokenizer of transformers: a byte-level BPE (GPT-2, Llama 3, Qwen, ...), or one that
    spells pieces as SentencePiece does (Llama 2, Mistral, Gemma).

    Raises:
        UsageError: the tokenizer is of neither kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
        parts = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
        if "ByteLevel" in parts:
            spell = _byte_level
        elif "ByteFallback" in parts or "Metaspace" in parts:
            spell = _sentencepiece
        else:
            raise UsageError(
                f"{tokenizer.name_or_path}: a tokenizer that decodes with {sorted(parts)} is not supported"
            )
        # Added tokens are spelled as they are. Only the pieces of the model itself are encoded in its alphabet.
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        added = tokenizer.added_tokens_decoder
        self.spellings = [None] * len(tokenizer)
        self.ids = tokenizer.get_vocab()
        for token, id in self.ids.items():
            if id in added:
                self.spellings[id] = None if id in special else added[id].content.encode()
            else:
                self.spellings[id] = spell(token)
        first = self.encode("a")
        self.adds_space = bool(first) and (self.spellings[first[0]] or b"").startswith(b" ")

    def encode(self, text: str) -> list[int]:
        return self._encode(text, split_special_tokens=True)

    def encode_special(self, text: str) -> list[int]:
        return self._encode(text, split_special_tokens=False)

    def _encode(self, text: str, **how: Any) -> list[int]:
        # verbose=False: no warning of texts longer than the context, since callers check that.
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **how)["input_ids"]  # type: ignore[return-value]


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _byte_level(token: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:  # a token outside the byte alphabet is not text
        return None


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def open_vocabulary(model: CallingModel) -> Vocabulary:
    """Open the vocabulary of a model.

    Raises:
        UsageError: the pieces of its tokenizer do not spell a text.
    """
    vocabulary = TokenizerVocabulary(model.open_tokenizer())
    if vocabulary.spell(vocabulary.encode(SPELLED)) != SPELLED.encode():
        raise UsageError(f"{model.tokenizer}: a tokenizer whose pieces do not spell the text is not supported")
    return vocabulary


def load_vocabulary(name: str) -> Vocabulary:
    """Load the vocabulary of a tokenizer.

    Args:
        name: a folder or hub name of transformers, a SentencePiece model or tokenizer.json, or ``package:NAME/PATH``.

    Raises:
        UsageError: there is no such tokenizer, or it is of an unknown kind.
    """
    try:
        if (path := package_file(name)).is_file():
            return TokenizerVocabulary(open_tokenizer(path))
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError, ImportError, AnnotatorError) as error:
        raise UsageError(f"{name} cannot be loaded as a tokenizer: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(f"{name} has no fast tokenizer (tokenizer.json): convert it")
    return TransformersVocabulary(tokenizer)


SPELLED = "Ada was born in 1815.\nShe"
"""A text that tokenizers change if they change texts at all: lower case, dropped line breaks, spaces."""
