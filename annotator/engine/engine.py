"""Texts -> Words: the steps of the engine in their order. The package's docstring explains each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine import layers
from annotator.engine.compiled import kernel
from annotator.engine.entities import find_entities, read_entity_moves
from annotator.engine.network import Network
from annotator.engine.parser import TextPlaces, parse, read_parser_moves
from annotator.engine.ruler import WordAttributes, apply_rules, read_patterns
from annotator.engine.scorer import StateScorer
from annotator.engine.spelling import Lexicon, Spelling
from annotator.engine.structure import Floats, read_pipeline
from annotator.engine.tree import find_noun_chunks, finish_trees, read_labels
from annotator.engine.vectors import VectorTable
from annotator.records import Dep, Ent, Pos, Words

# Zero rows between two texts: as many as the network has convolutions, so that no text sees another.
GAP = 4
# Texts go through the network in groups of about this many rows, whose buffers fit into the processor's cache.
GROUP_ROWS = 4096

# Part of the fingerprint: raise it with every change that can move a label, if only by rounding.
VERSION = "2"


class InexactError(Exception):
    """A text or a pipeline for which the engine cannot promise spaCy's result."""


class Analysis(NamedTuple):
    """The result of the pipeline for several texts. The arrays are [words] unless they say otherwise.

    spelling:    the words themselves, and where each text begins.
    tag:         int32, index into ``Engine.tags``.
    head:        int32, index of the head within the text; the root of a sentence is its own head.
    dep:         int32, index into ``Engine.labels``.
    pos:         uint8, ``Pos`` values.
    sent_start:  bool, the word is the first of a sentence.
    ent:         int32, index into ``Engine.entity_types``, 0 for no entity.
    ent_start:   bool, the word is the first of an entity.
    chunks:      int32 [at least m, 2], first word and end (exclusive) of each noun chunk, within the text.
    first_chunk: int64 [texts + 1], index of each text's first noun chunk; the last entry is m.
    """

    spelling: Spelling
    tag: NDArray[np.int32]
    head: NDArray[np.int32]
    dep: NDArray[np.int32]
    pos: NDArray[np.uint8]
    sent_start: NDArray[np.bool_]
    ent: NDArray[np.int32]
    ent_start: NDArray[np.bool_]
    chunks: NDArray[np.int32]
    first_chunk: NDArray[np.int64]


class _ParseResult(NamedTuple):
    """The part of an ``Analysis`` that comes from tagger, parser and attribute ruler."""

    tag: NDArray[np.int32]
    head: NDArray[np.int32]
    dep: NDArray[np.int32]
    pos: NDArray[np.uint8]
    sent_start: NDArray[np.bool_]
    chunks: NDArray[np.int32]
    first_chunk: NDArray[np.int64]


