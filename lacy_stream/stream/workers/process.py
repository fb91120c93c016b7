"""A child process of this machine: it starts without the user's main script, and ends with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from multiprocess import spawn
from multiprocess.connection import Connection
from multiprocess.context import SpawnContext, SpawnProcess

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Variables of the environment that limit the threads of a numerical library, when it is loaded."""

_PR_SET_PDEATHSIG = 1


def start_process(name: str, main: Callable[..., None], *arguments: Any) -> tuple[SpawnProcess, Connection]:
    """Start a process that calls ``main(pipe, *arguments, pid of this process)``.

    Call it from a thread that lives as long as the process: the kernel ties the parent-death signal of a child to the
    thread that started it.

    Returns:
        The process, and this end of its pipe.
    """
    context = SpawnContext()
    pipe, child_pipe = context.Pipe(duplex=True)
    process = context.Process(target=main, args=(child_pipe, *arguments, os.getpid()), name=name, daemon=True)
    with _without_main_script():
        process.start()
    child_pipe.close()
    return process, pipe


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Keep spawn from running the user's main script again in every child: that took 9 s and loaded torch."""
    with _starting:
        original = spawn.get_preparation_data
        spawn.get_preparation_data = lambda name: {
            key: value for key, value in original(name).items() if not key.startswith("init_main_from")
        }
        try:
            yield
        finally:
            spawn.get_preparation_data = original


_starting = threading.Lock()  # one start at a time, because each replaces a function of the module


def end_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the parent dies, and exit at once if it already has. Leave Ctrl-C, which
    reaches the whole process group, to the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
