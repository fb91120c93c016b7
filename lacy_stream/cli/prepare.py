"""`lacy-stream prepare` and `lacy-stream knowledge build`: what is made from documents."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from lacy_stream.cli.options import CommandParser, Commands, add_command, add_options, parse_options
from lacy_stream.prepare.settings import ReadOptions, ShardOptions

if TYPE_CHECKING:
    from rich.console import Console

    from lacy_stream.prepare.convert import Summary
    from lacy_stream.prepare.knowledge import BuildSummary

PREPARE = """\
Write documents as MosaicML Streaming (MDS) shards: DIR/train and DIR/val.

SOURCE is one or more of
  a file          JSON lines (.jsonl, .ndjson, .json), or one array of objects (.json); .parquet (needs the package
                  pyarrow). JSON may be compressed: .gz, .zst, .bz2, .xz, .lz4 (needs pyarrow)
  a folder        all such files in it and its subfolders, sorted by path, except hidden ones (.git, .cache);
                  links to folders are not followed, and .json files without the text column are settings.
                  What looks like data and is not read is named at the end.
                  A downloaded Hugging Face repository is such a folder: if any name says its split, only the
                  files of --hf-split are read. Names that say it are train.jsonl,
                  train-00000-of-00001.parquet and train/FILE; likewise with validation, test and the value of
                  --hf-split
  a saved set     a folder written by Dataset.save_to_disk (needs the package datasets)
  a hub name      owner/name on the Hugging Face hub, streamed (needs the package datasets)

The text of a document is its title, a blank line, and its body. A row that is not a document (no text, broken
UTF-8, not JSON, an id seen before, ...) is refused, counted, and listed in DIR/refused.jsonl.

Labels that were made elsewhere are kept in a column spans, for `spans_column: spans` in a recipe: pairs [start, end)
of code points of the text. They come from a column (--spans-column), or from lookup calls in the text (--inline-calls).
The calls are removed from the text; the output says how many of their values were found in it, and where.
DIR appears when everything is written, or not at all. The same command again does nothing.
"""

EXAMPLES = """\
examples:
  lacy-stream prepare articles.jsonl --out data/articles
  lacy-stream prepare dumps/en dumps/simple.parquet --out data/wiki --val-fraction 0.01
  lacy-stream prepare posts.jsonl.zst --out data/posts --text-column body --id-column url
  lacy-stream prepare wikimedia/wikipedia --hf-config 20231101.simple --out data/simple
  lacy-stream prepare downloads/wikipedia/20231101.simple --out data/simple
  lacy-stream prepare judged.jsonl --out data/judged --spans-column spans
  lacy-stream prepare kilian-group/LMLM-pretrain-dwiki6.1M --out data/lmlm --inline-calls lmlm \\
      --text-column annotated_text
"""

KNOWLEDGE = """\
Write articles as one SQLite file with full-text search. SOURCE is what `lacy-stream prepare` reads (JSONL, Parquet,
folders, hub names such as wikimedia/wikipedia), or FActScore's own .db file.
"""


# ---------------------------------------------------------------- prepare


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare`."""

    sources: tuple[Annotated[str, "SOURCE"], ...]
    """Files, folders or hub names, as many as you like."""

    out: Annotated[str, "DIR"]
    """The data set to write."""

    overwrite: bool = False
    """Replace DIR, if an earlier run of this command wrote it."""

    options: ShardOptions = ShardOptions()
    """What is read and written."""


def add_prepare(commands: Commands) -> None:
    """Add the command `prepare`."""
    add_command(
        commands,
        "prepare",
        _prepare,
        _add_options,
        help="write JSONL, Parquet or Hugging Face data as shards for training",
        description=PREPARE,
        epilog=EXAMPLES,
    )


def _add_options(parser: CommandParser) -> None:
    defaults = {"title_column": "title, in the sources that have it", "size_limit": "64mb"}
    add_options(parser, PrepareOptions, positional=("sources",), defaults=defaults)


