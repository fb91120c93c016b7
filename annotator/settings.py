"""The settings of an annotator, as one value that is passed to every place that makes one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotator.annotate import Annotator
    from annotator.tokenizers import Tokenizer


@dataclass(frozen=True)
class AnnotatorSettings:
    """The settings of an annotator. They load nothing, and they can be pickled.

    tokenizer: a SentencePiece model or a tokenizer.json, a folder with one of them, or ``package:NAME/PATH``.
    model:     name or path of an English spaCy pipeline, or None for tokens without fact labels.
    engine:    the program that runs the pipeline: "auto", "numba" or "spacy", see ``words.Parser``.
    labeller:  name of a labeller that marks facts in place of the pipeline and the rules, see ``annotator.labellers``.
    eos_token, split_special_tokens: arguments of ``annotator.tokenizers.open_tokenizer``.
    """

    tokenizer: str | os.PathLike[str]
    model: str | None = "en_core_web_sm"
    engine: str = "auto"
    labeller: str | None = None
    eos_token: str | None = None
    split_special_tokens: bool = True

    @property
    def finds_facts(self) -> bool:
        """True if a pipeline or a labeller marks facts in texts that come without labels."""
        return self.model is not None or self.labeller is not None

    def open_tokenizer(self) -> Tokenizer:
        """Open the tokenizer alone.

        Raises:
            FileNotFoundError, ValueError: as ``annotator.tokenizers.open_tokenizer``.
        """
        from annotator.tokenizers import open_tokenizer

        return open_tokenizer(self.tokenizer, self.eos_token, self.split_special_tokens)

    def build(self) -> Annotator:
        """Load the annotator.

        Raises:
            MissingFileError, AnnotatorError: see ``Annotator``.
        """
        from annotator.annotate import Annotator

        return Annotator(
            self.tokenizer,
            self.model,
            self.engine,
            self.labeller,
            eos_token=self.eos_token,
            split_special_tokens=self.split_special_tokens,
        )
