"""What does the objective cost beside plain cross-entropy as Hugging Face computes it: time and peak memory?

    python benchmarks/loss.py --rows 8 --length 512 --rounds 7
    python benchmarks/loss.py --rows 16 --length 1024 --dtype bfloat16 --device cuda
    python benchmarks/loss.py --rows 8 --length 1024 --width 1024 --dtype bfloat16 --ways hf hidden --rounds 0

From the logits [rows, length, 32001] to their gradient, in turn, each in a process of its own for the peak of memory:

- hf: ``transformers.loss.loss_utils.ForCausalLMLoss``: logits to float32, cross-entropy;
- a3: ours with a call mask (equation A.3);
- a4: ours with a call mask and an ignore mask (A.4).

The peak is what comes on top of the logits, whose gradient (as large as they are) is a part of every peak. With
``--width D`` everything begins with the hidden states [rows, length, D] and the weight of the output layer instead, as
a model has them, and one more way takes part:

- hidden: ours with a call mask, from hidden states, so that the logits are never held.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY, CALL = 32_001, 32_000
WAYS = ("hf", "a3", "a4")
OF_HIDDEN_STATES = (*WAYS, "hidden")


def step(way: str, source: tuple[Any, ...], labels: Any, masks: Any) -> None:
    """Loss and gradient of one batch, from (logits,) or from (hidden states, weight)."""
    import torch.nn.functional as F
    from transformers.loss.loss_utils import ForCausalLMLoss

    from lacy_stream.objective.losses import HiddenStates, token_losses, training_loss

    logits = HiddenStates(*source) if way == "hidden" else source[0] if len(source) == 1 else F.linear(*source)
    if way == "hf":
        loss = ForCausalLMLoss(logits, labels, VOCABULARY)
    else:
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        losses = token_losses(logits, targets, CALL)
        ignore = masks[1] if way == "a4" else None
        loss = training_loss(losses, targets != -100, masks[0], ignore, objective="paper")
    loss.backward()


def batch(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (args.rows, args.length)
    if args.width:
        shapes = [(*shape, args.width), (VOCABULARY, args.width)]
    else:
        shapes = [(*shape, VOCABULARY)]
    source = [torch.randn(size, generator=generator) / (args.width or 1) ** 0.5 for size in shapes]
    draw = torch.rand(shape, generator=generator)
    labels = torch.randint(0, CALL, shape, generator=generator)
    masks = (draw < 0.15, draw > 0.85)
    source = [part.to(args.device, getattr(torch, args.dtype)).requires_grad_() for part in source]
    return tuple(source), labels.to(args.device), [mask.to(args.device) for mask in masks]


def peak(way: str, args: argparse.Namespace, results: Any) -> None:
    """MB above what a step begins with that it holds at most."""
    import torch

    torch.set_num_threads(args.threads)
    small = argparse.Namespace(**(vars(args) | {"rows": 1, "length": 2}))
    step(way, *batch(small))  # imports, threads and the like
    source, labels, masks = batch(args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(way, source, labels, masks)
        results.put((torch.cuda.max_memory_allocated() - before) >> 20)
        return
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    before = _status("VmRSS")
    step(way, source, labels, masks)
    results.put((_status("VmHWM") - before) >> 10)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--width", type=int, default=0, help="begin with hidden states of this width")
    parser.add_argument("--rounds", type=int, default=7, help="of the measurement of time; 0: memory alone")
    parser.add_argument("--ways", nargs="+", choices=OF_HIDDEN_STATES, help="default: all")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as training does
    context = multiprocessing.get_context("spawn")
    peaks = {}
    ways = args.ways or (OF_HIDDEN_STATES if args.width else WAYS)
    if "hf" not in ways or ("hidden" in ways and not args.width):
        parser.error("--ways needs hf, which the others are compared with; and hidden needs --width")
    for way in ways:
        results = context.Queue()
        process = context.Process(target=peak, args=(way, args, results))
        process.start()
        peaks[way] = results.get()
        print(f"{way}: peak {peaks[way]} MB", file=sys.stderr)
        process.join()

    import torch

    torch.set_num_threads(args.threads)
    source, labels, masks = batch(args)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds + 1 if args.rounds else 0):
        print(f"round {number} of {args.rounds}", file=sys.stderr)
        for way in ways:
            for part in source:
                part.grad = None
            start = time.perf_counter()
            step(way, source, labels, masks)
            if args.device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first warms up
                seconds[way].append(time.perf_counter() - start)
    size = args.rows * args.length * VOCABULARY * source[0].element_size()
    figures = {
        "logits_mb": size >> 20,
        "ms": {way: round(1000 * statistics.median(values), 1) for way, values in seconds.items() if values},
        "times_hf": {
            way: round(statistics.median(a / b for a, b in zip(values, seconds["hf"], strict=True)), 2)
            for way, values in seconds.items()
            if values
        },
        "peak_mb": peaks,
        "peak_times_hf": {way: round(value / peaks["hf"], 3) for way, value in peaks.items()},
        "peak_in_copies_of_the_logits": {way: round(value / (size >> 20), 2) for way, value in peaks.items()},
        "settings": {key: str(value) for key, value in vars(args).items() if key != "json"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
