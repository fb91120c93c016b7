"""The scorer of a transition system: the words of a state -> a score for each move.

The words of a state are concatenated in spaCy's model, and one affine layer makes the hidden vector of them. That is a
sum over the words of one product each, which depends on the word and on its role in the state alone. So all products
are made beforehand, for every word in every role, and a state costs a sum of 8 (or 3) rows, a maxout of two pieces, and
one small product. For three roles, with the words 7, 6 and none:

    hidden = max over pieces of (features[7, role 0] + features[6, role 1] + features[missing, role 2] + bias)
    scores = hidden @ weight + bias of the moves
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from annotator.engine import layers
from annotator.engine.compiled import vector_kernel
from annotator.engine.structure import Floats, TransitionWeights


class ScorerWeights(NamedTuple):
    """The weights from the sum of features to the scores, with H hidden numbers and M moves.

    state_bias: float32 [2 * H], the two maxout pieces one after the other.
    panels:     float32 [panels, H, columns], the weight of the moves as ``layers.linear`` lays it out.
    bias:       float32 [M], M padded to whole panels.
    """

    state_bias: Floats
    panels: Floats
    bias: Floats


class StateScorer:
    """The scorer of one transition system. Its compiled loop takes ``features(vectors)`` and ``weights``.

    Args:
        transitions: its weights, for states of F words.
        usual: number of rows that a buffer is kept for.
    """

    def __init__(self, transitions: TransitionWeights, usual: int) -> None:
        self._usual = usual
        self._linear = layers.linear(transitions.linear, transitions.linear_bias)
        self._roles = layers.linear(transitions.features)
        self._missing = transitions.padding
        panels, bias = layers.linear(transitions.scores, transitions.scores_bias, layers.WIDE_COLUMNS)
        self.weights = ScorerWeights(transitions.state_bias, panels, bias)
        self._out = np.empty((0, self._roles.width), dtype=np.float32)

    def features(self, vectors: Floats) -> Floats:
        """Compute what each word adds to the hidden vector of a state, in each role that it can have there.

        Args:
            vectors: float32 [rows, width], word vectors.

        Returns:
            float32 [rows + 1, at least F * 2 * H], role after role; the last row stands for a missing word. The array
            is overwritten by the next call.
        """
        hidden = layers.apply(self._linear, vectors)
        # A group of one long text gets an array of its own size. The next usual group gets one of the usual size again.
        size = max(len(hidden), self._usual) + 1
        if len(self._out) != size:
            self._out = np.empty((size, self._roles.width), dtype=np.float32)
        out = self._out[: len(hidden) + 1]
        layers.apply(self._roles, hidden, out[:-1])
        out[-1, : len(self._missing)] = self._missing
        return out


# Both kernels below take slices first: LLVM vectorises a loop over a slice, but not one over row[m + j], since a Numba
# index may count from the end. They add a few slices at a time: LLVM has to rule out that any two arrays overlap, and
# gives up at eleven of them.


@vector_kernel
def hide_8(features, rows, bias, total, hidden):
    """The hidden vector [H] of a state of eight words.

    Args:
        features: see ``StateScorer.features``.
        rows: a tuple of 8 rows, one for each role.
        bias: float32 [2 * H], ``ScorerWeights.state_bias``.
        total: float32 [2 * H]; filled with the sum, before the maxout.
        hidden: float32 [H]; filled.
    """
    n = len(hidden)
    m = 2 * n
    a, b, c, d, e, f, g, h = rows
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
        hidden[j] = max(first[j], second[j])


@vector_kernel
def hide_3(features, rows, bias, total, hidden):
    """The hidden vector of a state of three words; arguments as in ``hide_8``."""
    n = len(hidden)
    m = 2 * n
    a, b, c = rows
    one, two, three = features[a, :m], features[b, m : 2 * m], features[c, 2 * m : 3 * m]
    for j in range(m):
        total[j] = one[j] + two[j] + three[j] + bias[j]
    first, second = total[:n], total[n:]
    for j in range(n):
        hidden[j] = max(first[j], second[j])
