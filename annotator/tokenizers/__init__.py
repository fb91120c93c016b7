"""Tokenizers: ``protocol`` is their interface, and ``open_tokenizer`` opens the tokenizer at a path.

Importing this package imports no tokenizer's library.
"""

from __future__ import annotations

import os

from annotator.errors import AnnotatorError
from annotator.tokenizers.files import describe_foreign_file, is_tokenizer_json, tokenizer_file
from annotator.tokenizers.protocol import Tokenizer

__all__ = ["Tokenizer", "is_tokenizer_json", "open_tokenizer", "tokenizer_file"]


def open_tokenizer(
    name: str | os.PathLike[str], eos_token: str | None = None, split_special_tokens: bool = True
) -> Tokenizer:
    """Open a tokenizer. This is the only place that knows the kinds of tokenizers.

    Args:
        name: a SentencePiece model or a tokenizer.json; a folder with one of them; or ``package:NAME/PATH``.
        eos_token: the piece that ends a document; None for the one that the tokenizer's own files name.
        split_special_tokens: the name of a special token in a text is spelled out as the characters that it is. False:
            it becomes the special token, as in transformers' default. A SentencePiece model always spells.

    Raises:
        MissingFileError: there is no such file.
        AnnotatorError: the file is not a tokenizer of a known kind, or has no such piece.
    """
    try:
        path = tokenizer_file(name)
    except AnnotatorError as error:
        raise type(error)(f"tokenizer: {error}") from None
    if problem := describe_foreign_file(path):
        raise AnnotatorError(f"tokenizer: {problem}")
    if is_tokenizer_json(path):
        from annotator.tokenizers.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, eos_token, split_special_tokens)
    from annotator.tokenizers.sentencepiece import SentencePieceTokenizer

    if not split_special_tokens:
        raise AnnotatorError(
            f"tokenizer: {path} is a SentencePiece model, which always spells the names of special tokens: "
            "split_special_tokens must be true."
        )
    return SentencePieceTokenizer(path, eos_token)