def _prepare(args: argparse.Namespace) -> int:
    from lacy_stream.prepare.convert import prepare
    from lacy_stream.progress import source_progress

    arguments = parse_options(PrepareOptions, args)
    with source_progress(args.prog) as on_progress:
        summary = prepare(
            arguments.sources,
            arguments.out,
            options=arguments.options,
            overwrite=arguments.overwrite,
            on_progress=on_progress,
        )
    _print_summary(summary, arguments.out)
    return 0


def _print_summary(summary: Summary, out: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from annotator.terminal import printable

    console = Console(highlight=False)
    if summary.already_prepared:
        console.print(f"{out} is already prepared from these sources with these options.", markup=False)
    table = Table("", "documents", "characters", title=escape(out))
    for name, part in (("train", summary.train), ("val", summary.val), ("all", summary)):
        table.add_row(name, f"{part.documents:,}", f"{part.characters:,}")
    console.print(table)
    _print_labels(console, summary)
    if summary.refused:
        table = Table("refused because", "rows", "first of them", title="refused rows")
        for reason, refused in summary.refused.items():
            more = ", ..." if refused.count > len(refused.examples) else ""
            table.add_row(reason, f"{refused.count:,}", escape(printable(", ".join(refused.examples)) + more))
        console.print(table)
        console.print(f"All {summary.refused_rows:,} of them: {out}/refused.jsonl", markup=False)
    for warning in summary.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _print_labels(console: Console, summary: Summary) -> None:
    """Print how many of the labels that came with the documents were found."""
    from rich.table import Table

    if summary.calls:
        calls = sum(summary.calls.values())
        table = Table("value of a lookup call", "calls", "share", title=f"{calls:,} calls -> {summary.spans:,} spans")
        for how, count in summary.calls.items():
            table.add_row(how, f"{count:,}", f"{count / max(calls, 1):.1%}")
        console.print(table)
    elif summary.spans:
        console.print(f"{summary.spans:,} spans of facts", markup=False)


# ---------------------------------------------------------------- knowledge


@dataclass(frozen=True)
class KnowledgeOptions:
    """The options of `knowledge build`."""

    sources: tuple[Annotated[str, "SOURCE"], ...]
    """Files, folders or hub names of articles, as many as you like."""

    out: Annotated[str, "FILE"]
    """The file to write."""

    options: ReadOptions = ReadOptions()
    """What is read."""


def add_knowledge(commands: Commands) -> None:
    """Add the command `knowledge` and its subcommand."""
    parser = commands.add_parser("knowledge", help="store articles, for FActScore and for partners that read")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_command(
        parts,
        "build",
        _knowledge,
        _add_knowledge_options,
        help="write articles as one SQLite file with full-text search",
        description=KNOWLEDGE,
    )


def _add_knowledge_options(parser: CommandParser) -> None:
    without = ("id_column", "spans_column", "inline_calls")
    defaults = {"title_column": "title"}
    add_options(parser, KnowledgeOptions, positional=("sources",), without=without, defaults=defaults)


def _knowledge(args: argparse.Namespace) -> int:
    from lacy_stream.prepare.knowledge import build
    from lacy_stream.progress import source_progress

    arguments = parse_options(KnowledgeOptions, args)
    with source_progress(args.prog) as on_progress:
        built = build(arguments.sources, arguments.out, options=arguments.options, on_progress=on_progress)
    _print_build(built, arguments.out)
    return 0


def _print_build(built: BuildSummary, out: str) -> None:
    from rich.console import Console

    from annotator.terminal import printable

    console = Console(highlight=False)
    console.print(f"{out}: {built.articles:,} articles, {built.characters:,} characters", markup=False)
    for note in built.notes:
        console.print(f"warning: {note}", style="yellow", markup=False)
    for reason, refused in built.refused.items():
        examples = printable(", ".join(refused.examples))
        console.print(f"refused, {reason}: {refused.count:,} ({examples}…)", style="yellow", markup=False)
