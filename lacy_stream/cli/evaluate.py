"""The parsers of `lacy-stream evaluate …`. What runs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lacy_stream.cascade.settings import MANY_TEXTS, Decoding, Delegation
from lacy_stream.cli.arguments import (
    add_decoding,
    add_delegation,
    add_device,
    add_rank,
    add_threshold,
    device_of,
    settings_of,
)
from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors

if TYPE_CHECKING:
    from lacy_stream.evaluate.biographies import Biography, Cascade
    from lacy_stream.evaluate.factscore import Jury
    from lacy_stream.evaluate.judge import Judge

EVALUATE = """\
Score models: checkpoints of runs (runs/NAME/latest-rank0.pt) or exported folders, side by side.

Each evaluation writes NAME.json with every item, NAME.md with a table beside the paper's figures, and a picture where
the paper has a plot. If interrupted, run the same command again to resume.
"""

BY_LM_EVAL, BY_JUDGE = ("accelerate", "lm_eval", "matplotlib"), ("openai", "matplotlib")
"""Packages of the extra that evaluations need."""

Parsers = argparse._SubParsersAction  # of argparse.ArgumentParser


def add_evaluate(commands: Parsers) -> None:
    """Add the command `evaluate` and its sub-commands."""
    parser = commands.add_parser(
        "evaluate",
        help="score models: held-out losses, benchmarks, fact leakage, FActScore, acceptability",
        description=EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)
    _add_losses(parts)
    _add_leakage(parts)
    _add_nlu(parts)
    _add_factscore(parts)
    _add_acceptability(parts)
    _add_sweep(parts)


def _add(
    parts: Parsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    packages: tuple[str, ...],
) -> argparse.ArgumentParser:
    """A sub-command with what all have: models, output, device."""
    parser = parts.add_parser(
        name, help=help, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=lambda args: _need(packages) or _make(args.out) or run(args), prog=parser.prog)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="checkpoint or exported folder; as many as you like")
    add("--out", required=True, metavar="DIR", help="folder for the results, and for what is kept to resume from")
    add_device(add)
    add("--limit", metavar="N", type=_positive, help="only the first N items")
    return parser


def _need(packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this evaluation needs {', '.join(missing)}: pip install 'lacy-stream[evaluate]'")


def _make(folder: str) -> None:
    with file_errors(folder, "written"):
        os.makedirs(folder, exist_ok=True)


# ---------------------------------------------------------------- losses

LOSSES = """\
Call, non-call and total loss of each MODEL on held-out text, on its own call mask; with --baseline, also that model's
losses on the same masks ("matched", appendix A.4.3 and figure 5).
"""


def _add_losses(parts: Parsers) -> None:
    parser = _add(parts, "losses", _losses, "held-out losses on call masks", LOSSES, ("matplotlib",))
    add = parser.add_argument
    add("--baseline", metavar="MODEL", help="model to compare with on each mask; it need not know <CALL>")
    add("--data", metavar="DIR", help="MDS shards (default: the held-out data of the first model's run)")
    add("--split", metavar="NAME", default="val", help="of DIR (default: val; '' for DIR itself)")
    add("--call-fraction", type=float, default=0.15, metavar="F", help="targets on a call mask (default: 0.15)")
    add_rank(add)
    add("--parser", default="en_core_web_sm", metavar="NAME", help="spaCy pipeline (default: en_core_web_sm)")
    add("--batch-size", type=_positive, default=8, metavar="N", help="rows at a time (default: 8)")


def _losses(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.losses import evaluate_losses
    from lacy_stream.evaluate.models import labels

    evaluate_losses(
        labels(args.models),
        args.out,
        baseline=args.baseline,
        data=args.data,
        split=args.split or None,
        fraction=args.call_fraction,
        rank_calls_by=args.rank_calls_by,
        parser=args.parser,
        rows=args.limit,
        batch_size=args.batch_size,
        device=device_of(args),
    )
    return 0


# ---------------------------------------------------------------- leakage and nlu

NLU = """\
ARC-Easy, HellaSwag, PIQA and SIQA by lm-eval, <CALL> banned (section 5.5). Without --data from the Hugging Face hub;
--data DIR holds arc_easy_test.jsonl, hellaswag_val.jsonl.gz, piqa_valid.jsonl and siqa_dev.jsonl.
"""
LEAKAGE = """\
Answers that a model gives by itself, <CALL> banned: QA Wikidata and PopQA long tail, three shots (section 5.3).
--data DIR holds popqa_longtail.jsonl (question, answers) and bigbench_qa_wikidata.jsonl (context, continuation).
"""


def _add_leakage(parts: Parsers) -> None:
    parser = _add(parts, "leakage", _leakage, "facts that a model tells although it may not call", LEAKAGE, BY_LM_EVAL)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the questions")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="sequences at a time (default: 8)")


def _add_nlu(parts: Parsers) -> None:
    parser = _add(parts, "nlu", _nlu, "language understanding, by lm-eval", NLU, BY_LM_EVAL)
    parser.add_argument("--data", metavar="DIR", help="folder of the benchmarks, for a run without network")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="sequences at a time (default: 8)")


def _leakage(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.leakage import evaluate_leakage

    return _by_lm_eval(evaluate_leakage, args)


def _nlu(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.nlu import evaluate_nlu

    return _by_lm_eval(evaluate_nlu, args)


def _by_lm_eval(evaluate: Callable[..., None], args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.models import labels

    options = {"device": device_of(args), "batch_size": args.batch_size, "limit": args.limit}
    evaluate(labels(args.models), args.out, data=args.data, **options)
    return 0


# ---------------------------------------------------------------- judges


def _add_judge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "judge: any OpenAI-style chat endpoint; its key is read from OPENAI_API_KEY"
    ).add_argument
    add("--judge", required=True, metavar="URL", help="base URL, as http://localhost:8000/v1")
    add("--judge-model", required=True, metavar="NAME", help="name that the endpoint knows the model by")
    add("--judge-timeout", type=float, default=60.0, metavar="S", help="seconds for one attempt (default: 60)")
    add("--judge-retries", type=int, default=4, metavar="N", help="further attempts after a failure (default: 4)")
    add("--judge-cache", metavar="FILE", help="where answers are kept (default: DIR/judge.sqlite); runs may share it")
    add("--threads", type=_positive, default=8, metavar="N", help="questions at a time (default: 8)")


def _judge(args: argparse.Namespace) -> Judge:
    from pathlib import Path

    from lacy_stream.evaluate.judge import Judge

    return Judge(
        args.judge,
        args.judge_model,
        args.judge_cache or Path(args.out) / "judge.sqlite",
        timeout_s=args.judge_timeout,
        retries=args.judge_retries,
    )


# ---------------------------------------------------------------- factscore

FACTSCORE = """\
Biographies by each MODEL and its partner, broken into atomic facts and judged against Wikipedia (section 5.2).

