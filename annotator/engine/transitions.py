"""The two transition systems: arc-eager for the parse, BILUO for the entities.

Both are greedy: the state (a few words) is scored, the best valid move is taken, until nothing is left. The order of
moves, the rules of validity and the words of a state are those of spaCy's ``arc_eager.pyx``, ``ner.pyx`` and
``_state.pxd``; only what is valid is scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine import layers
from annotator.engine.compiled import kernel, vector_kernel
from annotator.engine.layers import apply_to_one
from annotator.engine.structure import Floats, Transitions, UnknownPipelineError

SHIFT, REDUCE, LEFT, RIGHT, BREAK = range(5)
BEGIN, IN, LAST, UNIT, OUT, NEVER = range(6)


class ParserMoves(NamedTuple):
    """``kind`` of each move (SHIFT ... BREAK), ascending, and the label that it gives, int32 [moves]."""

    kind: NDArray[np.int32]
    label: NDArray[np.int32]
    labels: tuple[str, ...]  # 0 is the root's


class EntityMoves(NamedTuple):
    """``kind`` of each move (BEGIN ... NEVER) and its entity type, int32 [moves]; 0 is no entity."""

    kind: NDArray[np.int32]
    label: NDArray[np.int32]
    labels: tuple[str, ...]
    inside: NDArray[np.int32]  # type -> its move IN
    last: NDArray[np.int32]  # type -> its move LAST


def parser_moves(transitions: Transitions) -> ParserMoves:
    """Read the names of arc-eager moves: "S", "D", "L-nsubj", "R-dobj", "B-ROOT"."""
    kind = ["SDLRB".index(name[0]) for name in transitions.moves]
    if kind != sorted(kind) or kind[:2] != [SHIFT, REDUCE] or kind[2:].count(REDUCE) or kind.count(BREAK) != 1:
        raise UnknownPipelineError(f"moves of the parser: {transitions.moves}")
    labels = {"ROOT": 0}
    label = [
        labels.setdefault(name[2:], len(labels)) if move in (LEFT, RIGHT) else 0
        for name, move in zip(transitions.moves, kind, strict=True)
    ]
    if "subtok" in labels or transitions.moves[-1] != "B-ROOT":
        raise UnknownPipelineError(f"moves of the parser: {transitions.moves}")
    return ParserMoves(np.array(kind, dtype=np.int32), np.array(label, dtype=np.int32), tuple(labels))


def entity_moves(transitions: Transitions) -> EntityMoves:
    """Read the names of BILUO moves: "B-ORG", "I-ORG", "L-ORG", "U-ORG", "O", and "U-", which is never valid."""
    labels = {"": 0}
    kind, label = [], []
    for name in transitions.moves:
        if name == "O":
            kind.append(OUT)
            label.append(0)
        elif name == "U-":
            kind.append(NEVER)
            label.append(0)
        elif name[:2] in ("B-", "I-", "L-", "U-"):
            kind.append("BILU".index(name[0]))
            label.append(labels.setdefault(name[2:], len(labels)))
        else:
            raise UnknownPipelineError(f"move {name} of the entity recogniser")
    inside, last = np.full((2, len(labels)), -1, dtype=np.int32)
    for move, (k, of) in enumerate(zip(kind, label, strict=True)):
        if k == IN:
            inside[of] = move
        elif k == LAST:
            last[of] = move
    if (inside[1:] < 0).any() or (last[1:] < 0).any():
        raise UnknownPipelineError(f"moves of the entity recogniser: {transitions.moves}")
    return EntityMoves(
        np.array(kind, dtype=np.int32), np.array(label, dtype=np.int32), tuple(labels), inside, last
    )  # fmt: skip


class States:
    """What each word adds to the hidden vector of a state, in each role that it can have there."""

    def __init__(self, transitions: Transitions, usual: int) -> None:
        self._usual = usual
        self._linear = layers.linear(transitions.linear, transitions.linear_bias)
        self._roles = layers.linear(transitions.features)
        self._missing = transitions.padding
        self.bias = transitions.state_bias
        self.scores = layers.linear(transitions.scores, transitions.scores_bias, layers.WIDE_COLUMNS)
        self._out = np.empty((0, self._roles.width), dtype=np.float32)

    def features(self, vectors: Floats) -> Floats:
        """Word vectors [rows, width] -> [rows + 1, >= F * 2 * H]; the last row stands for a missing word."""
        hidden = layers.apply(self._linear, vectors)
        size = max(len(hidden), self._usual) + 1
        if len(self._out) != size:
            self._out = np.empty((size, self._roles.width), dtype=np.float32)
        out = self._out[: len(hidden) + 1]
        layers.apply(self._roles, hidden, out[:-1])
        out[-1, : len(self._missing)] = self._missing
        return out


# Slices, because the compiler knows of them that an index does not count from the end; few at once, because it has to
# rule out that any two overlap.


@vector_kernel
def _hidden_of_8(features, a, b, c, d, e, f, g, h, bias, total, state):
    """Sum of the eight words' features into ``total`` [2 * H], maxout of two pieces."""
    n = len(state)
    m = 2 * n
    one, two = features[a, :m], features[b, m : 2 * m]
    three, four = features[c, 2 * m : 3 * m], features[d, 3 * m : 4 * m]
    for j in range(m):
        total[j] = one[j] + two[j] + three[j] + four[j]
    one, two = features[e, 4 * m : 5 * m], features[f, 5 * m : 6 * m]
    three, four = features[g, 6 * m : 7 * m], features[h, 7 * m : 8 * m]
    for j in range(m):
        total[j] = total[j] + one[j] + two[j] + three[j] + four[j] + bias[j]
    first, second = total[:n], total[n:]
    for j in range(n):
        state[j] = max(first[j], second[j])


