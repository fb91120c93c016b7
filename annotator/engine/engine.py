"""Texts -> Words: the steps in their order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine import layers
from annotator.engine.compiled import announce_compile, kernel
from annotator.engine.lexicon import Lexicon, Spelling
from annotator.engine.network import Network
from annotator.engine.ruler import apply_rules, read_patterns
from annotator.engine.structure import read_pipeline
from annotator.engine.transitions import States, entities, entity_moves, parse, parser_moves
from annotator.engine.tree import finish_trees, noun_chunks
from annotator.engine.vectors import VectorTable
from annotator.records import Dep, Ent, Pos, Words

# Zero rows between two texts: as many as the network has convolutions, so that no text sees another.
GAP = 4
# Texts go through the network in groups of about this many rows, whose buffers the processor's cache can hold.
GROUP_ROWS = 4096

_ARGUMENTS = ("oprd", "nsubj", "dobj", "nsubjpass", "pcomp", "pobj", "dative", "appos", "attr", "ROOT")


# Part of the fingerprint: raise it with every change that can move a label, if only by rounding.
VERSION = "2"


class InexactError(Exception):
    """A text on which the engine cannot promise spaCy's result."""


class Analysis(NamedTuple):
    """What the pipeline says about the words of several texts, arrays [words]; ``first_word`` int64 [texts + 1].

    tag, dep, ent are numbers into the engine's ``tags``, ``labels`` and ``entity_types``; head is an index within
    the text.
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


class Engine:
    """A spaCy pipeline of known structure, run on arrays.

    Args:
        nlp: the loaded pipeline.
        flags: see ``Lexicon``.
        max_chunks, max_vectors: limits of the tables, see ``Lexicon`` and ``VectorTable``.

    Raises:
        UnknownPipelineError: the pipeline has another structure.
    """

    version = VERSION

    def __init__(
        self, nlp: Any, flags: Callable[..., Any], max_chunks: int = 200_000, max_vectors: int = 32_768
    ) -> None:
        pipeline = read_pipeline(nlp)
        announce_compile()
        self._parser_moves = parser_moves(pipeline.parser)
        self._entity_moves = entity_moves(pipeline.ner)
        raw = self._parser_moves.labels
        plain = tuple(dict.fromkeys(label.split("||")[0] for label in raw))
        wanted = tuple(dict.fromkeys(label.split("||")[1] for label in raw if "||" in label))
        # Labels: those of the moves, and what they are without decoration.
        labels = (*raw, *(label for label in (*plain, *wanted) if label not in raw))
        self._ruler = read_patterns(pipeline.patterns, pipeline.tags, labels)
        self.tags, self.labels, self.entity_types = pipeline.tags, self._ruler.labels, self._entity_moves.labels
        place = {label: number for number, label in enumerate(self.labels)}
        self._decorated = np.array(["||" in label for label in self.labels])
        self._plain = np.array([place[label.split("||")[0]] for label in self.labels], dtype=np.int32)
        self._wanted = np.array([place.get(label.partition("||")[2], -1) for label in self.labels], dtype=np.int32)
        self._argument = np.array([label in _ARGUMENTS for label in self.labels])
        self._conj = place.get("conj", -1)
        self._dep_code = np.array([_dep_code(label) for label in self.labels], dtype=np.uint8)
        self._ent_code = np.array([_ent_code(label) for label in self.entity_types], dtype=np.uint8)
        self._nominal = np.isin(np.arange(len(Pos)), (Pos.NOUN, Pos.PROPN, Pos.PRON))

        both = (pipeline.shared, pipeline.ner_words)
        columns = tuple(dict.fromkeys(column for network in both for column in network.columns))
        if "NORM" not in columns or any(len(network.convolutions) != GAP for network in both):
            raise InexactError(f"attributes {columns}")
        self._lexicon = Lexicon(nlp, columns, flags, self._ruler.forms, max_chunks)
        self._networks = [Network(network, pipeline.hash, GROUP_ROWS) for network in both]
        self._tagger = layers.linear(pipeline.tagger, pipeline.tagger_bias)
        self._parser_states, self._ner_states = (
            States(system, GROUP_ROWS) for system in (pipeline.parser, pipeline.ner)
        )
        own = [[columns.index(column) for column in network.columns] for network in both]
        self._vectors = VectorTable(self._networks, own, max_vectors)
        self._stamp = np.zeros((0, 2), dtype=np.int64)
        self._texts = 0
        self.seconds = dict.fromkeys(("spelling", "vectors", "network", "parse", "entities", "words"), 0.0)

    def stats(self) -> dict[str, float]:
        """Sizes of the tables, the share of look-ups that found what they looked for, and evictions."""
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
        """The ``Words`` of texts, whose offsets begin at the given code point."""
        out: list[Words] = []
        for group in _groups(segments):
            analysis = self.analyse([text for text, _ in group])
            mark = time.process_time()
            out += self._as_words(analysis, [offset for _, offset in group])
            self.seconds["words"] += time.process_time() - mark
        return out

    def analyse(self, texts: list[str]) -> Analysis:
        """What the pipeline says about texts."""
        marks = [time.process_time()]
        lexicon = self._lexicon
        spelling = lexicon.spell(texts)
        marks.append(time.process_time())
        first_word = spelling.first_word
        n = len(spelling.word)
        space = lexicon.space[spelling.word]
        # The words in their rows.
        first_row = first_word[:-1] + GAP * np.arange(1, len(texts) + 1)
        rows = layers.whole_tiles(n + GAP * (len(texts) + 1))
        row_of = np.arange(n) + np.repeat(first_row - first_word[:-1], np.diff(first_word))
        row_words = np.full(rows, -1, dtype=np.int32)
        row_words[row_of] = spelling.word
        self._first_layer(row_words)
        marks.append(time.process_time())
        shared, own = (network.finish(rows) for network in self._networks)
        marks.append(time.process_time())

        tag = _best(layers.apply(self._tagger, shared), len(self.tags), row_of)
        states = self._parser_states
        head, dep = np.empty((2, n), dtype=np.int32)
        moves = self._parser_moves
        inexact = parse(
            states.features(shared), states.bias, *states.scores, moves.kind, moves.label,
            first_row, first_word, head, dep,
        )  # fmt: skip
        if inexact.any():
            raise InexactError(f"text {int(np.argmax(inexact))} of {len(texts)}: an arc was replaced late")
        left_edge = np.empty(n, dtype=np.int32)
        sent_start = np.empty(n, dtype=np.bool_)
        finish_trees(first_word, head, dep, self._decorated, self._plain, self._wanted, space, left_edge, sent_start)
        pos = np.empty(n, dtype=np.uint8)
        new_dep = np.empty(n, dtype=np.int32)
        ruler = self._ruler
        apply_rules(
            first_word, tag, lexicon.named[spelling.word], dep, space, ruler.pos, ruler.dep, ruler.rank,
            ruler.first, ruler.second, ruler.pairs, pos, new_dep,
        )  # fmt: skip
        chunks = np.empty((n, 2), dtype=np.int32)
        first_chunk = np.empty(len(texts) + 1, dtype=np.int64)
        noun_chunks(
            first_word, head, new_dep, left_edge, self._nominal[pos], self._argument, self._conj, chunks, first_chunk
        )
        marks.append(time.process_time())

        states, names = self._ner_states, self._entity_moves
        ent = np.empty(n, dtype=np.int32)
        ent_start = np.empty(n, dtype=np.bool_)
        entities(
            states.features(own), states.bias, *states.scores, names.kind, names.label, names.inside,
            names.last, first_row, first_word, sent_start, space, ent, ent_start,
        )  # fmt: skip
        marks.append(time.process_time())
        for name, seconds in zip(("spelling", "vectors", "network", "parse", "entities"), np.diff(marks), strict=True):
            self.seconds[name] += float(seconds)
        return Analysis(spelling, tag, head, new_dep, pos, sent_start, ent, ent_start, chunks, first_chunk)

    def _first_layer(self, row_words: NDArray[np.int32]) -> None:
        rows = len(row_words)
        for network in self._networks:
            network.begin(rows)
        table = self._vectors
        for start in range(0, rows, table.run):
            end = min(start + table.run, rows)
            low, high = max(start - 1, 0), min(end + 1, rows)
            # With a neighbour on each side; where there is none, nothing.
            slots = np.zeros(end - start + 2, dtype=np.int32)
            slots[low - start + 1 : high - start + 1] = table.slots(self._lexicon, row_words[low:high])
            for network, embedded, products in zip(self._networks, table.embedded, table.products, strict=True):
                network.first(slots, start, embedded, products)

    def _as_words(self, analysis: Analysis, offsets: list[int]) -> list[Words]:
        lexicon, spelling = self._lexicon, analysis.spelling
        first_word = spelling.first_word
        if len(self._stamp) < len(lexicon.forms):
            self._stamp = np.zeros((1 << len(lexicon.forms).bit_length(), 2), dtype=np.int64)
            self._texts = 0
        form = np.empty(len(spelling.word), dtype=np.int32)
        distinct = np.empty(len(spelling.word), dtype=np.int32)
        first_form = np.empty(len(offsets) + 1, dtype=np.int64)
        _number_forms(first_word, lexicon.form[spelling.word], self._stamp, self._texts, form, distinct, first_form)
        self._texts += len(offsets)
        forms = lexicon.forms
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
    """Consecutive texts of about ``GROUP_ROWS`` rows: a word has five code points or so."""
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


def _dep_code(label: str) -> int:
    return Dep[label.upper()] if label.upper() in Dep.__members__ and label == label.lower() else Dep.OTHER


def _ent_code(label: str) -> int:
    return Ent.NONE if not label else Ent.PERSON if label == "PERSON" else Ent.OTHER


@kernel
def _best(scores, tags, row_of):
    """Index of the first highest of each row's scores; int32 [n]."""
    out = np.empty(len(row_of), dtype=np.int32)
    for i in range(len(row_of)):
        r = row_of[i]
        best = 0
        for j in range(1, tags):
            if scores[r, j] > scores[r, best]:
                best = j
        out[i] = best
    return out


@kernel
def _number_forms(first_word, form_of_word, stamp, texts, form, distinct, first_form):
    """Number the forms of each text in the order in which they come; ``distinct`` lists them."""
    n = 0
    for t in range(len(first_word) - 1):
        first_form[t] = n
        begin = n
        mark = texts + t + 1
        for w in range(first_word[t], first_word[t + 1]):
            f = form_of_word[w]
            if stamp[f, 0] != mark:
                stamp[f, 0] = mark
                stamp[f, 1] = n - begin
                distinct[n] = f
                n += 1
            form[w] = stamp[f, 1]
    first_form[len(first_word) - 1] = n
