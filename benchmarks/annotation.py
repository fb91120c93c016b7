"""How many tokens a second does one core annotate, and where does the time go?

    python benchmarks/annotation.py articles.jsonl --tokenizer tokenizer.model --json out.json
    python benchmarks/annotation.py articles.jsonl --tokenizer tokenizer.model --workers 1 2
    python benchmarks/annotation.py articles.jsonl --tokenizer tokenizer.model --growth 10

One process on one core, every library on one thread. After a warm-up on other articles, each round takes articles that
no variant has seen, and puts them through the whole path from text to LabelledTokens in four ways, in turn:

(a) paper: ``nlp.pipe`` of the pipeline as published, the rules in a Python loop over the Doc, ``char_span``-style
    alignment;
(b) spacy: stock spaCy, one text at a time, feeding our rules on arrays;
(c) first: the engine on text that it sees for the first time;
(d) known: the engine on the same text again.

CPU time, medians over the rounds; ratios are taken within a round. ``--workers`` repeats (c) and (d) with that many
processes at once, each on a core of its own, in turns; ``--growth`` watches the memory of one over that many million
words.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import string
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.modules["torch"] = None  # type: ignore[assignment]  # as in the pool's workers

import psutil  # noqa: E402
import spacy  # noqa: E402

from annotator.align import classify  # noqa: E402
from annotator.cues import LEXICON, Cue  # noqa: E402
from annotator.facts import class_of_rule, fired_rules  # noqa: E402
from annotator.records import FactClass  # noqa: E402
from annotator.tokenizers.sentencepiece import SentencePieceTokenizer  # noqa: E402
from annotator.words import Parser  # noqa: E402

PAPER_TOKENS_PER_S = 1827
CHARACTERS_PER_TOKEN = 4
GRAMMATICAL = {"DET", "ADP", "CCONJ", "SCONJ", "AUX", "PUNCT"}


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


class PaperPipeline:
    """Appendix A.2.1 as one writes it with spaCy at hand: loops over the tokens of Docs."""

    def __init__(self, model: str, tokenizer: SentencePieceTokenizer) -> None:
        self.nlp = spacy.load(Parser(model, engine="spacy").folder)  # as published, with all that it switches on
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> int:
        tokens = 0
        for text, doc in zip(texts, self.nlp.pipe(texts), strict=True):
            classes = self.classes(doc)
            labelled = self.tokenizer.encode(text)
            labels = []
            for begin, end in labelled.offsets.tolist():
                span = doc.char_span(begin + (text[begin : begin + 1] == " "), end, alignment_mode="expand")
                labels.append(classes[span[0].i] if span else FactClass.OTHER)
            tokens += len(labels)
        return tokens

    @staticmethod
    def classes(doc: Any) -> list[FactClass]:
        """The class of each word."""
        classes = [FactClass.OTHER] * len(doc)
        seen = set()
        for token in doc:
            if token.pos_ in GRAMMATICAL or token.is_punct:
                classes[token.i] = FactClass.GRAMMATICAL
        for entity in doc.ents:
            first = entity.text.lower() not in seen
            seen.add(entity.text.lower())
            for token in entity:
                if first and classes[token.i] != FactClass.GRAMMATICAL:
                    classes[token.i] = FactClass.FACTUAL
        for chunk in doc.noun_chunks:
            informative = chunk.root.dep_ in ("attr", "oprd", "dobj", "appos") or any(
                token.pos_ == "PROPN" or token.like_num or LEXICON.get(token.lower_, 0) & Cue.ORGANISATION
                for token in chunk
            )
            for token in chunk:
                if informative and token.pos_ in ("NOUN", "PROPN", "NUM") and token.lower_ not in seen:
                    classes[token.i] = FactClass.FACTUAL
                    seen.add(token.lower_)
        return classes


class ArrayPipeline:
    """The path in its three stages, each timed."""

    def __init__(self, model: str, tokenizer: SentencePieceTokenizer, engine: str) -> None:
        self.parser, self.tokenizer = Parser(model, engine), tokenizer
        self.clear()

    def clear(self) -> None:
        """Forget what was timed."""
        self.words = self.tokens = 0
        self.seconds = {"words": 0.0, "facts": 0.0, "tokens": 0.0}
        if self.parser._engine is not None:
            self.parser._engine.seconds = dict.fromkeys(self.parser._engine.seconds, 0.0)

    def __call__(self, texts: list[str]) -> int:
        tokens = 0
        mark = time.process_time()
        for text, words in zip(texts, self.parser.parse(texts), strict=True):
            mark = self._lap("words", mark)
            classes = class_of_rule(fired_rules(words))
            mark = self._lap("facts", mark)
            labelled = classify(self.tokenizer.encode(text), words, classes)
            mark = self._lap("tokens", mark)
            self.words += len(words)
            tokens += len(labelled)
        self.tokens += tokens
        return tokens

    def stages(self) -> dict[str, float]:
        """Microseconds per word by stage; those of the engine are parts of "words"."""
        seconds = dict(self.seconds)
        if self.parser._engine is not None:
            seconds |= {f"words/{name}": value for name, value in self.parser._engine.seconds.items()}
        return {name: round(1e6 * value / max(self.words, 1), 2) for name, value in seconds.items()}

    def _lap(self, stage: str, since: float) -> float:
        now = time.process_time()
        self.seconds[stage] += now - since
        return now


def timed(function: Callable[[list[str]], int], texts: list[str]) -> tuple[int, float]:
    """Tokens and CPU seconds: other processes on the machine count less than in wall time."""
    start = time.process_time()
    tokens = function(texts)
    return tokens, time.process_time() - start


def measure(args: argparse.Namespace) -> dict[str, object]:
    """The four variants, in turn, each round on new articles."""
    paper = PaperPipeline(args.model, SentencePieceTokenizer(args.tokenizer))
    paper.tokenizer._table = None  # SentencePiece alone
    # Each with its own table of pieces: the engine's has not seen what another way was given before.
    stock, engine = (
        ArrayPipeline(args.model, SentencePieceTokenizer(args.tokenizer), name) for name in ("spacy", "numba")
    )
    texts = texts_of(args.file)
    warm_up = take(texts, args.warm_up)
    paper(warm_up[: len(warm_up) // 10])
    stock(warm_up[: len(warm_up) // 10])
    engine(warm_up)
    seconds: dict[str, list[float]] = {"paper": [], "spacy": [], "first": [], "known": []}
    tokens, stages = [], {"spacy": [], "first": [], "known": []}
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        chosen = take(texts, -(-args.tokens // args.rounds))
        for name, way in (("paper", paper), ("spacy", stock), ("first", engine), ("known", engine)):
            if isinstance(way, ArrayPipeline):
                way.clear()
            count, spent = timed(way, chosen)
            seconds[name].append(spent)
            if isinstance(way, ArrayPipeline):
                stages[name].append(way.stages())
        tokens.append(count)
    rates = {name: [n / s for n, s in zip(tokens, values, strict=True)] for name, values in seconds.items()}
    rate = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokens": sum(tokens),
        "tokens_per_s_per_core": {name: round(value) for name, value in rate.items()},
        "best": {name: round(max(values)) for name, values in rates.items()},
        "times_the_papers_way": {
            name: round(statistics.median(a / b for a, b in zip(seconds["paper"], values, strict=True)), 2)
            for name, values in seconds.items()
        },
        "hours_per_1B_tokens": {name: round(1e9 / value / 3600, 1) for name, value in rate.items()}
        | {"the paper says": 152},
        "us_per_word": {
            name: {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
            for name, rows in stages.items()
        },
        "tables": engine.parser.stats(),
    }


def groups(args: argparse.Namespace) -> Iterator[tuple[int, int, set[int]]]:
    """Round, number of workers at once, and which: each works at least once in a round with every number of others."""
    most = max(args.workers)
    for number in range(args.rounds):
        for count in args.workers:
            for first in range(0, most, count):
                yield number, count, {(first + n) % most for n in range(count)}


def one_worker(args: argparse.Namespace, number: int, cores: list[int], barrier: Any, results: Any) -> None:
    """Rates of one of several processes, which work in the groups of ``groups`` while the others wait."""
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    start = time.monotonic()
    engine = ArrayPipeline(args.model, SentencePieceTokenizer(args.tokenizer), "numba")
    started = time.monotonic() - start
    texts = texts_of(args.file)
    engine(take(texts, args.warm_up))
    rates: dict[str, dict[tuple[int, int], float]] = {}
    for round_, count, group in groups(args):
        chosen = take(texts, -(-args.tokens // args.rounds)) if number in group else []
        for name in ("first", "known"):
            barrier.wait()
            if number in group:
                wall = time.monotonic()
                tokens, cpu = timed(engine, chosen)
                rates.setdefault(f"{name}, cpu", {})[round_, count] = tokens / cpu
                rates.setdefault(f"{name}, wall", {})[round_, count] = tokens / (time.monotonic() - wall)
    results.put((rates, started, psutil.Process().memory_info().rss >> 20))


def scale(args: argparse.Namespace) -> dict[str, object]:
    """Rates with each number of workers, and the share that each keeps of what it did in the first number.

    The numbers take turns within a round, so that a host whose speed drifts does so for all of them.
    """
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))
    most = max(args.workers)
    barrier, results = context.Barrier(most), context.Queue()
    workers = [
        context.Process(target=one_worker, args=(args, number, cores, barrier, results)) for number in range(most)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    rows: dict[str, object] = {}
    for count in args.workers:
        total, efficiency = {}, {}
        for name in found[0][0]:
            mean = [
                {n: statistics.mean(rates[name][round_, n] for rates, _, _ in found) for n in args.workers}
                for round_ in range(args.rounds)
            ]
            total[name] = round(count * statistics.median(row[count] for row in mean))
            shares = [row[count] / row[args.workers[0]] for row in mean]
            efficiency[name] = [round(share, 3) for share in statistics.quantiles(shares, n=4)]
        rows[str(count)] = {
            "tokens_per_s": total,
            "efficiency": {name: values[1] for name, values in efficiency.items()},
            "efficiency_quartiles": efficiency,
        }
    return {
        "workers": rows,
        "start_s": round(max(started for _, started, _ in found), 1),
        "memory_mb": max(memory for _, _, memory in found),
    }


def grow(args: argparse.Namespace) -> dict[str, object]:
    """Memory over real text, then over random new words, a tenth at a time."""
    engine = ArrayPipeline(args.model, SentencePieceTokenizer(args.tokenizer), "numba")
    process = psutil.Process()
    limit = round(args.growth * 1e6)
    rows = []

    def note(kind: str) -> None:
        rows.append([kind, engine.words, process.memory_info().rss >> 20, engine.parser.stats()])
        print(kind, f"{engine.words:,} words, {rows[-1][2]:,} MB", file=sys.stderr)

    note("start")
    step = limit // 10
    for text in texts_of(args.file):
        engine([text])
        if engine.words >= step * len(rows):
            note("real")
        if engine.words >= 0.8 * limit:
            break
    letters = random.Random(0)
    while engine.words < limit:
        engine([" ".join("".join(letters.choices(string.ascii_letters, k=9)) for _ in range(1000))])
        if engine.words >= step * len(rows):
            note("random")
    return {"growth": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL with text and optionally title; plain or .zst")
    parser.add_argument("--tokens", type=int, default=300_000, help="measured, in all rounds (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=500_000, help="tokens before, of other articles")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", help="measure this many processes at once, in turns, instead")
    parser.add_argument("--growth", type=float, help="watch the memory over this many million words instead")
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    if args.workers:
        figures = scale(args)
    else:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        figures = grow(args) if args.growth else measure(args)
    figures |= {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "paper": {"tokens_per_s_per_core": PAPER_TOKENS_PER_S, "hours_per_1B_tokens": 152},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
