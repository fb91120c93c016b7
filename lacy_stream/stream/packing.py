"""LabelledTokens -> rows of fixed length.

A lane is an endless sequence of tokens: its documents one after the other, an end-of-document token behind
each, cut into rows of ``seq_len``. Documents are neither truncated nor padded; one that does not fit goes
on in the lane's next row. The position of a lane is a ``Cursor``, two integers, whatever lies ahead of it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator import FactClass, LabelledTokens


class Cursor(NamedTuple):
    """Where a lane's next row begins: ``token`` of the lane's ``document``-th document (its end-of-document
    token is the last one)."""

    document: int = 0
    token: int = 0


START = Cursor()


class Row(NamedTuple):
    """One training sequence.

    ids:     int64 [seq_len], token ids; ``eos_id`` behind each document.
    classes: uint8 [seq_len], the ``FactClass`` of each token; an end-of-document token is GRAMMATICAL, so
             that it is never delegated.
    length:  tokens before the padding; ``seq_len`` but for the last row of a finite stream.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.uint8]
    length: int


class LanePacker:
    """Packs the documents of one lane, from a cursor on."""

    def __init__(self, seq_len: int, eos_id: int, cursor: Cursor = START) -> None:
        self.cursor = cursor
        self.seq_len, self._eos_id = seq_len, eos_id
        self._documents: deque[tuple[NDArray[np.int32], NDArray[np.uint8]]] = deque()
        self.buffered = -cursor.token
        """Tokens that lie ready behind the cursor (negative before the cursor's own document is here)."""

    def add(self, labelled: LabelledTokens, end_of_document: bool = True) -> None:
        """Append the tokens of the lane's next document; without an end-of-document token where it is a row that has
        them inside."""
        ids, classes = labelled.ids, labelled.classes
        if end_of_document:
            ids = np.append(ids, np.int32(self._eos_id))
            classes = np.append(classes, np.uint8(FactClass.GRAMMATICAL))
        self._documents.append((ids, classes))
        self.buffered += len(ids)

    def next_row(self) -> Row:
        """Cut the next row and move the cursor; where fewer than ``seq_len`` tokens are left, pad with the
        end-of-document token. The caller asks only while ``buffered > 0``."""
        ids = np.full(self.seq_len, self._eos_id, np.int64)
        classes = np.full(self.seq_len, FactClass.GRAMMATICAL, np.uint8)
        filled, (document, token) = 0, self.cursor
        while filled < self.seq_len and self._documents:
            head_ids, head_classes = self._documents[0]
            count = min(self.seq_len - filled, len(head_ids) - token)
            ids[filled : filled + count] = head_ids[token : token + count]
            classes[filled : filled + count] = head_classes[token : token + count]
            filled, token = filled + count, token + count
            if token == len(head_ids):
                self._documents.popleft()
                document, token = document + 1, 0
        self.cursor = Cursor(document, token)
        self.buffered -= filled
        return Row(ids, classes, filled)
