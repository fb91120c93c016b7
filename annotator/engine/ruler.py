"""spaCy's attribute ruler as a table: (tag, lower-cased form, dependency label, white space) -> part of speech.

All but a few of spaCy's patterns look at one word. What they set depends on four of its attributes alone, so they are
applied beforehand to every combination, and a word costs one look-up: ("NN", other form, "dobj", no white space) gives
NOUN. Patterns over two words are applied to the text itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.structure import UnknownPipelineError
from annotator.records import Pos

_ATTRIBUTES = ("TAG", "LOWER", "DEP", "IS_SPACE")
_IGNORED = ("MORPH", "LEMMA")  # attributes that a pattern may set and none of our rules reads


class RulerTables(NamedTuple):
    """The patterns, applied to every combination of attributes; the four axes are [tags, forms + 1, labels, 2].

    pos:    uint8 [four axes], the part of speech.
    dep:    int32 [four axes], the dependency label.
    rank:   int32 [four axes], the number of the pattern that set the part of speech, -1 for none.
    first:  bool [pairs, four axes], whether a word may be the first of each pattern of two words.
    second: bool [pairs, four axes], whether it may be the second.
    pairs:  int32 [pairs, 3]: the number of the pattern; which word it changes, 0 or 1; the part of speech that it sets.
    """

    pos: NDArray[np.uint8]
    dep: NDArray[np.int32]
    rank: NDArray[np.int32]
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    pairs: NDArray[np.int32]


class Ruler(NamedTuple):
    """An attribute ruler.

    forms:  the lower-cased words that patterns name. The number of a form is its place plus 1; 0 stands for all others.
    labels: the dependency labels: those given, then those that only patterns set.
    tables: what the compiled loop reads.
    """

    forms: tuple[str, ...]
    labels: tuple[str, ...]
    tables: RulerTables


class WordAttributes(NamedTuple):
    """The attributes of words that patterns look at, as arrays [words]; tag, form and dep are numbers into the axes."""

    tag: NDArray[np.int32]
    form: NDArray[np.int32]
    dep: NDArray[np.int32]
    space: NDArray[np.bool_]


def read_patterns(patterns: list[dict[str, Any]], tags: tuple[str, ...], labels: tuple[str, ...]) -> Ruler:
    """Apply the patterns of an attribute ruler to every combination of a word's attributes.

    Args:
        patterns: as ``AttributeRuler.patterns`` lists them; a later one overrides an earlier one.
        tags: the tagger's tags.
        labels: the parser's dependency labels.

    Raises:
        UnknownPipelineError: a pattern looks at or sets another attribute, or has more than two words.
    """
    forms = tuple(sorted({form for entry in patterns for form in _named_forms(entry)}))
    all_labels = list(labels)
    for entry in patterns:
        label = entry["attrs"].get("DEP")
        if label is not None and label not in all_labels:
            all_labels.append(label)
    axes = {
        "TAG": np.array(tags, dtype=object),
        "LOWER": np.array([None, *forms], dtype=object),
        "DEP": np.array(all_labels, dtype=object),
        "IS_SPACE": np.array([False, True], dtype=object),
    }
    shape = tuple(len(axis) for axis in axes.values())
    pos = np.full(shape, Pos.NONE, dtype=np.uint8)
    rank = np.full(shape, -1, dtype=np.int32)
    # A word keeps its label unless a pattern sets another one.
    dep = np.broadcast_to(np.arange(shape[2], dtype=np.int32)[:, None], shape).copy()
    first, second, pairs = [], [], []
    for number, entry in enumerate(patterns):
        attrs = {key: value for key, value in entry["attrs"].items() if key not in _IGNORED}
        if not set(attrs) <= {"POS", "DEP", "TAG"}:
            raise UnknownPipelineError(f"pattern {number} of the attribute ruler sets {sorted(attrs)}")
        if not attrs:
            continue
        for pattern in entry["patterns"]:
            places = [_places(token, axes) for token in pattern]
            index = range(len(places))[entry["index"]]  # -1 is the last word
            if len(places) == 1:
                if "POS" in attrs:
                    pos[places[0]] = Pos[attrs["POS"]]
                    rank[places[0]] = number
                if "DEP" in attrs:
                    dep[places[0]] = all_labels.index(attrs["DEP"])
            elif len(places) == 2 and set(attrs) == {"POS"}:
                for masks, place in zip((first, second), places, strict=True):
                    masks.append(np.zeros(shape, dtype=np.bool_))
                    masks[-1][place] = True
                pairs.append((number, index, int(Pos[attrs["POS"]])))
            else:
                raise UnknownPipelineError(f"pattern {number} of the attribute ruler: {pattern}")
    tables = RulerTables(
        pos,
        dep,
        rank,
        np.array(first, dtype=np.bool_).reshape(-1, *shape),
        np.array(second, dtype=np.bool_).reshape(-1, *shape),
        np.array(pairs, dtype=np.int32).reshape(-1, 3),
    )
    return Ruler(forms, tuple(all_labels), tables)


def _named_forms(entry: dict[str, Any]) -> list[str]:
    """The lower-cased words that an entry's patterns name: a string, or {"IN": [...]} or {"NOT_IN": [...]}."""
    named = []
    for pattern in entry["patterns"]:
        for token in pattern:
            value = token.get("LOWER", [])
            value = [value] if isinstance(value, str) else value
            named += [form for part in value.values() for form in part] if isinstance(value, dict) else value
    return named


