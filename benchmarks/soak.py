"""Does the memory of the whole tree of processes stay flat over many documents with ever new words?

    python benchmarks/soak.py --tokenizer tokenizer.model --documents 20000

Three runs over made-up text in which every third word was never seen before: at full speed; with a trainer that takes
ten times as long as the stream; and with workers that stand still nine tenths of the time (SIGSTOP). Every second:
resident memory of the trainer and its workers, file descriptors and threads. Reported: their medians over the second
and the last tenth of each run. The first tenth is start-up.
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

from lacy_stream.batches import annotated_dataloader
from lacy_stream.pool import AnnotationPool

BATCH, SEQ_LEN, WORDS = 8, 512, 100


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


def run(args: argparse.Namespace, data: Path, name: str, documents: int, slow: str = "") -> None:
    done = threading.Event()
    model = None if args.engine == "none" else "en_core_web_sm"
    engine = "auto" if model is None else args.engine
    with AnnotationPool(args.tokenizer, model, args.workers, engine=engine) as pool:
        loader = annotated_dataloader(data, pool, shuffle=True, batch_size=BATCH, max_seq_len=SEQ_LEN)
        stopper = threading.Thread(target=stopping, args=(pool, done), daemon=True)
        samples, last, start = [], 0.0, time.perf_counter()
        for batch in loader:
            if slow == "workers" and not samples:
                stopper.start()
            if time.perf_counter() - last > 1:
                last = time.perf_counter()
                samples.append(sample(pool))
            if pool.stats().documents >= documents:
                break
            if slow == "trainer":  # ten times what the workers need for a batch
                time.sleep(10 * batch["input_ids"].numel() / (args.workers * pool.stats().tokens_per_s_per_core))
        done.set()
        if stopper.ident is not None:
            stopper.join()
        elapsed, restarts = time.perf_counter() - start, pool.report.counts()["worker_restarted"]
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    cells = [
        f"{statistics.median(getattr(s, field) for s in early):,.0f} -> "
        f"{statistics.median(getattr(s, field) for s in late):,.0f}"
        for field in Sample._fields
    ]
    print(f"| {name} | {documents:,} | {elapsed:.0f} | {' | '.join(cells)} | {restarts} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--documents", type=int, default=20_000, help="at full speed; a tenth for the slow runs")
    parser.add_argument(
        "--engine", choices=["auto", "numba", "spacy", "none"], default="auto", help="none: tokenise only"
    )
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.documents)
        fields = " | ".join(Sample._fields)
        print(f"| run | documents | seconds | {fields} | restarts |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
        run(args, Path(folder), "full speed", args.documents)
        run(args, Path(folder), "slow trainer", args.documents // 10, "trainer")
        run(args, Path(folder), "slow workers", args.documents // 10, "workers")


if __name__ == "__main__":
    main()
