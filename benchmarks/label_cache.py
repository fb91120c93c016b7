"""What does the label cache save, and what does it take?

    python benchmarks/label_cache.py articles.jsonl --tokenizer tokenizer.model --json out.json

One process on one core, every library on one thread. The same articles go (a) through ``Annotator``, from text to
LabelledTokens, and (b) through a ``LabelCache`` that holds them, from text to key to LabelledTokens, in turn, several
rounds; CPU time, medians. The file is in the page cache, as it is where it fits into memory. Writing the articles
to an empty cache is timed as well: the first epoch pays it on top of (a).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from annotation import take, texts_of, timed  # limits the threads, so it comes first

import lmdb  # isort: skip
from annotator import Annotator, Document, LabelledTokens  # isort: skip
from lacy_stream.stream.labels.cache import LabelCache  # isort: skip

EPOCHS, EPOCH_TOKENS = 16, 3e9  # of the paper
READS = 20  # of every document, per round: reading once is over in milliseconds


class Paths:
    """The same documents through the annotator, into a cache, and out of it."""

    def __init__(self, annotator: Annotator, folder: Path, texts: list[str]) -> None:
        self.annotator, self.folder, self.texts = annotator, folder, texts
        self.documents = [Document(str(number), text) for number, text in enumerate(texts)]
        self.labelled: list[LabelledTokens] = []
        self.wall_s: list[float] = []
        self.bytes = 0

    def annotate(self) -> None:
        self.labelled = self.annotator.annotate(self.texts)

    def fill(self, number: int) -> LabelCache:
        """Write all to an empty cache of its own."""
        start = time.perf_counter()
        cache = LabelCache(self.folder / str(number), self.annotator.fingerprint, 1 << 40)
        empty = cache.stats().bytes_used
        for document, labelled in zip(self.documents, self.labelled, strict=True):
            cache.put(document, labelled)
        cache.flush()
        self.wall_s.append(time.perf_counter() - start)
        self.bytes = cache.stats().bytes_used - empty
        return cache

    def read(self, cache: LabelCache) -> None:
        for number in range(READS):
            random.Random(number).shuffle(self.documents)
            for document in self.documents:
                if cache.get(document) is None:
                    raise SystemExit(f"error: the cache has lost document {document.id}")
        self.documents.sort(key=lambda document: int(document.id))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL with text and optionally title; plain or .zst")
    parser.add_argument("--tokens", type=int, default=100_000, help="measured, per round (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=20_000, help="tokens before, of other articles")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument(
        "--folder", type=Path, help="where the cache is made (default: the system's for temporary files)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    annotator = Annotator(args.tokenizer, args.model)
    texts = texts_of(args.file)
    annotator.annotate(take(texts, args.warm_up))
    seconds: dict[str, list[float]] = {"annotate": [], "put": [], "get": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        paths = Paths(annotator, Path(folder), take(texts, args.tokens))
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            seconds["annotate"].append(timed(lambda _: paths.annotate(), []))
            start = time.process_time()
            cache = paths.fill(number)
            seconds["put"].append(time.process_time() - start)
            seconds["get"].append(timed(lambda _, cache=cache: paths.read(cache), []) / READS)
            cache.close()
    report(args, paths, seconds)


def report(args: argparse.Namespace, paths: Paths, seconds: dict[str, list[float]]) -> None:
    tokens, documents = sum(map(len, paths.labelled)), len(paths.documents)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate = {name: tokens / value for name, value in median.items()}
    hours = {name: EPOCH_TOKENS / value / 3600 for name, value in rate.items()}
    figures = {
        "documents": documents,
        "tokens": tokens,
        "tokens_per_s_per_core": {name: round(value) for name, value in rate.items()},
        "times_faster": round(statistics.median(a / b for a, b in zip(seconds["annotate"], seconds["get"]))),
        "us_per_document": {name: round(1e6 * value / documents, 1) for name, value in median.items()},
        "bytes_per_token": round(paths.bytes / tokens, 3),
        "GB_per_epoch": round(paths.bytes / tokens * EPOCH_TOKENS / 1e9, 1),
        "core_hours": {
            "tokens": f"{EPOCHS} epochs of {EPOCH_TOKENS / 1e9:.0f}B",
            "without_cache": round(EPOCHS * hours["annotate"]),
            "with_cache": round(hours["annotate"] + hours["put"] + (EPOCHS - 1) * hours["get"], 1),
            "of_that_put": round(hours["put"], 2),
            "of_that_get": round((EPOCHS - 1) * hours["get"], 2),
        },
        "cpu_seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "put_wall_seconds": [round(value, 3) for value in paths.wall_s],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"lmdb {lmdb.__version__}",
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
