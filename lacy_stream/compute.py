"""Where models run: the options `--device` and `--threads` of all commands that run one, and what they do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from lacy_stream.errors import UsageError

MOST_THREADS = 8
"""By default. More threads than this wait for one another when a small model writes token by token."""
THREADS_LIMIT = 1024
"""Torch ends the process if the system has no place for as many threads as it is told to start."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """The options of all commands that run a model. This class does not import torch.

    Raises:
        UsageError: the number of threads is out of range.
    """

    device: Annotated[str, "DEVICE"] = "auto"
    """The torch device of the models, such as cpu or cuda:1; `auto` is cuda if available, else cpu."""

    threads: int | None = None
    """Threads of torch on a CPU. Default: OMP_NUM_THREADS, or else the cores that this process may use, at most 8."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= THREADS_LIMIT:
            raise UsageError(f"--threads is {self.threads}: give 1 to {THREADS_LIMIT}")

    def set_up(self) -> str:
        """Set the number of threads of torch.

        Returns:
            The name of the torch device.

        Raises:
            UsageError: there is no such device.
        """
        bound_threads(self.threads)
        return choose_device(self.device)


def choose_device(name: str = "auto") -> str:
    """The name of a torch device; for `auto`, cuda if available, else cpu.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch has an assertion for a build without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(f"there is no device {name!r} ({reason}): give auto, cpu, cuda or cuda:N") from None
    return name


def bound_threads(threads: int | None = None) -> None:
    """Set the number of threads of torch on a CPU.

    Args:
        threads: the number. None for the cores that this process may use, at most ``MOST_THREADS``; a number in
            OMP_NUM_THREADS is left as it is.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(threads or min(len(os.sched_getaffinity(0)), MOST_THREADS))
