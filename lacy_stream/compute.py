"""Where models run: the device, and the number of threads on a CPU."""

from __future__ import annotations

import os

import torch

MOST_THREADS = 8
"""More threads than this wait for one another when a small model writes token by token."""


def choose_device(name: str = "auto") -> str:
    """The name of a torch device; for `auto`, cuda if available, else cpu."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def bound_threads(threads: int | None = None) -> None:
    """Set the number of threads of torch on a CPU.

    Args:
        threads: the number. None for the cores that this process may use, at most ``MOST_THREADS``; a number in
            OMP_NUM_THREADS is left as it is.
    """
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(threads or min(len(os.sched_getaffinity(0)), MOST_THREADS))
