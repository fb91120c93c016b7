"""Versions, the device, and the rates that nothing on it can exceed."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable

from report import Check

PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "numba",
    "triton",
    "mosaicml",
    "mosaicml-streaming",
    "spacy",
    "torchmetrics",
    "sentencepiece",
)
MODULES = ("numba", "composer", "streaming", "spacy", "lacy_stream.train.trainer", "lacy_stream.train.call_mask")
ROUNDS = 10


def run(check: Check) -> None:
    versions = {name: version_of(name) for name in PACKAGES}
    check.report("versions", python=platform.python_version(), cores=len(os.sched_getaffinity(0)), **versions)
    for module in MODULES:
        start = time.monotonic()
        importlib.import_module(module)
        check.report("import", module=module, seconds=round(time.monotonic() - start, 1))
    _report_ceilings(check)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _report_ceilings(check: Check) -> None:
    """The rate of a large matrix product in bf16, and of a copy on the device."""
    import torch

    width, size = (256, 1 << 20) if check.toy else (8192, 1 << 31)
    left, right = (torch.randn(width, width, device=check.device).bfloat16() for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    product_s = _median_seconds(check, lambda: left @ right)
    copy_s = _median_seconds(check, lambda: target.copy_(source))
    check.report(
        "ceilings",
        device=torch.cuda.get_device_name() if check.on_gpu else "cpu",
        memory_gb=round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if check.on_gpu else None,
        bf16=torch.cuda.is_bf16_supported() if check.on_gpu else None,
        matmul_tflops=round(2 * width**3 / product_s / 1e12, 3),
        copy_tb_per_s=round(2 * size / copy_s / 1e12, 4),
        peak_tflops=check.peak_tflops,
    )


def _median_seconds(check: Check, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        work()
        check.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])
