"""A copy of spaCy's tokenizer, and an index of the special cases that could reach over two chunks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

_ORTH = 65  # spaCy's number of the attribute with which special cases spell their words


def copy_tokenizer(tokenizer: Any, rules: dict[str, Any]) -> Any:
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


class NeighbourIndex:
    """The words that stand side by side in the tokenizer's special cases.

    A special case can reach over two chunks only where it has the last word of one and the first word of the next as
    neighbours. Without special cases ":-)" for instance is the words ":", "-" and ")", with the neighbours (":", "-")
    and ("-", ")"). So a chunk that ends in ":" and one that begins with "-" may be joined.

    left, right: ORTH of a word that is the first, or the second, of such a pair -> its number, from 1.
    pairs:       bool [left words + 1, right words + 1], which numbers are a pair. The number 0 stands for any other
                 word, and has no pair.
    """

    def __init__(self, tokenizer: Any) -> None:
        plain = copy_tokenizer(tokenizer, {})
        # Only these are found by the matcher; a special case that no expression cuts is looked up as a whole.
        matched = [
            rule
            for rule in tokenizer.rules
            if tokenizer.find_prefix(rule) or tokenizer.find_infix(rule) or tokenizer.find_suffix(rule) or " " in rule
        ]
        strings = plain.vocab.strings  # ORTH is a hash of the string, the same in every vocabulary
        pairs = set()
        self._single: set[int] = set()  # what a special case makes, if it is one word
        self._double: set[tuple[int, int]] = set()  # else the first two of its words
        for rule in matched:
            spelled = [word.orth for word in plain(rule)]
            pairs.update(itertools.pairwise(spelled))
            made = [strings.add(part[_ORTH]) for part in tokenizer.rules[rule]]
            if len(made) == 1:
                self._single.add(made[0])
            else:
                self._double.add((made[0], made[1]))
        self.left = {word: number for number, word in enumerate(sorted({a for a, _ in pairs}), start=1)}
        self.right = {word: number for number, word in enumerate(sorted({b for _, b in pairs}), start=1)}
        self.pairs = np.zeros((len(self.left) + 1, len(self.right) + 1), dtype=np.bool_)
        for a, b in pairs:
            self.pairs[self.left[a], self.right[b]] = True

    def may_hold_special_case(self, words: list[int]) -> bool:
        """Tell whether a chunk of these words (ORTH) may hold a special case."""
        return not self._single.isdisjoint(words) or not self._double.isdisjoint(itertools.pairwise(words))
