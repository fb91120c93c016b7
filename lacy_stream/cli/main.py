"""The command ``lacy-stream``: its commands, and the exit codes that they share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lacy_stream.cli.benchmark import add_benchmark
from lacy_stream.cli.checkpoints import add_add_call, add_export, add_show_calls
from lacy_stream.cli.evaluate import add_evaluate
from lacy_stream.cli.generate import add_generate
from lacy_stream.cli.options import CommandParser
from lacy_stream.cli.prepare import add_knowledge, add_prepare
from lacy_stream.cli.serve import add_serve
from lacy_stream.errors import accept_all_characters, run_command

DESCRIPTION = """\
Pretrain a small language model that predicts what it can and calls a larger model for the facts.
lacy-stream annotates facts while the training data stream in, and trains <CALL> in Composer.

Use it in this order:
  1. lacy-stream prepare SOURCE ... --out data/mine     write text as shards, once for each corpus
     (lacy-stream benchmark FILE ... --tokens-per-s RATE   how many CPU cores a trainer of that rate needs)
  2. composer recipes/NAME.yaml                         train on the shards, as the recipe says
     (composer -m lacy_stream recipes/NAME.yaml does the same)
  3. lacy-stream show-calls runs/NAME/latest-rank0.pt   see what the model would delegate
  4. lacy-stream export runs/NAME/latest-rank0.pt OUT   write a folder for transformers and lm-eval
  5. lacy-stream generate OUT --partner meta-llama/Llama-3.2-1B --prompt TEXT   write text with a larger model
     (lacy-stream serve OUT --partner ...                  the same as a service for OpenAI's clients)
  6. lacy-stream evaluate EVALUATION MODEL ... --out DIR   score the model, beside the paper's figures
     (lacy-stream knowledge build SOURCE ... --out FILE    store the articles that biographies are checked against)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 if something was skipped, 2 for what the user has to change, 130 after
    Ctrl-C."""
    accept_all_characters()
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        return run_command(lambda: args.run(args), args.prog)
    except KeyboardInterrupt:
        print(f"{args.prog}: interrupted", file=sys.stderr)
        return 130


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that takes longer than the rest of the parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('lacy-stream')}")
        parser.exit()


def _parser() -> CommandParser:
    parser = CommandParser(prog="lacy-stream", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_prepare(commands)
    add_benchmark(commands)
    add_show_calls(commands)
    add_export(commands)
    add_add_call(commands)
    add_generate(commands)
    add_serve(commands)
    add_knowledge(commands)
    add_evaluate(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
