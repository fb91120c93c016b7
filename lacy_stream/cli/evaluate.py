"""`lacy-stream evaluate`: one command for each evaluation. What an evaluation imports is imported when it runs."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lacy_stream.cascade.settings import Delegation
from lacy_stream.cli.options import Commands, add_command, add_options, parse_options
from lacy_stream.errors import UsageError
from lacy_stream.evaluate.settings import (
    AcceptabilityOptions,
    EvaluationOptions,
    FactscoreOptions,
    JudgeOptions,
    LeakageOptions,
    LossesOptions,
    NluOptions,
    SweepOptions,
)
from lacy_stream.files import file_errors, is_json_lines, try_folder

if TYPE_CHECKING:
    from lacy_stream.evaluate.biographies import Biography, CascadeSettings
    from lacy_stream.evaluate.factscore import FactChecker
    from lacy_stream.evaluate.judge import Judge

Options = TypeVar("Options", bound=EvaluationOptions)
BY_LM_EVAL, BY_JUDGE = ("accelerate", "lm_eval", "matplotlib"), ("openai", "matplotlib")
"""Packages of the extra that evaluations need."""

EVALUATE = """\
Score models: checkpoints of runs (runs/NAME/latest-rank0.pt) or exported folders, side by side.

Each evaluation writes NAME.json with every item, NAME.md with a table beside the paper's figures, and a picture where
the paper has a plot. If interrupted, run the same command again to resume.
"""

LOSSES = """\
Call, non-call and total loss of each MODEL on held-out text, on its own call mask. With --baseline, also the losses of
that model on the same masks ("matched", appendix A.4.3 and figure 5).
"""

LEAKAGE = """\
Answers that a model gives by itself, with <CALL> banned: QA Wikidata and PopQA long tail, three shots (section 5.3).
--data DIR holds popqa_longtail.jsonl (question, answers) and bigbench_qa_wikidata.jsonl (context, continuation).
"""

NLU = """\
ARC-Easy, HellaSwag, PIQA and SIQA by lm-eval, with <CALL> banned (section 5.5). They come from the Hugging Face hub, or
from --data DIR with arc_easy_test.jsonl, hellaswag_val.jsonl.gz, piqa_valid.jsonl and siqa_dev.jsonl.
"""

FACTSCORE = """\
Biographies by each MODEL and its partner, broken into atomic facts and judged against Wikipedia (section 5.2).

