"""Packing on hand-built documents: nothing lost, nothing padded before the end, a cursor at every row."""

from __future__ import annotations

import numpy as np
import pytest

from annotator import FactClass, LabelledTokens
from lacy_stream.stream.packing import START, Cursor, LanePacker, Row

EOS = 9
LENGTHS = [3, 0, 11, 1, 5, 24, 2, 2, 6]


def document(number: int, length: int) -> LabelledTokens:
    """Tokens 100·number + i; every third is a fact."""
    ids = np.arange(length, dtype=np.int32) + 100 * (number + 1)
    classes = np.where(np.arange(length) % 3 == 0, FactClass.FACTUAL, FactClass.OTHER).astype(np.uint8)
    return LabelledTokens(ids, classes, np.zeros((length, 2), np.int32))


DOCUMENTS = [document(number, length) for number, length in enumerate(LENGTHS)]
STREAM = [
    (token, kind)
    for doc in DOCUMENTS
    for token, kind in [*zip(doc.ids.tolist(), doc.classes.tolist(), strict=True), (EOS, FactClass.GRAMMATICAL)]
]


def rows_from(cursor: Cursor, seq_len: int) -> tuple[list[Row], list[Cursor]]:
    """All rows after a cursor, and the cursor after each."""
    packer = LanePacker(seq_len, EOS, cursor)
    for doc in DOCUMENTS[cursor.document :]:
        packer.add(doc)
    rows, cursors = [], []
    while packer.buffered > 0:
        rows.append(packer.next_row())
        cursors.append(packer.cursor)
    return rows, cursors


@pytest.mark.parametrize("seq_len", [2, 4, 8, 64])
def test_rows_are_the_documents_one_after_the_other(seq_len: int) -> None:
    """The rows, joined, are the documents with an end-of-document token after each, and classes to match."""
    rows, _ = rows_from(START, seq_len)
    joined = [(int(i), int(c)) for row in rows for i, c in zip(row.ids[: row.length], row.classes, strict=False)]
    assert joined == STREAM
    assert all(row.length == seq_len for row in rows[:-1])


def test_last_row_is_padded_with_end_of_document() -> None:
    """Only the last row is short; its padding is the end-of-document token and says so by ``length``."""
    rows, _ = rows_from(START, 8)
    assert rows[-1].length == len(STREAM) % 8 != 0
    assert (rows[-1].ids[rows[-1].length :] == EOS).all()


@pytest.mark.parametrize("seq_len", [2, 5, 8])
def test_every_cursor_resumes_exactly(seq_len: int) -> None:
    """From the cursor after any row, packing continues with the rows that would have followed."""
    rows, cursors = rows_from(START, seq_len)
    for number, cursor in enumerate(cursors):
        again, _ = rows_from(cursor, seq_len)
        assert [row.ids.tolist() for row in again] == [row.ids.tolist() for row in rows[number + 1 :]]
        assert [row.classes.tolist() for row in again] == [row.classes.tolist() for row in rows[number + 1 :]]
