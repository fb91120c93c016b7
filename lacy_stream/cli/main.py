"""The command `lacy-stream`: one function and one parser block per sub-command.

Everything heavy is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from lacy_stream.cascade.settings import MANY_TEXTS, Decoding, Delegation
from lacy_stream.cli.arguments import add_decoding, add_delegation, add_device, device_of, settings_of
from lacy_stream.cli.evaluate import add_evaluate
from lacy_stream.errors import UsageError, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from lacy_stream.prepare.convert import Summary
    from lacy_stream.prepare.knowledge import Built

DESCRIPTION = """\
Pretrain a small language model that predicts what it can and calls a larger model for the facts.
lacy-stream annotates facts while the training data streams in, and masks the loss of <CALL> in Composer.

The order in which one uses it:
  1. lacy-stream prepare SOURCE ... --out data/mine     text -> shards, once per corpus
  2. composer recipes/NAME.yaml                         train on the shards, as the recipe says
     (composer -m lacy_stream recipes/NAME.yaml does the same)
  3. lacy-stream show-calls runs/NAME/latest-rank0.pt   see what the model would delegate
  4. lacy-stream export runs/NAME/latest-rank0.pt OUT   a folder for transformers and lm-eval
  5. lacy-stream generate OUT --partner meta-llama/Llama-3.2-1B --prompt TEXT   write text with a larger model
  6. lacy-stream evaluate EVALUATION MODEL ... --out DIR   score it, beside the paper's figures
     (lacy-stream knowledge build SOURCE ... --out FILE    articles that biographies are judged against)
"""

PREPARE = """\
Write documents as MosaicML Streaming (MDS) shards: DIR/train and DIR/val.

SOURCE is one or more of
  a file          .jsonl, .jsonl.gz, .jsonl.zst, .parquet (needs the package pyarrow)
  a folder        all such files in it and its sub-folders, sorted by path, nothing hidden (.git, .cache);
                  links to folders are not followed. A downloaded Hugging Face repository is such a folder:
                  where any name says its split, only the files of --hf-split are read. Names that do are
                  train.jsonl, train-00000-of-00001.parquet, train/FILE; the same with validation and test
                  and with what --hf-split says
  a saved set     a folder written by Dataset.save_to_disk (needs the package datasets)
  a hub name      owner/name on the Hugging Face hub, streamed (needs the package datasets)

The text of a document is its title, a blank line, and its body. A row that is no document (no text, broken
UTF-8, not JSON, an id seen before, ...) is refused, counted, and listed in DIR/refused.jsonl.

Labels that were made elsewhere are kept in a column spans, for `spans_column: spans` in a recipe: pairs [start, end)
of code points of the text. They come from a column (--spans-column), or from lookup calls in the text (--inline-calls),
which are taken out; how many of their values were found in the text, and where, is counted.
DIR appears when everything is written, or not at all; the same command again does nothing.
"""

PREPARE_EXAMPLES = """\
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 if something was skipped, 2 for what the user has to change, 130 after
    Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        return run_command(lambda: args.run(args), args.prog)
    except KeyboardInterrupt:
        print(f"{args.prog}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lacy-stream", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lacy-stream')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_prepare(commands)
    _add_show_calls(commands)
    _add_export(commands)
    _add_add_call(commands)
    _add_generate(commands)
    _add_knowledge(commands)
    add_evaluate(commands)
    return parser


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prepare",
        help="write JSONL, Parquet or Hugging Face data as shards for training",
        description=PREPARE,
        epilog=PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_prepare, prog=parser.prog)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="file, folder or hub name; as many as you like")
    add("--out", required=True, metavar="DIR", help="the data set to write")
    add("--overwrite", action="store_true", help="replace DIR, if an earlier run of this command wrote it")

    group = parser.add_argument_group("columns")
    add = group.add_argument
    add("--id-column", metavar="NAME", help="default: id if there is one, else FILE:ROW")
    add("--title-column", metavar="NAME", help="default: title if there is one; '' for no titles")
    add("--text-column", metavar="NAME", default="text", help="default: text")

    group = parser.add_argument_group("labels that were made elsewhere")
    add = group.add_argument
    add("--spans-column", metavar="NAME", help="pairs [[start, end], ...] of code points of the text column: facts")
    add(
        "--inline-calls",
        choices=["lmlm"],
        help="the text column holds LMLM's lookup calls, [dblookup('E', 'R') -> V] V or "
        "<|db_entity|>E<|db_relationship|>R<|db_return|>V<|db_end|> V: the values V are facts",
    )

    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--val-fraction",
        metavar="F",
        type=float,
        default=0.1,
        help="share held out in DIR/val, chosen by a hash of the id alone (default: 0.1; 0 for none)",
    )
    add(
        "--size-limit",
        metavar="SIZE",
        type=_size,
        default=1 << 26,
        help="bytes per shard before compression, also as 512kb or 64mb (default: 64mb)",
    )

    group = parser.add_argument_group("Hugging Face data sets")
    add = group.add_argument
    add("--hf-config", metavar="NAME", help="configuration (subset) of a hub name; of a folder, give its sub-folder")
    add("--hf-split", metavar="NAME", default="train", help="split to read, where a SOURCE has splits (default: train)")


