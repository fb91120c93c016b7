"""`lacy-stream generate`."""

from __future__ import annotations

import argparse

from lacy_stream.cascade.settings import MANY_TEXTS, GenerateOptions
from lacy_stream.cli.options import CommandParser, Commands, add_command, add_options, parse_options
from lacy_stream.files import check_writable

GENERATE = """\
Continue prompts with a small model. A larger model, the partner, writes the tokens where the small one calls.

MODEL is a checkpoint of a run, an exported folder, or, with --delegate random or ilacy-..., any causal language model
(folder or hub name). PARTNER is a folder, a hub name, a .gguf file, or a completions endpoint with top
log-probabilities, as http://HOST:PORT/v1#NAME (vLLM, llama.cpp).
"""

EXAMPLES = """\
examples:
  lacy-stream generate out/lacy --partner meta-llama/Llama-3.2-1B --prompt "Ada Lovelace was born in"
  lacy-stream generate out/lacy --partner http://127.0.0.1:8000/v1 --prompts names.txt --out bios.jsonl --html bios.html

If interrupted, run the same command again to resume. Exit status: 0; 1 if prompts were skipped; 2 for errors.
"""

BATCH_SIZE = f"{MANY_TEXTS} with --prompts; 1 with --prompt, so that you see the text grow"


def add_generate(commands: Commands) -> None:
    """Add the command `generate`."""
    add_command(
        commands,
        "generate",
        _generate,
        _add_options,
        help="write text with a small model and a larger one",
        description=GENERATE,
        epilog=EXAMPLES,
    )


def _add_options(parser: CommandParser) -> None:
    defaults = {"batch_size": BATCH_SIZE}
    add_options(parser, GenerateOptions, positional=("model",), repeated=("prompt",), defaults=defaults)


def _generate(args: argparse.Namespace) -> int:
    if "prompts" in args and "batch_size" not in args:
        args.batch_size = MANY_TEXTS
    options = parse_options(GenerateOptions, args)
    if options.html is not None:
        check_writable(options.html)
    from lacy_stream.cascade.run import run

    return 1 if run(options) else 0
