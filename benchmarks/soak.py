"""Does the memory of the whole tree of processes stay flat over many documents with ever new words?

    python benchmarks/soak.py --tokenizer tokenizer.model --documents 20000

Three runs over made-up text in which every third word was never seen before: at full speed; with a trainer that takes
ten times as long as the stream; and with workers that stand still nine tenths of the time (SIGSTOP). Each begins with
``--fill`` documents at full speed, which fill the tables of the annotation engine. Then every second: resident memory
of the trainer and its workers, file descriptors and threads. Reported: their medians over the first and the last tenth
of what came after.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from streaming import MDSWriter

from annotator import AnnotatorSettings
from lacy_stream.stream.batches import annotated_dataloader
from lacy_stream.stream.pool import AnnotationPool

BATCH, SEQ_LEN, WORDS = 8, 512, 100
RUNS = ("full-speed", "slow-trainer", "slow-workers")


class Sample(NamedTuple):
    """Of the tree of processes: resident memory of the trainer and of all workers in MB, descriptors, threads."""

    trainer_mb: float
    workers_mb: float
    descriptors: int
    threads: int


def write(folder: Path, documents: int) -> None:
    """Documents of 100 words; every third is made of random letters."""
    draw = random.Random(1)
    common = "the of Ada and wrote in London a letter to Charles about engine born was 1843 University museum".split()
    with MDSWriter(out=str(folder), columns={"text": "str"}, compression="zstd", hashes=["xxh64"]) as writer:
        for _ in range(documents):
            words = [
                "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) if n % 3 == 0 else draw.choice(common)
                for n in range(WORDS)
            ]
            writer.write({"text": " ".join(words) + "."})


def sample(pool: AnnotationPool) -> Sample:
    trainer = psutil.Process()
    processes = [trainer]
    for worker in list(pool._workers.values()):
        processes.append(psutil.Process(worker.pid))
    memory = [process.memory_info().rss / 1e6 for process in processes]
    return Sample(
        memory[0],
        sum(memory[1:]),
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
    )


def stopping(pool: AnnotationPool, done: threading.Event) -> None:
    """Let the workers run a tenth of the time."""
    while not done.is_set():
        for number, seconds in ((signal.SIGSTOP, 0.45), (signal.SIGCONT, 0.05)):
            for worker in list(pool._workers.values()):
                os.kill(worker.pid, number)
            done.wait(seconds)
    for worker in list(pool._workers.values()):
        os.kill(worker.pid, signal.SIGCONT)


def run(args: argparse.Namespace, data: Path, name: str) -> None:
    done = threading.Event()
    model = None if args.engine == "none" else "en_core_web_sm"
    engine = "auto" if model is None else args.engine
    with AnnotationPool(AnnotatorSettings(args.tokenizer, model, engine=engine), args.workers) as pool:
        loader = annotated_dataloader(data, pool, shuffle=True, batch_size=BATCH, max_seq_len=SEQ_LEN)
        stopper = threading.Thread(target=stopping, args=(pool, done), daemon=True)
        samples, last, start, filled = [], 0.0, 0.0, 0
        for batch in loader:
            taken = pool.stats().documents
            if not start and taken >= args.fill:
                start, filled = time.perf_counter(), taken
                if name == "slow-workers":
                    stopper.start()
            if start and time.perf_counter() - last > 1:
                last = time.perf_counter()
                samples.append(sample(pool))
            if start and taken >= filled + args.documents:
                break
            if start and name == "slow-trainer":  # ten times what the workers need for a batch
                time.sleep(10 * batch["input_ids"].numel() / (args.workers * pool.stats().tokens_per_s_per_core))
        done.set()
        if stopper.ident is not None:
            stopper.join()
        elapsed, restarts = time.perf_counter() - start, pool.report.counts()["worker_restarted"]
    tenth = max(1, len(samples) // 10)
    early, late = samples[:tenth], samples[-tenth:]
    cells = [
        f"{statistics.median(getattr(s, field) for s in early):,.0f} -> "
        f"{statistics.median(getattr(s, field) for s in late):,.0f}"
        for field in Sample._fields
    ]
    print(f"| {name} | {args.documents:,} | {elapsed:.0f} | {' | '.join(cells)} | {restarts} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--documents", type=int, default=20_000, help="of each run (default: %(default)s)")
    parser.add_argument("--fill", type=int, default=20_000, help="before them, not measured (default: %(default)s)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="default: all three")
    parser.add_argument(
        "--engine", choices=["auto", "numba", "spacy", "none"], default="auto", help="none: tokenise only"
    )
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.fill + args.documents + 1000)
        fields = " | ".join(Sample._fields)
        print(f"| run | documents | seconds | {fields} | restarts |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in args.runs:
            run(args, Path(folder), name)


if __name__ == "__main__":
    main()
