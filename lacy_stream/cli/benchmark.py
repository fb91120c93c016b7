"""`lacy-stream benchmark`: how fast this machine annotates, and how many cores a trainer needs."""

from __future__ import annotations

import argparse

from lacy_stream.benchmark.settings import MODEL, TOKENIZER, WORKERS, BenchmarkOptions
from lacy_stream.cli.options import CommandParser, Commands, add_command, add_options, parse_options

BENCHMARK = """\
Measure how fast the cores of this machine annotate, and say how many of them a trainer needs.

Worker processes, as those of a run, annotate texts that they have not seen and then the same texts again, alone and
beside one another. The command prints tokens/s and hours per billion tokens of one core, microseconds by stage, the
time until a worker is ready, its memory, and what several workers do at once. A CPU quota of a container is not seen:
give --workers there.
"""

EXAMPLES = """\
examples:
  lacy-stream benchmark
  lacy-stream benchmark articles.jsonl --recipe recipes/lacy_334m.yaml --tokens-per-s 250000
  lacy-stream benchmark articles.jsonl --tokenizer tokenizer.json --workers 1 8 all --out sizing
  lacy-stream benchmark articles.jsonl --workers 1 --against spacy
"""


def add_benchmark(commands: Commands) -> None:
    """Add the command `benchmark`."""
    add_command(
        commands,
        "benchmark",
        _benchmark,
        _add_options,
        help="measure how fast this machine annotates, and how many cores a trainer needs",
        description=BENCHMARK,
        epilog=EXAMPLES,
    )


def _add_options(parser: CommandParser) -> None:
    defaults = {
        "tokenizer": TOKENIZER,
        "model": MODEL,
        "engine": "auto",
        "workers": f"{' '.join(WORKERS)}, as far as there are cores",
        "title_column": "title, in the sources that have it",
    }
    without = ("id_column", "spans_column", "inline_calls")
    add_options(parser, BenchmarkOptions, positional=("files",), without=without, defaults=defaults)


def _benchmark(args: argparse.Namespace) -> int:
    from lacy_stream.benchmark.run import run

    run(parse_options(BenchmarkOptions, args))
    return 0
