"""Documents that cannot be annotated: they keep their tokens, get no fact labels, and are named."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from lacy_stream.errors import LacyStreamError
from lacy_stream.stream.report import Report

if TYPE_CHECKING:
    from annotator import Annotator, AnnotatorSettings, Document, LabelledTokens


class AnnotationError(LacyStreamError, RuntimeError):
    """The pool cannot annotate: no worker starts, too many documents fail, or it was closed."""


class Quarantine:
    """The documents of a pool that cannot be annotated. Safe to use from several threads.

    Args:
        settings: the annotator, whose tokenizer gives the documents their tokens.
        limit: number of documents that it may hold.
        report: gets an event for each document.
    """

    def __init__(self, settings: AnnotatorSettings, limit: int, report: Report) -> None:
        self._settings, self._limit, self._report = settings, limit, report
        self._lock = threading.Lock()
        self.reasons: dict[str, str] = {}
        """Document id -> why it is here."""

    def add(self, document: Document, reason: str) -> LabelledTokens:
        """Take a document.

        Returns:
            Its tokens without facts, or no tokens if it cannot even be tokenised.

        Raises:
            AnnotationError: there are too many.
        """
        try:
            unlabelled = replace(document, annotate=False)  # without its spans, which may be the cause
            labels, event = self._plain.label([unlabelled])[0], "document_quarantined"
        except ValueError:
            labels, event = self._plain.annotate([""])[0], "document_skipped"
            reason = f"it cannot be tokenised: {reason}"
        self._report.add(event, document.id, reason)
        with self._lock:
            self.reasons[document.id] = reason
            named = [f"{name!r}: {why}" for name, why in list(self.reasons.items())[:5]]
            count = len(self.reasons)
        if count > self._limit:
            raise AnnotationError(
                f"{count} documents could not be annotated, and quarantine_limit is {self._limit}: {'; '.join(named)}"
            )
        return labels

    @cached_property
    def _plain(self) -> Annotator:
        """Tokenises what cannot be annotated. Two threads may both make one at first, which does no harm."""
        return replace(self._settings, model=None, labeller=None).build()