A MODEL may also be a JSONL file of texts that exist: of `lacy-stream generate`, with name and text, or with FActScore's
topic and output.
The names of the paper are 183 of FActScore (labeled/prompt_entities.txt of its data).
"""


def _add_factscore(parts: Parsers) -> None:
    parser = _add(parts, "factscore", _factscore, "factual precision of biographies, by a judge", FACTSCORE, BY_JUDGE)
    _add_jury(parser)
    add_delegation(_add_writing(parser))


def _add_writing(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    add = parser.add_argument_group("how the texts are written").add_argument
    add("--partner", metavar="SPEC", help="model that answers calls, as in `lacy-stream generate`; none: no calls")
    add_decoding(add, MANY_TEXTS, str(MANY_TEXTS))
    add("--rag", action="store_true", help="the partner reads the person's article of --knowledge first")
    add("--template", metavar="FILE", help="text around {title} and {article} (default: the paper's, for Qwen 3)")
    return add


def _writing(args: argparse.Namespace) -> dict[str, Any]:
    articles = args.knowledge if args.rag else None
    return {"decoding": settings_of(Decoding, args), "articles": articles, "template": args.template}


def _add_jury(parser: argparse.ArgumentParser) -> None:
    _add_judge(parser)
    add = parser.add_argument_group("what is judged, and by what").add_argument
    add("--names", metavar="FILE", help="names to write about, one a line")
    add("--knowledge", required=True, metavar="FILE", help="articles, by `lacy-stream knowledge build`")
    add("--demonstrations", metavar="FILE", help="JSON of sentence: [fact, …] in place of the package's own")
    add("--gamma", type=int, default=10, metavar="N", help="facts below which a text is penalised (default: 10)")


def _jury(args: argparse.Namespace) -> Jury:
    from lacy_stream.evaluate.atomic_facts import load_demonstrations
    from lacy_stream.evaluate.factscore import Jury
    from lacy_stream.prepare.knowledge import Knowledge

    knowledge, demonstrations = Knowledge(args.knowledge), load_demonstrations(args.demonstrations)
    return Jury(_judge(args), knowledge, demonstrations, args.threads, args.gamma)


def _factscore(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.biographies import Cascade
    from lacy_stream.evaluate.factscore import evaluate_factscore
    from lacy_stream.evaluate.models import labels, training_notes

    models, jury = labels(args.models), _jury(args)
    cascade = Cascade(args.partner, settings_of(Delegation, args), **_writing(args))
    texts = {label: _texts(label, path, cascade, args) for label, path in models.items()}
    evaluate_factscore(texts, jury, args.out, training_notes(models))
    return 0


def _texts(label: str, path: str, cascade: Cascade, args: argparse.Namespace) -> list[Biography]:
    from pathlib import Path

    from lacy_stream.evaluate.biographies import read_biographies, read_names, write_biographies

    if path.endswith(".jsonl"):
        return read_biographies(path, args.limit)
    if args.names is None:
        raise UsageError("--names is missing: a file of names to write about, one a line")
    names, journal = read_names(args.names, args.limit), Path(args.out) / f"biographies-{label}.jsonl"
    return write_biographies(label, path, names, cascade, journal, device_of(args))


# ---------------------------------------------------------------- acceptability

ACCEPTABILITY = """\
What each MODEL proposes for the tokens of validation documents: right, or at least acceptable to a judge, by loss,
facts against the rest (section 3, figure 3). The documents are held-out ones of the model's run, or those of --texts.
"""


def _add_acceptability(parts: Parsers) -> None:
    parser = _add(
        parts,
        "acceptability",
        _acceptability,
        "which proposed tokens are acceptable, by a judge",
        ACCEPTABILITY,
        BY_JUDGE,
    )
    _add_judge(parser)
    add = parser.add_argument
    add("--texts", metavar="FILE", help="documents, JSONL or Parquet (default: the run's held-out data)")
    add("--documents", type=_positive, default=112, metavar="N", help="how many (default: 112, as in the paper)")
    add("--parser", default="en_core_web_sm", metavar="NAME", help="spaCy pipeline (default: en_core_web_sm)")


def _acceptability(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.acceptability import evaluate_acceptability, score_documents
    from lacy_stream.evaluate.models import labels, training_notes

    models, judge, device = labels(args.models), _judge(args), device_of(args)
    count = min(args.documents, args.limit or args.documents)
    scored = {
        label: score_documents(label, path, args.texts, count, args.parser, device) for label, path in models.items()
    }
    evaluate_acceptability(scored, judge, args.out, args.threads, training_notes(models))
    return 0


# ---------------------------------------------------------------- sweep

SWEEP = """\
FActScore at several call rates of each MODEL (table 8), and of --baseline models with delegation that is decided at
inference time only (table 9).
"""


def _add_sweep(parts: Parsers) -> None:
    parser = _add(parts, "sweep", _sweep, "FActScore by call rate and by delegation", SWEEP, BY_JUDGE)
    _add_jury(parser)
    add = _add_writing(parser)
    add_threshold(add)
    add("--rates", type=float, nargs="+", metavar="F", help="target call rates (default: those of table 8)")
    add("--baseline", action="append", default=[], metavar="MODEL", help="model for table 9; may be given again")
    add("--methods", nargs="+", metavar="HOW", help="delegation of table 9 (default: random and both i-LaCy)")
    add("--method-rate", type=float, default=0.22, metavar="F", help="their call rate (default: 0.22)")


def _sweep(args: argparse.Namespace) -> int:
    from lacy_stream.evaluate.biographies import Cascade
    from lacy_stream.evaluate.models import labels, training_notes
    from lacy_stream.evaluate.sweep import METHODS, RATES, Run, evaluate_sweep, run_label

    if args.partner is None:
        raise UsageError("--partner is missing: a sweep asks what delegation brings")
    jury = _jury(args)

    def runs(models: dict[str, str], cascades: list[Cascade]) -> list[Run]:
        return [
            Run(label, cascade, _texts(run_label(label, cascade), path, cascade, args))
            for label, path in models.items()
            for cascade in cascades
        ]

    def cascade(method: str, rate: float) -> Cascade:
        delegation = settings_of(Delegation, args, method=method, call_rate=rate)
        return Cascade(args.partner, delegation, **_writing(args))

    rates = [cascade("call", rate) for rate in args.rates or RATES]
    methods = [cascade(method, args.method_rate) for method in args.methods or METHODS]
    models, baselines = labels(args.models), labels(args.baseline)
    training = training_notes(models | baselines)
    evaluate_sweep(runs(models, rates), runs(baselines, methods), jury, args.out, training)
    return 0


# ---------------------------------------------------------------- values


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
