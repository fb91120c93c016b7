"""The two caches of spelling: chunk (what stands between white space) -> words, and word -> what its spelling says.

spaCy's tokenizer cuts a text at every change between white space and other characters, and tokenises each chunk on
its own; a single space behind a chunk is a flag of its last word. So a chunk that was seen before needs no tokenizer.
Chunks that were not are put through spaCy's own, all new ones of a batch at once.

One thing reaches over a chunk: spaCy's matcher of special cases (":-)", "it's"). A match over two chunks changes
nothing itself, but keeps an overlapping match within one of them from its effect: in "(;=] =(=3" for instance. Chunks
among which that could be (``special_cases``) go through spaCy's tokenizer together, each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.special_cases import Joints, copied

# Separates new chunks where they are tokenised together: a special case of its own, which is looked up.
_BETWEEN = "\n"
_SPACES = np.zeros(0x3001, dtype=np.bool_)
_SPACES[[c for c in range(len(_SPACES)) if chr(c).isspace()]] = True
_SMALLEST = 1 << 12


class Spelling(NamedTuple):
    """The words of several texts, from their spelling alone.

    first_word: int64 [texts + 1]; word: int32 [words], rows of the table of words; start, length: int32 [words],
    code points in the text.
    """

    first_word: NDArray[np.int64]
    word: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]


class Lexicon:
    """Bounded tables of chunks and words.

    Args:
        nlp: the pipeline whose tokenizer and vocabulary decide.
        columns: attributes that the networks read, by name.
        flags: (table of IS_SPACE, IS_PUNCT, IS_ALPHA, LIKE_NUM [n, 4], shapes [n], strings) -> ``Flag`` bits [n].
        named: the forms that the attribute ruler names.
        limit: chunks that are kept; above it, between two batches, the less used half is dropped.
    """

    def __init__(
        self, nlp: Any, columns: tuple[str, ...], flags: Callable[..., Any], named: tuple[str, ...], limit: int
    ) -> None:
        self.columns = columns
        self._flags = flags
        self._named = {form: number for number, form in enumerate(named, start=1)}
        self._limit = limit
        self._original = nlp.tokenizer
        self._joints = Joints(nlp.tokenizer)
        self._renew()
        self.seen = self.new = self.evictions = self.together = 0
        self.changes = 0  # of the numbers of words: whoever keeps them has to look again
        self._clear()

    def _clear(self) -> None:
        """Forget everything."""
        self.chunks = self.words = 0
        self._slots = np.full(4 * _SMALLEST, -1, dtype=np.int32)
        self._keys = np.zeros((_SMALLEST, 2), dtype=np.uint64)
        self._uses = np.zeros(_SMALLEST, dtype=np.int32)
        self._first = np.zeros(_SMALLEST + 1, dtype=np.int32)  # chunk -> first of its words in the next three
        self._ends = np.zeros((_SMALLEST, 5), dtype=np.int16)  # see _mark_ends
        self._chunk_word = np.zeros(_SMALLEST, dtype=np.int32)
        self._chunk_start = np.zeros(_SMALLEST, dtype=np.int32)
        self._chunk_length = np.zeros(_SMALLEST, dtype=np.int32)
        self._number: dict[tuple[int, ...], int] = {}
        self.features = np.zeros((_SMALLEST, len(self.columns)), dtype=np.uint64)
        self.flags = np.zeros(_SMALLEST, dtype=np.uint8)
        self.space = np.zeros(_SMALLEST, dtype=np.bool_)
        self.named = np.zeros(_SMALLEST, dtype=np.int32)
        self.form = np.zeros(_SMALLEST, dtype=np.int32)
        self.forms: list[str] = []
        self._form_number: dict[str, int] = {}
        self.changes += 1
        _fill_slots(self._keys, 0, self._slots)  # compiles it at the start, not in the middle of a run

    def _renew(self) -> None:
        """A tokenizer with a vocabulary of its own.

        spaCy forgets the words of a memory zone, but its hash maps keep a mark for each and double when marks fill
        them: the memory would grow with all words ever seen.
        """
        self._tokenizer = copied(self._original, self._original.rules)
        self._plain = copied(self._original, {})
        self._tokenised = 0

    def spell(self, texts: list[str]) -> Spelling:
        """Cut texts into words."""
        if self._tokenised > self._limit:
            self._renew()
        if self.chunks > self._limit:
            self._evict()
        joined = "".join(texts)
        codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        most = len(codes)
        self._reserve_chunks(self.chunks + most)
        found = np.empty((most, 2), dtype=np.int32)  # chunk, start
        new = np.empty((most, 3), dtype=np.int32)  # start, end, whether a space follows
        chunks_of_text = np.empty(len(texts) + 1, dtype=np.int64)
        before = self.chunks
        n_found, n_new = _find_chunks(
            codes, ends, _SPACES, self._slots, self._keys, self._uses, before, found, new, chunks_of_text
        )  # fmt: skip
        self.seen += n_found
        self.new += n_new
        if n_new:
            try:
                self._learn(joined, new[:n_new])
            except BaseException:
                self._clear()  # the slots point at chunks that have no words
                raise
        first_word = np.empty(len(texts) + 1, dtype=np.int64)
        total = _count_words(found, chunks_of_text, self._first, first_word)
        word, start, length = np.empty((3, total), dtype=np.int32)
        _list_words(
            found, chunks_of_text, ends, self._first, self._chunk_word, self._chunk_start, self._chunk_length,
            word, start, length,
        )  # fmt: skip
        spelling = Spelling(first_word, word, start, length)
        runs = np.empty((most, 3), dtype=np.int32)
        n_runs = _reaching(found, chunks_of_text, self._ends, self._joints.pairs, runs)
        return self._spell_together(joined, ends, spelling, found[:n_found], runs[:n_runs]) if n_runs else spelling

    def _spell_together(
        self, text: str, ends: NDArray[np.int64], spelling: Spelling, found: NDArray[np.int32], runs: NDArray[np.int32]
    ) -> Spelling:
        """The same with some runs of chunks (text, first and last chunk) tokenised together."""
        self.together += len(runs)
        begin_of_text = np.append(0, ends)
        counts = self._first[found[:, 0] + 1] - self._first[found[:, 0]]
        word_of_chunk = np.append(0, np.cumsum(counts))
        first_word = spelling.first_word.copy()
        parts = []
        done = 0
        for t, first, last in runs.tolist():
            begin = int(found[first, 1])
            end = int(found[last + 1, 1]) if last + 1 < len(found) else int(ends[-1])
            end = min(end, int(ends[t]))  # up to the next chunk: the space between is a flag of the last word
            with self._zone():
                doc = self._tokenizer(text[begin:end])
                table = doc.to_array(["IDX", "LENGTH", *_FIXED, *self.columns]).reshape(len(doc), -1)
                place = table[:, :2].astype(np.int32)
                made = (self._enter(table[:, 2:]), place[:, 0] + np.int32(begin - begin_of_text[t]), place[:, 1])
            low, high = int(word_of_chunk[first]), int(word_of_chunk[last + 1])
            parts += [tuple(column[done:low] for column in spelling[1:]), made]
            first_word[t + 1 :] += len(made[0]) - (high - low)
            done = high
        parts.append(tuple(column[done:] for column in spelling[1:]))
        return Spelling(first_word, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _reserve_chunks(self, count: int) -> None:
        if count > len(self._keys):
            size = 1 << (count - 1).bit_length()
            self._keys = _grown(self._keys, size)
            self._uses = _grown(self._uses, size)
            self._first = _grown(self._first, size + 1)
            self._ends = _grown(self._ends, size)
        if 2 * len(self._keys) > len(self._slots):
            self._slots = np.full(4 * len(self._keys), -1, dtype=np.int32)
            _fill_slots(self._keys, self.chunks, self._slots)

    def _learn(self, text: str, new: NDArray[np.int32]) -> None:
        """Tokenise new chunks and enter their words."""
        strings = [text[start:end] for start, end, _ in new.tolist()]
        together = [i for i, string in enumerate(strings) if not string[0].isspace()]
        spaces = {i: strings[i] for i in range(len(strings)) if strings[i][0].isspace()}
        with self._zone():
            tables = []
            if together:
                tables.append(self._tokenise(_BETWEEN.join(strings[i] for i in together), together, strings))
            tables += [self._tokenise(string, [i], strings) for i, string in spaces.items()]
            owner, start, length, table = (np.concatenate(part) for part in zip(*tables, strict=True))
            order = np.argsort(owner, kind="stable")
            owner, start, length, table = owner[order], start[order], length[order], table[order]
            # The last word of a chunk knows whether a space follows.
            last = np.append(owner[1:] != owner[:-1], True)
            spacy = len(_FIXED) + self.columns.index("SPACY") if "SPACY" in self.columns else None
            if spacy is not None:
                table[last, spacy] = new[owner[last], 2]
            numbers = self._enter(table)
        counts = np.bincount(owner, minlength=len(strings))
        if (counts == 0).any():
            raise ValueError(f"the tokenizer made no word of {strings[int(np.argmin(counts))]!r}")
        self._mark_ends(table[:, 0], np.append(0, np.cumsum(counts)), strings)
        offset = int(self._first[self.chunks])
        size = offset + len(numbers)
        if size > len(self._chunk_word):
            for name in ("_chunk_word", "_chunk_start", "_chunk_length"):
                setattr(self, name, _grown(getattr(self, name), 1 << (size - 1).bit_length()))
        self._chunk_word[offset:size] = numbers
        self._chunk_start[offset:size] = start
        self._chunk_length[offset:size] = length
        self._first[self.chunks + 1 : self.chunks + len(strings) + 1] = offset + np.cumsum(counts)
        self.chunks += len(strings)

    def _plain_ends(self, chunk: str) -> tuple[int, int]:
        """First and last word of a chunk without special cases."""
        doc = self._plain(chunk)
        return doc[0].orth, doc[-1].orth

    def _mark_ends(self, orth: NDArray[np.uint64], first: NDArray[np.int64], strings: list[str]) -> None:
        """Note of each new chunk whether it may hold a special case, and the joint numbers of its first and last
        word, with special cases and without: [special, first, plain first, last, plain last]."""
        joints = self._joints
        orths, bounds = orth.tolist(), first.tolist()
        for i, string in enumerate(strings):
            words = orths[bounds[i] : bounds[i + 1]]
            begin, end = words[0], words[-1]
            special = joints.special(words)
            plain_begin, plain_end = self._plain_ends(string) if special else (begin, end)
            left, right = joints.left.get, joints.right.get
            self._ends[self.chunks + i] = (
                special, right(begin, 0), right(plain_begin, 0), left(end, 0), left(plain_end, 0)
            )  # fmt: skip

    @contextlib.contextmanager
    def _zone(self) -> Iterator[None]:
        """What the tokenizers learn within is forgotten behind."""
        with self._tokenizer.vocab.memory_zone(), self._plain.vocab.memory_zone():
            yield

    def _tokenise(self, text: str, owners: list[int], strings: list[str]) -> tuple[NDArray[Any], ...]:
        """Owner, start within it, length, and attributes of each word of chunks that are joined in a text."""
        doc = self._tokenizer(text)
        table = doc.to_array(["IDX", "LENGTH", *_FIXED, *self.columns])
        table = table.reshape(len(doc), -1)
        sizes = np.array([len(strings[i]) for i in owners])
        begin = np.cumsum(sizes + len(_BETWEEN)) - sizes - len(_BETWEEN)
        place = table[:, 0].astype(np.int64)
        which = np.searchsorted(begin, place, side="right") - 1
        inside = place < begin[which] + sizes[which]
        which, table = which[inside], table[inside]
        start = table[:, 0].astype(np.int64) - begin[which]
        length = table[:, 1].astype(np.int64)
        return np.array(owners)[which], start, length, table[:, 2:]

    def _enter(self, table: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Numbers of words with these attributes, new ones entered."""
        strings = self._tokenizer.vocab.strings
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
                setattr(self, name, _grown(getattr(self, name), size))
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
        """Keep the more used half of the chunks, and what they need; what they were used counts half from now on."""
        n = self.chunks
        kept = np.sort(np.argsort(self._uses[:n], kind="stable")[n - self._limit // 2 :])
        counts = np.diff(self._first[: n + 1])
        entries = np.repeat(np.isin(np.arange(n), kept), counts)
        old_words, words = np.unique(self._chunk_word[: self._first[n]][entries], return_inverse=True)
        old_forms, forms = np.unique(self.form[old_words], return_inverse=True)
        state = {
            "keys": self._keys[kept], "uses": self._uses[kept] // 2, "counts": counts[kept],
            "ends": self._ends[kept],
            "start": self._chunk_start[: self._first[n]][entries],
            "length": self._chunk_length[: self._first[n]][entries],
            "columns": [column[old_words] for column in (self.features, self.flags, self.space, self.named)],
        }  # fmt: skip
        row_of = np.full(self.words, -1, dtype=np.int64)
        row_of[old_words] = np.arange(len(old_words))
        number = {key: int(row_of[row]) for key, row in self._number.items() if row_of[row] >= 0}
        form_list = [self.forms[i] for i in old_forms.tolist()]
        self._clear()
        self.evictions += 1
        self.chunks, self.words = len(kept), len(old_words)
        self._number, self.forms = number, form_list
        self._form_number = {form: place for place, form in enumerate(form_list)}
        size = 1 << max(len(words), self.words, _SMALLEST).bit_length()
        for name, values in zip(("features", "flags", "space", "named"), state["columns"], strict=True):
            setattr(self, name, _grown(values, size))
        self.form = _grown(forms.astype(np.int32), size)
        self._chunk_word = _grown(words.astype(np.int32), size)
        self._chunk_start, self._chunk_length = _grown(state["start"], size), _grown(state["length"], size)
        self._keys, self._uses = _grown(state["keys"], size), _grown(state["uses"], size)
        self._ends = _grown(state["ends"], size)
        self._first = _grown(np.append(0, np.cumsum(state["counts"])).astype(np.int32), size + 1)
        self._slots = np.full(4 * size, -1, dtype=np.int32)
        _fill_slots(self._keys, self.chunks, self._slots)


# Read for every word, beside the columns of the networks; SHAPE is the last.
_FIXED = ("ORTH", "LOWER", "IS_SPACE", "IS_PUNCT", "IS_ALPHA", "LIKE_NUM", "SHAPE")


def _grown(values: NDArray[Any], size: int) -> NDArray[Any]:
    grown = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
    grown[: len(values)] = values
    return grown


@kernel
def _find_chunks(codes, ends, spaces, slots, keys, uses, chunks, found, new, chunks_of_text):
    """List the chunks of the texts; an unknown one gets the next number and is listed in ``new``, too.

    Returns the number of chunks and of new ones.
    """
    mask = len(slots) - 1
    n_found = 0
    n_new = 0
    begin = 0
    for t in range(len(ends)):
        chunks_of_text[t] = n_found
        end = ends[t]
        start = begin
        in_space = False
        if begin < end:
            in_space = codes[begin] < len(spaces) and spaces[codes[begin]]
        one = np.uint64(0xCBF29CE484222325)
        two = np.uint64(0x9E3779B97F4A7C15)
        i = begin
        while i <= end:
            is_space = not in_space
            if i < end:
                is_space = codes[i] < len(spaces) and spaces[codes[i]]
            if is_space != in_space:  # or the end
                spaced = i < end and codes[i] == 32
                if start < i:
                    a = (one ^ np.uint64(spaced)) * np.uint64(0xFF51AFD7ED558CCD)
                    a ^= a >> np.uint64(32)
                    slot = np.int64(a & np.uint64(mask))
                    while True:
                        chunk = slots[slot]
                        if chunk < 0:
                            chunk = chunks + n_new
                            slots[slot] = chunk
                            keys[chunk, 0] = a
                            keys[chunk, 1] = two
                            uses[chunk] = 0
                            new[n_new, 0] = start
                            new[n_new, 1] = i
                            new[n_new, 2] = 1 if spaced else 0
                            n_new += 1
                            break
                        if keys[chunk, 0] == a and keys[chunk, 1] == two:
                            break
                        slot = (slot + 1) & mask
                    uses[chunk] += 1
                    found[n_found, 0] = chunk
                    found[n_found, 1] = start
                    n_found += 1
                start = i + 1 if spaced else i
                one = np.uint64(0xCBF29CE484222325)
                two = np.uint64(0x9E3779B97F4A7C15)
                in_space = not in_space
            if i < end and start <= i:
                c = np.uint64(codes[i])
                one = (one ^ c) * np.uint64(0x100000001B3)
                one ^= one >> np.uint64(29)
                two = (two + c) * np.uint64(0xC4CEB9FE1A85EC53)
                two ^= two >> np.uint64(31)
            i += 1
        begin = end
    chunks_of_text[len(ends)] = n_found
    return n_found, n_new


@kernel
def _fill_slots(keys, chunks, slots):
    mask = len(slots) - 1
    for chunk in range(chunks):
        slot = np.int64(keys[chunk, 0] & np.uint64(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = chunk


@kernel
def _count_words(found, chunks_of_text, first, first_word):
    total = 0
    for t in range(len(first_word) - 1):
        first_word[t] = total
        for k in range(chunks_of_text[t], chunks_of_text[t + 1]):
            total += first[found[k, 0] + 1] - first[found[k, 0]]
    first_word[len(first_word) - 1] = total
    return total


@kernel
def _list_words(found, chunks_of_text, ends, first, chunk_word, chunk_start, chunk_length, word, start, length):
    n = 0
    begin = 0
    for t in range(len(ends)):
        for k in range(chunks_of_text[t], chunks_of_text[t + 1]):
            chunk = found[k, 0]
            place = found[k, 1] - begin
            for e in range(first[chunk], first[chunk + 1]):
                word[n] = chunk_word[e]
                start[n] = place + chunk_start[e]
                length[n] = chunk_length[e]
                n += 1
        begin = ends[t]


@kernel
def _joins(found, ends, pairs, k):
    """Whether some special case has the last word of chunk k - 1 and the first of chunk k side by side."""
    a, b = found[k - 1, 0], found[k, 0]
    for i in (3, 4):
        for j in (1, 2):
            if pairs[ends[a, i], ends[b, j]]:
                return True
    return False


@kernel
def _reaching(found, chunks_of_text, ends, pairs, runs):
    """List the runs of chunks, joined so, of which one may hold a special case: text, first and last chunk."""
    n = 0
    for t in range(len(chunks_of_text) - 1):
        k = chunks_of_text[t]
        while k < chunks_of_text[t + 1]:
            first = k
            special = ends[found[k, 0], 0] != 0
            while k + 1 < chunks_of_text[t + 1] and _joins(found, ends, pairs, k + 1):
                k += 1
                special = special or ends[found[k, 0], 0] != 0
            if special and k > first:
                runs[n, 0] = t
                runs[n, 1] = first
                runs[n, 2] = k
                n += 1
            k += 1
    return n
