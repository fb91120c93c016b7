"""The bridge: the process that holds a rank's connection to Ray. No other file imports Ray.

Ray ends a process whose cluster is gone, and unpickles the errors of its workers. Neither happens in the trainer, which
talks to the bridge through a pipe, in messages of ``frames``:

    start    worker, name, avoid (ids of machines)         placed   worker, address, node, pid
    call     worker, method; body                          ready    worker, identity or failed
    kill     worker                                        answer   worker; body
                                                           died     worker, reason, blames_document
    the end of the pipe ends the bridge                    connected, failed, cluster, alive

Actors belong to the bridge: when it ends, however it ends, Ray ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multiprocess.connection import Connection

from lacy_stream.stream.workers.frames import pack, unpack
from lacy_stream.stream.workers.process import THREAD_VARIABLES, end_with
from lacy_stream.stream.workers.remote_settings import CLIENT, describe_token, split_address, why_unsafe

if TYPE_CHECKING:
    from ray import ObjectRef

ALIVE_S = 2.0
"""Seconds after which the bridge says that it is alive, if it has nothing else to say."""
CLUSTER_S = 5.0
"""Seconds between two looks at the cluster."""
REACH_S = 10.0
"""Seconds to wait for a machine to accept a connection."""
VERDICT_S = 1.0
"""Seconds between the death of an actor and the question whether its machine lives: a machine that is shut down ends
its processes first."""

Message = tuple[dict[str, Any], bytes]


@dataclass(frozen=True)
class BridgeSettings:
    """What a bridge is told when it starts.

    address, py_modules, allow_unauthenticated: see ``RemoteSettings``.
    namespace: the name of this run in the cluster.
    settings:  ``wire.encode_settings`` of the annotator.
    log:       file that takes what Ray prints.
    """

    address: str
    py_modules: tuple[str, ...]
    allow_unauthenticated: bool
    namespace: str
    settings: bytes
    log: str


def run_bridge(pipe: Connection, settings: BridgeSettings, parent_pid: int) -> None:
    """Main function of the process."""
    end_with(parent_pid)
    _print_to(settings.log)
    os.chdir("/")  # Ray puts the folder in which it starts on the workers' path
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # it would start the workers on another Python
    outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_send_all, args=(pipe, outbox), name="outbox", daemon=True).start()
    failure = _connect(settings)
    if failure is not None:
        outbox.put(({"event": "failed", **failure}, b""))
        with contextlib.suppress(EOFError, OSError):  # until the trainer has read it
            pipe.recv_bytes()
        return
    import ray

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(EOFError, OSError):
        Bridge(settings, outbox).serve(pipe)
    ray.shutdown()


def _print_to(log: str) -> None:
    """Let this process print to a file: what Ray prints would break up the trainer's progress bar."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for own in (1, 2):
        os.dup2(descriptor, own)
    os.close(descriptor)


def _send_all(pipe: Connection, outbox: queue.SimpleQueue[Message]) -> None:
    """Send what the other threads have to say. Only this thread writes to the pipe, and it may wait there: the trainer
    may stand still."""
    with contextlib.suppress(OSError):
        while True:
            try:
                header, body = outbox.get(timeout=ALIVE_S)
            except queue.Empty:
                header, body = {"event": "alive"}, b""
            pipe.send_bytes(pack(header, body))


def _connect(settings: BridgeSettings) -> dict[str, Any] | None:
    """Connect this process to the cluster.

    Returns:
        None; or why it cannot be connected: ``reason``, and ``forever``, whether that will not change.
    """
    try:
        _reach(settings.address)
    except OSError as error:
        return {"reason": _one_line(error), "forever": False}
    try:
        if _wants_other_token(settings.address):
            return {"reason": describe_token(), "forever": True}
        unsafe = _join(settings)
    except Exception as error:
        return _explain(error, settings.address)
    return None if unsafe is None else {"reason": unsafe, "forever": True}


