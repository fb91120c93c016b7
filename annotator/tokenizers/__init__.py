"""Tokenizers: ``protocol`` says what is asked of one, ``open_tokenizer`` opens what a path holds.

Importing this imports no tokenizer's library.
"""

from __future__ import annotations

import os
from pathlib import Path

from annotator.errors import AnnotatorError, MissingFileError
from annotator.tokenizers.protocol import Tokenizer

__all__ = ["Tokenizer", "is_tokenizer_json", "open_tokenizer"]


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open the tokenizer that a file holds. This is the only place that knows the kinds of tokenizers.

    Args:
        path: a SentencePiece model.

    Raises:
        MissingFileError: there is no such file.
        AnnotatorError: the file is not a tokenizer of a known kind.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"tokenizer: no file {path}. Give the path of a SentencePiece model; "
            "`pip install mistral-common` brings one (mistral_common/data/tokenizer.model.v1)."
        )
    if is_tokenizer_json(path):
        raise AnnotatorError(
            f"tokenizer: {path} is not a SentencePiece model. A tokenizer.json (Hugging Face) is a "
            "different format: give the tokenizer.model file beside it."
        )
    from annotator.tokenizers.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path)


def is_tokenizer_json(path: str | os.PathLike[str]) -> bool:
    """Whether a tokenizer's file is a tokenizer.json of Hugging Face, by its first character: no SentencePiece model
    begins with a brace.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(1) == b"{"
