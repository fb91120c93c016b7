"""Processes for tests. They begin with what takes long to import, which one fork server imports for all of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["lacy_stream.stream.shards", "lacy_stream.train.trainer", "composer"])


def forked(function: Callable[..., object], *arguments: object, daemon: bool = False) -> BaseProcess:
    """A process of the fork server, not started, that will call a function."""
    return FORK_SERVER.Process(target=function, args=arguments, daemon=daemon)


def processes(count: int) -> ProcessPoolExecutor:
    """Some processes that wait for calls."""
    return ProcessPoolExecutor(count, FORK_SERVER)


def on_two_ranks(function: Callable[[int, Path], None], folder: Path) -> None:
    """Call a function of (rank, folder) on two ranks of a gloo group, each a process with the variables that a launcher
    sets."""
    ranks = [forked(_run_rank, function, rank, folder, daemon=True) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=300)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def start(main: Callable[[list[str]], int | None], arguments: list[str], folder: Path, temporary: Path) -> BaseProcess:
    """Start a command as a process with a session of its own, as if a terminal had started it.

    Args:
        main: the function of the command.
        arguments: its arguments.
        folder: the folder that it starts in.
        temporary: the folder for its temporary files.
    """
    process = forked(_run_command, main, arguments, folder, temporary)
    process.start()
    return process


def _run_command(main: Callable[[list[str]], int | None], arguments: list[str], folder: Path, temporary: Path) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.exit(main(arguments))


def composer(arguments: list[str]) -> None:
    """The command `composer`."""
    from composer.cli.launcher import main

    sys.argv = ["composer", *arguments]
    main()


def _run_rank(function: Callable[[int, Path], None], rank: int, folder: Path) -> None:
    import torch

    here, all_ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), rank), dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), 2)
    os.environ |= {name: str(value) for name, value in (here | all_ranks | {"NODE_RANK": 0}).items()}
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    function(rank, folder)
