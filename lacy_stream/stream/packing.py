"""Labelled documents -> rows of fixed length.

A lane is an endless sequence of tokens. It consists of documents, with an end-of-document token after each, and is cut
into rows of ``seq_len`` tokens. Documents are neither truncated nor padded: a document that does not fit continues in
the lane's next row. The position of a lane is a ``Cursor`` of two integers, no matter how much is read ahead.

For documents of 3, 5 and 1 tokens and ``seq_len`` 4, where ``.`` is the end-of-document token:

    tokens of the lane      a a a .   b b b b   b . c .
    cursor before the row   (0, 0)    (1, 0)    (1, 4)
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator import FactClass, LabelledTokens


class Cursor(NamedTuple):
    """The place in a lane where its next row begins."""

    document: int = 0
    """Number of the document, counted in the lane from 0."""
    token: int = 0
    """Number of the token in that document, whose last token is its end-of-document token."""


START = Cursor()


class Row(NamedTuple):
    """One training sequence."""

    ids: NDArray[np.int64]
    """int64 [seq_len]: token ids, with ``eos_id`` after each document."""
    classes: NDArray[np.uint8]
    """uint8 [seq_len]: the ``FactClass`` of each token. End-of-document tokens are GRAMMATICAL, so they are never
    delegated."""
    length: int
    """Number of tokens before the padding: ``seq_len``, except in the last row of a finite lane."""


class LanePacker:
    """Packs the documents of one lane into rows, starting at a cursor.

    Args:
        seq_len: tokens in a row.
        eos_id: id of the end-of-document token.
        cursor: where the first row begins. The first document to be added is the cursor's own.
    """

    def __init__(self, seq_len: int, eos_id: int, cursor: Cursor = START) -> None:
        self.cursor = cursor
        self.seq_len, self._eos_id = seq_len, eos_id
        self._documents: deque[tuple[NDArray[np.int32], NDArray[np.uint8]]] = deque()
        self.buffered = -cursor.token
        """Number of tokens that are ready to be packed. It is negative until the cursor's own document was added, since
        the tokens before the cursor belong to rows of the past."""

    def add(self, labelled: LabelledTokens, end_of_document: bool = True) -> None:
        """Append the lane's next document.

        Args:
            labelled: its tokens.
            end_of_document: False for a row of token ids that brings its own end-of-document tokens.
        """
        ids, classes = labelled.ids, labelled.classes
        if end_of_document:
            ids = np.append(ids, np.int32(self._eos_id))
            classes = np.append(classes, np.uint8(FactClass.GRAMMATICAL))
        self._documents.append((ids, classes))
        self.buffered += len(ids)

    def next_row(self) -> Row:
        """Cut the next row and move the cursor. If fewer than ``seq_len`` tokens are ready, the rest of the row is
        padded with the end-of-document token. Call this only while ``buffered > 0``."""
        ids = np.full(self.seq_len, self._eos_id, np.int64)
        classes = np.full(self.seq_len, FactClass.GRAMMATICAL, np.uint8)
        # The cursor's document is always the first of ``_documents``: a document leaves them when its last token is
        # packed.
        filled, (document, token) = 0, self.cursor
        while filled < self.seq_len and self._documents:
            head_ids, head_classes = self._documents[0]
            # As much of the document as the row has room for.
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
