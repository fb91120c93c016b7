"""`lacy-stream show-calls` and `lacy-stream export`: what becomes of a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated

from lacy_stream.cli.options import Commands, add_command, add_options, parsed
from lacy_stream.evaluate.settings import ShowCallsOptions

SHOW_CALLS = """\
Mark the tokens that the model of a checkpoint would delegate: those with the highest scores of <CALL>, up to the call
fraction of the run. A checkpoint is a pickle, which can run code: use only your own.
"""

EXPORT = """\
Write a checkpoint as a folder that transformers and lm-eval load without lacy-stream: safetensors, the config, and the
tokenizer with <CALL> as its last id.
"""


@dataclass(frozen=True)
class ExportOptions:
    """What `export` is told."""

    checkpoint: Annotated[str, "CHECKPOINT"]
    """File in the run's save_folder, such as latest-rank0.pt."""

    out: Annotated[str, "OUT"]
    """The folder to make; it must not exist."""


def add_show_calls(commands: Commands) -> None:
    """Add the command `show-calls`."""
    add_command(
        commands,
        "show-calls",
        _show_calls,
        lambda parser: add_options(parser, ShowCallsOptions, positional=("checkpoint", "files")),
        help="show text with the tokens marked that a trained model would delegate",
        description=SHOW_CALLS,
    )


def _show_calls(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.show_calls import show_calls

    show_calls(parsed(ShowCallsOptions, args))
    return 0


def add_export(commands: Commands) -> None:
    """Add the command `export`."""
    add_command(
        commands,
        "export",
        _export,
        lambda parser: add_options(parser, ExportOptions, positional=("checkpoint", "out")),
        help="write a checkpoint as a Hugging Face folder",
        description=EXPORT,
    )


def _export(args: argparse.Namespace) -> int:
    from lacy_stream.train.export import export

    options = parsed(ExportOptions, args)
    written = export(options.checkpoint, options.out)
    print(f"{options.out}: {written.model.num_parameters():,} parameters, <CALL> = {written.call_token_id}")
    return 0
