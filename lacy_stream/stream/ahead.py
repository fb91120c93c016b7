"""Batches that one thread makes while the trainer works on the last one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")

JOIN_S = 10.0
"""Seconds that an iteration that is ended waits for its thread."""


def one_ahead(make: Callable[[], Iterator[T]], cancel: Callable[[], None]) -> Generator[T, None, None]:
    """The items of an iterator, of which a thread makes the next one while the caller is busy with the last one.

    An error of the iterator is raised where its item would have been. When the caller closes this iterator, the thread
    ends: no item is made after that.

    Args:
        make: makes the iterator, in the thread.
        cancel: ends any wait of the iterator, when the caller wants no more.
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    ended = threading.Event()
    # A thread begins with device 0: what it pins would take memory there for every rank of the machine.
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    thread = threading.Thread(target=_make_items, args=(make, items, ended, device), name="batches-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        ended.set()
        cancel()
        _drain(items)
        thread.join(JOIN_S)


def _make_items(make: Callable[[], Iterator[Any]], items: queue.Queue, ended: threading.Event, device: Any) -> None:
    error: BaseException | None = None
    try:
        if device is not None:
            torch.cuda.set_device(device)
        iterator = make()
        while not ended.is_set():
            items.put((next(iterator), None))
    except BaseException as raised:  # handed to the caller, whatever it is
        error = raised
    if error is not None and not ended.is_set():
        items.put((None, error))


def _drain(items: queue.Queue) -> None:
    """Make room for a thread that waits for a place in the queue, so that it sees that it has ended."""
    try:
        while True:
            items.get_nowait()
    except queue.Empty:
        pass
