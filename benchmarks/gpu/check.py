"""Does lacy-stream work on this GPU node, and how fast is it? The limits of all parts add up to 18 minutes.

    python benchmarks/gpu/check.py --articles articles.jsonl.zst --out check --parts env smoke agree steps
    python benchmarks/gpu/check.py --articles articles.jsonl.zst --out check --parts stall objectives
    python benchmarks/gpu/check.py --toy --out check        # tiny models on a CPU: does the check itself work?

Every finding is a JSON line, printed at once and appended to OUT/results.jsonl. The parts, most important first:

- env: versions, the card, and the rates of its matrix products and its memory, which nothing can exceed;
- smoke: ``recipes/lacy_334m.yaml`` for 20 steps at its full batch, with evaluation and checkpoints, and once more from
  the checkpoint of step 10;
- agree: losses, gradients and masks of the nine methods against float64 on the CPU; trainings with the loss from logits
  and from hidden states, in one microbatch and in four;
- steps: time of a step, tokens/s, MFU and peak memory, Hugging Face's cross-entropy without a call mask beside ours,
  with each improvement of the step on and off, 334M and 1.27B parameters;
- stall: how long the trainer waits for 1 to 15 annotation workers;
- objectives: ``paper`` and ``defer`` beside a baseline, three models on the same batches.

Each part is a process, which is ended at its limit; its lines until then are kept, and its messages are in
OUT/PART.err. The exit code is 1 if a part failed, had no time or reached its limit, or if a line says that a
bound was exceeded (``"within": false``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from report import Check, append_line

ROOT = Path(__file__).resolve().parents[2]
PARTS = {  # the module, and seconds at most
    "env": ("environment", 60),
    "smoke": ("smoke", 240),
    "agree": ("agreement", 90),
    "steps": ("step_time", 240),
    "stall": ("stall", 150),
    "objectives": ("objectives", 300),
}
READS_TEXT = ("smoke", "stall", "objectives")
LEAST_S = 10
"""A part with less time than this is skipped."""


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.part:
        importlib.import_module("engine" if args.part == "engine" else PARTS[args.part][0]).run(check_of(args))
        return 0
    if set(args.parts) & set(READS_TEXT) and not (args.toy or args.articles):
        sys.exit(f"{', '.join(READS_TEXT)} read articles: give --articles, or name other --parts")
    results = args.out / "results.jsonl"
    results.unlink(missing_ok=True)
    succeeded = run_parts(args)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    outside = [f"{line['part']}: {line['name']}" for line in lines if line.get("within") is False]
    append_line(results, part="check", name="outside of bounds", lines=outside)
    return 0 if succeeded and not outside else 1


def run_parts(args: argparse.Namespace) -> bool:
    """Run the parts in turn. Returns whether all of them succeeded."""
    end = time.monotonic() + args.seconds
    # The engine's loops are compiled once, on one core, beside the parts that do not need them.
    engine = start("engine", args, args.seconds) if set(args.parts) & set(READS_TEXT) else None
    succeeded = [True]
    for part in args.parts:
        if part in READS_TEXT and engine is not None:
            succeeded.append(finish("engine", engine, end - time.monotonic(), args.out))
            engine = None
        limit = end - time.monotonic()
        if not args.toy:
            limit = min(limit, args.limits[part])
        if limit < LEAST_S:
            append_line(args.out / "results.jsonl", part=part, name="skipped", left_s=round(limit))
            succeeded.append(False)
            continue
        succeeded.append(finish(part, start(part, args, limit), limit, args.out))
    return all(succeeded)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--articles", type=Path, help="JSONL with a column text, also .gz or .zst, of 10,000 articles")
    parser.add_argument("--work", type=Path, help="folder for data and checkpoints, 15 GB (default: OUT/work)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--seconds", type=float, default=1200, help="for all parts together (default: %(default)s)")
    parser.add_argument("--limits", nargs="+", default=[], metavar="PART=SECONDS", help="for one part")
    parser.add_argument("--peak-tflops", type=float, default=989, help="dense bf16 of the card's data sheet, for MFU")
    parser.add_argument("--toy", action="store_true", help="tiny models, text of its own, no limits for parts")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.work = (args.work or args.out / "work").resolve()
    args.articles = args.articles and args.articles.resolve()
    args.limits = {part: seconds for part, (_, seconds) in PARTS.items()} | dict(map(parse_limit, args.limits))
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def parse_limit(text: str) -> tuple[str, float]:
    part, _, seconds = text.partition("=")
    try:
        if part in PARTS:
            return part, float(seconds)
    except ValueError:
        pass
    sys.exit(f"--limits {text}: give PART=SECONDS, where PART is one of {', '.join(PARTS)}")


def check_of(args: argparse.Namespace) -> Check:
    end = time.monotonic() + args.seconds
    return Check(args.part, args.toy, args.out, args.work, args.articles, end, args.peak_tflops, ROOT)


def start(part: str, args: argparse.Namespace, limit: float) -> subprocess.Popen:
    """The process of a part, which knows its limit."""
    command = [sys.executable, __file__, "--part", part, "--out", str(args.out), "--work", str(args.work)]
    command += ["--seconds", str(limit), "--peak-tflops", str(args.peak_tflops)]
    command += ["--articles", str(args.articles)] if args.articles else []
    command += ["--toy"] if args.toy else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with open(args.out / f"{part}.err", "w") as errors:
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=errors)


def finish(part: str, process: subprocess.Popen, limit: float, out: Path) -> bool:
    """Wait for a part, and end it and its children at its limit. Returns whether it succeeded."""
    start = time.monotonic()
    code: Any = "interrupted"
    try:
        code = process.wait(timeout=max(0.0, limit))
    except subprocess.TimeoutExpired:
        code = "ended at its limit"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what the part has started and not ended
        process.wait()
    append_line(out / "results.jsonl", part=part, name="end", exit=code, seconds=round(time.monotonic() - start, 1))
    if code != 0:
        print((out / f"{part}.err").read_text(errors="replace")[-2500:], flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