def _add_show_calls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "show-calls",
        help="show text with the tokens that a trained model would delegate marked",
        description="Mark the tokens that the model of a checkpoint would delegate (its highest scores of <CALL>, to "
        "the run's call fraction). A checkpoint is a pickle, which can run code: use only your own.",
    )
    parser.set_defaults(run=_show_calls, prog=parser.prog)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="file in the run's save_folder, such as latest-rank0.pt")
    add("files", nargs="*", metavar="FILE", help="texts; default: documents of the run's held-out data")
    add("--documents", type=int, default=1, metavar="N", help="how many held-out documents are shown (default: 1)")
    add("--sample", type=int, default=0, metavar="N", help="how many the shares are taken from (default: those shown)")
    add("--beside", metavar="CHECKPOINT", help="a second model, beside the first on the page")
    add("--html", metavar="OUT", help="write a page, too")


def _add_knowledge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("knowledge", help="make a store of articles, for FActScore")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = parts.add_parser(
        "build",
        help="write articles as one SQLite file with full-text search",
        description="Write articles as one SQLite file with full-text search. SOURCE is what `lacy-stream prepare` "
        "reads (JSONL, Parquet, folders, hub names such as wikimedia/wikipedia), or FActScore's own .db file.",
    )
    parser.set_defaults(run=_knowledge, prog=parser.prog)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="files, folders or hub names of articles")
    add("--out", required=True, metavar="FILE", help="the file to write")
    add("--title-column", metavar="NAME", help="default: title")
    add("--text-column", metavar="NAME", default="text", help="default: text")
    add("--hf-config", metavar="NAME", help="configuration (subset) of a hub name, as 20231101.en")
    add("--hf-split", metavar="NAME", default="train", help="split to read, where a SOURCE has splits (default: train)")


def _show_calls(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.show_calls import show_calls

    show_calls(args.checkpoint, args.files, args.html, args.documents, args.sample, args.beside)
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face folder",
        description="Write a checkpoint as a folder that transformers and lm-eval load without lacy-stream: "
        "safetensors, config, and the tokenizer with <CALL> as its last id.",
    )
    parser.set_defaults(run=_export, prog=parser.prog)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="file in the run's save_folder, such as latest-rank0.pt")
    add("out", metavar="OUT", help="the folder to make; it must not exist")


def _export(args: argparse.Namespace) -> int:
    from lacy_stream.train.export import export

    written = export(args.checkpoint, args.out)
    print(f"{args.out}: {written.model.num_parameters():,} parameters, <CALL> = {written.call_token_id}")
    return 0


def _add_add_call(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "add-call",
        help="give a checkpoint of a run without <CALL> a row for it, so that a run with it can continue",
        description="Write a Composer checkpoint again with a row for <CALL> in the embeddings and in the optimizer's "
        "moments. It may come from any Composer run with a model of transformers. A recipe continues from OUT by "
        "load_path and train_loader.accept_changes: true. A checkpoint is a pickle, which can run code: use only your "
        "own.",
    )
    parser.set_defaults(run=_add_call, prog=parser.prog)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="file in the run's save_folder, such as latest-rank0.pt")
    add("out", metavar="OUT", help="the file to write; it must not exist")
    add(
        "--tokenizer", metavar="FILE", help="of the run: <CALL> is the first id after its ids, which may be a spare row"
    )
    add("--text", metavar="FILE", help="text by which the row is set so that p(<CALL>) starts near the call fraction")
    add("--call-fraction", type=float, default=0.15, metavar="F", help="of the run that continues (default: 0.15)")
    add("--pad-to-multiple-of", type=int, default=1, metavar="N", help="rows are a multiple of this (default: 1)")


def _add_call(args: argparse.Namespace) -> int:
    from annotator.tokenizers import open_tokenizer
    from lacy_stream.train.add_call import add_call

    done = add_call(
        args.checkpoint,
        args.out,
        tokenizer=None if args.tokenizer is None else open_tokenizer(args.tokenizer),
        text=args.text,
        call_fraction=args.call_fraction,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )
    started = "" if done.probability is None else f", p(<CALL>) starts at {done.probability:.3f}"
    print(f"{args.out}: <CALL> = {done.call_token_id}, rows: {done.rows_before} -> {done.rows}{started}")
    return 0


GENERATE = """\
Continue prompts with a small model, a larger one (the partner) stepping in where the small one calls.

MODEL is a checkpoint of a run, an exported folder, or any causal language model (folder or hub name; with --delegate
random or ilacy-...). PARTNER is a folder, a hub name, a .gguf file, or an endpoint of completions with top
log-probabilities as http://HOST:PORT/v1#NAME (vLLM, llama.cpp). With --knowledge, it reads the person's article first.
"""