class Engine:
    """A spaCy pipeline of known structure, run on arrays.

    tags, labels, entity_types: names of what an ``Analysis`` gives as numbers.
    seconds: CPU seconds spent in each step so far.

    Args:
        nlp: the loaded pipeline.
        flags: computes ``Flag`` bits, see ``Lexicon``.
        max_chunks: limit of the table of chunks, see ``Lexicon``.
        max_vectors: limit of the table of vectors, see ``VectorTable``.

    Raises:
        UnknownPipelineError: the pipeline has another structure.
        InexactError: the pipeline has the structure, but reads other attributes or has another number of convolutions.
    """

    version = VERSION

    def __init__(
        self, nlp: Any, flags: Callable[..., Any], max_chunks: int = 200_000, max_vectors: int = 32_768
    ) -> None:
        pipeline = read_pipeline(nlp)
        self._parser_moves, raw_labels = read_parser_moves(pipeline.parser)
        self._entity_moves, self.entity_types = read_entity_moves(pipeline.ner)
        self.tags = pipeline.tags
        self._ruler = read_patterns(pipeline.patterns, pipeline.tags, _with_parts(raw_labels))
        self.labels = self._ruler.labels
        self._label_table = read_labels(self.labels)
        self._dep_code = np.array([_dep_code(label) for label in self.labels], dtype=np.uint8)
        self._ent_code = np.array([_ent_code(label) for label in self.entity_types], dtype=np.uint8)
        self._nominal = np.isin(np.arange(len(Pos)), (Pos.NOUN, Pos.PROPN, Pos.PRON))

        both = (pipeline.shared, pipeline.ner_words)
        # The attributes of both networks, each once. The lexicon keeps them in one table, of which each network reads
        # its own columns (``own`` below).
        columns = tuple(dict.fromkeys(column for network in both for column in network.columns))
        if "NORM" not in columns or any(len(network.convolutions) != GAP for network in both):
            raise InexactError(f"attributes {columns}")
        self._lexicon = Lexicon(nlp, columns, flags, self._ruler.forms, max_chunks)
        self._networks = [Network(network, pipeline.hash, GROUP_ROWS) for network in both]
        self._tagger = layers.linear(pipeline.tagger, pipeline.tagger_bias)
        self._parser_scorer = StateScorer(pipeline.parser, GROUP_ROWS)
        self._entity_scorer = StateScorer(pipeline.ner, GROUP_ROWS)
        own = [[columns.index(column) for column in network.columns] for network in both]
        self._vectors = VectorTable(self._networks, own, max_vectors)
        self._form_marks = np.zeros((0, 2), dtype=np.int64)  # see _number_forms
        self._texts = 0
        self.seconds = dict.fromkeys(("spelling", "vectors", "network", "parse", "entities", "words"), 0.0)

    def stats(self) -> dict[str, float]:
        """Sizes of the tables, the share of look-ups that were hits, and the number of evictions."""
        lexicon, vectors = self._lexicon, self._vectors
        return {
            "chunks": lexicon.chunks,
            "words": lexicon.words,
            "chunk_hit_rate": 1 - lexicon.new / max(lexicon.seen, 1),
            "vector_hit_rate": 1 - vectors.computed / max(vectors.looked_up, 1),
            "chunks_tokenised_together": lexicon.together,
            "chunk_evictions": lexicon.evictions,
            "vector_evictions": vectors.evictions,
        }

    def words(self, segments: list[tuple[str, int]]) -> list[Words]:
        """Annotate texts.

        Args:
            segments: pairs of a text and the code point at which its offsets begin.

        Returns:
            The ``Words`` of each text, in order.

        Raises:
            InexactError: the result might differ from spaCy's.
        """
        out: list[Words] = []
        for group in _groups(segments):
            analysis = self.analyse([text for text, _ in group])
            mark = time.process_time()
            out += self._to_words(analysis, [offset for _, offset in group])
            self.seconds["words"] += time.process_time() - mark
        return out

    def analyse(self, texts: list[str]) -> Analysis:
        """Run the pipeline on texts, all in one group.

        Raises:
            InexactError: the result might differ from spaCy's.
        """
        marks = [time.process_time()]
        spelling = self._lexicon.spell(texts)
        marks.append(time.process_time())

        # Two texts, of 2 words (a, b) and 1 word (c), have these rows, where . is a row of zeros, up to a multiple of
        # layers.ROWS:  . . . . a b . . . . c . . . . ...
        n = len(spelling.word)
        first_word = spelling.first_word
        places = TextPlaces(first_word, first_word[:-1] + GAP * np.arange(1, len(texts) + 1))
        # There is a gap before each text, and one after the last.
        rows = layers.whole_tiles(n + GAP * (len(texts) + 1))
        # In the example the words 0, 1, 2 have the rows 4, 5, 10.
        row_of_word = np.arange(n) + np.repeat(places.first_row - first_word[:-1], np.diff(first_word))
        word_of_row = np.full(rows, -1, dtype=np.int32)
        word_of_row[row_of_word] = spelling.word
        self._convolve_first(word_of_row)
        marks.append(time.process_time())
        shared, own = (network.finish(rows) for network in self._networks)
        marks.append(time.process_time())

        space = self._lexicon.space[spelling.word]
        parsed = self._parse(shared, places, row_of_word, self._lexicon.named[spelling.word], space)
        marks.append(time.process_time())
        ent = np.empty(n, dtype=np.int32)
        ent_start = np.empty(n, dtype=np.bool_)
        scorer = self._entity_scorer
        find_entities(
            scorer.features(own), scorer.weights, self._entity_moves, places, parsed.sent_start, space,
            ent, ent_start,
        )  # fmt: skip
        marks.append(time.process_time())
        for name, seconds in zip(("spelling", "vectors", "network", "parse", "entities"), np.diff(marks), strict=True):
            self.seconds[name] += float(seconds)
        return Analysis(spelling=spelling, ent=ent, ent_start=ent_start, **parsed._asdict())

    def _parse(
        self,
        vectors: Floats,
        places: TextPlaces,
        row_of_word: NDArray[np.intp],
        named: NDArray[np.int32],
        space: NDArray[np.bool_],
    ) -> _ParseResult:
        """Tags, trees, parts of speech and noun chunks, from word vectors [rows, width]."""
        n = len(row_of_word)
        first_word = places.first_word
        tag = _best_tags(layers.apply(self._tagger, vectors), len(self.tags), row_of_word)
        scorer = self._parser_scorer
        head, raw_dep = np.empty((2, n), dtype=np.int32)
        inexact = parse(scorer.features(vectors), scorer.weights, self._parser_moves, places, head, raw_dep)
        if inexact.any():
            raise InexactError(f"text {int(np.argmax(inexact))} of {len(inexact)}: an arc was replaced late")
        # The order of the next three steps matters: the ruler reads labels without decoration, and noun chunks depend
        # on the parts of speech and the labels that the ruler has set.
        left_edge = np.empty(n, dtype=np.int32)
        sent_start = np.empty(n, dtype=np.bool_)
        finish_trees(first_word, head, raw_dep, self._label_table, space, left_edge, sent_start)
        pos = np.empty(n, dtype=np.uint8)
        dep = np.empty(n, dtype=np.int32)
        apply_rules(first_word, WordAttributes(tag, named, raw_dep, space), self._ruler.tables, pos, dep)
        chunks = np.empty((n, 2), dtype=np.int32)
        first_chunk = np.empty(len(first_word), dtype=np.int64)
        find_noun_chunks(
            first_word, head, dep, self._label_table, left_edge, self._nominal[pos], chunks, first_chunk
        )  # fmt: skip
        return _ParseResult(tag, head, dep, pos, sent_start, chunks, first_chunk)

    def _convolve_first(self, word_of_row: NDArray[np.int32]) -> None:
        """Compute the first convolution of each row, a run of rows at a time."""
        rows = len(word_of_row)
        for network in self._networks:
            network.begin(rows)
        table = self._vectors
        # A run is so short that all its words have a slot at the same time.
        for start in range(0, rows, table.run):
            end = min(start + table.run, rows)
            low, high = max(start - 1, 0), min(end + 1, rows)
            # The run with a neighbour on each side; beyond the first and the last row there is padding, slot 0.
            slots = np.zeros(end - start + 2, dtype=np.int32)
            slots[low - start + 1 : high - start + 1] = table.slots(self._lexicon, word_of_row[low:high])
            for network, embedded, products in zip(self._networks, table.embedded, table.products, strict=True):
                network.convolve_first(slots, start, embedded, products)

    def _to_words(self, analysis: Analysis, offsets: list[int]) -> list[Words]:
        """The ``Words`` of each text, whose offsets begin at the given code point."""
        lexicon, spelling = self._lexicon, analysis.spelling
        first_word = spelling.first_word
        # New marks are all zeros, and stand for no text if texts are counted from 1 again.
        if len(self._form_marks) < len(lexicon.forms):
            self._form_marks = np.zeros((1 << len(lexicon.forms).bit_length(), 2), dtype=np.int64)
            self._texts = 0
        form = np.empty(len(spelling.word), dtype=np.int32)
        distinct = np.empty(len(spelling.word), dtype=np.int32)
        first_form = np.empty(len(offsets) + 1, dtype=np.int64)
        form_of_word = lexicon.form[spelling.word]
        _number_forms(first_word, form_of_word, self._form_marks, self._texts, form, distinct, first_form)
        self._texts += len(offsets)
        forms = lexicon.forms
        # The forms of text t are names[first_form[t] : first_form[t + 1]], and ``form`` counts within them.
        names = [forms[i] for i in distinct[: first_form[-1]].tolist()]
        start = spelling.start + np.repeat(np.array(offsets, dtype=np.int32), np.diff(first_word))
        end = start + spelling.length
        dep = self._dep_code[analysis.dep]
        ent = self._ent_code[analysis.ent]
        flags = lexicon.flags[spelling.word]
        words, chunks, named = first_word.tolist(), analysis.first_chunk.tolist(), first_form.tolist()
        out = []
        for t in range(len(offsets)):
            own = slice(words[t], words[t + 1])
            out.append(
                Words(
                    start=start[own],
                    end=end[own],
                    form=form[own],
                    forms=names[named[t] : named[t + 1]],
                    pos=analysis.pos[own],
                    dep=dep[own],
                    head=analysis.head[own],
                    ent=ent[own],
                    ent_start=analysis.ent_start[own],
                    sent_start=analysis.sent_start[own],
                    flags=flags[own],
                    chunks=analysis.chunks[chunks[t] : chunks[t + 1]],
                )
            )
        return out


