"""Looks for text in the rows of a stream, and for separators in rows of token ids."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from annotator import LabelledTokens
from annotator.tokenizers import Tokenizer
from lacy_stream.stream.mds_index import DataError

log = logging.getLogger(__name__)

FEWEST_ROWS = 64
"""Rows without text, one after another, before a stream is taken to have none."""
MOST_DOCUMENTS = 10_000
"""Documents without a token, one after another in a lane, after which no more are tried; fewer where the data are."""
WATCHED_ROWS = 100
"""Rows of token ids, at the beginning of a stream, whose separators are counted for a warning."""


class Contents:
    """Looks at the documents and rows of one stream as they pass.

    Args:
        tokenizer: of the stream.
        documents: in an epoch.
        lanes: of this rank.
    """

    def __init__(self, tokenizer: Tokenizer, documents: int, lanes: int) -> None:
        spellings = tokenizer.spellings()
        self._control_V = np.array([spelling is None for spelling in spellings], np.bool_)
        self._text_V = np.array([bool(spelling and spelling.strip()) for spelling in spellings], np.bool_)
        if not self._text_V.any():  # what the tokenizer's pieces spell is not known
            self._text_V = ~self._control_V
        self._documents = min(documents, MOST_DOCUMENTS)
        self._rows = max(lanes, FEWEST_ROWS)
        self._empty_rows = 0  # without text, since the last row with text
        self._last: deque[str] = deque(maxlen=3)  # documents without text
        self.rows_of_ids = self.unseparated_rows = self.documents_with_text = 0

    def add_document(self, document_id: str, labelled: LabelledTokens, is_row: bool) -> None:
        """Look at a document, or at a row of token ids."""
        if self._text_V[labelled.ids].any():
            self.documents_with_text += 1
        else:
            self._last.append(document_id)
        if is_row and len(labelled):
            self.rows_of_ids += 1
            self.unseparated_rows += not self._control_V[labelled.ids].any()
            if self.rows_of_ids == self.unseparated_rows == WATCHED_ROWS:
                log.warning(
                    "none of the first %d rows of token ids has a control token, such as the end of a document: each "
                    "row is labelled as one text. If documents are separated by other ids, name that piece as "
                    "eos_token of the tokenizer",
                    WATCHED_ROWS,
                )

    def add_row(self, ids_T: NDArray[np.int64], reasons: Mapping[str, str]) -> None:
        """Look at a row of an endless stream.

        Args:
            reasons: document id -> why it could not be annotated.

        Raises:
            DataError: no row of the last ones has text.
        """
        if self._text_V[ids_T].any():
            self._empty_rows = 0
            return
        self._empty_rows += 1
        if self._empty_rows >= self._rows:
            raise DataError(self._describe(f"the last {self._empty_rows} rows of the stream have no text", reasons))

    def check_lane(self, documents: int, reasons: Mapping[str, str]) -> None:
        """Refuse to try more documents of a lane for its next row.

        Args:
            documents: tried one after another, all without a token.
            reasons: document id -> why it could not be annotated.

        Raises:
            DataError: they are enough.
        """
        if documents >= self._documents:
            raise DataError(self._describe(f"{documents} documents of the stream in a row give no token", reasons))

    def empty_pass(self, reasons: Mapping[str, str]) -> DataError:
        """The error for a pass over all documents in which there was no text."""
        return DataError(self._describe("no document of the stream has text", reasons))

    def _describe(self, what: str, reasons: Mapping[str, str]) -> str:
        known = [name for name in self._last if name in reasons] or list(reasons)[-3:]
        examples = "; ".join(f"{name!r}: {reasons[name]}" for name in known)
        if not examples:
            examples = ", ".join(map(repr, self._last)) + " have no text" if self._last else "none was annotated"
        return (
            f"{what}, so there is nothing to learn from. {examples}. Look at the data, and at the column that is read"
        )
