"""A run's tokenizer -> the annotation pool of its loaders.

Foundry's tokenizer is one of transformers. The annotator needs a file that gives each token the same id.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from annotator import AnnotatorError, AnnotatorSettings
from annotator.tokenizers import Tokenizer, open_tokenizer
from lacy_stream.errors import UsageError
from lacy_stream.foundry.settings import Annotation
from lacy_stream.stream.pool import AnnotationPool, default_num_workers

KEY = "annotator.tokenizer"

_pools: dict[tuple[Any, ...], AnnotationPool] = {}
_users: Counter[tuple[Any, ...]] = Counter()
_saved: dict[str, tempfile.TemporaryDirectory[str]] = {}


def shared_pool(path: Path, annotation: Annotation) -> AnnotationPool:
    """The pool with these settings, one for all loaders of a process that ask for the same."""
    key = _key(path, annotation)
    if key not in _pools:
        workers = annotation.num_workers
        if workers is None:
            workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        _pools[key] = AnnotationPool(
            AnnotatorSettings(path, annotation.model, annotation.engine, annotation.labeller),
            workers,
            remote=annotation.remote,
            timeout_s=annotation.timeout_s,
            label_cache=annotation.label_cache,
            label_cache_limit=int(annotation.label_cache_limit_gb * 1e9),
        )
    return _pools[key]


def close_with(user: object, path: Path, annotation: Annotation) -> None:
    """Close the pool with these settings when ``user`` and all its other users are gone."""
    key = _key(path, annotation)
    _users[key] += 1
    # Foundry does not close its loaders. A pool ends when the last loader that uses it is collected.
    weakref.finalize(user, _leave, key)


def _leave(key: tuple[Any, ...]) -> None:
    _users[key] -= 1
    if not _users[key] and key in _pools:
        _pools.pop(key).close()


def _key(path: Path, annotation: Annotation) -> tuple[Any, ...]:
    return path, annotation.model_dump_json()


# --- the file of the tokenizer ------------------------------------------------------------------------------------


def file_of_ids(tokenizer: PreTrainedTokenizerBase, annotation: Annotation) -> Path:
    """A file whose tokenizer reads the ids of the run's tokenizer.

    Raises:
        UsageError: there is none, or the file that is named has other tokens.
    """
    problems: list[str] = []
    for path, _ in _with_same_ids(tokenizer, annotation, problems):
        return path
    raise _no_file(tokenizer, problems)


def file_of_texts(tokenizer: PreTrainedTokenizerBase, annotation: Annotation) -> tuple[Path, str | None]:
    """A file whose tokenizer gives texts the ids that the run's tokenizer gives them.

    Returns:
        The file. If the YAML names one that tokenises otherwise, also what differs, for its user to decide.

    Raises:
        UsageError: there is none.
    """
    problems: list[str] = []
    for path, ours in _with_same_ids(tokenizer, annotation, problems):
        difference = _differing_text(tokenizer, ours)
        if difference is None or annotation.tokenizer is not None:
            return path, difference
        problems.append(f"{path}: {difference}")
    raise _no_file(tokenizer, problems)


def _with_same_ids(
    tokenizer: PreTrainedTokenizerBase, annotation: Annotation, problems: list[str]
) -> Iterator[tuple[Path, Tokenizer]]:
    """The files that may be the run's tokenizer and have its ids; ``problems`` gets a line for each other one."""
    for path in _candidates(tokenizer, annotation):
        try:
            ours = open_tokenizer(path)
        except AnnotatorError as error:
            problems.append(f"{path}: {error}")
            continue
        difference = _differing_id(tokenizer, ours)
        if difference is None:
            yield path, ours
        else:
            problems.append(f"{path}: {difference}")


def _candidates(tokenizer: PreTrainedTokenizerBase, annotation: Annotation) -> Iterator[Path]:
    if annotation.tokenizer is not None:
        yield Path(annotation.tokenizer)
        return
    vocabulary = getattr(tokenizer, "vocab_file", None)
    if vocabulary and os.path.isfile(vocabulary) and not os.fspath(vocabulary).endswith((".json", ".txt")):
        yield Path(vocabulary)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        yield _saved_file(tokenizer)


def _saved_file(tokenizer: PreTrainedTokenizerBase) -> Path:
    """The ``tokenizer.json`` of a fast tokenizer as it is in this run, in a folder that lives as long as the
    process."""
    content: str = tokenizer.backend_tokenizer.to_str()  # pyright: ignore
    digest = hashlib.sha256(f"{content}{tokenizer.special_tokens_map}".encode()).hexdigest()
    if digest not in _saved:
        if not _saved:
            atexit.register(_saved.clear)
        _saved[digest] = tempfile.TemporaryDirectory(prefix="lacy-stream-tokenizer-")
        tokenizer.save_pretrained(_saved[digest].name)
    return Path(_saved[digest].name) / "tokenizer.json"


def _differing_id(tokenizer: PreTrainedTokenizerBase, ours: Tokenizer) -> str | None:
    """The first id that names another token in the run's tokenizer."""
    theirs = tokenizer.convert_ids_to_tokens(list(range(min(ours.vocab_size, len(tokenizer)))))  # pyright: ignore
    for number, (their, our) in enumerate(zip(theirs, ours.pieces(), strict=False)):
        if (their or "") != our:  # an id that no token has
            return f"id {number} is {our!r} there and {their!r} in the run's tokenizer"
    return None


PROBES = ("Hello", "Marie Curie was born in Warsaw in 1867.", " two  spaces\n\nand lines ", "naïve “quotes” 東京 🙂")


def _differing_text(tokenizer: PreTrainedTokenizerBase, ours: Tokenizer) -> str | None:
    """The first text of a few that the run's tokenizer gives other ids."""
    for text in PROBES:
        their: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
        our = ours.encode(text).ids.tolist()
        if their != our:
            return f"the text {text!r} has the ids {our} there and {their} in the run's tokenizer"
    return None


def _no_file(tokenizer: PreTrainedTokenizerBase, problems: list[str]) -> UsageError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    reason = "; ".join(problems) or "it has neither a SentencePiece file nor a tokenizer.json"
    return UsageError(
        f"{KEY}: no file goes with the tokenizer {name!r}: {reason}. Give the path of the tokenizer file that made the "
        f"tokens as {KEY}"
    )
