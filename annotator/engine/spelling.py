"""The two tables of spelling: chunk -> words, and word -> what its spelling says.

spaCy's tokenizer cuts a text at every change between white space and other characters, and tokenises each chunk on its
own; a single space after a chunk is a flag of its last word. So a chunk that was seen before needs no tokenizer, and
its words are looked up. New chunks go through spaCy's own tokenizer, all new ones of a batch in one call.

One thing reaches over a chunk: spaCy's matcher of special cases (":-)", "it's"). A match over two chunks changes
nothing itself. But where it overlaps a match within one of them, that match loses its effect, in "(;=] =(=3" for
instance. Chunks among which this could happen (``special_cases``) go through spaCy's tokenizer together, each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.special_cases import NeighbourIndex, copy_tokenizer
from annotator.engine.spelling_kernels import (
    ChunkHashTable,
    ChunkList,
    ChunkWords,
    count_words,
    fill_slots,
    find_chunks,
    list_joined_chunks,
    list_words,
)

# Separates new chunks where they are tokenised in one call. It is a special case itself, so that the tokenizer looks it
# up instead of searching it with regular expressions.
_SEPARATOR = "\n"
_SMALLEST = 1 << 12  # entries that a new table has room for

# Attributes that are read of every word, before the columns of the networks. SHAPE is the last.
_FIXED = ("ORTH", "LOWER", "IS_SPACE", "IS_PUNCT", "IS_ALPHA", "LIKE_NUM", "SHAPE")


class Spelling(NamedTuple):
    """The words of several texts, as their spelling alone gives them.

    first_word: int64 [texts + 1], index of each text's first word in the arrays below.
    word:       int32 [words], the number of the word in the ``Lexicon``.
    start:      int32 [words], code points from the start of its text.
    length:     int32 [words], code points.
    """

    first_word: NDArray[np.int64]
    word: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]


class Lexicon:
    """Bounded tables of chunks and words.

    Two chunks may share words: "Paris" and "(Paris" have one row for "Paris". Words are numbered from 0 in the order in
    which they are seen, and their arrays, which are longer than there are words, are indexed by that number:

    features: uint64 [n, columns], what the networks read.
    flags:    uint8 [n], ``Flag`` bits.
    space:    bool [n], the word is white space.
    named:    int32 [n], the place plus 1 of its lower-cased form among those of the attribute ruler, 0 for none.
    form:     int32 [n], index of its lower-cased form in ``forms``.

    Args:
        nlp: the pipeline whose tokenizer and vocabulary decide.
        columns: attributes that the networks read, by name.
        flags: (table of IS_SPACE, IS_PUNCT, IS_ALPHA, LIKE_NUM [n, 4], shapes [n], strings) -> ``Flag`` bits [n].
        named: the forms that the attribute ruler names.
        limit: number of chunks to keep. If there are more between two batches, the less used half is dropped.
    """

    def __init__(
        self, nlp: Any, columns: tuple[str, ...], flags: Callable[..., Any], named: tuple[str, ...], limit: int
    ) -> None:
        self.columns = columns
        self._flags = flags
        self._named = {form: number for number, form in enumerate(named, start=1)}
        self._limit = limit
        self._original = nlp.tokenizer
        self._neighbours = NeighbourIndex(nlp.tokenizer)
        self._renew_tokenizers()
        self.seen = self.new = self.evictions = self.together = 0
        self.changes = 0
        """How many times the words were renumbered. A number from before the last change is void."""
        self._clear()

    def _clear(self) -> None:
        """Forget everything."""
        self.chunks = self.words = 0
        self._table = ChunkHashTable(
            slots=np.full(4 * _SMALLEST, -1, dtype=np.int32),
            keys=np.zeros((_SMALLEST, 2), dtype=np.uint64),
            uses=np.zeros(_SMALLEST, dtype=np.int32),
        )
        self._chunk_words = ChunkWords(
            np.zeros(_SMALLEST + 1, dtype=np.int32), *(np.zeros(_SMALLEST, dtype=np.int32) for _ in range(3))
        )
        self._edges = np.zeros((_SMALLEST, 5), dtype=np.int16)  # see _note_edges
        self._number: dict[tuple[int, ...], int] = {}  # ORTH and the networks' attributes -> number of the word
        self.features = np.zeros((_SMALLEST, len(self.columns)), dtype=np.uint64)
        self.flags = np.zeros(_SMALLEST, dtype=np.uint8)
        self.space = np.zeros(_SMALLEST, dtype=np.bool_)
        self.named = np.zeros(_SMALLEST, dtype=np.int32)
        self.form = np.zeros(_SMALLEST, dtype=np.int32)
        self.forms: list[str] = []
        self._form_number: dict[str, int] = {}
        self.changes += 1
        fill_slots(self._table, 0)  # so that it is compiled at the start and not in the middle of a run

    def _renew_tokenizers(self) -> None:
        """Make new tokenizers, with vocabularies of their own.

        spaCy forgets the words of a memory zone, but its hash maps keep a mark for each of them and double in size when
        the marks fill them. The memory of one vocabulary would grow with all words ever seen.
        """
        self._tokenizer = copy_tokenizer(self._original, self._original.rules)
        self._plain = copy_tokenizer(self._original, {})  # without special cases
        self._tokenised = 0

    def spell(self, texts: list[str]) -> Spelling:
        """Cut texts into words, and enter the words that are new."""
        # The tables shrink here only, before anything is looked up. So the numbers of chunks and words that a call
        # hands out hold until the next call.
        if self._tokenised > self._limit:
            self._renew_tokenizers()
        if self.chunks > self._limit:
            self._evict()
        joined = "".join(texts)
        # UTF-32 has one number for each code point, so that an index into ``codes`` is an offset in the text.
        codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        most = len(codes)  # a chunk has at least one code point
        self._reserve_chunks(self.chunks + most)
        chunks = ChunkList(
            np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32), np.empty(len(texts) + 1, dtype=np.int64)
        )
        new = np.empty((most, 3), dtype=np.int32)
        n_found, n_new = find_chunks(codes, ends, self._table, self.chunks, chunks, new)
        self.seen += n_found
        self.new += n_new
        if n_new:
            try:
                self._learn(joined, new[:n_new])
            except BaseException:
                self._clear()  # the slots name chunks that have no words
                raise
        first_word = np.empty(len(texts) + 1, dtype=np.int64)
        total = count_words(chunks, self._chunk_words, first_word)
        spelling = Spelling(first_word, *np.empty((3, total), dtype=np.int32))
        list_words(chunks, ends, self._chunk_words, spelling)
        # The words of chunks over whose border a special case may reach are replaced.
        runs = np.empty((most, 3), dtype=np.int32)
        n_runs = list_joined_chunks(chunks, self._edges, self._neighbours.pairs, runs)
        if not n_runs:
            return spelling
        chunks = ChunkList(chunks.chunk[:n_found], chunks.start[:n_found], chunks.first_of_text)
        return self._respell_together(joined, ends, spelling, chunks, runs[:n_runs])

    def _respell_together(
        self, text: str, ends: NDArray[np.int64], spelling: Spelling, chunks: ChunkList, runs: NDArray[np.int32]
    ) -> Spelling:
        """The spelling after the chunks of each run (text, first chunk, last chunk) were tokenised together."""
        self.together += len(runs)
        begin_of_text = np.append(0, ends)
        first_of_chunk = self._chunk_words.first
        counts = first_of_chunk[chunks.chunk + 1] - first_of_chunk[chunks.chunk]
        word_of_chunk = np.append(0, np.cumsum(counts))
        first_word = spelling.first_word.copy()
        # The columns (word, start, length) of the result, piece by piece: words that were looked up alternate with
        # words of runs. ``done`` words of ``spelling`` are dealt with.
        parts = []
        done = 0
        for t, first, last in runs.tolist():
            begin = int(chunks.start[first])
            end = int(chunks.start[last + 1]) if last + 1 < len(chunks.start) else int(ends[-1])
            end = min(end, int(ends[t]))  # up to the next chunk: the space between is a flag of the last word
            with self._memory_zone():
                doc = self._tokenizer(text[begin:end])
                table = doc.to_array(["IDX", "LENGTH", *_FIXED, *self.columns]).reshape(len(doc), -1)
                place = table[:, :2].astype(np.int32)
                made = (self._enter(table[:, 2:]), place[:, 0] + np.int32(begin - begin_of_text[t]), place[:, 1])
            low, high = int(word_of_chunk[first]), int(word_of_chunk[last + 1])
            parts += [tuple(column[done:low] for column in spelling[1:]), made]
            # All later texts begin that many words later, or earlier.
            first_word[t + 1 :] += len(made[0]) - (high - low)
            done = high
        parts.append(tuple(column[done:] for column in spelling[1:]))
        return Spelling(first_word, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _reserve_chunks(self, count: int) -> None:
        """Make room for ``count`` chunks. At least half of the slots stay empty."""
        table = self._table
        if count > len(table.keys):
            size = 1 << (count - 1).bit_length()
            table = table._replace(keys=_enlarge(table.keys, size), uses=_enlarge(table.uses, size))
            self._chunk_words = self._chunk_words._replace(first=_enlarge(self._chunk_words.first, size + 1))
            self._edges = _enlarge(self._edges, size)
        # A slot depends on the number of slots, so that every chunk is entered again.
        if 2 * len(table.keys) > len(table.slots):
            table = table._replace(slots=np.full(4 * len(table.keys), -1, dtype=np.int32))
            fill_slots(table, self.chunks)
        self._table = table

    def _learn(self, text: str, new: NDArray[np.int32]) -> None:
        """Tokenise new chunks (start, end, whether a space follows) of a text, and enter their words."""
        strings = [text[start:end] for start, end, _ in new.tolist()]
        # A chunk of white space would run together with the separator, which is white space itself. So it is tokenised
        # alone.
        together = [i for i, string in enumerate(strings) if not string[0].isspace()]
        spaces = {i: strings[i] for i in range(len(strings)) if strings[i][0].isspace()}
        with self._memory_zone():
            tables = []
            if together:
                tables.append(self._tokenise(_SEPARATOR.join(strings[i] for i in together), together, strings))
            tables += [self._tokenise(string, [i], strings) for i, string in spaces.items()]
            owner, start, length, table = (np.concatenate(part) for part in zip(*tables, strict=True))
            # Back to the order of ``strings``, so that the words of a chunk are neighbours.
            order = np.argsort(owner, kind="stable")
            owner, start, length, table = owner[order], start[order], length[order], table[order]
            if "SPACY" in self.columns:
                # The tokenizer saw a separator after each chunk. The last word of a chunk gets the flag of what really
                # follows.
                last = np.append(owner[1:] != owner[:-1], True)
                table[last, len(_FIXED) + self.columns.index("SPACY")] = new[owner[last], 2]
            numbers = self._enter(table)
        counts = np.bincount(owner, minlength=len(strings))
        if (counts == 0).any():
            raise ValueError(f"the tokenizer made no word of {strings[int(np.argmin(counts))]!r}")
        self._note_edges(table[:, 0], np.append(0, np.cumsum(counts)), strings)
        words = self._chunk_words
        offset = int(words.first[self.chunks])
        size = offset + len(numbers)
        if size > len(words.word):
            room = 1 << (size - 1).bit_length()
            self._chunk_words = words = ChunkWords(words.first, *(_enlarge(column, room) for column in words[1:]))
        words.word[offset:size] = numbers
        words.start[offset:size] = start
        words.length[offset:size] = length
        words.first[self.chunks + 1 : self.chunks + len(strings) + 1] = offset + np.cumsum(counts)
        self.chunks += len(strings)

    def _note_edges(self, orth: NDArray[np.uint64], first: NDArray[np.int64], strings: list[str]) -> None:
        """Note what ``list_joined_chunks`` asks of each new chunk, in a row of five.

        0: whether it may hold a special case; 1, 2: the right number of its first word; 3, 4: the left number of its
        last word (see ``NeighbourIndex``). Of each pair the first number is that of the words as they are, and the
        second that of the words without special cases.
        """
        neighbours = self._neighbours
        left, right = neighbours.left.get, neighbours.right.get
        orths, bounds = orth.tolist(), first.tolist()
        for i, string in enumerate(strings):
            words = orths[bounds[i] : bounds[i + 1]]
            begin, end = words[0], words[-1]
            special = neighbours.may_hold_special_case(words)
            plain_begin, plain_end = self._plain_edges(string) if special else (begin, end)
            self._edges[self.chunks + i] = (
                special, right(begin, 0), right(plain_begin, 0), left(end, 0), left(plain_end, 0)
            )  # fmt: skip

    def _plain_edges(self, chunk: str) -> tuple[int, int]:
        """ORTH of the first and the last word of a chunk without special cases."""
        doc = self._plain(chunk)
        return doc[0].orth, doc[-1].orth

    @contextlib.contextmanager
    def _memory_zone(self) -> Iterator[None]:
        """At the end of this context the tokenizers forget the words that they learned in it."""
        with self._tokenizer.vocab.memory_zone(), self._plain.vocab.memory_zone():
            yield

    def _tokenise(self, text: str, owners: list[int], strings: list[str]) -> tuple[NDArray[Any], ...]:
        """Tokenise several chunks, joined by separators in one text.

        Args:
            text: the joined chunks.
            owners: indices of these chunks among all new ones, in order.
            strings: all new chunks.

        Returns:
            For each word, without the separators: its chunk (one of ``owners``), its start within the chunk and its
            length in code points, and its attributes [words, fixed ones + columns].
        """
        doc = self._tokenizer(text)
        table = doc.to_array(["IDX", "LENGTH", *_FIXED, *self.columns])
        table = table.reshape(len(doc), -1)
        sizes = np.array([len(strings[i]) for i in owners])
        # The place of each chunk in the text. A word belongs to the last chunk that begins at or before it, unless it
        # begins after the end of that chunk: then it is a separator.
        begin = np.cumsum(sizes + len(_SEPARATOR)) - sizes - len(_SEPARATOR)
        place = table[:, 0].astype(np.int64)
        which = np.searchsorted(begin, place, side="right") - 1
        inside = place < begin[which] + sizes[which]
        which, table = which[inside], table[inside]
        start = table[:, 0].astype(np.int64) - begin[which]
        length = table[:, 1].astype(np.int64)
        return np.array(owners)[which], start, length, table[:, 2:]

    def _enter(self, table: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Numbers of words with these attributes, int32 [n]; new words are entered."""
        # Columns of ``table``: 0 ORTH, 1 LOWER, 2 IS_SPACE, 3 IS_PUNCT, 4 IS_ALPHA, 5 LIKE_NUM, 6 SHAPE (see _FIXED),
        # and from 7 on the attributes that the networks read.
        strings = self._tokenizer.vocab.strings
        # Words with one spelling may differ: the last word of a chunk has a space after it, or none.
        keys = list(map(tuple, table[:, [0, *range(len(_FIXED), table.shape[1])]].tolist()))
        number = self._number
        numbers = np.empty(len(keys), dtype=np.int32)
        self._tokenised += len(keys)
        fresh = []
        for i, key in enumerate(keys):
            known = number.get(key)
            if known is None:
                known = number[key] = self.words + len(fresh)
                fresh.append(i)
            numbers[i] = known
        if not fresh:
            return numbers
        end = self.words + len(fresh)
        if end > len(self.flags):
            size = 1 << (end - 1).bit_length()
            for name in ("features", "flags", "space", "named", "form"):
                setattr(self, name, _enlarge(getattr(self, name), size))
        rows = slice(self.words, end)
        part = table[fresh]
        self.features[rows] = part[:, len(_FIXED) :]
        self.flags[rows] = self._flags(part[:, 2:6], part[:, 6], strings)
        self.space[rows] = part[:, 2] != 0
        for row, lower in enumerate(part[:, 1].tolist(), start=self.words):
            form = strings[lower]
            self.named[row] = self._named.get(form, 0)
            place = self._form_number.get(form)
            if place is None:
                place = self._form_number[form] = len(self.forms)
                self.forms.append(form)
            self.form[row] = place
        self.words = end
        return numbers

    def _evict(self) -> None:
        """Keep the more used half of the chunks and the words and forms that they need; halve the counts of their uses.

        Chunks, words and forms get new numbers, in their old order.
        """
        n = self.chunks
        old = self._chunk_words
        # Of chunks with equally many uses, the newer ones stay.
        kept = np.sort(np.argsort(self._table.uses[:n], kind="stable")[n - self._limit // 2 :])
        counts = np.diff(old.first[: n + 1])
        entries = np.repeat(np.isin(np.arange(n), kept), counts)  # of the kept chunks, in the arrays of ChunkWords
        entry_word, entry_start, entry_length = (column[: old.first[n]][entries] for column in old[1:])
        old_words, words = np.unique(entry_word, return_inverse=True)
        old_forms, forms = np.unique(self.form[old_words], return_inverse=True)
        keys, uses, edges = self._table.keys[kept], self._table.uses[kept] // 2, self._edges[kept]
        columns = {name: getattr(self, name)[old_words] for name in ("features", "flags", "space", "named")}
        # Old number of a word -> new number, -1 for a word that no kept chunk has.
        new_number = np.full(self.words, -1, dtype=np.int64)
        new_number[old_words] = np.arange(len(old_words))
        numbers = {key: int(new_number[old]) for key, old in self._number.items() if new_number[old] >= 0}
        form_list = [self.forms[i] for i in old_forms.tolist()]
        self._clear()
        self.evictions += 1
        self.chunks, self.words = len(kept), len(old_words)
        self._number, self.forms = numbers, form_list
        self._form_number = {form: place for place, form in enumerate(form_list)}
        size = 1 << max(len(words), self.words, _SMALLEST).bit_length()
        for name, values in columns.items():
            setattr(self, name, _enlarge(values, size))
        self.form = _enlarge(forms.astype(np.int32), size)
        self._chunk_words = ChunkWords(
            _enlarge(np.append(0, np.cumsum(counts[kept])).astype(np.int32), size + 1),
            _enlarge(words.astype(np.int32), size),
            _enlarge(entry_start, size),
            _enlarge(entry_length, size),
        )
        self._edges = _enlarge(edges, size)
        self._table = ChunkHashTable(np.full(4 * size, -1, dtype=np.int32), _enlarge(keys, size), _enlarge(uses, size))
        fill_slots(self._table, self.chunks)


def _enlarge(values: NDArray[Any], size: int) -> NDArray[Any]:
    """[n, ...] -> [size, ...], with zeros at the end."""
    enlarged = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
    enlarged[: len(values)] = values
    return enlarged