GENERATE_EXAMPLES = """\
examples:
  lacy-stream generate out/lacy --partner meta-llama/Llama-3.2-1B --prompt "Ada Lovelace was born in"
  lacy-stream generate out/lacy --partner http://127.0.0.1:8000/v1 --prompts names.txt --out bios.jsonl --html bios.html

If interrupted, run it again with the same --out to resume. Exit status: 0; 1 if prompts were skipped; 2 for errors.
"""


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="write text, a larger model stepping in",
        description=GENERATE,
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_generate, prog=parser.prog)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint, exported folder, or another causal language model")
    add("--partner", metavar="PARTNER", help="the larger model; without one, no calls")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", dest="prompts", action="append", metavar="TEXT", help="may be given several times")
    source.add_argument(
        "--prompts", dest="prompts_file", metavar="FILE", help='one a line, or .jsonl with "prompt" and "title"'
    )
    add("--out", metavar="FILE", help="JSONL of texts, token by token; needed with --prompts")
    add("--html", metavar="FILE", help="write a page, too")
    add_device(add)
    add_delegation(parser.add_argument_group("what is delegated").add_argument)
    batch_size = f"{MANY_TEXTS} of --prompts; 1 of --prompt, so that they are seen as they grow"
    add_decoding(parser.add_argument_group("text").add_argument, None, batch_size)

    add = parser.add_argument_group("articles for the partner").add_argument
    add("--knowledge", metavar="FILE", help="store made by `lacy-stream knowledge build`")
    add("--title", metavar="TITLE", help='of the article (default: NAME in "Tell me a bio of NAME. ")')
    add("--template", metavar="FILE", help="text around {title} and {article} (default: the paper's, for Qwen 3)")


def _generate(args: argparse.Namespace) -> int:
    from lacy_stream.cascade.run import Options, run

    if args.prompts_file is not None and args.out is None:
        raise UsageError("--prompts needs --out FILE, where its texts are kept")
    batch_size = 1 if args.prompts_file is None else MANY_TEXTS
    if args.batch_size is not None:
        batch_size = args.batch_size
    options = settings_of(
        Options,
        args,
        prompts=args.prompts or (),
        delegation=settings_of(Delegation, args),
        decoding=settings_of(Decoding, args, batch_size=batch_size),
        device=device_of(args),
    )
    return 1 if run(options) else 0


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(|kb|mb|gb)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes, 512kb, 64mb or 1gb")
    return int(match[1]) << {"": 0, "kb": 10, "mb": 20, "gb": 30}[match[2]]


# ---------------------------------------------------------------- prepare


def _prepare(args: argparse.Namespace) -> int:
    from lacy_stream.prepare.convert import Options, prepare
    from lacy_stream.progress import source_progress

    options = Options(
        id_column=args.id_column,
        title_column=args.title_column,
        text_column=args.text_column,
        val_fraction=args.val_fraction,
        size_limit=args.size_limit,
        hf_config=args.hf_config,
        hf_split=args.hf_split,
        spans_column=args.spans_column,
        inline_calls=args.inline_calls,
    )
    with source_progress(args.prog) as on_progress:
        summary = prepare(args.sources, args.out, options=options, overwrite=args.overwrite, on_progress=on_progress)
    _print_summary(summary, args.out)
    return 0


# ---------------------------------------------------------------- knowledge


def _knowledge(args: argparse.Namespace) -> int:
    from lacy_stream.prepare.inputs import ReadOptions
    from lacy_stream.prepare.knowledge import build
    from lacy_stream.progress import source_progress

    columns = {"title_column": args.title_column, "text_column": args.text_column}
    options = ReadOptions(**columns, hf_config=args.hf_config, hf_split=args.hf_split)
    with source_progress(args.prog) as on_progress:
        built = build(args.sources, args.out, options=options, on_progress=on_progress)
    _print_built(built, args.out)
    return 0


def _print_built(built: Built, out: str) -> None:
    from rich.console import Console

    from annotator.terminal import printable

    console = Console(highlight=False)
    console.print(f"{out}: {built.articles:,} articles, {built.characters:,} characters", markup=False)
    for reason, refused in built.refused.items():
        examples = printable(", ".join(refused.examples))
        console.print(f"refused, {reason}: {refused.count:,} ({examples}…)", style="yellow", markup=False)


# ---------------------------------------------------------------- the summary of prepare


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
    """What became of labels that came with the documents."""
    from rich.table import Table

    if summary.calls:
        calls = sum(summary.calls.values())
        table = Table("value of a lookup call", "calls", "share", title=f"{calls:,} calls -> {summary.spans:,} spans")
        for how, count in summary.calls.items():
            table.add_row(how, f"{count:,}", f"{count / max(calls, 1):.1%}")
        console.print(table)
    elif summary.spans:
        console.print(f"{summary.spans:,} spans of facts", markup=False)


if __name__ == "__main__":
    sys.exit(main())
