"""The interface of a tokenizer, as the annotator and the stream use it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from annotator.records import Pieces


class Tokenizer(Protocol):
    """Text <-> pieces, each with its id and its place in the text. ``annotator.tokenizers.open_tokenizer`` makes one.

    sha256:     hex digest of the tokenizer's file.
    files:      the tokenizer's file, and those beside it that belong to it.
    vocab_size: one more than the highest id of a piece. A tokenizer.json may have holes below it: ids of no piece.
                ``<CALL>`` is not a piece.
    eos_id:     id of the piece that ends a text, -1 if there is none.
    bos_id:     id of the piece that begins a text, -1 if there is none. ``encode`` does not put it there.
    adds_space: whether the tokenizer puts a space before each text.
    identity:   all that the pieces of a text depend on, by name: the file's digest and the version of the code.
    """

    @property
    def sha256(self) -> str: ...

    @property
    def files(self) -> list[Path]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def adds_space(self) -> bool: ...

    @property
    def identity(self) -> dict[str, str]: ...

    def pieces(self) -> list[str]:
        """The name of each id, "" for a hole."""
        ...

    def spellings(self) -> list[bytes | None]:
        """The spelling of each id in UTF-8, with spaces as spaces; None for ids that no text has (control, unknown,
        hole)."""
        ...

    def encode(self, text: str) -> Pieces:
        """The pieces of a whole text. Nothing is put before or after it. Names of control pieces are text, except for a
        tokenizer.json that was opened with ``split_special_tokens=False``.

        Raises:
            ValueError: the text cannot be aligned with its pieces.
        """
        ...

    def decode(self, ids: NDArray[np.int32]) -> Pieces:
        """The text that the ids of one text, or of a part of one, spell.

        Control pieces spell nothing, and a byte that belongs to no character is one U+FFFD. Where the tokenizer puts
        a space before each text, one space at the beginning is dropped.

        Raises:
            ValueError: not a row of integers, or an id that the tokenizer does not have, with its position.
        """
        ...

    def segments(self, ids: NDArray[np.integer]) -> list[Pieces]:
        """Cut a row of ids into its documents, and decode each segment on its own. A row is cut after each
        end-of-sequence id, before each beginning-of-sequence id, and after any other control ids. Several unknown
        pieces at an end of a segment are padding: they are control pieces there, and spell nothing.

        Returns:
            At least one segment, of no pieces for an empty row.

        Raises:
            ValueError: as ``decode``.
        """
        ...
