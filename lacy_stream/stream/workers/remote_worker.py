"""The trainer's handle of one worker on another machine."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Protocol

from lacy_stream.stream.workers.protocol import Answer, WorkerDied

if TYPE_CHECKING:
    from annotator import Document

LOAD_TIMEOUT_S = 300.0
"""Seconds that a worker may take to load its annotator, once it has a place."""
SILENCE_S = 75.0
"""Seconds added to the time limit of a batch. Ray takes 63 s to declare a silent machine dead; until then, it cannot be
told from a document that takes for ever."""
PING_AFTER_S, PING_TIMEOUT_S = 1.0, 30.0
"""A worker that answered within the first is taken for alive; another one must answer within the second."""

Message = tuple[dict[str, Any], memoryview]


class Switchboard(Protocol):
    """What a handle needs of the source that it belongs to."""

    def send(self, number: int, body: bytes = b"", **header: Any) -> None:
        """Send a message about a worker, if there is a way to it."""
        ...

    def remove(self, number: int) -> None:
        """Forget a worker, and end its actor."""
        ...


class RemoteWorker:
    """A worker on another machine; a ``Worker``. ``RemoteWorkers.start`` makes it.

    Args:
        source: carries the messages.
        number: distinguishes it from all other workers of the source, and from its predecessors.
    """

    def __init__(self, source: Switchboard, number: int) -> None:
        self.number = number
        self.identity: dict[str, str] = {}
        self.place = ""
        """Address of its machine; "" while it waits for one."""
        self.node = ""
        """The id of its machine in the cluster."""
        self.pid = 0
        self._source = source
        self._lock = threading.Lock()
        self._placed: Future[None] = Future()
        self._reply: Future[Message] = Future()
        self._death: WorkerDied | None = None
        self._answered = 0.0

    # --- for the pool ---------------------------------------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether the worker can take another batch. Asks it, if it has said nothing for a second."""
        if self._death is None and time.monotonic() - self._answered > PING_AFTER_S:
            try:
                self._call("ping", b"", PING_TIMEOUT_S, blames_document=False)
            except WorkerDied:
                return False
        return self._death is None

    def annotate(self, documents: list[Document], timeout_s: float) -> Answer:
        """Annotate a batch. The labels have no offsets.

        Raises:
            WorkerDied: the worker has ended, or was ended because it did not answer in time.
        """
        from lacy_stream.stream.workers.wire import decode_answer, encode_documents  # numpy

        body = self._call("annotate", encode_documents(documents), timeout_s + SILENCE_S, blames_document=True)
        try:
            return decode_answer(body, documents)
        except ValueError as error:
            raise self._end(f"gave an answer that cannot be read ({error}) and was ended", True) from None

    def kill(self) -> None:
        """End the worker. A thread that waits for its answer then gets ``WorkerDied``."""
        self.fail(WorkerDied("was ended", blames_document=False))

    close = kill

    # --- for the source -------------------------------------------------------------------------------------------

    def wait_for_place(self) -> None:
        """Wait, without limit, until the worker has a place.

        Raises:
            WorkerDied: it will have none.
        """
        self._placed.result()

    def wait_until_loaded(self) -> dict[str, Any]:
        """Wait for what the worker says after it has loaded its annotator: ``identity``, or ``failed``.

        Raises:
            WorkerDied: the worker has ended.
        """
        return self._wait(LOAD_TIMEOUT_S, blames_document=False)[0]

    def set_place(self, address: str, node: str, pid: int) -> None:
        """The worker has a place."""
        self.place, self.node, self.pid = address, node, pid
        with self._lock:
            if not self._placed.done():
                self._placed.set_result(None)

    def set_reply(self, message: Message) -> None:
        """The worker has answered."""
        self._answered = time.monotonic()
        with self._lock:
            if not self._reply.done():
                self._reply.set_result(message)

    def fail(self, death: WorkerDied) -> None:
        """The worker has ended: the thread that waits for it gets its death."""
        with self._lock:
            if self._death is not None:
                return
            self._death = death
            for future in (self._placed, self._reply):
                if not future.done():
                    future.set_exception(death)
        self._source.remove(self.number)

    # --- talking --------------------------------------------------------------------------------------------------

    def _call(self, method: str, body: bytes, timeout_s: float, blames_document: bool) -> memoryview:
        with self._lock:
            if self._death is not None:
                raise self._death
            self._reply = Future()
        self._source.send(self.number, body, do="call", method=method)
        return self._wait(timeout_s, blames_document)[1]

    def _wait(self, timeout_s: float, blames_document: bool) -> Message:
        try:
            return self._reply.result(timeout_s)
        except FutureTimeout:
            raise self._end(f"gave no answer within {timeout_s:.0f} s and was ended", blames_document) from None

    def _end(self, text: str, blames_document: bool) -> WorkerDied:
        death = WorkerDied(text, blames_document)
        self.fail(death)
        return death
