"""Text <-> SentencePiece's pieces. The only file that imports sentencepiece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from annotator.errors import AnnotatorError
from annotator.records import Pieces
from annotator.tokenizers.piece_table import PieceTable, is_separable
from annotator.tokenizers.rows import as_row, cut_row, describe_outside
from annotator.tokenizers.spelling import REPLACEMENT, Spellings, offsets_of

Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]

_SPACE = "\u2581"  # stands for U+0020 in SentencePiece's vocabularies


class SentencePieceTokenizer:
    """A ``Tokenizer`` that is a SentencePiece model.

    Args:
        path: a SentencePiece model file.
        eos_token: the piece that ends a text; None for the model's own.

    Raises:
        AnnotatorError: the file is not a SentencePiece model, or has no such piece.
    """

    def __init__(self, path: Path, eos_token: str | None = None) -> None:
        self._path = path
        data = path.read_bytes()
        self._sp = sentencepiece.SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise AnnotatorError(f"tokenizer: {path} is not a SentencePiece model.") from error
        self._encode = _encoder_with_offsets(self._sp)
        self._table = PieceTable(self._encode_spelled) if is_separable(data) else None
        self.adds_space = self._sp.encode("a", out_type=str)[0].startswith(_SPACE)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.identity = {"tokenizer": self.sha256, "sentencepiece": sentencepiece.__version__}
        self.eos_id = self._sp.eos_id()
        if eos_token is not None:
            # An unknown name gives the id of the unknown piece, so the name is compared.
            self.eos_id = self._sp.piece_to_id(eos_token)
            if self._sp.id_to_piece(self.eos_id) != eos_token:
                raise AnnotatorError(f"tokenizer: eos_token {eos_token!r} is no piece of {path}.")
            self.identity |= {"special tokens": f"end {self.eos_id}"}

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._sp.get_piece_size()

    @property
    def bos_id(self) -> int:
        """Id of the beginning-of-sequence piece, -1 if the model has none."""
        return self._sp.bos_id()

    @property
    def files(self) -> list[Path]:
        """The model's file."""
        return [self._path]

    def pieces(self) -> list[str]:
        """The name of each id, in which U+2581 stands for a space."""
        return [self._sp.id_to_piece(id) for id in range(self.vocab_size)]

    def scores(self) -> list[float]:
        """The score of each id: in a BPE model, minus its rank among the merges."""
        return [self._sp.get_score(id) for id in range(self.vocab_size)]

    def spellings(self) -> list[bytes | None]:
        """The spelling of each id in UTF-8, with spaces as spaces; None for ids that no text has (control, unknown)."""
        spelling = self._spellings.spelling
        none = self._spellings.control | np.array([self._sp.is_unknown(id) for id in range(self.vocab_size)])
        return [None if gone else spelled for spelled, gone in zip(spelling, none.tolist(), strict=True)]

    def encode(self, text: str) -> Pieces:
        """The pieces of a whole text.

        Raises:
            AnnotatorError: the tokenizer's offsets run backwards or leave the text.
        """
        found = self._encode_spelled(text) if self._table is None else self._table.pieces(text)
        if found is not None:
            return self._pieces(text, found[0], offsets_of(found[1]))
        ids, pairs = self._encode(text)
        offsets = _total_offsets(np.array(pairs, dtype=np.int32).reshape(-1, 2), text)
        return self._pieces(text, np.array(ids, dtype=np.int32), offsets)

    def decode(self, ids: NDArray[np.int32]) -> Pieces:
        """The text that the ids of one text, or of a part of one, spell.

        Control pieces spell nothing, and an unknown piece spells one U+FFFD. Byte pieces spell UTF-8 together: the last
        byte of a character has its width, and a byte that belongs to no character is one U+FFFD. If the tokenizer puts
        a space before each text, one space at the beginning is dropped. So ``decode(encode(text).ids)`` has the same
        text, unless normalisation changed it. A part from the middle of a text loses the space before its first word,
        so that its first piece is narrower by one.

        Raises:
            AnnotatorError: not a row of integers, or an id that the tokenizer does not have, with its position.
        """
        return self._read(self._check_row(ids))

    def segments(self, ids: NDArray[np.integer]) -> list[Pieces]:
        """Cut a row of ids into its documents (see ``rows.cut_row``), and decode each segment on its own.

        Several unknown pieces at an end of a segment are padding: they are control pieces there.

        Returns:
            At least one segment, of no pieces for an empty row.

        Raises:
            AnnotatorError: as ``decode``.
        """
        parts = cut_row(self._check_row(ids), self._spellings.control, self.eos_id, self.bos_id)
        return [self._spellings.read_segment(part, self._sp.unk_id()) for part in parts]

    def _pieces(self, text: str, ids: NDArray[np.int32], offsets: NDArray[np.int32]) -> Pieces:
        return Pieces(text, ids, offsets, self._spellings.control[ids])

    def _read(self, ids: NDArray[np.int32]) -> Pieces:
        text, end = self._spellings.read(ids)
        return self._pieces(text, ids, offsets_of(end))

    @cached_property
    def _spellings(self) -> Spellings:
        sp, ids = self._sp, range(self.vocab_size)
        control = [sp.is_control(i) for i in ids]
        spelling = [b"" if control[i] else self._spelling(i) for i in ids]
        spaced = [self.adds_space and sp.id_to_piece(i).startswith(_SPACE) for i in ids]
        return Spellings.of(spelling, np.array(control, np.bool_), np.array(spaced, np.bool_))

    def _spelling(self, id: int) -> bytes:
        piece = self._sp.id_to_piece(id)
        if self._sp.is_byte(id):
            return bytes([int(piece[1:-1], 16)])  # <0xEA>
        return (REPLACEMENT if self._sp.is_unknown(id) else piece.replace(_SPACE, " ")).encode()

    def _check_row(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        row = as_row(ids)
        outside = np.flatnonzero((row < 0) | (row >= self.vocab_size))
        if len(outside):
            raise AnnotatorError(describe_outside(row, outside, self.vocab_size))
        return row.astype(np.int32)

    def _encode_spelled(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """The ids and the end of each, if the pieces spell the text; None if normalisation has changed it."""
        ids = np.array(self._sp.encode(text), dtype=np.int32)
        spelled, end = self._spellings.read(ids)
        return (ids, end.astype(np.int32)) if spelled == text else None


def _encoder_with_offsets(sp: sentencepiece.SentencePieceProcessor) -> Encode:
    """Text -> ids and (start, end) in code points, by whichever interface this sentencepiece has."""

    def by_mapping(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        result = sp.encode(text, return_type="offset_mapping")
        return result["ids"], result["offsets"]

    def by_proto(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        pieces = sp.encode(text, out_type="immutable_proto").pieces  # pyright: ignore
        return [p.id for p in pieces], [(p.begin, p.end) for p in pieces]

    try:
        by_proto("a")
    except (ValueError, RuntimeError):
        return by_mapping  # 0.2.3 has no immutable_proto
    return by_proto


def _total_offsets(offsets: NDArray[np.int32], text: str) -> NDArray[np.int32]:
    """Let the offsets cover the text from 0 to its end: a piece takes the text that was dropped before it.

    A SentencePiece model may drop white space (at the ends, or repeated) when it normalises a text.

    Raises:
        AnnotatorError: the offsets run backwards or leave the text, with the first such place.
    """
    if not len(offsets):
        return offsets
    # The last piece takes what was dropped at the end, and no piece begins after the end of the one before it.
    end = offsets[:, 1].copy()
    end[-1] = len(text)
    start = np.minimum(offsets[:, 0], np.append(np.int32(0), end[:-1]))
    backwards = (np.diff(start, prepend=0) < 0) | (np.diff(end, prepend=0) < 0) | (start > end)
    if backwards.any() or end.max() > len(text):
        at = int(np.argmax(backwards))
        place = int(start[at])
        raise AnnotatorError(
            f"tokenizer: its offsets do not follow the text (piece {at}, code points {offsets[at].tolist()}, "
            f"near {text[max(0, place - 20) : place + 20]!r}). Use a SentencePiece model whose normalisation "
            "keeps the order of the characters."
        )
    return np.stack([start, end], axis=1)