@vector_kernel
def _hidden_of_3(features, a, b, c, bias, total, state):
    """Sum of the three words' features into ``total`` [2 * H], maxout of two pieces."""
    n = len(state)
    m = 2 * n
    one, two, three = features[a, :m], features[b, m : 2 * m], features[c, 2 * m : 3 * m]
    for j in range(m):
        total[j] = one[j] + two[j] + three[j] + bias[j]
    first, second = total[:n], total[n:]
    for j in range(n):
        state[j] = max(first[j], second[j])


@vector_kernel
def _first_best(scores, low, high):
    """Index of the first highest of ``scores[low:high]``, which is not empty."""
    best = scores[low]
    for i in range(low + 1, high):
        best = max(best, scores[i])
    at = low
    while scores[at] != best:
        at += 1
    return at


@kernel
def parse(features, state_bias, panels, bias, kind, label, first_row, first_word, head, dep):
    """Arc-eager parse of each text.

    Args:
        features: [rows + 1, >= 8 * 2 * H], see ``States``.
        kind, label: see ``ParserMoves``.
        first_row, first_word: int64 [texts], int64 [texts + 1]: where each text's rows and words begin.
        head, dep: int32 [words], filled: head within the text, its own index for a root; raw label.

    Returns:
        bool [texts]: texts in which spaCy's bookkeeping of replaced arcs would be inexact (not seen so far).
    """
    texts = len(first_row)
    longest = 0
    for t in range(texts):
        longest = max(longest, first_word[t + 1] - first_word[t])
    missing = len(features) - 1
    moves = len(kind)
    lowest = np.float32(-np.inf)
    first_right = 2  # behind shift, reduce and the arcs to the left
    while kind[first_right] == 2:
        first_right += 1
    break_move = moves - 1
    total = np.empty(len(state_bias), dtype=np.float32)
    state = np.empty(panels.shape[1], dtype=np.float32)
    scored = np.empty((1, len(bias)), dtype=np.float32)
    scores = scored[0]
    stack = np.empty(longest + 1, dtype=np.int64)
    again = np.empty(longest + 1, dtype=np.int64)  # words that were put back, in front of the buffer
    unshiftable = np.empty(longest + 1, dtype=np.bool_)
    sentence = np.empty(longest + 2, dtype=np.bool_)
    # The children of each word, newest first, as linked lists.
    newest_left = np.empty(longest + 1, dtype=np.int64)
    newest_right = np.empty(longest + 1, dtype=np.int64)
    older = np.empty(longest + 1, dtype=np.int64)
    inexact = np.zeros(texts, dtype=np.bool_)
    for t in range(texts):
        base = first_row[t]
        words = first_word[t + 1] - first_word[t]
        heads = head[first_word[t] : first_word[t + 1]]
        deps = dep[first_word[t] : first_word[t + 1]]
        for i in range(words):
            heads[i] = -1
            deps[i] = 0
            unshiftable[i] = False
            sentence[i] = False
            newest_left[i] = -1
            newest_right[i] = -1
            older[i] = -1
        if words:
            sentence[0] = True
        depth = 0
        put_back = 0
        next_word = 0
        while depth > 0 or put_back > 0 or next_word < words:
            left_over = words - next_word + put_back
            b0 = -1
            b1 = -1
            if put_back > 0:
                b0 = again[put_back - 1]
                if put_back > 1:
                    b1 = again[put_back - 2]
                elif next_word < words:
                    b1 = next_word
            elif next_word < words:
                b0 = next_word
                if next_word + 1 < words:
                    b1 = next_word + 1
            s0 = stack[depth - 1] if depth > 0 else -1
            opens = b0 >= 0 and sentence[b0]
            can_shift = depth == 0 or (left_over >= 2 and not opens and not unshiftable[b0])
            can_reduce = depth > 0
            can_attach = depth > 0 and left_over > 0 and not opens
            can_break = left_over >= 2 and b1 == b0 + 1 and not sentence[b1]
            move = -1
            if not can_attach and not can_break:
                if not can_reduce:
                    move = 0
                elif not can_shift:
                    move = 1
            if move < 0:
                s1 = stack[depth - 2] if depth > 1 else -1
                s2 = stack[depth - 3] if depth > 2 else -1
                lb = newest_left[b0] if b0 >= 0 else -1
                ls = newest_left[s0] if s0 >= 0 else -1
                rs = newest_right[s0] if s0 >= 0 else -1
                _hidden_of_8(
                    features,
                    base + b0 if b0 >= 0 else missing,
                    base + b1 if b1 >= 0 else missing,
                    base + s0 if s0 >= 0 else missing,
                    base + s1 if s1 >= 0 else missing,
                    base + s2 if s2 >= 0 else missing,
                    base + lb if lb >= 0 else missing,
                    base + ls if ls >= 0 else missing,
                    base + rs if rs >= 0 else missing,
                    state_bias,
                    total,
                    state,
                )  # fmt: skip
                apply_to_one(state, panels, bias, scored)
                if not can_shift:
                    scores[0] = lowest
                if not can_reduce:
                    scores[1] = lowest
                if not can_break:
                    scores[break_move] = lowest
                if can_attach:
                    move = _first_best(scores, 0, moves)
                else:
                    move = _first_best(scores, 0, 2)
                    if scores[break_move] > scores[move]:
                        move = break_move
            if move == 0:
                if put_back > 0:
                    put_back -= 1
                else:
                    next_word += 1
                stack[depth] = b0
                depth += 1
            elif move == 1:
                depth -= 1
                if heads[s0] < 0 and depth > 0:
                    unshiftable[s0] = True
                    again[put_back] = s0
                    put_back += 1
            elif move == break_move:
                sentence[b1] = True
            else:
                left = move < first_right
                parent = b0 if left else s0
                child = s0 if left else b0
                former = heads[child]
                if former >= 0:
                    if former > child:
                        if newest_left[former] == child:
                            newest_left[former] = older[child]
                        else:
                            inexact[t] = True
                    elif newest_right[former] == child:
                        newest_right[former] = older[child]
                    else:
                        inexact[t] = True
                heads[child] = parent
                deps[child] = label[move]
                if left:
                    older[child] = newest_left[parent]
                    newest_left[parent] = child
                    unshiftable[b0] = False
                    depth -= 1
                else:
                    older[child] = newest_right[parent]
                    newest_right[parent] = child
                    if put_back > 0:
                        put_back -= 1
                    else:
                        next_word += 1
                    stack[depth] = b0
                    depth += 1
        for i in range(words):
            if heads[i] < 0:
                heads[i] = i
                deps[i] = 0
    return inexact


