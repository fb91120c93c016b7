"""Heads and raw labels -> sentences and noun chunks, as spaCy's ``doc.pyx``, ``nonproj.pyx`` and English
``noun_chunks`` find them.

The parser cannot draw crossing arcs. It gives such a word a head higher up, and a *decorated* label: "prep||dobj" is a
prep whose true head is a dobj below the head that was drawn. ``finish_trees`` undoes this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel

# spaCy widens the edges of crossing subtrees for at most this many rounds.
_MAX_ROUNDS = 10

# The labels of words that head a noun chunk.
_ARGUMENTS = ("oprd", "nsubj", "dobj", "nsubjpass", "pcomp", "pobj", "dative", "appos", "attr", "ROOT")


class LabelTable(NamedTuple):
    """The meaning of each dependency label, as arrays [labels] that are indexed by its number.

    decorated: bool, "prep||dobj" is.
    plain:     int32, the label without decoration: prep.
    wanted:    int32, the label of the true head: dobj; -1 for a label that is not decorated.
    argument:  bool, a noun with this label heads a noun chunk.
    conjunct:  the number of "conj", -1 if there is none.
    """

    decorated: NDArray[np.bool_]
    plain: NDArray[np.int32]
    wanted: NDArray[np.int32]
    argument: NDArray[np.bool_]
    conjunct: int


def read_labels(labels: tuple[str, ...]) -> LabelTable:
    """The table of these labels, among which are the plain forms of all decorated ones."""
    place = {label: number for number, label in enumerate(labels)}
    return LabelTable(
        np.array(["||" in label for label in labels]),
        np.array([place[label.split("||")[0]] for label in labels], dtype=np.int32),
        np.array([place.get(label.partition("||")[2], -1) for label in labels], dtype=np.int32),
        np.array([label in _ARGUMENTS for label in labels]),
        place.get("conj", -1),
    )


@kernel
def finish_trees(first_word, head, dep, labels, space, left_edge, sent_start):
    """Resolve decorated labels; find each word's left edge and the starts of sentences.

    Args:
        first_word: int64 [texts + 1], index of each text's first word.
        head: int32 [words], within the text; changed in place where a label is decorated.
        dep: int32 [words], raw labels; changed in place likewise.
        labels: ``LabelTable``.
        space: bool [words], the word is white space.
        left_edge: int32 [words]; filled with the leftmost word of the subtree, within the text.
        sent_start: bool [words]; filled: the word begins a sentence.
    """
    # Arrays are taken out of their tuple once: inside the loop, each access would count references.
    decorated, plain, wanted, _, _ = labels
    for t in range(len(first_word) - 1):
        begin, end = first_word[t], first_word[t + 1]
        words = end - begin
        heads = head[begin:end]
        deps = dep[begin:end]
        lefts = left_edge[begin:end]
        rights = np.empty(words, dtype=np.int32)
        _find_edges(heads, lefts, rights)
        crossing = False
        for i in range(words):
            if decorated[deps[i]]:
                crossing = True
        if crossing:
            for i in range(words):
                if decorated[deps[i]]:
                    # The search sees the new heads of the words before i, but the old edges, as in spaCy.
                    heads[i] = _true_head(i, wanted[deps[i]], heads, deps, lefts, rights, space[begin:end])
                    deps[i] = plain[deps[i]]
            _find_edges(heads, lefts, rights)
        # A sentence begins at the left edge of each root.
        for i in range(words):
            sent_start[begin + i] = False
        for i in range(words):
            if heads[i] == i:
                sent_start[begin + lefts[i]] = True


@kernel
def _find_edges(heads, lefts, rights):
    """Fill the leftmost and the rightmost word of each word's subtree.

    A pass from left to right carries the edges of a word to a head on its right, and a pass from right to left carries
    them to a head on its left. One round of both is enough for a tree without crossing arcs. With crossing arcs a head
    may still lie outside of its word's sentence, so that spaCy repeats the round until none does.

    "Ada wrote letters" has heads 1, 1, 1, lefts 0, 0, 2 and rights 0, 2, 2.
    """
    words = len(heads)
    for i in range(words):
        lefts[i] = i
        rights[i] = i
    starts = np.empty(words, dtype=np.bool_)
    for _ in range(_MAX_ROUNDS + 2):
        for i in range(words):
            h = heads[i]
            lefts[h] = min(lefts[h], lefts[i])
            rights[h] = max(rights[h], rights[i])
        for i in range(words - 1, -1, -1):
            h = heads[i]
            rights[h] = max(rights[h], rights[i])
            lefts[h] = min(lefts[h], lefts[i])
        starts[:] = False
        for i in range(words):
            if heads[i] == i:
                starts[lefts[i]] = True
        if _heads_are_in_sentences(heads, starts):
            return


@kernel
def _heads_are_in_sentences(heads, starts):
    """Tell whether every head lies in the sentence of its word."""
    words = len(heads)
    first = 0
    for i in range(words):
        # As in spaCy, the first word of the next sentence counts with this one, and the last word is not looked at.
        if (i > 0 and starts[i]) or i == words - 1:
            for j in range(first, i):
                if heads[j] < first or heads[j] > i:
                    return False
            first = i
    return True


@kernel
def _true_head(word, wanted, heads, deps, lefts, rights, space):
    """The first other word with the wanted label below the head of ``word``, breadth first; else the head itself."""
    queue = [heads[word]]
    # The arcs may form a circle here, since heads were changed before. spaCy would search it for ever; this loop looks
    # at every word once.
    seen = np.zeros(len(heads), dtype=np.bool_)
    while len(queue):
        below = [heads[word] for _ in range(0)]  # an empty list, of which numba knows the type
        for parent in queue:
            for child in range(lefts[parent], rights[parent] + 1):
                # As in spaCy, children are looked for within the edges that the parser drew, also where heads have
                # changed since.
                if child == parent or heads[child] != parent or space[child] or child == word or seen[child]:
                    continue
                if deps[child] == wanted:
                    return np.int32(child)
                seen[child] = True
                below.append(np.int32(child))
        queue = below
    return heads[word]


@kernel
def find_noun_chunks(first_word, head, dep, labels, left_edge, nominal, chunks, first_chunk):
    """List the base noun phrases: from the left edge of a noun to the noun, without overlap.

    A noun heads a chunk if its label is an argument's; a conjunct does, if the first of its conjuncts has such a label.
    In "Ada met a mathematician and inventors", "inventors" is a conjunct of the object, and so a chunk.

    Args:
        first_word: int64 [texts + 1].
        head, dep: int32 [words], as ``finish_trees`` and the attribute ruler leave them.
        labels: ``LabelTable``.
        left_edge: int32 [words], see ``finish_trees``.
        nominal: bool [words], the word is a noun, a proper noun or a pronoun.
        chunks: int32 [words, 2]; filled with the first word and the end (exclusive) of each chunk, within the text.
        first_chunk: int64 [texts + 1]; filled with the index of each text's first chunk.
    """
    argument, conjunct = labels.argument, labels.conjunct
    n = 0
    for t in range(len(first_word) - 1):
        first_chunk[t] = n
        begin, end = first_word[t], first_word[t + 1]
        latest = -1  # last word of the latest chunk
        for i in range(end - begin):
            w = begin + i
            # A phrase that begins inside the latest chunk would overlap it.
            if not nominal[w] or left_edge[w] <= latest:
                continue
            heads_chunk = argument[dep[w]]
            if not heads_chunk and dep[w] == conjunct:
                h = head[w]
                # To the first conjunct. Heads to the right are not followed, as in spaCy.
                while dep[begin + h] == conjunct and head[begin + h] < h:
                    h = head[begin + h]
                heads_chunk = argument[dep[begin + h]]
            if heads_chunk:
                latest = i
                chunks[n, 0] = left_edge[w]
                chunks[n, 1] = i + 1
                n += 1
    first_chunk[len(first_word) - 1] = n
