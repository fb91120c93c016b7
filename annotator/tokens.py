"""Text and word classes -> labelled SentencePiece tokens. The only file that imports sentencepiece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from annotator.records import FactClass, LabelledTokens, Words

VERSION: str = sentencepiece.__version__

Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


class Tokenizer:
    """A SentencePiece model that gives every token its place in the text and the class of its word.

    Args:
        path: a SentencePiece model file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a SentencePiece model.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"tokenizer: no file {path}. Give the path of a SentencePiece model; "
                "`pip install mistral-common` brings one (mistral_common/data/tokenizer.model.v1)."
            )
        data = path.read_bytes()
        self._sp = sentencepiece.SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise ValueError(
                f"tokenizer: {path} is not a SentencePiece model. A tokenizer.json (Hugging Face) is a "
                "different format: give the tokenizer.model file beside it."
            ) from error
        self._encode = _encoder_with_offsets(self._sp)
        self.sha256 = hashlib.sha256(data).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._sp.get_piece_size()

    @property
    def eos_id(self) -> int:
        """Id of the end-of-sequence piece, -1 if the model has none."""
        return self._sp.eos_id()

    def label(self, text: str, words: Words | None = None, classes: NDArray[np.uint8] | None = None) -> LabelledTokens:
        """Tokenise a whole text and give each token the class of the word that it belongs to.

        A token belongs to the word that holds its first code point other than a space; a token of spaces
        only, or of no code point (SentencePiece spells a character that it does not know in bytes, and
        only the last byte gets the character's width), to the word at its end. So the lone space token
        before a number counts with the number, as the space before any other word does. A token
        that belongs to no word is OTHER, and without ``words`` every token is.

        Raises:
            ValueError: the tokenizer's offsets run backwards or leave the text.
        """
        ids, pairs = self._encode(text)
        offsets = _total_offsets(np.array(pairs, dtype=np.int32).reshape(-1, 2), text)
        labels = np.full(len(ids), FactClass.OTHER, dtype=np.uint8)
        if words is not None and classes is not None and len(words) and len(ids):
            word = words_of_pieces(offsets, text, words)
            labels[word >= 0] = classes[word[word >= 0]]
        return LabelledTokens(np.array(ids, dtype=np.int32), labels, offsets)


def words_of_pieces(offsets: NDArray[np.int32], text: str, words: Words) -> NDArray[np.intp]:
    """Index of the word that each piece belongs to (see ``Tokenizer.label``), -1 for none; intp [n]."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    # Position of the first code point other than U+0020 at or after each position.
    inked = np.append(np.flatnonzero(code_points != 0x20), len(text))
    anchor = inked[np.searchsorted(inked, offsets[:, 0])]
    anchor = np.minimum(anchor, offsets[:, 1])
    word = np.searchsorted(words.start, anchor, side="right") - 1
    inside = (word >= 0) & (anchor < words.end[word])
    return np.where(inside, word, -1)


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
        ValueError: the offsets run backwards or leave the text, with the first such place.
    """
    if not len(offsets):
        return offsets
    end = offsets[:, 1].copy()
    end[-1] = len(text)
    start = np.minimum(offsets[:, 0], np.append(np.int32(0), end[:-1]))
    backwards = (np.diff(start, prepend=0) < 0) | (np.diff(end, prepend=0) < 0) | (start > end)
    if backwards.any() or end.max() > len(text):
        at = int(np.argmax(backwards))
        place = int(start[at])
        raise ValueError(
            f"tokenizer: its offsets do not follow the text (piece {at}, code points {offsets[at].tolist()}, "
            f"near {text[max(0, place - 20) : place + 20]!r}). Use a SentencePiece model whose normalisation "
            "keeps the order of the characters."
        )
    return np.stack([start, end], axis=1)
