"""How long does a trainer of a given speed wait for its data, and how many cores does it need?

    python benchmarks/stall.py data/mine --tokenizer tokenizer.model --rates 5000 10000 20000 --workers 1 2

The data is what ``lacy-stream prepare`` writes. For each rate and number of workers a consumer takes batches and spends
on each the time that a trainer of that rate would (it sleeps, as a process does whose GPU computes), for ``--seconds``
after the prefetch has filled. Reported: the share of the time that it waited, and the rate that it reached. From the
annotation rate per core follows the number of cores that each rate of ``--gpu-rates`` needs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

from annotator import AnnotatorSettings
from lacy_stream.benchmark.figures import cores_needed
from lacy_stream.benchmark.measure import machine
from lacy_stream.stream.batches import annotated_dataloader
from lacy_stream.stream.pool import AnnotationPool

BATCH, SEQ_LEN = 8, 512


class Stall(NamedTuple):
    """One measurement: tokens/s asked for and reached, and the share of the time spent waiting."""

    workers: int
    rate: int
    reached: float
    waited: float
    tokens_per_s_per_core: float


def measure(args: argparse.Namespace, workers: int, rate: int) -> Stall:
    with AnnotationPool(AnnotatorSettings(args.tokenizer), num_workers=workers, label_cache=args.label_cache) as pool:
        settings = {"split": "train", "shuffle": True, "batch_size": BATCH, "max_seq_len": SEQ_LEN}
        loader = annotated_dataloader(args.data, pool, **settings)
        batches = iter(loader)
        next(batches)
        while pool.stats().queued or pool.stats().in_flight:  # begin with a full buffer, as a run does after a while
            time.sleep(0.05)
        before, start, taken = loader.dataset.stats().wait_s, time.perf_counter(), 0
        due = start
        while time.perf_counter() - start < args.seconds:
            next(batches)
            taken += 1
            due = max(due, time.perf_counter()) + BATCH * SEQ_LEN / rate
            time.sleep(max(0.0, due - time.perf_counter()))
        elapsed = time.perf_counter() - start
        waited = loader.dataset.stats().wait_s - before
        per_core = pool.stats().tokens_per_s_per_core
    return Stall(workers, rate, taken * BATCH * SEQ_LEN / elapsed, waited / elapsed, per_core)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that lacy-stream prepare wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--rates", type=int, nargs="+", default=[5_000, 10_000, 20_000], help="tokens/s of the trainer")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--gpu-rates", type=int, nargs="+", default=[25_000, 200_000], help="tokens/s to translate")
    parser.add_argument("--label-cache", type=Path, help="folder of a label cache")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    stalls = []
    print("| workers | trainer, tokens/s | reached | waited |\n| --- | --- | --- | --- |")
    for workers in args.workers:
        for rate in args.rates:
            stalls.append(measure(args, workers, rate))
            print("| {} | {:,} | {:,.0f} | {:.1%} |".format(*stalls[-1]), flush=True)
    per_core = sorted(stall.tokens_per_s_per_core for stall in stalls)[len(stalls) // 2]
    cores = {rate: cores_needed(rate, per_core) for rate in args.gpu_rates}
    print(f"\nOne core annotates {per_core:,.0f} tokens/s. Cores that a trainer needs:")
    for rate, count in cores.items():
        print(f"  {rate:,} tokens/s: {count}")
    if args.json:
        figures = {"stalls": [stall._asdict() for stall in stalls], "cores": cores, "machine": machine()}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
