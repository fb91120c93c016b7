"""`lacy-stream show-calls`, `export` and `add-call`: commands that take a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated

from lacy_stream.cli.options import Commands, add_command, add_options, parse_options
from lacy_stream.compute import ComputeOptions
from lacy_stream.evaluate.settings import ShowCallsOptions

SHOW_CALLS = """\
Mark the tokens that the model of a checkpoint would delegate: those with the highest scores of <CALL>, up to the call
fraction of the run. A checkpoint is a pickle, which can run code: use only your own.
"""

EXPORT = """\
Write a checkpoint as a folder that transformers and lm-eval load without lacy-stream: safetensors, the config, and the
tokenizer with <CALL> as its last id. generation_config.json keeps `generate` of transformers from writing <CALL>.
"""

ADD_CALL = """\
Write a Composer checkpoint again with a row for <CALL> in the embeddings and in the optimizer's moments. The checkpoint
may come from any Composer run with a model of transformers. A recipe continues from OUT by load_path and
train_loader.accept_changes: true. A checkpoint is a pickle, which can run code: use only your own.
"""


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`."""

    checkpoint: Annotated[str, "CHECKPOINT"]
    """File in the run's save_folder, such as latest-rank0.pt."""

    out: Annotated[str, "OUT"]
    """The folder to make; it must not exist."""

    without_call: bool = False
    """Leave <CALL> out of the model and the tokenizer: for lm-eval's `hf`, vLLM and other tools that do not know it."""

    pad_vocab_to_multiple_of: int = 1
    """Round the rows of the embeddings up to a multiple of this. Rows that padded them in training are left out."""


@dataclass(frozen=True)
class AddCallOptions:
    """The options of `add-call`."""

    checkpoint: Annotated[str, "CHECKPOINT"]
    """File in the run's save_folder, such as latest-rank0.pt."""

    out: Annotated[str, "OUT"]
    """The file to write; it must not exist."""

    tokenizer: Annotated[str, "FILE"] | None = None
    """The tokenizer of the run: <CALL> is the first id after its ids, which may be a spare row. Default: the first id
    after the rows of the model."""

    text: Annotated[str, "FILE"] | None = None
    """Text by which the row is set so that p(<CALL>) starts near the call fraction. Needs --tokenizer."""

    call_fraction: float = 0.15
    """The call fraction of the run that continues."""

    pad_to_multiple_of: int = 1
    """The number of rows is a multiple of this."""

    compute: ComputeOptions = ComputeOptions()
    """Where the model reads --text."""


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

    show_calls(parse_options(ShowCallsOptions, args))
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

    options = parse_options(ExportOptions, args)
    written = export(
        options.checkpoint,
        options.out,
        without_call=options.without_call,
        pad_vocab_to_multiple_of=options.pad_vocab_to_multiple_of,
    )
    call = "no <CALL>" if written.call_token_id is None else f"<CALL> = {written.call_token_id}"
    print(f"{options.out}: {written.model.num_parameters():,} parameters, {call}")
    return 0


def add_add_call(commands: Commands) -> None:
    """Add the command `add-call`."""
    add_command(
        commands,
        "add-call",
        _add_call,
        lambda parser: add_options(parser, AddCallOptions, positional=("checkpoint", "out")),
        help="give a checkpoint of a run without <CALL> a row for it",
        description=ADD_CALL,
    )


def _add_call(args: argparse.Namespace) -> int:
    from annotator.tokenizers import open_tokenizer
    from lacy_stream.train.add_call import add_call

    options = parse_options(AddCallOptions, args)
    done = add_call(
        options.checkpoint,
        options.out,
        tokenizer=None if options.tokenizer is None else open_tokenizer(options.tokenizer),
        text=options.text,
        call_fraction=options.call_fraction,
        pad_to_multiple_of=options.pad_to_multiple_of,
        device=options.compute.set_up(),
    )
    started = "" if done.probability is None else f", p(<CALL>) starts at {done.probability:.3f}"
    print(f"{options.out}: <CALL> = {done.call_token_id}, rows: {done.rows_before} -> {done.rows}{started}")
    return 0