A MODEL may also be a JSONL file of existing texts: the output of `lacy-stream generate`, lines with name and text, or
lines with FActScore's topic and output. The names of the paper are 183 of FActScore's (labeled/prompt_entities.txt in
its data).
"""

ACCEPTABILITY = """\
Judge the tokens that each MODEL proposes in validation documents. A token is right, or at least acceptable to a judge;
the table shows both by loss, for facts and for the rest (section 3, figure 3).
"""

SWEEP = """\
FActScore at several call rates of each MODEL (table 8), and of --baseline models whose delegation is decided at
inference time only (table 9).
"""


def add_evaluate(commands: Commands) -> None:
    """Add the command `evaluate` and its subcommands."""
    parser = commands.add_parser(
        "evaluate",
        help="score models: held-out losses, benchmarks, fact leakage, FActScore, acceptability",
        description=EVALUATE,
    )
    parts = parser.add_subparsers(title="evaluations", metavar="EVALUATION", required=True)

    def add(name: str, kind: type[Options], run: Callable[[Options], None], *about: Any, **spelling: Any) -> None:
        _add(parts, name, kind, run, *about, **spelling)

    add("losses", LossesOptions, _losses, "held-out losses on call masks", LOSSES, ("matplotlib",))
    add("leakage", LeakageOptions, _leakage, "facts that a model tells when it may not call", LEAKAGE, BY_LM_EVAL)
    add("nlu", NluOptions, _nlu, "language understanding, by lm-eval", NLU, BY_LM_EVAL)
    add("factscore", FactscoreOptions, _factscore, "precision of the facts in biographies", FACTSCORE, BY_JUDGE)
    about = "proposed tokens that a judge accepts", ACCEPTABILITY, BY_JUDGE
    add("acceptability", AcceptabilityOptions, _acceptability, *about)
    spelling = {"repeated": ("baseline",), "without": ("method", "call_rate", "rank_calls_by")}
    add("sweep", SweepOptions, _sweep, "FActScore by call rate and by delegation", SWEEP, BY_JUDGE, **spelling)


def _add(
    parts: Commands,
    name: str,
    kind: type[Options],
    run: Callable[[Options], None],
    help: str,
    description: str,
    packages: tuple[str, ...],
    **spelling: Any,
) -> None:
    """Add an evaluation.

    Args:
        packages: what it needs of the extra.
        spelling: see ``add_options``.
    """

    def evaluate(args: argparse.Namespace) -> int:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UsageError(f"this evaluation needs {', '.join(missing)}: pip install 'lacy-stream[evaluate]'")
        options = parse_options(kind, args)
        options.compute.set_up()  # a device that is not there is refused before anything is loaded
        with file_errors(options.out, "written"):
            os.makedirs(options.out, exist_ok=True)
            try_folder(options.out)
        run(options)
        return 0

    def fill(parser: argparse.ArgumentParser) -> None:
        add_options(parser, kind, positional=("models",), **spelling)

    add_command(parts, name, evaluate, fill, help=help, description=description)


# ---------------------------------------------------------------- without a judge


def _losses(options: LossesOptions) -> None:
    from lacy_stream.evaluate.validation_losses import evaluate_losses

    evaluate_losses(options)


def _leakage(options: LeakageOptions) -> None:
    from lacy_stream.evaluate.leakage import evaluate_leakage

    evaluate_leakage(options)


def _nlu(options: NluOptions) -> None:
    from lacy_stream.evaluate.nlu import evaluate_nlu

    evaluate_nlu(options)


# ---------------------------------------------------------------- with a judge


def _judge(options: JudgeOptions, out: str) -> Judge:
    from lacy_stream.evaluate.judge import Judge

    cache = options.judge_cache or Path(out) / "judge.sqlite"
    return Judge(
        options.judge,
        options.judge_model,
        cache,
        timeout_s=options.judge_timeout,
        retries=options.judge_retries,
        max_tokens=options.judge_max_tokens,
        extra_body=options.extra_body(),
    )


def _acceptability(options: AcceptabilityOptions) -> None:
    from lacy_stream.evaluate.acceptability import evaluate_acceptability, score_documents
    from lacy_stream.evaluate.models import labels, training_notes

    models, judge, device = labels(options.models), _judge(options.judging, options.out), options.compute.set_up()
    count = min(options.documents, options.limit or options.documents)
    scored = {
        label: score_documents(label, path, options.texts, count, options.parser, device)
        for label, path in models.items()
    }
    evaluate_acceptability(scored, judge, options.out, options.judging.judge_concurrency, training_notes(models))


def _fact_checker(options: FactscoreOptions) -> FactChecker:
    from lacy_stream.evaluate.atomic_facts import load_demonstrations
    from lacy_stream.evaluate.factscore import FactChecker
    from lacy_stream.prepare.knowledge import Knowledge

    checking = options.checking
    knowledge, demonstrations = Knowledge(checking.knowledge), load_demonstrations(checking.demonstrations)
    judge = _judge(options.judging, options.out)
    return FactChecker(judge, knowledge, demonstrations, options.judging.judge_concurrency, checking.gamma)


def _cascade(options: FactscoreOptions, delegation: Delegation) -> CascadeSettings:
    from lacy_stream.evaluate.biographies import CascadeSettings

    writing = options.writing
    articles = options.checking.knowledge if writing.rag else None
    return CascadeSettings(
        writing.partner,
        delegation,
        options.decoding,
        articles,
        writing.template,
        writing.partner_tokenizer,
        writing.partner_device,
    )


def _texts(label: str, path: str, cascade: CascadeSettings, options: FactscoreOptions) -> list[Biography]:
    """The biographies of a model: those of a file, or new ones."""
    from lacy_stream.evaluate.biographies import read_biographies, read_names, write_biographies

    if is_json_lines(path):
        return read_biographies(path, options.limit)
    if options.checking.names is None:
        raise UsageError("--names is missing: give a file of names to write about, one a line")
    names, journal = read_names(options.checking.names, options.limit), Path(options.out) / f"biographies-{label}.jsonl"
    return write_biographies(label, path, names, cascade, journal, options.compute.set_up())


def _factscore(options: FactscoreOptions) -> None:
    from lacy_stream.evaluate.factscore import evaluate_factscore
    from lacy_stream.evaluate.models import labels, training_notes

    models, checker, cascade = labels(options.models), _fact_checker(options), _cascade(options, options.delegation)
    texts = {label: _texts(label, path, cascade, options) for label, path in models.items()}
    evaluate_factscore(texts, checker, options.out, training_notes(models))


def _sweep(options: SweepOptions) -> None:
    from dataclasses import replace

    from lacy_stream.evaluate.models import labels_of_both, training_notes
    from lacy_stream.evaluate.sweep import SweepEntry, evaluate_sweep, run_label

    def runs(models: Mapping[str, str], delegations: list[Delegation]) -> list[SweepEntry]:
        cascades = [_cascade(options, delegation) for delegation in delegations]
        return [
            SweepEntry(label, cascade, _texts(run_label(label, cascade), path, cascade, options))
            for label, path in models.items()
            for cascade in cascades
        ]

    checker, base = _fact_checker(options), options.delegation
    models, baselines = labels_of_both(options.models, options.baseline)
    training = training_notes(models | baselines)
    rates = runs(models, [replace(base, method="call", call_rate=rate) for rate in options.rates])
    methods = runs(
        baselines, [replace(base, method=method, call_rate=options.method_rate) for method in options.methods]
    )
    evaluate_sweep(rates, methods, checker, options.out, training)