def _explain(error: Exception, address: str) -> dict[str, Any]:
    """Say why Ray has not joined, and whether that will not change."""
    cause = f"{type(error).__name__}: {error}\n{error.__cause__}"  # Ray hides some errors in a ConnectionError
    if "AuthenticationError" in cause:
        return {"reason": describe_token(), "forever": True}
    reason = _one_line(error)
    if "Version mismatch" in cause:
        found = re.findall(r"(?:Ray|Python): ([\w.]+)", cause)
        if len(found) == 4:
            reason = "it runs Ray {} on Python {}, and this process Ray {} on Python {}".format(*found)
        return {"reason": f"{reason}. Give all machines the same versions, such as by one image", "forever": True}
    if not isinstance(error, (OSError, TimeoutError)):  # such as a bad py_modules
        return {"reason": reason, "forever": True}
    if split_address(address) and not address.startswith(CLIENT):
        reason += (
            ". Is this machine part of the cluster? If not, run `ray start "
            f"--address={address} --num-cpus=0` on it, or give {CLIENT}HOST:10001 as the address"
        )
    return {"reason": reason, "forever": False}


def _wants_other_token(address: str) -> bool:
    """Whether the cluster refuses the token of this process, or its lack of one. Ray would try again for 20 to 30
    seconds, and Ray Client would then hide the reason. Any call tells: a server looks at the token first."""
    if split_address(address) is None:
        return False
    with contextlib.suppress(
        Exception
    ):  # these are inner parts of Ray: if they have changed, its own error comes, later
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc

        client = address.startswith(CLIENT)
        messages: Any = ray_client_pb2 if client else gcs_service_pb2  # whose types are made when they are imported
        channel = init_grpc_channel(address.removeprefix(CLIENT))
        try:
            if client:
                request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
                ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(request, timeout=REACH_S)
            else:
                request = messages.CheckAliveRequest()
                gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(request, timeout=REACH_S)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        finally:
            channel.close()
    return False


def _join(settings: BridgeSettings) -> str | None:
    """Join the cluster; returns why it must not be used, if it must not."""
    import ray

    environment = {variable: "1" for variable in THREAD_VARIABLES}
    modules = {"py_modules": list(settings.py_modules)} if settings.py_modules else {}
    ray.init(
        address=settings.address,
        namespace=settings.namespace,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": environment, **modules},
    )
    if settings.address != "auto" or settings.allow_unauthenticated:
        return None
    return why_unsafe(ray.get_runtime_context().gcs_address)  # known only now; nothing was sent so far


def _reach(address: str) -> None:
    """Try the address, so that a wrong one is noticed at once: Ray waits for most of a minute.

    Raises:
        OSError: nothing accepts connections there.
    """
    place = split_address(address)
    if place is not None:
        socket.create_connection(place, timeout=REACH_S).close()


def _one_line(error: object, limit: int = 400) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


