"""spaCy's tokenizer, copied, and its special cases that could reach over two chunks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

_ORTH = 65  # spaCy's number of the attribute, by which special cases spell their words


def copied(tokenizer: Any, rules: dict[str, Any]) -> Any:
    """A tokenizer of the same kind with these special cases, and a new vocabulary of the same language."""
    old = tokenizer.vocab
    vocab = type(old)(lex_attr_getters=old.lex_attr_getters, lookups=old.lookups, get_noun_chunks=old.get_noun_chunks)
    return type(tokenizer)(
        vocab,
        rules=rules,
        prefix_search=tokenizer.prefix_search,
        suffix_search=tokenizer.suffix_search,
        infix_finditer=tokenizer.infix_finditer,
        token_match=tokenizer.token_match,
        url_match=tokenizer.url_match,
        faster_heuristics=tokenizer.faster_heuristics,
    )


class Joints:
    """Neighbouring words of the tokenizer's special cases, to tell where one could reach over two chunks.

    ``left`` and ``right`` number the words that are first and second of such a pair, from 1; ``pairs`` is bool
    [left + 1, right + 1].
    """

    def __init__(self, tokenizer: Any) -> None:
        plain = copied(tokenizer, {})
        matched = [
            rule
            for rule in tokenizer.rules
            if tokenizer.find_prefix(rule) or tokenizer.find_infix(rule) or tokenizer.find_suffix(rule) or " " in rule
        ]
        strings = plain.vocab.strings  # numbers of words are hashes, the same everywhere
        pairs = set()
        self.single: set[int] = set()  # what a special case makes, if it is one word
        self.double: set[tuple[int, int]] = set()  # the first two of its words
        for rule in matched:
            spelled = [word.orth for word in plain(rule)]
            pairs.update(itertools.pairwise(spelled))
            made = [strings.add(part[_ORTH]) for part in tokenizer.rules[rule]]
            if len(made) == 1:
                self.single.add(made[0])
            else:
                self.double.add((made[0], made[1]))
        self.left = {word: number for number, word in enumerate(sorted({a for a, _ in pairs}), start=1)}
        self.right = {word: number for number, word in enumerate(sorted({b for _, b in pairs}), start=1)}
        self.pairs = np.zeros((len(self.left) + 1, len(self.right) + 1), dtype=np.bool_)
        for a, b in pairs:
            self.pairs[self.left[a], self.right[b]] = True

    def special(self, words: list[int]) -> bool:
        """Whether a chunk of these words may hold a special case."""
        return not self.single.isdisjoint(words) or not self.double.isdisjoint(itertools.pairwise(words))
