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
words. ``lacy-stream benchmark`` measures (c) and (d) by the same code, with any tokenizer and labeller, and needs no
checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.modules["torch"] = None  # type: ignore[assignment]  # as in the pool's workers

import psutil  # noqa: E402
import spacy  # noqa: E402

from annotator import AnnotatorSettings  # noqa: E402
from annotator.cues import LEXICON, Cue  # noqa: E402
from annotator.records import FactClass  # noqa: E402
from annotator.tokenizers.sentencepiece import SentencePieceTokenizer  # noqa: E402
from annotator.words import Parser  # noqa: E402
from lacy_stream.benchmark.figures import PAPER_HOURS, PAPER_TOKENS_PER_S, median_by_stage, scalings  # noqa: E402
from lacy_stream.benchmark.measure import Turn, annotate_here, machine, schedule, turns_of_a_worker  # noqa: E402
from lacy_stream.benchmark.measure import measure as measure_workers  # noqa: E402
from lacy_stream.benchmark.texts import measure_out, read_texts  # noqa: E402

GRAMMATICAL = {"DET", "ADP", "CCONJ", "SCONJ", "AUX", "PUNCT"}


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


def settings(args: argparse.Namespace, engine: str) -> AnnotatorSettings:
    return AnnotatorSettings(args.tokenizer, args.model, engine)


def tables(stats: dict[str, float]) -> dict[str, float]:
    """The sizes and hit rates of the engine's tables, of ``Annotator.stats``."""
    return {name: value for name, value in stats.items() if "/" not in name and name != "parsed_words"}


def timed(paper: PaperPipeline, texts: list[str]) -> tuple[int, float]:
    """Tokens and CPU seconds: other processes on the machine count less than in wall time."""
    start = time.process_time()
    tokens = paper(texts)
    return tokens, time.process_time() - start


def measure(args: argparse.Namespace) -> dict[str, object]:
    """The four variants, in turn, each round on new articles."""
    paper = PaperPipeline(args.model, SentencePieceTokenizer(args.tokenizer))
    paper.tokenizer._table = None  # SentencePiece alone
    # Each with its own table of pieces: the engine's has not seen what another way was given before.
    stock, engine = settings(args, "spacy").build(), settings(args, "numba").build()
    texts = measure_out(read_texts([args.file]), args.warm_up, -(-args.tokens // args.rounds), args.rounds)
    few = texts.warm_up[: len(texts.warm_up) // 10]
    paper(few)
    annotate_here(stock, few)
    annotate_here(engine, texts.warm_up)
    seconds: dict[str, list[float]] = {"paper": [], "spacy": [], "first": [], "known": []}
    turns: dict[str, list[Turn]] = {"spacy": [], "first": [], "known": []}
    tokens: list[int] = []
    for number, chosen in enumerate(texts.turns):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        count, spent = timed(paper, chosen)
        tokens.append(count)
        seconds["paper"].append(spent)
        for name, annotator in (("spacy", stock), ("first", engine), ("known", engine)):
            turns[name].append(annotate_here(annotator, chosen))
            seconds[name].append(turns[name][-1].cpu_s)
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
        | {"the paper says": PAPER_HOURS},
        "us_per_word": {name: median_by_stage(rows) for name, rows in turns.items()},
        "tables": tables(engine.stats()),
    }


def scale(args: argparse.Namespace) -> dict[str, object]:
    """Rates with each number of workers, and the share that each keeps of what it did in the first number."""
    groups = schedule(args.workers, args.rounds)
    per_turn = -(-args.tokens // args.rounds)
    texts = measure_out(read_texts([args.file]), args.warm_up, per_turn, turns_of_a_worker(groups))
    found = measure_workers(settings(args, "numba"), texts, groups)

    def named(figures: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("new", "first"): value for name, value in figures.items()}

    return {
        "workers": {
            str(row.workers): {
                "tokens_per_s": named(row.tokens_per_s),
                "efficiency": {name: values[1] for name, values in named(row.efficiency_quartiles).items()},
                "efficiency_quartiles": named(row.efficiency_quartiles),
            }
            for row in scalings(found.turns, args.workers)
        },
        "start_s": round(max(found.start_s), 1),
        "memory_mb": max(found.memory_mb),
    }


def grow(args: argparse.Namespace) -> dict[str, object]:
    """Memory over real text, then over random new words, a tenth at a time."""
    annotator, words = settings(args, "numba").build(), 0
    process = psutil.Process()
    limit = round(args.growth * 1e6)
    rows = []

    def note(kind: str) -> None:
        rows.append([kind, words, process.memory_info().rss >> 20, tables(annotator.stats())])
        print(kind, f"{words:,} words, {rows[-1][2]:,} MB", file=sys.stderr)

    note("start")
    step = limit // 10
    for text in read_texts([args.file]):
        words += annotate_here(annotator, [text]).words
        if words >= step * len(rows):
            note("real")
        if words >= 0.8 * limit:
            break
    for text in random_texts():
        if words >= limit:
            break
        words += annotate_here(annotator, [text]).words
        if words >= step * len(rows):
            note("random")
    return {"growth": rows}


def random_texts() -> Iterator[str]:
    """Texts of a thousand words that are new each time."""
    letters = random.Random(0)
    while True:
        yield " ".join("".join(letters.choices(string.ascii_letters, k=9)) for _ in range(1000))


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
        "paper": {"tokens_per_s_per_core": PAPER_TOKENS_PER_S, "hours_per_1B_tokens": PAPER_HOURS},
        "machine": machine(),
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
