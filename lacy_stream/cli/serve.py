"""`lacy-stream serve`."""

from __future__ import annotations

import argparse
import importlib.util
import os

from lacy_stream.cli.options import CommandParser, Commands, add_command, add_options, parse_options
from lacy_stream.errors import UsageError
from lacy_stream.serve.settings import ServeOptions

SERVE = """\
Serve a small model and its partner as one OpenAI-compatible endpoint: /v1/completions, /v1/chat/completions,
/v1/models, /health and /metrics.

MODEL and PARTNER are those of `lacy-stream generate`. Texts enter and leave a running batch at each step, and the
partner answers the calls of several texts together.
"""

EXAMPLES = """\
examples:
  lacy-stream serve out/lacy --partner meta-llama/Llama-3.2-1B
  lacy-stream serve out/lacy --partner http://127.0.0.1:8001/v1#Qwen/Qwen3-32B --host 0.0.0.0 --api-key "$KEY"

Ctrl-C or SIGTERM ends the server after the answers that are under way.
"""

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEY_VARIABLE = "LACY_STREAM_API_KEY"


def add_serve(commands: Commands) -> None:
    """Add the command `serve`."""
    add_command(
        commands,
        "serve",
        _serve,
        _add_options,
        help="serve a small model and a larger one to OpenAI's clients",
        description=SERVE,
        epilog=EXAMPLES,
    )


def _add_options(parser: CommandParser) -> None:
    add_options(parser, ServeOptions, positional=("model",))


def _serve(args: argparse.Namespace) -> int:
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"the server needs {', '.join(missing)}: pip install 'lacy-stream[serve]'")
    if "api_key" not in args and os.environ.get(KEY_VARIABLE):
        args.api_key = os.environ[KEY_VARIABLE]
    options = parse_options(ServeOptions, args)
    from lacy_stream.serve.run import run

    return run(options)