@kernel
def entities(
    features,
    state_bias,
    panels,
    bias,
    kind,
    label,
    inside,
    last,
    first_row,
    first_word,
    sent_start,
    space,
    ent,
    ent_start,
):
    """Entities of each text: ``ent`` int32 [words] is filled with types, ``ent_start`` bool [words] with first words.

    An entity does not cross the start of a sentence, and neither begins with white space.
    """
    missing = len(features) - 1
    moves = len(kind)
    total = np.empty(len(state_bias), dtype=np.float32)
    state = np.empty(panels.shape[1], dtype=np.float32)
    scored = np.empty((1, len(bias)), dtype=np.float32)
    scores = scored[0]
    for t in range(len(first_row)):
        begin = first_word[t]
        words = first_word[t + 1] - begin
        base = first_row[t]
        opened = -1
        of = 0
        for i in range(words):
            w = begin + i
            ent[w] = 0
            ent_start[w] = False
            ends = i + 1 >= words or sent_start[w + 1]
            if opened >= 0:
                move = last[of]
                if not ends:
                    _hidden_of_3(features, base + i, base + opened, base + i - 1, state_bias, total, state)
                    into = inside[of]
                    apply_to_one(state, panels, bias, scored)
                    stay = scores[into]
                    close = scores[last[of]]
                    if stay > close or (stay == close and into < last[of]):
                        move = into
                ent[w] = of
                if kind[move] == 2:
                    opened = -1
                continue
            if space[w]:
                continue
            _hidden_of_3(features, base + i, missing, missing, state_bias, total, state)
            apply_to_one(state, panels, bias, scored)
            best = np.float32(-np.inf)
            move = -1
            for m in range(moves):
                k = kind[m]
                if (k == 3 or k == 4 or (k == 0 and not ends)) and scores[m] > best:
                    best = scores[m]
                    move = m
            k = kind[move]
            if k != 4:
                of = label[move]
                ent[w] = of
                ent_start[w] = True
                if k == 0:
                    opened = i
