"""The attribute ruler as a table: part of speech from (tag, lower-cased form, dependency label, white space).

All but a few of spaCy's patterns look at one word. What they set depends on four of its attributes, so they are
applied beforehand to every combination; patterns over two words are applied to the text itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.structure import UnknownPipelineError
from annotator.records import Pos

_ATTRIBUTES = ("TAG", "LOWER", "DEP", "IS_SPACE")
_IGNORED = ("MORPH", "LEMMA")  # nothing reads them


class Ruler(NamedTuple):
    """The patterns, applied.

    forms:    the lower-cased words that patterns name; a form's number is its place plus 1, and 0 is any other.
    pos, dep: uint8 and int32 [tags, forms + 1, labels, 2], the result, and ``rank``, int32, which pattern gave
              the part of speech.
    first, second: bool [pairs, tags, forms + 1, labels, 2], what each pattern of two words asks of each.
    pairs:    int32 [pairs, 3]: rank, which of the two words is changed, and the part of speech.
    """

    forms: tuple[str, ...]
    labels: tuple[str, ...]
    pos: NDArray[np.uint8]
    dep: NDArray[np.int32]
    rank: NDArray[np.int32]
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    pairs: NDArray[np.int32]


def read_patterns(patterns: list[dict[str, Any]], tags: tuple[str, ...], labels: tuple[str, ...]) -> Ruler:
    """Apply the patterns of an attribute ruler to all that a word can be.

    Raises:
        UnknownPipelineError: a pattern is of another kind.
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
    dep = np.broadcast_to(np.arange(shape[2], dtype=np.int32)[:, None], shape).copy()
    first, second, pairs = [], [], []
    for number, entry in enumerate(patterns):
        attrs = {key: value for key, value in entry["attrs"].items() if key not in _IGNORED}
        if not set(attrs) <= {"POS", "DEP", "TAG"}:
            raise UnknownPipelineError(f"pattern {number} of the attribute ruler sets {sorted(attrs)}")
        if not attrs:
            continue
        for pattern in entry["patterns"]:
            masks = [_mask(token, axes) for token in pattern]
            index = range(len(masks))[entry["index"]]
            if len(masks) == 1:
                if "POS" in attrs:
                    pos[masks[0]] = Pos[attrs["POS"]]
                    rank[masks[0]] = number
                if "DEP" in attrs:
                    dep[masks[0]] = all_labels.index(attrs["DEP"])
            elif len(masks) == 2 and set(attrs) == {"POS"}:
                first.append(masks[0])
                second.append(masks[1])
                pairs.append((number, index, int(Pos[attrs["POS"]])))
            else:
                raise UnknownPipelineError(f"pattern {number} of the attribute ruler: {pattern}")
    return Ruler(
        forms,
        tuple(all_labels),
        pos,
        dep,
        rank,
        np.array(first, dtype=np.bool_).reshape(-1, *shape),
        np.array(second, dtype=np.bool_).reshape(-1, *shape),
        np.array(pairs, dtype=np.int32).reshape(-1, 3),
    )


def _named_forms(entry: dict[str, Any]) -> list[str]:
    named = []
    for pattern in entry["patterns"]:
        for token in pattern:
            value = token.get("LOWER", [])
            value = [value] if isinstance(value, str) else value
            named += [form for part in value.values() for form in part] if isinstance(value, dict) else value
    return named


def _mask(token: dict[str, Any], axes: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Where a pattern of one word holds, on the four axes."""
    if not set(token) <= set(_ATTRIBUTES):
        raise UnknownPipelineError(f"the attribute ruler looks at {sorted(token)}")
    mask = np.ones([1] * len(axes), dtype=np.bool_)
    for place, (name, axis) in enumerate(axes.items()):
        holds = np.array([_holds(token.get(name), value) for value in axis], dtype=np.bool_)
        mask = mask & holds.reshape([-1 if i == place else 1 for i in range(len(axes))])
    return mask


def _holds(condition: Any, value: Any) -> bool:
    if condition is None:
        return True
    if isinstance(condition, (str, bool)):
        return value == condition
    if isinstance(condition, dict) and set(condition) <= {"IN", "NOT_IN"}:
        return value in condition.get("IN", [value]) and value not in condition.get("NOT_IN", [])
    raise UnknownPipelineError(f"condition {condition!r} of the attribute ruler")


@kernel
def apply_rules(
    first_word, tag, form, dep, space, pos_table, dep_table, rank_table, first, second, pairs, pos, new_dep
):
    """Fill ``pos`` uint8 [words] and ``new_dep`` int32 [words]; arguments as in ``Ruler``."""
    for t in range(len(first_word) - 1):
        begin, end = first_word[t], first_word[t + 1]
        for w in range(begin, end):
            s = 1 if space[w] else 0
            pos[w] = pos_table[tag[w], form[w], dep[w], s]
            new_dep[w] = dep_table[tag[w], form[w], dep[w], s]
        for p in range(len(pairs)):
            for w in range(begin, end - 1):
                if not second[p, tag[w + 1], form[w + 1], dep[w + 1], 1 if space[w + 1] else 0]:
                    continue
                if not first[p, tag[w], form[w], dep[w], 1 if space[w] else 0]:
                    continue
                target = w + pairs[p, 1]
                rank = rank_table[tag[target], form[target], dep[target], 1 if space[target] else 0]
                if rank < pairs[p, 0]:
                    pos[target] = pairs[p, 2]
