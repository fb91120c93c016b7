"""How many tokens a second does one core annotate, and where does the time go?

    python benchmarks/annotation.py articles.jsonl --tokenizer tokenizer.model --json out.json

One process on one core, every library on one thread. After a warm-up on other articles, the same articles go
through (a) spaCy alone, ``nlp.pipe`` with our settings, and (b) the whole path from text to LabelledTokens, in
turn, several rounds; medians. The ratio (b)/(a) is what rules, SentencePiece and alignment cost on top of the
parser.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.modules["torch"] = None  # type: ignore[assignment]  # as in the pool's workers

import numpy as np  # noqa: E402

from annotator.facts import class_of_rule, fired_rules  # noqa: E402
from annotator.tokens import Tokenizer  # noqa: E402
from annotator.words import Parser  # noqa: E402

PAPER_TOKENS_PER_S = 1827
CHARACTERS_PER_TOKEN = 4


def texts_of(path: Path) -> Iterator[str]:
    """The documents of a JSONL file (plain or .zst): title, blank line, text."""
    import io

    import zstandard

    with open(path, "rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            row = json.loads(line)
            title = f"{row['title']}\n\n" if row.get("title") else ""
            yield title + row["text"]


def take(texts: Iterator[str], tokens: int) -> list[str]:
    """Texts of about that many tokens."""
    chosen, characters = [], 0
    for text in texts:
        chosen.append(text)
        characters += len(text)
        if characters >= tokens * CHARACTERS_PER_TOKEN:
            return chosen
    raise SystemExit(f"error: the file holds only {characters // CHARACTERS_PER_TOKEN:,} of the {tokens:,} tokens")


class Stages:
    """The path in its three stages, each timed."""

    def __init__(self, model: str, tokenizer: Path) -> None:
        self.parser, self.tokenizer = Parser(model), Tokenizer(tokenizer)
        self.seconds = {"words": 0.0, "facts": 0.0, "tokens": 0.0}
        self.words = self.tokens = 0

    def parse_only(self, texts: list[str]) -> None:
        for _ in self.parser._nlp.pipe(texts):
            pass

    def annotate(self, texts: list[str]) -> None:
        mark = time.process_time()
        for text, words in zip(texts, self.parser.parse(texts), strict=True):
            mark = self._lap("words", mark)
            classes = class_of_rule(fired_rules(words))
            mark = self._lap("facts", mark)
            labelled = self.tokenizer.label(text, words, classes)
            mark = self._lap("tokens", mark)
            self.words, self.tokens = self.words + len(words), self.tokens + len(labelled)

    def _lap(self, stage: str, since: float) -> float:
        now = time.process_time()
        self.seconds[stage] += now - since
        return now


def timed(function: Callable[[list[str]], None], texts: list[str]) -> float:
    """CPU seconds: other processes on the machine count less than in wall time."""
    start = time.process_time()
    function(texts)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL with text and optionally title; plain or .zst")
    parser.add_argument("--tokens", type=int, default=300_000, help="measured, per round (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=50_000, help="tokens before, of other articles")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    stages = Stages(args.model, args.tokenizer)
    texts = texts_of(args.file)
    warm_up, measured = take(texts, args.warm_up), take(texts, args.tokens)
    stages.parse_only(warm_up)
    stages.annotate(warm_up)
    stages.seconds, stages.words, stages.tokens = dict.fromkeys(stages.seconds, 0.0), 0, 0
    seconds = {"spacy": [], "whole": []}
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        seconds["spacy"].append(timed(stages.parse_only, measured))
        seconds["whole"].append(timed(stages.annotate, measured))
    report(args, stages, seconds, len(measured))


def report(args: argparse.Namespace, stages: Stages, seconds: dict[str, list[float]], documents: int) -> None:
    tokens = stages.tokens // args.rounds
    rate = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(np.divide(seconds["whole"], seconds["spacy"]).tolist())
    figures = {
        "documents": documents,
        "tokens": tokens,
        "tokens_per_s_per_core": {name: round(value) for name, value in rate.items()},
        "hours_per_1B_tokens": {name: round(1e9 / value / 3600, 1) for name, value in rate.items()},
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "time_ratio_whole_to_spacy": round(ratio, 3),
        "us_per_word": {name: round(1e6 * value / stages.words, 2) for name, value in stages.seconds.items()},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "paper": {"tokens_per_s_per_core": PAPER_TOKENS_PER_S, "hours_per_1B_tokens": 152},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
