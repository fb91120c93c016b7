"""What token ids spell, for our own tokenizers and for those of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from annotator.tokenizers import Tokenizer, is_tokenizer_json, open_tokenizer
from lacy_stream.errors import UsageError


class Vocabulary:
    """A tokenizer as bytes.

    Attributes:
        spellings: what each id spells, in UTF-8; None for ids that no text has (control, special, unknown). A piece
            may be a part of a character.
        adds_space: the tokenizer puts a space before each text, which is not part of it.
    """

    spellings: list[bytes | None]
    adds_space: bool

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text, nothing added."""
        raise NotImplementedError

    def encode_special(self, text: str) -> list[int]:
        """As ``encode``, but names of special tokens are read as such."""
        raise NotImplementedError

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of a whole text's ids. Special ids spell nothing."""
        data = b"".join(self.spellings[id] or b"" for id in ids)
        return data[1:] if self.adds_space and data.startswith(b" ") else data

    def continuation(self, text: str) -> list[int] | None:
        """The ids that spell a text in the middle of another: no space is put before it.

        Returns:
            None where no ids spell exactly this text.
        """
        ids = self.encode(text)
        if self.adds_space:
            # A line break is a piece of its own, so what follows it is encoded as it would be inside a text.
            start = self.encode("\n")
            ids = self.encode("\n" + text)
            if ids[: len(start)] != start:
                return None
            ids = ids[len(start) :]
        spelled = [self.spellings[id] for id in ids]
        return ids if None not in spelled and b"".join(s or b"" for s in spelled) == text.encode() else None

    def same_as(self, other: Vocabulary) -> bool:
        """Whether each piece of the other has the same id and spelling here. Ids behind them (as <CALL>) may differ."""
        shared = min(len(self.spellings), len(other.spellings))
        apart = abs(len(self.spellings) - len(other.spellings))
        return (
            apart <= 1 and self.adds_space == other.adds_space and self.spellings[:shared] == other.spellings[:shared]
        )


class TokenizerVocabulary(Vocabulary):
    """A tokenizer that a model can be trained with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.spellings = tokenizer.spellings()
        self.adds_space = tokenizer.adds_space

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids.tolist()

    encode_special = encode  # it reads names of special pieces as text


class TransformersVocabulary(Vocabulary):
    """A fast tokenizer of transformers: byte-level BPE (GPT-2, Llama 3, Qwen, ...) or SentencePiece's spelling
    (Llama 2, Mistral, Gemma, ours).

    Raises:
        UsageError: it is of neither kind.
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
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        added = tokenizer.added_tokens_decoder
        self.spellings = [None] * len(tokenizer)
        for token, id in tokenizer.get_vocab().items():
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
        # verbose=False: a text longer than the model's context is our caller's business, not a warning.
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **how)["input_ids"]  # type: ignore[return-value]


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _byte_level(token: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:  # a token that stands outside the byte alphabet is no text
        return None


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def open_vocabulary(path: Path) -> Vocabulary:
    """Of a ``CallingModel.tokenizer``: of our own models, or the tokenizer.json of another model."""
    if is_tokenizer_json(path):
        return TransformersVocabulary(AutoTokenizer.from_pretrained(path.parent, use_fast=True))
    return TokenizerVocabulary(open_tokenizer(path))