def _groups(segments: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """Groups of consecutive texts of about ``GROUP_ROWS`` rows, if a word with its space has five code points."""
    # A text that is longer than a group is a group of its own.
    groups: list[list[tuple[str, int]]] = []
    size = GROUP_ROWS
    for segment in segments:
        rows = len(segment[0]) // 5 + GAP
        if size + rows > GROUP_ROWS:
            groups.append([])
            size = 0
        groups[-1].append(segment)
        size += rows
    return groups


def _with_parts(raw_labels: tuple[str, ...]) -> tuple[str, ...]:
    """The raw labels, then the parts of the decorated ones ("prep||dobj" -> "prep", "dobj") that are no raw labels."""
    plain = (label.split("||")[0] for label in raw_labels)
    wanted = (label.split("||")[1] for label in raw_labels if "||" in label)
    return tuple(dict.fromkeys((*raw_labels, *plain, *wanted)))


def _dep_code(label: str) -> int:
    """The ``Dep`` of spaCy's label. Labels in capitals, such as "ROOT", have none."""
    return Dep[label.upper()] if label.upper() in Dep.__members__ and label == label.lower() else Dep.OTHER


def _ent_code(label: str) -> int:
    """The ``Ent`` of spaCy's entity type, "" for none."""
    return Ent.NONE if not label else Ent.PERSON if label == "PERSON" else Ent.OTHER


@kernel
def _best_tags(scores, tags, row_of_word):
    """The tag of the highest score of each word, the first of several; int32 [words].

    Args:
        scores: float32 [rows, at least ``tags``].
        tags: number of tags.
        row_of_word: int64 [words].
    """
    out = np.empty(len(row_of_word), dtype=np.int32)
    for i in range(len(row_of_word)):
        r = row_of_word[i]
        best = 0
        for j in range(1, tags):
            if scores[r, j] > scores[r, best]:
                best = j
        out[i] = best
    return out


@kernel
def _number_forms(first_word, form_of_word, marks, texts, form, distinct, first_form):
    """Number the forms of each text from 0, in the order in which they first come.

    A text with the lexicon's forms 17, 4, 17, 9 gets the numbers 0, 1, 0, 2 and the distinct forms 17, 4, 9.

    Args:
        first_word: int64 [texts + 1].
        form_of_word: int32 [words], forms of the lexicon.
        marks: int64 [forms, 2], for each form the latest text that had it, and its number there. Texts are counted over
            all calls, from 1, so that nothing has to be cleared between two of them.
        texts: number of texts in the calls before.
        form: int32 [words]; filled with the numbers.
        distinct: int32 [words]; filled with the forms of the lexicon, text after text.
        first_form: int64 [texts + 1]; filled with the place of each text's first form in ``distinct``.
    """
    n = 0
    for t in range(len(first_word) - 1):
        first_form[t] = n
        begin = n
        text = texts + t + 1
        for w in range(first_word[t], first_word[t + 1]):
            f = form_of_word[w]
            if marks[f, 0] != text:
                marks[f, 0] = text
                marks[f, 1] = n - begin
                distinct[n] = f
                n += 1
            form[w] = marks[f, 1]
    first_form[len(first_word) - 1] = n
