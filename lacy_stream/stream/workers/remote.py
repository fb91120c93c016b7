"""Workers on other machines, as the trainer sees them. Ray itself is in another process, the bridge.

    pool's threads --start, annotate--> RemoteWorkers --pipe--> bridge --Ray--> actors on other machines
                  <------- futures ---- thread "bridge" <-----

The thread "bridge" starts the bridge, reads what it says, and starts it again when it ends. All workers of a bridge end
with it, which is the fault of no document.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from multiprocess.connection import Connection
from multiprocess.context import SpawnProcess

from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.frames import pack, unpack
from lacy_stream.stream.workers.process import start_process
from lacy_stream.stream.workers.protocol import WorkerCannotStart, WorkerDied, WorkerRefused, describe_difference
from lacy_stream.stream.workers.remote_worker import RemoteWorker

if TYPE_CHECKING:
    from annotator import AnnotatorSettings
    from lacy_stream.stream.workers.bridge import BridgeSettings
    from lacy_stream.stream.workers.remote_settings import RemoteSettings

BRIDGE_SILENCE_S = 60.0
"""A bridge that says nothing for so long is ended."""
LONGEST_PAUSE_S = 30.0
"""Seconds between two tries to reach the cluster, at most."""
CLOSE_S = 5.0
"""Seconds that the bridge may take to leave the cluster."""


class Cluster(NamedTuple):
    """A cluster as the bridge saw it last."""

    cpus: int = 0
    free: int = 0
    machines: int = 0


class BridgeEnd(NamedTuple):
    """Why a bridge has ended; whether the next one will end in the same way; whether it had reached the cluster."""

    reason: str
    forever: bool
    connected: bool


class RemoteWorkers:
    """A source of workers that are actors of a Ray cluster; a ``WorkerSource``.

    Args:
        remote: the cluster, and how many workers.
        settings: the annotator that every worker loads.
        report: gets an event when the cluster cannot be reached, or was lost.

    Raises:
        UsageError: see ``check_remote``.
    """

    def __init__(self, remote: RemoteSettings, settings: AnnotatorSettings, report: Report) -> None:
        from lacy_stream.stream.workers.remote_settings import check_remote

        check_remote(remote)
        self._remote, self._settings, self._report = remote, settings, report
        self._ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()  # one message at a time
        self._changed = threading.Condition()  # guards all fields below
        self._pipe: Connection | None = None  # while there is a connection to the cluster
        self._process: SpawnProcess | None = None
        self._workers: dict[int, RemoteWorker] = {}  # those that live, or wait for a place
        self._refused: dict[str, str] = {}  # id of a machine -> its address
        self._cluster = Cluster()
        self._obstacle = f"the Ray cluster {remote.address!r} is not connected yet"
        self._forever: str | None = None  # why no worker can ever start
        self._closed = False
        self._thread = threading.Thread(target=self._keep_bridge, name="bridge", daemon=True)
        self._thread.start()

    # --- for the pool ---------------------------------------------------------------------------------------------

    def start(self, name: str, expected: Callable[[], dict[str, str]]) -> RemoteWorker:
        """See ``WorkerSource.start``."""
        worker = self._ask_for_worker(name)
        try:
            worker.wait_for_place()
            outcome = worker.wait_until_loaded()
            problem = outcome.get("failed") or describe_difference(outcome["identity"], expected())
            if problem:
                with self._changed:
                    self._refused[worker.node] = worker.place
                raise WorkerRefused(worker.place, problem)
        except BaseException:
            worker.close()
            raise
        worker.identity = outcome["identity"]
        return worker

    def waiting(self) -> str:
        """See ``WorkerSource.waiting``."""
        with self._changed:
            placed = sum(bool(worker.place) for worker in self._workers.values())
            if self._closed or placed >= self._remote.num_workers:
                return ""
            if self._pipe is None:
                return self._obstacle
            text = (
                f"{placed} of {self._remote.num_workers} remote workers have a place: the cluster has "
                f"{self._cluster.cpus} CPUs on {self._cluster.machines} machine(s), {self._cluster.free} of them free"
            )
            if self._ranks > 1:
                text += f", and {self._ranks} ranks share them"
            if self._refused:
                text += f". Refused: {', '.join(sorted(set(self._refused.values())))}"
            return text

    def close(self) -> None:
        """See ``WorkerSource.close``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._process is not None:
                self._process.terminate()
        self._lose("was closed with its pool")
        self._thread.join(CLOSE_S)
        with self._changed:
            if self._process is not None:
                self._process.kill()
        self._thread.join(CLOSE_S)

    # --- workers --------------------------------------------------------------------------------------------------

    def _ask_for_worker(self, name: str) -> RemoteWorker:
        """Ask the cluster for one more worker, as soon as there is a connection, and one is left of this rank's share.

        Raises:
            WorkerDied: the source was closed.
            WorkerCannotStart: there will never be a connection.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._forever is not None or self._may_ask())
            if self._closed:
                raise WorkerDied("was closed with its pool", blames_document=False)
            if self._forever is not None:
                raise WorkerCannotStart(self._forever)
            worker = RemoteWorker(self, next(self._numbers))
            self._workers[worker.number] = worker
            avoid = sorted(self._refused)
        # What Ray's dashboard shows. Names must differ, also from those of workers that have just died.
        title = f"{name} of rank {os.environ.get('RANK', '0')} on {socket.gethostname()}, start {worker.number}"
        self.send(worker.number, do="start", name=title, avoid=avoid)
        return worker

    def _may_ask(self) -> bool:
        share = self._cluster.cpus // self._ranks
        return self._pipe is not None and (self._ranks == 1 or len(self._workers) < max(1, share))

    def send(self, number: int, body: bytes = b"", **header: Any) -> None:
        """Send the bridge a message about a worker. A worker whose bridge is gone has been told so already."""
        with self._sending:
            pipe = self._pipe
            if pipe is not None and (number in self._workers or header["do"] == "kill"):
                with contextlib.suppress(OSError):
                    pipe.send_bytes(pack({"worker": number, **header}, body))

    def remove(self, number: int) -> None:
        """Forget a worker, and end its actor."""
        with self._changed:
            known = self._workers.pop(number, None)
            self._changed.notify_all()
        if known is not None and not self._closed:
            self.send(number, do="kill")

    def _lose(self, reason: str) -> None:
        """End all workers, whose bridge is gone."""
        with self._changed:
            self._pipe = None
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            worker.fail(WorkerDied(reason, blames_document=False))

    # --- the bridge -----------------------------------------------------------------------------------------------

    def _keep_bridge(self) -> None:
        """Keep a bridge until the source is closed. The first one decides whether there can be any."""
        pause_s, was_connected = 1.0, False
        while not self._closed:
            end = self._run_bridge()
            was_connected |= end.connected
            pause_s = 1.0 if end.connected else min(2 * pause_s, LONGEST_PAUSE_S)
            self._lose(f"lost its connection: {end.reason}")
            if self._closed:
                return
            if end.connected or end.reason != self._obstacle:
                self._report.add("cluster_unreachable", self._remote.address, end.reason)
            with self._changed:
                self._obstacle = end.reason
                if end.forever and not was_connected:
                    self._forever = end.reason
                    self._changed.notify_all()
                    return
                self._changed.wait_for(lambda: self._closed, pause_s)

    def _run_bridge(self) -> BridgeEnd:
        """Start a bridge and hear what it says, until it ends."""
        from lacy_stream.stream.workers.bridge import run_bridge

        with tempfile.TemporaryDirectory(prefix="lacy-stream-") as folder:
            log = Path(folder, "ray.log")
            try:
                settings = self._bridge_settings(log)
            except Exception as error:  # the tokenizer cannot be read
                return BridgeEnd(f"{type(error).__name__}: {error}", True, False)
            process, pipe = start_process("lacy-stream-bridge", run_bridge, settings)
            with self._changed:
                self._process = process
                if self._closed:
                    process.kill()
            try:
                reason, forever = self._listen(pipe)
            except (EOFError, OSError):
                reason, forever = "", False
            connected = self._pipe is not None
            with self._changed:
                self._pipe = self._process = None
            process.kill()
            process.join()
            if not reason:
                printed = log.read_text(errors="replace").split("\n") if log.exists() else []
                last = next((line for line in reversed(printed) if line.strip()), "")
                reason = f"the bridge to Ray ended with exit code {process.exitcode}: {last[:300]}".rstrip(": ")
            pipe.close()
            process.close()
            return BridgeEnd(f"the Ray cluster {self._remote.address!r}: {reason}", forever, connected)

    def _bridge_settings(self, log: Path) -> BridgeSettings:
        from lacy_stream.stream.workers.bridge import BridgeSettings
        from lacy_stream.stream.workers.wire import encode_settings

        return BridgeSettings(
            self._remote.address,
            tuple(path if "://" in path else os.path.abspath(path) for path in self._remote.py_modules),
            self._remote.allow_unauthenticated,
            f"lacy-stream {socket.gethostname()} {os.getpid()}",
            encode_settings(self._settings),
            str(log),
        )

    def _listen(self, pipe: Connection) -> tuple[str, bool]:
        """Hear what the bridge says.

        Returns:
            Why there is nothing more to hear, and whether that is for ever.

        Raises:
            EOFError, OSError: the bridge has ended.
        """
        while pipe.poll(BRIDGE_SILENCE_S):
            header, body = unpack(pipe.recv_bytes())
            event = header.pop("event")
            if event == "failed":
                return header["reason"], header["forever"]
            if event in ("connected", "cluster"):
                with self._changed:
                    self._cluster = Cluster(header["cpus"], header["free"], header["machines"])
                    self._pipe = None if self._closed else pipe
                    self._changed.notify_all()
            elif event != "alive":
                self._tell(self._workers.get(header.pop("worker")), event, header, body)
        return f"the bridge to Ray gave no sign of life for {BRIDGE_SILENCE_S:.0f} s", False

    def _tell(self, worker: RemoteWorker | None, event: str, header: dict[str, Any], body: memoryview) -> None:
        """Tell a worker's handle what happened to it, unless it is of no interest any more."""
        if worker is None:
            return
        if event == "placed":
            worker.set_place(**header)
        elif event == "died":
            worker.fail(WorkerDied(header["reason"], header["blames_document"]))
        else:
            worker.set_reply((header, body))
