"""The settings of an annotator, as one value that is passed to every place that makes one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotator.annotate import Annotator


@dataclass(frozen=True)
class AnnotatorSettings:
    """The settings of an annotator. They load nothing, and they can be pickled.

    tokenizer: path of the tokenizer's file, see ``annotator.tokenizers.open_tokenizer``.
    model:     name or path of an English spaCy pipeline, or None for tokens without fact labels.
    engine:    the program that runs the pipeline: "auto", "numba" or "spacy", see ``words.Parser``.
    labeller:  name of a labeller that marks facts in place of the pipeline and the rules, see ``annotator.labellers``.
    """

    tokenizer: str | os.PathLike[str]
    model: str | None = "en_core_web_sm"
    engine: str = "auto"
    labeller: str | None = None

    @property
    def finds_facts(self) -> bool:
        """True if a pipeline or a labeller marks facts in texts that come without labels."""
        return self.model is not None or self.labeller is not None

    def build(self) -> Annotator:
        """Load the annotator.

        Raises:
            MissingFileError, AnnotatorError: see ``Annotator``.
        """
        from annotator.annotate import Annotator

        return Annotator(self.tokenizer, self.model, self.engine, self.labeller)
