"""From heads and raw labels to sentences and noun chunks, as spaCy's ``doc.pyx``, ``nonproj.pyx`` and English
``noun_chunks`` do."""

from __future__ import annotations

import numpy as np

from annotator.engine.compiled import kernel

# spaCy gives up on crossing sentences after this many rounds.
_MAX_ROUNDS = 10


@kernel
def finish_trees(first_word, head, dep, decorated, plain, wanted, space, left_edge, sent_start):
    """Resolve decorated labels, find each word's left edge and the sentence starts.

    Args:
        first_word: int64 [texts + 1].
        head, dep: int32 [words], changed in place where a label is decorated: "prep||dobj" is a prep whose true
            head is the first dobj below its head.
        decorated, plain, wanted: of each raw label: bool, the label without decoration, and the label behind it.
        space: bool [words].
        left_edge, sent_start: int32 [words], bool [words], filled.
    """
    for t in range(len(first_word) - 1):
        begin, end = first_word[t], first_word[t + 1]
        words = end - begin
        heads = head[begin:end]
        deps = dep[begin:end]
        lefts = left_edge[begin:end]
        rights = np.empty(words, dtype=np.int32)
        _edges(heads, lefts, rights)
        crossing = False
        for i in range(words):
            if decorated[deps[i]]:
                crossing = True
        if crossing:
            for i in range(words):
                if decorated[deps[i]]:
                    heads[i] = _true_head(i, wanted[deps[i]], heads, deps, lefts, rights, space[begin:end])
                    deps[i] = plain[deps[i]]
            _edges(heads, lefts, rights)
        for i in range(words):
            sent_start[begin + i] = False
        for i in range(words):
            if heads[i] == i:
                sent_start[begin + lefts[i]] = True


@kernel
def _edges(heads, lefts, rights):
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
        if _within_sentences(heads, starts):
            return


@kernel
def _within_sentences(heads, starts):
    words = len(heads)
    first = 0
    for i in range(words):
        if (i > 0 and starts[i]) or i == words - 1:
            for j in range(first, i):
                if heads[j] < first or heads[j] > i:
                    return False
            first = i
    return True


@kernel
def _true_head(word, wanted, heads, deps, lefts, rights, space):
    """Breadth first below the head of the word: the first other word with the wanted label, else its head."""
    queue = [heads[word]]
    # As spaCy, which would search a circle for ever; here every word is looked at once.
    seen = np.zeros(len(heads), dtype=np.bool_)
    while len(queue):
        below = [heads[word] for _ in range(0)]
        for q in queue:
            for child in range(lefts[q], rights[q] + 1):
                if child == q or heads[child] != q or space[child] or child == word or seen[child]:
                    continue
                if deps[child] == wanted:
                    return np.int32(child)
                seen[child] = True
                below.append(np.int32(child))
        queue = below
    return heads[word]


@kernel
def noun_chunks(first_word, head, dep, left_edge, nominal, argument, conj, out, first_chunk):
    """Base noun phrases.

    Args:
        nominal: bool [words], nouns, proper nouns and pronouns.
        argument: bool [labels], the labels that make a chunk.
        conj: the label of a conjunct, which is a chunk if its first conjunct has such a label.
        out: int32 [words, 2], filled with first word and end, within the text.
        first_chunk: int64 [texts + 1], filled.
    """
    n = 0
    for t in range(len(first_word) - 1):
        first_chunk[t] = n
        begin, end = first_word[t], first_word[t + 1]
        before = -1
        for i in range(end - begin):
            w = begin + i
            if not nominal[w] or left_edge[w] <= before:
                continue
            makes = argument[dep[w]]
            if not makes and dep[w] == conj:
                h = head[w]
                while dep[begin + h] == conj and head[begin + h] < h:
                    h = head[begin + h]
                makes = argument[dep[begin + h]]
            if makes:
                before = i
                out[n, 0] = left_edge[w]
                out[n, 1] = i + 1
                n += 1
    first_chunk[len(first_word) - 1] = n
