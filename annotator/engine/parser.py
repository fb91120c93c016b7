"""The dependency parser: an arc-eager transition system, run greedily.

A state has a stack, a buffer and the arcs drawn so far. At first the stack is empty and the buffer holds all words. The
best valid move is taken until both are empty. ``s0`` is the top of the stack and ``b0`` the front of the buffer:

    SHIFT    "S"        b0 is pushed onto the stack.
    REDUCE   "D"        s0 leaves the stack. If it has no head yet and other words are below it, it goes back to the
                        front of the buffer.
    LEFT     "L-nsubj"  s0 gets the head b0 and the label, and leaves the stack.
    RIGHT    "R-dobj"   b0 gets the head s0 and the label, and is pushed onto the stack.
    BREAK    "B-ROOT"   the second word of the buffer begins a sentence.

"Ada wrote letters" takes six moves:

    stack            buffer                move       arc
                     Ada wrote letters     S
    Ada              wrote letters         L-nsubj    Ada <- wrote
                     wrote letters         S
    wrote            letters               R-dobj     wrote -> letters
    wrote letters                          D
    wrote                                  D

A word without a head at the end is a root: wrote. The order of the moves, the rules of validity and the eight words
that describe a state are those of spaCy's ``arc_eager.pyx`` and ``_state.pxd``. A state in which only one move is valid
is not scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel, vector_kernel
from annotator.engine.layers import apply_to_one
from annotator.engine.scorer import hide_8
from annotator.engine.structure import TransitionWeights, UnknownPipelineError

# Kinds of moves. Moves are numbered by kind: SHIFT is move 0 and REDUCE is move 1. The LEFT and the RIGHT moves follow,
# one for each label, and BREAK is the last move.
SHIFT, REDUCE, LEFT, RIGHT, BREAK = range(5)


class ParserMoves(NamedTuple):
    """The moves of a parser, in the order of their scores.

    label:       int32 [moves], the label that each move gives, an index into the labels of ``read_parser_moves``.
    first_right: number of the first RIGHT move; the LEFT moves are those from 2 to it.
    """

    label: NDArray[np.int32]
    first_right: int


class TextPlaces(NamedTuple):
    """The places at which the texts of a group begin, among all words and among the rows of the network (with gaps).

    first_word: int64 [texts + 1]; the last entry is the number of words.
    first_row:  int64 [texts].
    """

    first_word: NDArray[np.int64]
    first_row: NDArray[np.int64]


def read_parser_moves(transitions: TransitionWeights) -> tuple[ParserMoves, tuple[str, ...]]:
    """Read the names of arc-eager moves: "S", "D", "L-nsubj", "R-dobj", "B-ROOT".

    Returns:
        The moves, and the labels that they give; label 0 is the root's.

    Raises:
        UnknownPipelineError: there are other moves, or they stand in another order.
    """
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
    return ParserMoves(np.array(label, dtype=np.int32), 2 + kind.count(LEFT)), tuple(labels)


@kernel
def parse(features, weights, moves, places, head, label):
    """Parse each text of a group.

    Args:
        features: float32 [rows + 1, at least 8 * 2 * H], see ``StateScorer.features``.
        weights: ``ScorerWeights``.
        moves: ``ParserMoves``.
        places: ``TextPlaces``.
        head: int32 [words]; filled with the index of the head within the text, of a root with its own index.
        label: int32 [words]; filled with the raw label of the arc.

    Returns:
        bool [texts], the texts on which the result may differ from spaCy's (see ``_attach``; none was seen so far).
    """
    texts = len(places.first_row)
    inexact = np.zeros(texts, dtype=np.bool_)
    for t in range(texts):
        begin, end = places.first_word[t], places.first_word[t + 1]
        exact = _parse_text(features, places.first_row[t], weights, moves, head[begin:end], label[begin:end])
        inexact[t] = not exact
    return inexact


@kernel
def _parse_text(features, first_row, weights, moves, heads, labels):
    """Parse one text; returns whether spaCy's result is the same for certain."""
    # Arrays are taken out of their tuples once: inside the loop, each access would count references. The state and
    # the buffers are made here, since LLVM then knows that no two of these arrays overlap.
    state_bias, panels, bias = weights
    label_of_move, first_right = moves
    total = np.empty(len(state_bias), dtype=np.float32)
    hidden = np.empty(panels.shape[1], dtype=np.float32)
    score_row = np.empty((1, len(bias)), dtype=np.float32)
    scores = score_row[0]
    break_move = len(label_of_move) - 1
    missing = len(features) - 1
    words = len(heads)
    heads[:] = -1
    labels[:] = 0
    # Each word is in one of four places: on the stack, among the returned, not yet taken, or done. So neither array can
    # overflow.
    stack = np.empty(words, dtype=np.int64)  # from the bottom to the top
    returned = np.empty(words, dtype=np.int64)  # what REDUCE put back in front of the buffer; the last is the front
    unshiftable = np.zeros(words, dtype=np.bool_)  # the word was put back, and must not be shifted again
    starts = np.zeros(words, dtype=np.bool_)  # the word begins a sentence
    starts[:1] = True
    # The children of each word, as two linked lists, one for each side, from the newest to the oldest. If 5 got the
    # children 3 and then 2, newest_left[5] is 2, older[2] is 3, and older[3] is -1.
    newest_left = np.full(words, -1, dtype=np.int64)
    newest_right = np.full(words, -1, dtype=np.int64)
    older = np.full(words, -1, dtype=np.int64)
    exact = True
    depth = 0  # words on the stack
    n_returned = 0  # words that were put back in front of the buffer
    next_word = 0  # the first word that was never taken out of the buffer
    # Each round is one move: read the state, find the moves that are valid, score them if there is a choice, apply the
    # best.
    while depth > 0 or n_returned > 0 or next_word < words:
        b0, b1 = _front_of_buffer(returned, n_returned, next_word, words)
        s0 = stack[depth - 1] if depth > 0 else -1
        in_buffer = words - next_word + n_returned
        b0_starts = b0 >= 0 and starts[b0]  # a sentence: no arc may reach over its start
        # As in spaCy, the last word of the buffer is not shifted onto a stack that holds words.
        can_shift = depth == 0 or (in_buffer >= 2 and not b0_starts and not unshiftable[b0])
        can_reduce = depth > 0
        can_attach = depth > 0 and in_buffer > 0 and not b0_starts
        can_break = in_buffer >= 2 and b1 == b0 + 1 and not starts[b1]
        move = -1
        if not can_attach and not can_break:
            if not can_reduce:
                move = SHIFT
            elif not can_shift:
                move = REDUCE
        if move < 0:
            rows = _rows_of_state(stack, depth, b0, b1, newest_left, newest_right, first_row, missing)
            hide_8(features, rows, state_bias, total, hidden)
            apply_to_one(hidden, panels, bias, score_row)
            move = _best_move(scores, can_shift, can_reduce, can_attach, can_break, break_move)

        takes_b0 = False  # from the buffer onto the stack
        if move == SHIFT:
            takes_b0 = True
        elif move == REDUCE:
            depth -= 1
            if heads[s0] < 0 and depth > 0:
                unshiftable[s0] = True
                returned[n_returned] = s0
                n_returned += 1
        elif move == break_move:
            starts[b1] = True
        elif move < first_right:
            exact = _attach(s0, b0, heads, newest_left, newest_right, older) and exact
            labels[s0] = label_of_move[move]
            # The stack has lost a word, so that shifting b0 again cannot lead into a circle.
            unshiftable[b0] = False
            depth -= 1
        else:
            exact = _attach(b0, s0, heads, newest_left, newest_right, older) and exact
            labels[b0] = label_of_move[move]
            takes_b0 = True
        if takes_b0:
            if n_returned > 0:
                n_returned -= 1
            else:
                next_word += 1
            stack[depth] = b0
            depth += 1
    for i in range(words):
        if heads[i] < 0:
            heads[i] = i
            labels[i] = 0
    return exact


