"""The entity recogniser: a BILUO transition system, run greedily, one move for each word.

    BEGIN  "B-ORG"  the word begins an entity of several words.
    IN     "I-ORG"  the word is inside the open entity.
    LAST   "L-ORG"  the word ends the open entity.
    UNIT   "U-ORG"  the word is an entity of its own.
    OUT    "O"      the word is in no entity.

"Ada met Charles Babbage" is U-PERSON O B-PERSON L-PERSON. The words of a state are the current word and, inside an
entity, the entity's first word and the word before the current one. The order of the moves and the rules of validity
are those of spaCy's ``ner.pyx``; only what is valid is scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.engine.compiled import kernel
from annotator.engine.layers import apply_to_one
from annotator.engine.scorer import hide_3
from annotator.engine.structure import TransitionWeights, UnknownPipelineError

# Kinds of moves; NEVER is the move "U-", which is never valid.
BEGIN, IN, LAST, UNIT, OUT, NEVER = range(6)


class EntityMoves(NamedTuple):
    """The moves of an entity recogniser, in the order of their scores.

    kind:    int32 [moves], BEGIN ... NEVER.
    type:    int32 [moves], the entity type, 0 for none; an index into the types of ``read_entity_moves``.
    inside:  int32 [types], the IN move of each type, -1 for type 0.
    last:    int32 [types], the LAST move of each type, -1 for type 0.
    """

    kind: NDArray[np.int32]
    type: NDArray[np.int32]
    inside: NDArray[np.int32]
    last: NDArray[np.int32]


def read_entity_moves(transitions: TransitionWeights) -> tuple[EntityMoves, tuple[str, ...]]:
    """Read the names of BILUO moves: "B-ORG", "I-ORG", "L-ORG", "U-ORG", "O", and "U-".

    Returns:
        The moves, and the names of the entity types; type 0, "", is no entity.

    Raises:
        UnknownPipelineError: there are other moves, or a type lacks one.
    """
    types = {"": 0}
    kinds, type_of_move = [], []
    for name in transitions.moves:
        if name == "O":
            kinds.append(OUT)
            type_of_move.append(0)
        elif name == "U-":
            kinds.append(NEVER)
            type_of_move.append(0)
        elif name[:2] in ("B-", "I-", "L-", "U-"):
            kinds.append("BILU".index(name[0]))
            type_of_move.append(types.setdefault(name[2:], len(types)))
        else:
            raise UnknownPipelineError(f"move {name} of the entity recogniser")
    inside, last = np.full((2, len(types)), -1, dtype=np.int32)
    for move, (kind, of) in enumerate(zip(kinds, type_of_move, strict=True)):
        if kind == IN:
            inside[of] = move
        elif kind == LAST:
            last[of] = move
    if (inside[1:] < 0).any() or (last[1:] < 0).any():
        raise UnknownPipelineError(f"moves of the entity recogniser: {transitions.moves}")
    moves = EntityMoves(np.array(kinds, dtype=np.int32), np.array(type_of_move, dtype=np.int32), inside, last)
    return moves, tuple(types)


@kernel
def find_entities(features, weights, moves, places, sent_start, space, ent, ent_start):
    """Find the entities of each text.

    An entity neither crosses the start of a sentence nor begins with white space.

    Args:
        features: float32 [rows + 1, at least 3 * 2 * H], see ``StateScorer.features``.
        weights: ``ScorerWeights``.
        moves: ``EntityMoves``.
        places: ``parser.TextPlaces``.
        sent_start: bool [words], the word begins a sentence.
        space: bool [words], the word is white space.
        ent: int32 [words]; filled with entity types, 0 for none.
        ent_start: bool [words]; filled: the word begins an entity.
    """
    # Arrays are taken out of their tuples once: inside the loop, each access would count references.
    kind_of_move, type_of_move, inside_of_type, last_of_type = moves
    state_bias, panels, bias = weights
    total = np.empty(len(state_bias), dtype=np.float32)
    hidden = np.empty(panels.shape[1], dtype=np.float32)
    score_row = np.empty((1, len(bias)), dtype=np.float32)
    scores = score_row[0]
    missing = len(features) - 1
    for t in range(len(places.first_row)):
        begin = places.first_word[t]
        words = places.first_word[t + 1] - begin
        first_row = places.first_row[t]
        opened = -1  # first word of the open entity, -1 for none
        of = 0  # its type
        for i in range(words):
            w = begin + i
            ent[w] = 0
            ent_start[w] = False
            sentence_ends = i + 1 >= words or sent_start[w + 1]
            if opened >= 0:
                # Only IN and LAST of the open type are valid, and at the end of a sentence only LAST.
                inside, last = inside_of_type[of], last_of_type[of]
                ent[w] = of
                if sentence_ends:
                    opened = -1
                    continue
                rows = (first_row + i, first_row + opened, first_row + i - 1)
                hide_3(features, rows, state_bias, total, hidden)
                apply_to_one(hidden, panels, bias, score_row)
                # Of two equal scores the first move's counts, as in spaCy.
                stays = scores[inside] > scores[last] or (scores[inside] == scores[last] and inside < last)
                if not stays:
                    opened = -1
                continue
            if space[w]:
                continue
            rows = (first_row + i, missing, missing)
            hide_3(features, rows, state_bias, total, hidden)
            apply_to_one(hidden, panels, bias, score_row)
            best = np.float32(-np.inf)
            move = -1
            for m in range(len(kind_of_move)):
                kind = kind_of_move[m]
                valid = kind == UNIT or kind == OUT or (kind == BEGIN and not sentence_ends)
                if valid and scores[m] > best:
                    best = scores[m]
                    move = m
            kind = kind_of_move[move]
            if kind != OUT:
                of = type_of_move[move]
                ent[w] = of
                ent_start[w] = True
                if kind == BEGIN:
                    opened = i