class Bridge:
    """The actors of one rank, by the number that the trainer gave each of them."""

    def __init__(self, settings: BridgeSettings, outbox: queue.SimpleQueue[Message]) -> None:
        import ray
        from ray import cloudpickle

        from lacy_stream.stream.workers import actor

        cloudpickle.register_pickle_by_value(actor)
        self._class: Any = ray.remote(actor.AnnotationWorker)
        self._settings: Any = ray.put(settings.settings)  # once for all actors: it is up to some megabytes
        self._outbox = outbox
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}  # worker -> id of its machine
        self._starts: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._deaths: queue.SimpleQueue[tuple[int, BaseException]] = queue.SimpleQueue()

    def serve(self, pipe: Connection) -> None:
        """Do what the trainer says, until its end of the pipe is closed (EOFError)."""
        import ray

        self._say("connected", ray=ray.__version__, **_look_at_cluster())
        for target in (self._start_all, self._judge_deaths, self._watch_cluster):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        while True:
            header, body = unpack(pipe.recv_bytes())
            worker = header["worker"]
            if header["do"] == "call":
                if worker in self._actors:
                    method = getattr(self._actors[worker], header["method"])
                    self._await(worker, method.remote(*([bytes(body)] if body else [])), self._answered)
            else:
                self._starts.put(header)

    def _say(self, event: str, body: bytes = b"", **header: Any) -> None:
        self._outbox.put(({"event": event, **header}, body))

    def _await(self, worker: int, reference: ObjectRef, then: Callable[[int, bytes], None]) -> None:
        """Call ``then`` with the result of an actor's method, or let the cause of its death be found."""

        def done(future: Any) -> None:  # in a thread of Ray's, which must not wait
            error = future.exception()
            if error is None:
                then(worker, future.result())
            else:
                self._deaths.put((worker, error))

        reference.future().add_done_callback(done)

    # --- starting and ending ------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        """Start actors, let them load, and kill them, one after another. Each step may wait for the head."""
        import ray

        while True:
            header = self._starts.get()
            worker = header["worker"]
            try:
                if header["do"] == "start":
                    self._start(worker, header["name"], header["avoid"])
                elif header["do"] == "load":
                    if (handle := self._actors.get(worker)) is not None:
                        self._await(worker, handle.load.remote(self._settings), self._loaded)
                elif (handle := self._actors.pop(worker, None)) is not None:
                    self._nodes.pop(worker, None)
                    ray.kill(handle)
            except Exception as error:
                if header["do"] != "kill":  # otherwise it is gone already, or the head is
                    self._deaths.put((worker, error))

    def _start(self, worker: int, name: str, avoid: list[str]) -> None:
        """Start an actor, on none of the machines that were refused before."""
        handle = self._class.options(
            name=name,
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            label_selector={"ray.io/node-id": f"!in({','.join(avoid)})"} if avoid else None,
        ).remote()
        self._actors[worker] = handle
        self._await(worker, handle.where.remote(), self._placed)

    def _placed(self, worker: int, where: bytes) -> None:
        place = json.loads(where)
        self._nodes[worker] = place["node"]
        self._say("placed", worker=worker, **place)
        self._starts.put({"do": "load", "worker": worker})  # Ray Client must not be called from its own threads

    def _loaded(self, worker: int, outcome: bytes) -> None:
        self._say("ready", worker=worker, **json.loads(outcome))

    def _answered(self, worker: int, body: bytes) -> None:
        self._say("answer", body, worker=worker)

    # --- deaths -------------------------------------------------------------------------------------------------

    def _judge_deaths(self) -> None:
        """Tell the trainer of each death, and whether what the worker held may be to blame. Not if its machine, or the
        way to it, is gone."""
        from ray.exceptions import ActorDiedError, RayTaskError

        while True:
            deaths = [self._deaths.get()]
            time.sleep(VERDICT_S)
            with contextlib.suppress(queue.Empty):
                while True:
                    deaths.append(self._deaths.get_nowait())
            alive = _living_nodes()
            for worker, error in deaths:
                process_died = isinstance(error, ActorDiedError) and not error.preempted
                # An error of the actor's own code is a RayTaskError.
                blames = isinstance(error, RayTaskError) or process_died and self._nodes.get(worker) in alive
                self._say("died", worker=worker, reason=_describe(error), blames_document=blames)
                self._starts.put({"do": "kill", "worker": worker})

    def _watch_cluster(self) -> None:
        while True:
            time.sleep(CLUSTER_S)
            with contextlib.suppress(Exception):  # without a head; then this process ends soon
                self._say("cluster", **_look_at_cluster())


def _living_nodes() -> set[str]:
    """The ids of the machines that Ray takes for alive; none if it cannot be asked."""
    import ray

    try:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    except Exception:
        return set()


def _look_at_cluster() -> dict[str, Any]:
    """CPUs and machines of the cluster, and how many CPUs are free."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return {"cpus": int(total.get("CPU", 0)), "free": int(free.get("CPU", 0)), "machines": len(machines)}


def _describe(error: BaseException) -> str:
    """The death of an actor, as a predicate. Ray's texts have many lines, and the last one says the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"died: {type(error).__name__}: {_one_line(lines[-1] if lines else '')}"