def _places(token: dict[str, Any], axes: dict[str, NDArray[Any]]) -> tuple[NDArray[np.intp], ...]:
    """The combinations for which the pattern of one word holds: an index into the four axes, as ``np.ix_`` makes it."""
    if not set(token) <= set(_ATTRIBUTES):
        raise UnknownPipelineError(f"the attribute ruler looks at {sorted(token)}")
    return np.ix_(*[np.flatnonzero([_holds(token.get(name), value) for value in axis]) for name, axis in axes.items()])


def _holds(condition: Any, value: Any) -> bool:
    """Tell whether a value meets a pattern's condition. The form None stands for all that no pattern names."""
    if condition is None:
        return True
    if isinstance(condition, (str, bool)):
        return value == condition
    if isinstance(condition, dict) and set(condition) <= {"IN", "NOT_IN"}:
        # None is in no list of forms, so that "all others" fails every IN and meets every NOT_IN.
        return value in condition.get("IN", [value]) and value not in condition.get("NOT_IN", [])
    raise UnknownPipelineError(f"condition {condition!r} of the attribute ruler")


@kernel
def apply_rules(first_word, words, tables, pos, dep):
    """Set parts of speech and dependency labels.

    Args:
        first_word: int64 [texts + 1], index of each text's first word.
        words: ``WordAttributes``.
        tables: ``RulerTables``.
        pos: uint8 [words]; filled with ``Pos`` values.
        dep: int32 [words]; filled with numbers of labels. Patterns see the labels of ``words``, not these.
    """
    # Arrays are taken out of their tuples once: inside the loop, each access would count references.
    tag, form, raw_dep, space = words
    pos_table, dep_table, rank_table, first, second, pairs = tables
    for t in range(len(first_word) - 1):
        begin, end = first_word[t], first_word[t + 1]
        for w in range(begin, end):
            s = 1 if space[w] else 0
            pos[w] = pos_table[tag[w], form[w], raw_dep[w], s]
            dep[w] = dep_table[tag[w], form[w], raw_dep[w], s]
        # Patterns of two words come after those of one, pattern by pattern, so that of two that change a word the later
        # one decides.
        for p in range(len(pairs)):
            for w in range(begin, end - 1):
                if not second[p, tag[w + 1], form[w + 1], raw_dep[w + 1], 1 if space[w + 1] else 0]:
                    continue
                if not first[p, tag[w], form[w], raw_dep[w], 1 if space[w] else 0]:
                    continue
                target = w + pairs[p, 1]
                rank = rank_table[tag[target], form[target], raw_dep[target], 1 if space[target] else 0]
                if rank < pairs[p, 0]:  # a later pattern of one word has precedence
                    pos[target] = pairs[p, 2]
