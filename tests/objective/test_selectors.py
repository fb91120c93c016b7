"""The nine methods of table 5 on hand-built mini-batches."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from annotator import FactClass
from lacy_stream.objective.methods import NEEDS, MethodName
from lacy_stream.objective.selectors import METHODS, Selection, Targets, budget, highest

G, F, O = FactClass.GRAMMATICAL, FactClass.FACTUAL, FactClass.OTHER  # noqa: E741


def targets(loss, classes=None, valid=None, random=None, reference=None) -> Targets:
    """A mini-batch of one row, from lists."""
    loss = torch.tensor(loss, dtype=torch.float32)
    return Targets(
        loss,
        torch.full(loss.shape, F, dtype=torch.uint8) if classes is None else torch.tensor(classes, dtype=torch.uint8),
        torch.ones(loss.shape, dtype=torch.bool) if valid is None else torch.tensor(valid, dtype=torch.bool),
        torch.zeros(loss.shape) if random is None else torch.tensor(random),
        None if reference is None else torch.tensor(reference, dtype=torch.float32),
    )


def select(method: str, of: Targets, calls: int, ignored: int = 0) -> tuple[list[int] | None, list[int] | None]:
    """The positions that a method calls and ignores."""
    selection = METHODS[method].select(of, torch.tensor(float(calls)), torch.tensor(float(ignored)))
    call, ignore = (None if mask is None else mask.nonzero().flatten().tolist() for mask in selection)
    return call, ignore


LOSSES = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 0.5]
CLASSES = [O, F, G, F, O, F, G, F, O, F]
RANDOM = [0.5, 0.1, 0.9, 0.8, 0.2, 0.3, 0.95, 0.4, 0.6, 0.7]
REFERENCE = [1.0, 6.0, 1.0, 1.0, 6.5, 3.5, 1.0, 9.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("method", "calls", "expected"),
    [
        ("baseline", 2, (None, None)),
        ("loss-based", 2, ([2, 6], None)),  # the highest random numbers, whatever they are
        ("rho-1", 2, ([1, 7], None)),  # loss - reference: -5 and -5
        ("llm-judge", 2, ([1, 3, 5, 7, 9], None)),  # all that the judge says
        ("spacy", 2, ([3, 9], None)),  # facts, by their random numbers
        ("lacy", 2, ([5, 7], None)),  # facts, by their loss
        ("spacy+refloss", 2, ([1, 7], None)),  # facts, by the reference's loss
        ("lacy+ignorefacts", 2, ([5, 7], [1, 3, 9])),
        ("lacy+ignore", 2, ([5, 7], [0, 1, 3, 4, 9])),  # the facts, and the two hardest that are OTHER
    ],
)
def test_each_method_marks_what_table_5_says(method: str, calls: int, expected: object) -> None:
    """Call and ignore masks of every method on one batch of ten targets, worked out by hand; five may be ignored."""
    assert select(method, targets(LOSSES, CLASSES, random=RANDOM, reference=REFERENCE), calls, 5) == expected


def test_recipe_names_every_method() -> None:
    """The names that a recipe may give are those of the table, which needs no torch, and each has a selector."""
    assert list(METHODS) == list(NEEDS) == list(get_args(MethodName))


def test_remaining_facts_beyond_the_share_leave_no_room() -> None:
    """Where the remaining facts are more than may be ignored, lacy+ignore ignores them all and nothing else."""
    assert select("lacy+ignore", targets(LOSSES, CLASSES), 2, 2) == ([5, 7], [1, 3, 9])


def test_count_is_the_floor_of_the_fraction_of_valid_targets() -> None:
    """15% of 19 is 2.85, so two; 29% of 100 is 29, although 0.29 * 100 is 28.999999999999996."""
    assert budget(torch.arange(27) < 19, 0.15) == 2
    assert budget(torch.ones(100, dtype=torch.bool), 0.29) == 29


def test_padding_is_never_selected() -> None:
    """Facts and losses on padding count for no method."""
    padded = targets(LOSSES, CLASSES, [True] * 5 + [False] * 5, RANDOM, REFERENCE)
    for method in METHODS:
        for positions in select(method, padded, 4, 4):
            assert max(positions or [0]) < 5


def test_too_few_facts_are_all_called() -> None:
    """Where facts do not fill the share, every fact is delegated and nothing else."""
    for method in ("lacy", "spacy", "spacy+refloss"):
        batch = targets(LOSSES, CLASSES, random=RANDOM, reference=REFERENCE)
        assert select(method, batch, 9) == ([1, 3, 5, 7, 9], None)


def test_equal_scores_are_taken_in_order() -> None:
    """A tie at the threshold neither exceeds nor misses the share."""
    every = torch.ones(20, dtype=torch.bool)
    assert highest(torch.ones(20), every, torch.tensor(3)).nonzero().flatten().tolist() == [0, 1, 2]


def test_highest_keeps_the_shape() -> None:
    """Scores of several rows are ranked together."""
    scores = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
    chosen = highest(scores, torch.ones(2, 2, dtype=torch.bool), torch.tensor(2))
    assert chosen.tolist() == [[False, True], [True, False]]


def test_reference_that_is_missing_is_named() -> None:
    """A selector that compares with a reference says that there is none."""
    with pytest.raises(ValueError, match="reference"):
        select("rho-1", targets(LOSSES), 2)


def test_selection_is_empty_by_default() -> None:
    """A selector that wants neither mask says so with an empty Selection."""
    assert Selection() == (None, None)
