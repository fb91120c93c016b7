"""The table of chunks for SentencePiece. A chunk is a run of spaces and the word after it.

In most SentencePiece models of BPE, a piece has spaces at its beginning only. Then no merge crosses the border before a
space, and the pieces of a text are those of its chunks, one after the other. ``is_separable`` reads in a model's file
whether that holds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from annotator.tokenizers.chunk_table import ChunkTable, IdsAndEnds, cut_rows, join_rows

_SPACE = "\u2581"  # stands for U+0020 in SentencePiece's vocabularies
_CHUNK = re.compile(" +[^ ]*")
_SEPARABLE_PIECE = re.compile(f"{_SPACE}*[^{_SPACE}]*")

# Numbers of fields in sentencepiece_model.proto, and of the kinds of models and pieces.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _TYPE = 1, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX = 3, 24
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5
_BPE = 2
_USER_DEFINED, _BYTE = 4, 6


class PieceTable:
    """The ids of a text from those of its chunks.

    Args:
        encode: text -> ids and the code point at which each ends, int32 [n] each; None where the pieces do not spell
            the text. It puts a space before each text.
        limit: see ``ChunkTable``.
    """

    def __init__(self, encode: Callable[[str], IdsAndEnds | None], limit: int = 100_000) -> None:
        self._encode = encode
        self._table = ChunkTable(limit)  # its chunks are without their first space

    def __len__(self) -> int:
        return len(self._table)

    def pieces(self, text: str) -> IdsAndEnds | None:
        """The ids and ends that ``encode`` gives for a text."""
        chunks = _chunks(text)
        rows = self._table.recent(chunks)
        if not all(rows):
            unknown = {chunk for chunk, row in zip(chunks, rows, strict=True) if row is None}
            found = self._table.find(unknown, self._rows)
            if found is None:
                return self._encode(text)
            rows = [found[chunk] if row is None else row for chunk, row in zip(chunks, rows, strict=True)]
        ids, ends = join_rows(rows)  # pyright: ignore
        return ids, ends - np.int32(1)  # without the space before the text

    def _rows(self, chunks: set[str]) -> dict[str, bytes] | None:
        """The rows of chunks; None where pieces do not spell a chunk."""
        # A chunk of spaces alone goes to the end of the text: elsewhere its spaces would join those of the next chunk.
        unseen = sorted(chunks, key=lambda chunk: not chunk.strip(" "))
        # SentencePiece puts no space before a text of spaces alone, so such a text begins with a letter.
        if blank := not unseen[0].strip(" "):
            unseen.insert(0, "a")
        encoded = self._encode(" ".join(unseen))
        if encoded is None:
            return None
        rows = cut_rows(unseen, encoded[0], encoded[1] + np.int32(1))
        return {chunk: rows[chunk] for chunk in unseen[blank:]}


def _chunks(text: str) -> list[str]:
    """The chunks of a text before which a space was put, each without its first space."""
    chunks = text.split(" ") if text else []
    if "" in chunks:  # several spaces in a row, or one at an end
        return [chunk[1:] for chunk in _CHUNK.findall(f" {text}")]
    return chunks


@functools.lru_cache(maxsize=4)  # a process opens the same file several times: annotator, stream, cascade
def is_separable(model: bytes) -> bool:
    """Tell from a model's file whether the pieces of every text are those of its chunks, and spell it.

    That holds for a BPE model that puts a space before each text, changes nothing else, spells unknown characters in
    bytes, and has spaces at the beginning of pieces only.
    """
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    byte_pieces = 0
    for field, value in _fields(model):
        if field == _PIECES:
            piece = dict(_fields(value))
            kind = piece.get(_TYPE, 1)
            byte_pieces += kind == _BYTE
            if kind == _USER_DEFINED or not _SEPARABLE_PIECE.fullmatch(piece[_PIECE].decode()):
                return False
        elif field == _TRAINER:
            trainer |= dict(_fields(value))
        elif field == _NORMALIZER:
            normalizer |= dict(_fields(value))
    return (
        trainer.get(_MODEL_TYPE) == _BPE
        and not trainer.get(_SPACE_AS_SUFFIX, 0)
        and not normalizer.get(_CHARSMAP)
        and bool(normalizer.get(_DUMMY_PREFIX, 1))
        and not normalizer.get(_REMOVE_SPACES, 1)
        and bool(normalizer.get(_ESCAPE_SPACES, 1))
        and byte_pieces == 256
    )


# Two of the file's many fields are needed. The generated code of sentencepiece asks for another version of protobuf
# than the environment has, so the messages are read here.
def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message of Protocol Buffers: int, or bytes (also of a nested message)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            # Wire types: 0 is a varint, 1 has eight bytes, 5 has four, and 2 has its length before it.
            size, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(message, at)
            value = message[at : at + size]
            at += size
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        # Seven bits a byte, the lowest first. The highest bit says that another byte follows.
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
