"""The compiled loops of ``spelling``: texts are cut into chunks, and chunks are looked up in a hash table.

A *chunk* is a run of white space or a run of other characters. One U+0020 after a chunk of other characters belongs to
no chunk: spaCy makes it a flag of the word before it. ``"Ada  is\\n"`` has four chunks, here with the code point at
which each begins and whether such a space follows:

    "Ada", 0, yes      " ", 4, no      "is", 5, no      "\\n", 7, no
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel

# White space of the Basic Multilingual Plane, as a table that is indexed by code point. Above it there is none.
_SPACES = np.zeros(0x3001, dtype=np.bool_)
_SPACES[[c for c in range(len(_SPACES)) if chr(c).isspace()]] = True

# Two hashes of 64 bits are computed side by side, a code point at a time:
#   one: xor with the code point, then multiply, as in FNV-1a with its offset basis and prime;
#   two: add the code point, then multiply, from another start and with another factor.
# After each step a shift feeds the high bits back into the low ones, which choose the slot. The arithmetic of the two
# differs, so that two chunks which collide in one of them need not collide in the other.
_FNV_BASIS = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xC4CEB9FE1A85EC53)  # both factors are those of the last step of MurmurHash3
_LAST_FACTOR = np.uint64(0xFF51AFD7ED558CCD)


class ChunkHashTable(NamedTuple):
    """A hash table of chunks with open addressing.

    The two hashes of a chunk **are** its key: the text of a chunk is not kept, and nothing compares it. Two chunks with
    the same 128 bits would be taken for one. Among a million chunks that has a probability of about 1e-27.

    slots: int32 [power of two], at least twice as many as chunks: number of a chunk, or -1 where a slot is empty.
    keys:  uint64 [chunks, 2], the hashes of each chunk.
    uses:  int32 [chunks], how many times each chunk was found.
    """

    slots: NDArray[np.int32]
    keys: NDArray[np.uint64]
    uses: NDArray[np.int32]


class ChunkWords(NamedTuple):
    """The words of every chunk, chunk after chunk.

    first:  int32 [chunks + 1], index of each chunk's first word in the arrays below.
    word:   int32 [n], the number of the word in the lexicon.
    start:  int32 [n], code points from the start of the chunk.
    length: int32 [n], code points.
    """

    first: NDArray[np.int32]
    word: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]


class ChunkList(NamedTuple):
    """The chunks of several texts, in order.

    chunk:         int32 [n], the number of the chunk in the table.
    start:         int32 [n], code points from the start of the first text.
    first_of_text: int64 [texts + 1], index of each text's first chunk in the arrays above.
    """

    chunk: NDArray[np.int32]
    start: NDArray[np.int32]
    first_of_text: NDArray[np.int64]


@kernel
def find_chunks(codes, ends, table, known, chunks, new):
    """Cut texts into chunks and look each of them up; a chunk that the table lacks is added with the next number.

    Args:
        codes: uint32 [n], the code points of all texts, one text after the other.
        ends: int64 [texts], where each text ends in ``codes``.
        table: ``ChunkHashTable`` with room for n more chunks; changed in place.
        known: number of chunks in the table.
        chunks: ``ChunkList`` with room for n chunks; filled.
        new: int32 [n, 3]; filled with the start, the end (exclusive) and the flag "a space follows" of each chunk that
            is added.

    Returns:
        The number of chunks that were found, and the number of those that were added.
    """
    # Arrays are taken out of their tuples once: inside the loop, each access would count references.
    slots, keys, uses = table
    chunk_of, start_of, first_of_text = chunks
    n_found = 0
    n_new = 0
    begin = 0
    for t in range(len(ends)):
        first_of_text[t] = n_found
        end = ends[t]
        start = begin  # of the current chunk, whose characters up to i are in the hashes
        in_space = begin < end and _is_space(codes[begin])
        one, two = _FNV_BASIS, _GOLDEN_RATIO
        i = begin
        while i <= end:
            # The end of the text ends a chunk like a change between white space and other characters.
            is_space = _is_space(codes[i]) if i < end else not in_space
            if is_space != in_space:
                space_follows = i < end and codes[i] == 32
                if start < i:  # not the empty run after a space that was skipped
                    # The same characters with and without a space after them are two chunks: their last words differ.
                    key = (one ^ np.uint64(space_follows)) * _LAST_FACTOR
                    key ^= key >> np.uint64(32)
                    slot = _find_slot(slots, keys, key, two)
                    chunk = slots[slot]
                    if chunk < 0:
                        chunk = known + n_new
                        slots[slot] = chunk
                        keys[chunk, 0] = key
                        keys[chunk, 1] = two
                        uses[chunk] = 0
                        new[n_new, 0] = start
                        new[n_new, 1] = i
                        new[n_new, 2] = 1 if space_follows else 0
                        n_new += 1
                    uses[chunk] += 1
                    chunk_of[n_found] = chunk
                    start_of[n_found] = start
                    n_found += 1
                start = i + 1 if space_follows else i
                one, two = _FNV_BASIS, _GOLDEN_RATIO
                in_space = not in_space
            if i < end and start <= i:  # start is i + 1 where code point i is the skipped space
                c = np.uint64(codes[i])
                one = (one ^ c) * _FNV_PRIME
                one ^= one >> np.uint64(29)
                two = (two + c) * _FACTOR
                two ^= two >> np.uint64(31)
            i += 1
        begin = end
    first_of_text[len(ends)] = n_found
    return n_found, n_new


@kernel
def _is_space(code):
    """Tell whether a code point is white space, as ``str.isspace`` does."""
    return code < len(_SPACES) and _SPACES[code]


@kernel
def _find_slot(slots, keys, one, two):
    """The slot of the chunk with these hashes, or else the empty slot that it belongs in.

    The search begins at the slot that the low bits of the first hash name, and takes the next slot until it finds one
    of the two. It ends because at least half of the slots are empty.
    """
    mask = len(slots) - 1
    slot = np.int64(one & np.uint64(mask))
    while True:
        chunk = slots[slot]
        if chunk < 0 or (keys[chunk, 0] == one and keys[chunk, 1] == two):
            return slot
        slot = (slot + 1) & mask


@kernel
def fill_slots(table, known):
    """Enter the first ``known`` chunks of a ``ChunkHashTable`` into its slots, which are empty."""
    slots, keys, _ = table
    for chunk in range(known):
        slots[_find_slot(slots, keys, keys[chunk, 0], keys[chunk, 1])] = chunk


@kernel
def count_words(chunks, words, first_word):
    """Fill ``first_word`` int64 [texts + 1] for a ``ChunkList`` and the ``ChunkWords``; returns the number of words."""
    chunk_of, _, first_of_text = chunks
    first = words.first
    total = 0
    for t in range(len(first_word) - 1):
        first_word[t] = total
        for k in range(first_of_text[t], first_of_text[t + 1]):
            total += first[chunk_of[k] + 1] - first[chunk_of[k]]
    first_word[len(first_word) - 1] = total
    return total


@kernel
def list_words(chunks, ends, words, spelling):
    """Fill the word, start and length of a ``Spelling`` for a ``ChunkList``; a start counts from the text's start.

    Args:
        ends: int64 [texts], as in ``find_chunks``.
        words: ``ChunkWords``.
    """
    chunk_of, start_of, first_of_text = chunks
    first, chunk_word, chunk_start, chunk_length = words
    _, word, start, length = spelling
    n = 0
    begin = 0
    for t in range(len(ends)):
        for k in range(first_of_text[t], first_of_text[t + 1]):
            chunk = chunk_of[k]
            place = start_of[k] - begin
            for entry in range(first[chunk], first[chunk + 1]):
                word[n] = chunk_word[entry]
                start[n] = place + chunk_start[entry]
                length[n] = chunk_length[entry]
                n += 1
        begin = ends[t]


@kernel
def list_joined_chunks(chunks, edges, pairs, runs):
    """List the runs of neighbouring chunks that have to be tokenised together.

    A run joins chunks as long as some special case has the last word of one and the first word of the next side by
    side. It is listed if it has two or more chunks and one of them may hold a special case itself.

    Args:
        chunks: ``ChunkList``.
        edges: int16 [chunks of the table, 5], see ``Lexicon._note_edges``.
        pairs: bool, see ``special_cases.NeighbourIndex``.
        runs: int32 [n, 3]; filled with the text, the first chunk and the last chunk (inclusive) of each run, as indices
            into ``chunks``.

    Returns:
        The number of runs.
    """
    chunk_of, _, first_of_text = chunks
    n = 0
    for t in range(len(first_of_text) - 1):
        k, end = first_of_text[t], first_of_text[t + 1]
        # Chunk k begins a run; the inner loop moves k to the run's last chunk. A chunk that joins no neighbour is a run
        # of one, whose words in the table are right as they are.
        while k < end:
            first = k
            special = edges[chunk_of[k], 0] != 0
            while k + 1 < end and _may_join(edges, chunk_of[k], chunk_of[k + 1], pairs):
                k += 1
                special = special or edges[chunk_of[k], 0] != 0
            if special and k > first:
                runs[n, 0] = t
                runs[n, 1] = first
                runs[n, 2] = k
                n += 1
            k += 1
    return n


@kernel
def _may_join(edges, left, right, pairs):
    """Tell whether some special case has the last word of one chunk and the first of the next side by side."""
    for last in (3, 4):  # with and without special cases inside the chunk
        for first in (1, 2):
            if pairs[edges[left, last], edges[right, first]]:
                return True
    return False
