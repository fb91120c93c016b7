"""Our tokenizers beside the library tokenizers: tokens/s of one core, on new and on known text.

    python benchmarks/tokenizer_speed.py articles.jsonl.zst TOKENIZER ... --json out.json

A TOKENIZER is a tokenizer.json or a folder with one. In each round the ways take turns on the same articles; the
figures are medians of CPU time over the rounds. "new" is the first sight of the last articles, after the others;
"known" is the second. With --annotate TOKENIZER and --sentencepiece MODEL, whole annotation is compared per word, in
turns as well.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import zstandard  # noqa: E402

from annotator import Annotator  # noqa: E402
from annotator.tokenizers import open_tokenizer, tokenizer_file  # noqa: E402
from annotator.tokenizers.huggingface import HuggingFaceTokenizer  # noqa: E402


def read_articles(path: Path, count: int) -> list[str]:
    """The first texts of a JSONL file, plain or .zst."""
    with open(path, "rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
        lines = io.TextIOWrapper(stream, encoding="utf-8")
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a piece of work returns, and its CPU time."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def compare(path: str, known: list[str], new: list[str], rounds: int) -> dict[str, Any]:
    """Tokens/s of each way on the new articles, medians over rounds."""
    library = tokenizers.Tokenizer.from_file(str(tokenizer_file(path)))
    library.no_truncation()
    library.encode_special_tokens = True
    times = defaultdict(list)
    tokens = 0
    for _ in range(rounds):
        ours = open_tokenizer(path)  # with an empty table
        assert isinstance(ours, HuggingFaceTokenizer)
        for text in known:
            ours.encode(text)
        ids, cpu = seconds(lambda: [library.encode(text, add_special_tokens=False).ids for text in new])
        times["encode"].append(cpu)
        pieces, cpu = seconds(lambda ours=ours: [ours.encode(text) for text in new])
        times["new text"].append(cpu)
        batch, cpu = seconds(lambda: [e.ids for e in library.encode_batch(new, add_special_tokens=False)])
        times["encode_batch"].append(cpu)
        again, cpu = seconds(lambda ours=ours: [ours.encode(text) for text in new])
        times["known text"].append(cpu)
        _, cpu = seconds(lambda ours=ours, pieces=pieces: [ours.segments(found.ids) for found in pieces])
        times["ids to text"].append(cpu)
        for one, two, three, four in zip(ids, pieces, batch, again, strict=True):
            assert one == three and np.array_equal(one, two.ids) and np.array_equal(one, four.ids)
        tokens = sum(map(len, ids))
    rates = {name: round(tokens / statistics.median(values)) for name, values in times.items()}
    return {"tokenizer": path, "tokens": tokens, "table": ours._table is not None, **rates}


def compare_annotation(fast: str, sentencepiece: str, model: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Microseconds a word (split at white space) of whole annotation, by two tokenizers in turns."""
    annotators = {"tokenizer.json": Annotator(fast, model), "SentencePiece": Annotator(sentencepiece, model)}
    words = sum(len(text.split()) for text in texts)
    times = defaultdict(list)
    for round in range(rounds + 1):
        for name, annotator in annotators.items():
            _, cpu = seconds(lambda annotator=annotator: annotator.annotate(texts))
            if round:  # the first round fills the tables of both
                times[name].append(cpu)
    per_word = {name: 1e6 * statistics.median(values) / words for name, values in times.items()}
    return {"words": words, "us_per_word": per_word, "ratio": per_word["tokenizer.json"] / per_word["SentencePiece"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("articles", type=Path, help='JSONL with a "text" each, plain or .zst')
    parser.add_argument("tokenizers", nargs="+", metavar="TOKENIZER")
    parser.add_argument("--known", type=int, default=500, metavar="ARTICLES", help="before the new ones")
    parser.add_argument("--new", type=int, default=200, metavar="ARTICLES")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--annotate", metavar="TOKENIZER", help="compare whole annotation with this one")
    parser.add_argument("--sentencepiece", metavar="MODEL", help="and with this")
    parser.add_argument("--model", default="en_core_web_sm", help="spaCy pipeline of --annotate")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts = read_articles(args.articles, args.known + args.new)
    known, new = texts[: args.known], texts[args.known :]
    figures: dict[str, Any] = {"speed": []}
    for path in args.tokenizers:
        found = compare(path, known, new, args.rounds)
        figures["speed"].append(found)
        ratios = {name: round(found[name] / found["encode"], 2) for name in ("encode_batch", "new text", "known text")}
        print(json.dumps(found), "times encode:", json.dumps(ratios), flush=True)
    if args.annotate:
        figures["annotation"] = compare_annotation(args.annotate, args.sentencepiece, args.model, new, args.rounds)
        print(json.dumps(figures["annotation"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
