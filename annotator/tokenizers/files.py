"""The name of a tokenizer -> its file, and the kind of that file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from annotator.errors import MissingFileError
from annotator.packages import package_file

SENTENCEPIECE, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # a token in base64, and its rank
_WAYS = (
    "Give a SentencePiece model, a tokenizer.json, or a folder with one of them; `pip install mistral-common` brings "
    "package:mistral_common/data/tokenizer.model.v1"
)


def tokenizer_file(name: str | os.PathLike[str]) -> Path:
    """The file that a name stands for.

    Args:
        name: a file; a folder with a SentencePiece model (tokenizer.model) or a tokenizer.json, the first where there
            are both; or ``package:NAME/PATH`` for one of these in an installed package.

    Raises:
        MissingFileError: there is no such file, folder or package.
        AnnotatorError: a folder without a tokenizer.
    """
    try:
        path = package_file(os.fspath(name))
    except ModuleNotFoundError as error:
        raise MissingFileError(f"{error}. {_WAYS}") from None
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(name)) and not path.parent.exists():
        raise MissingFileError(
            f"there is no file or folder {os.fspath(path)!r}, and names of the Hugging Face hub are not looked up. "
            f"`hf download {path} --include 'token*' '*.json' --local-dir DIR` fetches its tokenizer: give DIR. {_WAYS}"
        )
    raise MissingFileError(f"there is no file {os.fspath(path)!r}. {_WAYS}")


def _in_folder(folder: Path) -> Path:
    model, fast = folder / SENTENCEPIECE, folder / TOKENIZER_JSON
    if model.is_file() and not (fast.is_file() and describe_foreign_file(model)):
        return model
    if fast.is_file():
        return fast
    names = sorted(file.name for file in folder.iterdir())
    found = f"it has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "it is empty"
    raise MissingFileError(f"the folder {folder} has neither {SENTENCEPIECE} nor {TOKENIZER_JSON}: {found}. {_WAYS}")


def is_tokenizer_json(path: str | os.PathLike[str]) -> bool:
    """Tell by the first character whether a tokenizer's file is a tokenizer.json: no SentencePiece model begins with a
    brace.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(1) == b"{"


def describe_foreign_file(path: Path) -> str:
    """Say what a file is that is neither a SentencePiece model nor a tokenizer.json, and the way out; "" if it may be
    one of them."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head.startswith(b"GGUF"):
        return (
            f"{path} is a GGUF file. The tokenizer in it is a conversion, which may split texts in another way: give "
            "the tokenizer.json of the model that it was made from."
        )
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, and not the file itself: run `git lfs pull`, or download the file."
    if _TIKTOKEN_LINE.match(head):
        return (
            f"{path} is a tiktoken file, which lacks the pattern and the special tokens. Give the tokenizer.json of "
            "the model's folder; or convert it, with the pattern and the special tokens of the model's own code: "
            "TikTokenConverter(vocab_file=FILE, pattern=…, additional_special_tokens=[…]).converted()"
            ".save('tokenizer.json'), from transformers.convert_slow_tokenizer."
        )
    return ""
