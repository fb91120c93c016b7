"""A batch of documents in a worker's process: annotated, with an error text for each document that fails."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy must not be loaded before a worker has limited its threads
    from annotator import Annotator, AnnotatorSettings, Document, LabelledTokens


def build_annotator(settings: AnnotatorSettings) -> Annotator:
    """Load the annotator of a process that does nothing else. torch is hidden from it where nothing needs it.

    Raises:
        MissingFileError, AnnotatorError: see ``Annotator``.
    """
    if settings.labeller is None and (settings.model is None or not settings.model.endswith("_trf")):
        sys.modules["torch"] = None  # type: ignore[assignment]  # thinc would import it without use: 4 s, 0.4 GB
    return settings.build()


def annotate_and_name(
    annotator: Annotator, documents: list[Document]
) -> tuple[list[LabelledTokens | str], dict[str, str]]:
    """Annotate a batch, and find the documents on which the engine failed.

    The parser only counts its failures. If the count has risen, which is rare, the documents are annotated once more,
    each alone. This gives the same labels, and the count then tells which documents it was.

    Returns:
        The results, and document id -> reason.
    """
    before = _fallbacks(annotator)
    results = _annotate(annotator, documents)
    if _fallbacks(annotator) == before:
        return results, {}
    named: dict[str, str] = {}
    for document in documents:
        before = _fallbacks(annotator)
        _annotate(annotator, [document])
        if count := _fallbacks(annotator) - before:
            named[document.id] = f"the engine failed on {count:.0f} text(s) of it (see the log); spaCy annotated them"
    return results, named


def _fallbacks(annotator: Annotator) -> float:
    return annotator.stats().get("fallbacks", 0)


def _annotate(annotator: Annotator, documents: list[Document]) -> list[LabelledTokens | str]:
    """Annotate a batch. If it fails, annotate document by document, so that only the right one gets the error."""
    try:
        return [*annotator.label(documents)]
    except Exception as error:
        if len(documents) == 1:
            return ["".join(traceback.format_exception_only(error)).strip()]
        return [result for document in documents for result in _annotate(annotator, [document])]
