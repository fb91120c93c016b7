"""Text -> tokens with fact labels (LaCy, appendix A.2.1). Importing this package imports neither spaCy nor torch."""

from annotator.annotate import Annotator, Explanation
from annotator.errors import AnnotatorError
from annotator.records import Document, FactClass, LabelledTokens, Words
from annotator.settings import AnnotatorSettings

__all__ = [
    "Annotator",
    "AnnotatorError",
    "AnnotatorSettings",
    "Document",
    "Explanation",
    "FactClass",
    "LabelledTokens",
    "Words",
]
