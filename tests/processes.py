"""Processes for tests of the stream: they begin with it imported, which a fork server does once and takes seconds."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["lacy_stream.stream.shards"])


def processes(count: int) -> ProcessPoolExecutor:
    """Some processes that wait for calls."""
    return ProcessPoolExecutor(count, FORK_SERVER)
