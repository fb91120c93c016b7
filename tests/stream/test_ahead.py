"""The thread that makes the next item: order, errors, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lacy_stream.stream.ahead import one_ahead


def nothing() -> None:
    """There is nothing to cancel."""


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def running() -> bool:
    return any(thread.name == "batches-ahead" for thread in threading.enumerate())


def test_items_are_made_ahead_in_order_and_end() -> None:
    """While the caller holds one item, the next one waits and the one after it is made, and no more."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(6):
            made.append(number)
            yield number

    ahead = one_ahead(items, nothing)
    assert made == [] and next(ahead) == 0
    wait_for(lambda: len(made) == 3)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4, 5]
    wait_for(lambda: not running())


def test_error_comes_in_its_place() -> None:
    """The items before an error are delivered, then the error itself is raised."""

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    ahead = one_ahead(items, nothing)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(ahead)
    assert list(ahead) == []


def test_thread_ends_when_the_caller_does() -> None:
    """Closing ends the thread, whether it has an item ready or waits for something that is then cancelled; the
    iterator's own end is run."""
    never, closed = threading.Event(), []

    def items(waits: bool) -> Iterator[int]:
        try:
            yield 0
            if waits:
                never.wait()
            yield from range(1, 100)
        finally:
            closed.append(waits)

    for waits in (False, True):
        never.clear()
        ahead = one_ahead(lambda waits=waits: items(waits), never.set)
        assert next(ahead) == 0
        ahead.close()
        assert not running()
    assert closed == [False, True]