@kernel
def _front_of_buffer(returned, n_returned, next_word, words):
    """The first two words of the buffer, -1 for a missing one.

    Words that were put back come before those that were never taken. With ``returned = [5, 3]`` and ``next_word = 8``
    the buffer is 3, 5, 8, 9, ...
    """
    if n_returned > 1:
        return returned[n_returned - 1], returned[n_returned - 2]
    b0 = returned[0] if n_returned == 1 else next_word
    b1 = next_word if n_returned == 1 else next_word + 1
    return b0 if b0 < words else -1, b1 if b1 < words else -1


@kernel
def _rows_of_state(stack, depth, b0, b1, newest_left, newest_right, first_row, missing):
    """Rows of the eight words that describe a state; the row ``missing`` stands for one that is not there.

    They are the first two of the buffer, the first three of the stack, the newest left child of the buffer's first, and
    the newest left and right child of the stack's first.
    """
    s0 = stack[depth - 1] if depth > 0 else -1
    s1 = stack[depth - 2] if depth > 1 else -1
    s2 = stack[depth - 3] if depth > 2 else -1
    b0_left = newest_left[b0] if b0 >= 0 else -1
    s0_left = newest_left[s0] if s0 >= 0 else -1
    s0_right = newest_right[s0] if s0 >= 0 else -1
    return (
        first_row + b0 if b0 >= 0 else missing,
        first_row + b1 if b1 >= 0 else missing,
        first_row + s0 if s0 >= 0 else missing,
        first_row + s1 if s1 >= 0 else missing,
        first_row + s2 if s2 >= 0 else missing,
        first_row + b0_left if b0_left >= 0 else missing,
        first_row + s0_left if s0_left >= 0 else missing,
        first_row + s0_right if s0_right >= 0 else missing,
    )


