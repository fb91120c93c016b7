"""A Ray cluster of several raylets in a network namespace of its own, on loopback, and a process there that runs what
tests ask for.

Ray listens on all interfaces, and a test must open no port of its machine. A PID namespace makes sure that no process
is left. ``RayHost`` is for tests; the rest runs inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parent
UNSHARE = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
ADDRESS = "127.0.0.1:6379"
LIBC = ctypes.CDLL(None)
# On a busy machine, a raylet would end itself because its agent takes more than 15 s to start, and actors would stand
# still, which are at nice 15 otherwise. Without a head, Ray's processes end after a minute, for which no test waits.
SETTINGS = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_niceness": "0",
}


def why_no_namespace() -> str:
    """Why a namespace cannot be made here; "" if it can."""
    try:
        run = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    except OSError as error:
        return f"unshare: {error}"
    return "" if run.returncode == 0 else f"no network namespace: {run.stderr.strip()}"


class RayHost:
    """A process in a namespace of its own. ``call`` runs a function there.

    Args:
        folder: for Ray's files; a short path.
        modules: folders of functions to call, besides that of the tests.
    """

    def __init__(self, folder: Path, *modules: Path) -> None:
        self._address = str(folder / "host")
        self._log = open(folder / "host.log", "w", encoding="utf-8")  # noqa: SIM115
        environment = (
            os.environ
            | SETTINGS
            | {
                "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS, *modules])),
                "RAY_USAGE_STATS_ENABLED": "0",
                "TMPDIR": str(folder),
            }
        )
        environment.pop("RAY_AUTH_MODE", None)
        self._process = subprocess.Popen(
            [*UNSHARE, sys.executable, __file__, self._address],
            stdout=self._log,
            stderr=self._log,
            env=environment,
            preexec_fn=lambda: LIBC.prctl(1, signal.SIGKILL),  # a killed test leaves no cluster (PR_SET_PDEATHSIG)
        )
        deadline = time.monotonic() + 120
        while not os.path.exists(self._address):
            assert time.monotonic() < deadline and self._process.poll() is None, "the host did not start"
            time.sleep(0.02)
        self._pipe = Client(self._address)

    def call(self, function: str, *arguments: Any) -> Any:
        """Run ``module:function`` in the namespace, with plain values. What it raises is an AssertionError here."""
        self._pipe.send((function, arguments))
        ok, result = self._pipe.recv()
        assert ok, result
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


# --- inside ---------------------------------------------------------------------------------------------------------


def raylets() -> list[psutil.Process]:
    """The raylets that run, or stand still. This process has no parent that would reap those that were killed."""
    return [process for process in psutil.process_iter() if _name(process) == "raylet" and not _is_dead(process)]


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _ray(*arguments: str, **environment: str) -> None:
    options = ["--object-store-memory=80000000", "--include-log-monitor=false"]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert run.returncode == 0, run.stdout + run.stderr


class Machine:
    """A raylet with all that it has started."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        before = {process.pid for process in raylets()}
        _ray(*arguments, **environment)
        (self.raylet,) = [process for process in raylets() if process.pid not in before]

    def signal(self, number: signal.Signals) -> None:
        """Send all its processes a signal, first the raylet, which could report the death of others."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self.raylet, *self.raylet.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def workers(self) -> list[int]:
        """Pids of the actors that it runs."""
        return [child.pid for child in self.raylet.children() if "AnnotationWorker" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Cluster:
    """A head without CPUs, and machines with some."""

    def __init__(self) -> None:
        self.head: Machine | None = None
        self.machines: dict[str, Machine] = {}

    def start_head(self) -> None:
        if self.head is None:
            self.head = Machine("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", "--no-monitor")

    def stop_head(self) -> None:
        """Kill the head: its raylet, and the store of the cluster."""
        assert self.head is not None
        for process in psutil.process_iter():
            if _name(process) == "gcs_server":
                process.kill()
        self.head.signal(signal.SIGKILL)
        self.head = None

    def machine(self, name: str, cpus: int = 1, **environment: str) -> Machine:
        """The machine of this name. It is started if there is none; the others are not touched."""
        found = self.machines.get(name)
        if found is None or _is_dead(found.raylet):
            self.machines[name] = found = Machine(f"--address={ADDRESS}", f"--num-cpus={cpus}", **environment)
        return found

    def leave(self, *names: str) -> None:
        """Let machines leave the cluster. Ray notices that at once, and a death after seconds."""
        for name in names:
            if name in self.machines:
                machine = self.machines.pop(name)
                machine.raylet.terminate()
                machine.raylet.wait(60)

    def remove(self, *names: str) -> None:
        """Kill machines."""
        for name in names:
            if name in self.machines:
                self.machines.pop(name).signal(signal.SIGKILL)


CLUSTER = Cluster()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            module, _, name = function.partition(":")
            answer = True, getattr(importlib.import_module(module), name)(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    sys.modules["ray_cluster"] = sys.modules["__main__"]  # one CLUSTER
    with Listener(sys.argv[1]) as listener:
        _serve(listener.accept())
