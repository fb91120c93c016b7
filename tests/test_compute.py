"""Where models run: the device and the number of threads."""

from __future__ import annotations

import os

import pytest
import torch

from lacy_stream.compute import MOST_THREADS, ComputeOptions


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that is given counts, then that of OMP_NUM_THREADS, then the cores of the process up to a bound."""
    before = torch.get_num_threads()
    try:
        assert ComputeOptions(device="cpu", threads=3).set_up() == "cpu" and torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        ComputeOptions().set_up()
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        ComputeOptions().set_up()
        assert torch.get_num_threads() == min(len(os.sched_getaffinity(0)), MOST_THREADS)
    finally:
        torch.set_num_threads(before)


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is a GPU where torch has one."""
    for is_available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=is_available: found)
        assert ComputeOptions(threads=torch.get_num_threads()).set_up() == device