@kernel
def _best_move(scores, can_shift, can_reduce, can_attach, can_break, break_move):
    """The valid move of the highest score, the first of several; ``scores`` [moves + padding] may be changed."""
    lowest = np.float32(-np.inf)
    if not can_shift:
        scores[SHIFT] = lowest
    if not can_reduce:
        scores[REDUCE] = lowest
    if not can_break:
        scores[break_move] = lowest
    # The end of the range leaves out the padding of ``scores``.
    if can_attach:  # all LEFT and RIGHT moves are valid, or none is
        return _first_highest(scores, 0, break_move + 1)
    move = _first_highest(scores, SHIFT, REDUCE + 1)
    return break_move if scores[break_move] > scores[move] else move


@vector_kernel
def _first_highest(scores, low, high):
    """Index of the first highest of ``scores[low:high]``, which is not empty."""
    best = scores[low]
    for i in range(low + 1, high):
        best = max(best, scores[i])
    at = low
    while scores[at] != best:
        at += 1
    return at


@kernel
def _attach(child, parent, heads, newest_left, newest_right, older):
    """Draw the arc from ``parent`` to ``child`` in place of the one that the child may have.

    Returns False where spaCy would not remove the old arc: it does so only if the child is the newest of its old head
    on that side (``StateC.map_del_arc`` changes a copy otherwise).
    """
    exact = True
    former = heads[child]
    if former > child:
        exact = _remove_newest(child, former, newest_left, older)
    elif former >= 0:
        exact = _remove_newest(child, former, newest_right, older)
    heads[child] = parent
    if child < parent:
        older[child] = newest_left[parent]
        newest_left[parent] = child
    else:
        older[child] = newest_right[parent]
        newest_right[parent] = child
    return exact


@kernel
def _remove_newest(child, parent, newest, older):
    """Take ``child`` out of its parent's list of children if it is the newest. Returns whether it was."""
    if newest[parent] != child:
        return False
    newest[parent] = older[child]
    return True
