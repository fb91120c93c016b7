"""How do the nine token-selection methods compare, from the same first weights on the same rows?

    python benchmarks/methods.py spans.jsonl --work work/methods --out benchmarks/results/methods
    python benchmarks/methods.py articles.jsonl.zst --gpu --work work/methods --out …

Each method trains a GPT-2 of a few million parameters (``--gpu``: of 60 million) in Composer, with the annotation in
the data path, in several seeds. A seed decides on the first weights, on the order of the rows and on random choices, so
that within a seed methods differ in their masks alone. A reference model, for those that need one, is the baseline with
another seed and twice the steps. Then every model is asked about each held-out target, once, and all figures come from
those tables:

- calls against held-out labels: how many calls are facts, and how many facts are called;
- the losses of figure 5: on the model's own call mask, off it, and of the baseline of the same seed on that mask;
- calls by ``FactClass``;
- accuracy by loss, factual and other targets (figure 3, left), of the baseline.

JSONL needs ``text``, may have ``id`` and ``title``; with a column ``spans`` of a judge's labels llm-judge takes part.
A run that is there already is not made again: the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lacy_stream.objective.methods import OBJECTIVES, RANKS
from lacy_stream.objective.selectors import METHODS

SCALES = {
    # steps, rows of a step, tokens of a row, width, layers, heads, learning rate
    "cpu": dict(steps=800, batch=4, length=128, width=96, layers=2, heads=4, lr=2e-3),
    "gpu": dict(steps=8000, batch=64, length=512, width=512, layers=8, heads=8, lr=6e-4),
}
REFERENCE, REFERENCE_SEED, REFERENCE_STEPS = "reference", 1000, 2
PAPERS = {  # figure 5 and section 5.3, 5.4
    "LaCy has the highest call loss of all calling methods but its own ablations": (
        lambda f: (
            f["lacy"]["call_loss"]
            > max(f[method]["call_loss"] for method in ("loss-based", "rho-1", "llm-judge", "spacy"))
        )
    ),
    "LaCy learns less about what it calls than the baseline does: its call loss is above the matched baseline's": (
        lambda f: f["lacy"]["call_loss"] > f["lacy"]["matched_call_loss"]
    ),
    "The baseline finds LaCy's calls harder than those of spaCy without loss": (
        lambda f: f["lacy"]["matched_call_loss"] > f["spacy"]["matched_call_loss"]
    ),
    "LaCy's non-call loss lies between the loss-based methods' and the LLM judge's": (
        lambda f: (
            min(f["loss-based"]["non_call_loss"], f["rho-1"]["non_call_loss"])
            < f["lacy"]["non_call_loss"]
            < f["llm-judge"]["non_call_loss"]
        )
    ),
    "Ignoring makes call losses higher still: LaCy < LaCy+Ignorefacts < LaCy+Ignore": (
        lambda f: f["lacy"]["call_loss"] < f["lacy+ignorefacts"]["call_loss"] < f["lacy+ignore"]["call_loss"]
    ),
    "LaCy calls facts: a larger share of its calls is factual than of the loss-based methods'": (
        lambda f: f["lacy"]["factual"] > max(f["loss-based"]["factual"], f["rho-1"]["factual"])
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run: what decides on its result."""

    method: str
    seed: int
    steps: int
    batch: int
    length: int
    width: int
    layers: int
    heads: int
    lr: float
    call_fraction: float
    objective: str
    rank_calls_by: str
    data: str
    work: str
    threads: int
    gpu: bool

    @property
    def result(self) -> Path:
        objective = "" if self.method == "baseline" else f"-{self.objective}"
        return Path(self.work) / "runs" / f"{self.method}-{self.seed}-{self.call_fraction:g}{objective}.npz"

    @property
    def weights(self) -> Path:
        return self.result.with_suffix(".pt")


def prepare(args: argparse.Namespace) -> tuple[Path, bool]:
    """JSONL -> shards; and whether the data has a judge's spans."""
    from lacy_stream.prepare.convert import ShardOptions
    from lacy_stream.prepare.convert import prepare as prepare_shards

    spans = _first_row(args.file).get("spans") is not None
    data = args.work / "data"
    options = ShardOptions(spans_column="spans") if spans else ShardOptions()
    summary = prepare_shards([args.file], data, options=options)
    print(f"{summary.train.documents:,} documents to train on, {summary.val.documents:,} held out", file=sys.stderr)
    return data, spans


def _first_row(path: Path) -> dict[str, Any]:
    import io

    import zstandard

    with open(path, "rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        return json.loads(io.TextIOWrapper(stream, encoding="utf-8").readline())


def train(run: Run) -> str:
    """Train one model and write its table of held-out targets. Returns a line about it."""
    if run.result.exists():
        return f"{run.method} {run.seed}: there already"
    start = time.monotonic()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch
    from composer import Trainer
    from composer.optim import ConstantWithWarmupScheduler

    from annotator import AnnotatorSettings
    from lacy_stream import AnnotationPool, CallMask
    from lacy_stream.recipe import tokenizer_path

    torch.set_num_threads(run.threads)
    tokenizer = tokenizer_path("package:mistral_common/data/tokenizer.model.v1")
    judged = run.method == "llm-judge"
    with AnnotationPool(
        AnnotatorSettings(tokenizer, None if judged else "en_core_web_sm"), 1, label_cache=Path(run.work) / "labels"
    ) as pool:
        model = _model(run)
        needs = METHODS["baseline" if run.method == REFERENCE else run.method]
        reference = None
        if needs.reference:
            reference = _model(run).model
            reference.load_state_dict(torch.load(_reference(run).weights))
        Trainer(
            model=model,
            train_dataloader=_loader(run, pool, "train", judged),
            max_duration=f"{run.steps}ba",
            optimizers=torch.optim.AdamW(model.parameters(), lr=run.lr, betas=(0.9, 0.95), weight_decay=0.1),
            schedulers=ConstantWithWarmupScheduler(f"{max(1, run.steps // 20)}ba"),
            algorithms=[
                CallMask(
                    32_000,
                    run.call_fraction,
                    "baseline" if run.method == REFERENCE else run.method,
                    reference=reference,
                    objective=run.objective,
                    seed=run.seed,
                )
            ],
            progress_bar=False,
            seed=run.seed,
            device="gpu" if run.gpu else "cpu",
            precision="amp_bf16" if run.gpu else "fp32",
            device_train_microbatch_size=run.batch,
        ).fit()
        tables = {"table": _table(run, pool, model, judged=False)} if not judged else {}
        if judged:
            with AnnotationPool(
                AnnotatorSettings(tokenizer, "en_core_web_sm"), 1, label_cache=Path(run.work) / "labels"
            ) as spacy:
                tables = {"table": _table(run, spacy, model, judged=False)}
            tables["judge"] = _table(run, pool, model, judged=True)
    run.result.parent.mkdir(parents=True, exist_ok=True)
    if run.method == REFERENCE:
        torch.save(model.model.state_dict(), run.weights)
    columns = {f"{name}/{key}": value for name, table in tables.items() for key, value in table._asdict().items()}
    partial = run.result.with_name(f".{run.result.name}")
    with open(partial, "wb") as file:
        np.savez(file, seconds=time.monotonic() - start, **columns)
    os.replace(partial, run.result)
    return f"{run.method} {run.seed}: total loss {tables['table'].loss.mean():.3f}, {time.monotonic() - start:.0f} s"


def _reference(run: Run) -> Run:
    changes = dict(method=REFERENCE, objective="paper", seed=REFERENCE_SEED, steps=REFERENCE_STEPS * run.steps)
    return Run(**(run.__dict__ | changes))


def _model(run: Run) -> Any:
    from composer.utils import reproducibility

    from lacy_stream.recipe import GPT2
    from lacy_stream.train.model import build_model

    reproducibility.seed_all(run.seed)
    shape = GPT2(name="gpt2", d_model=run.width, n_heads=run.heads, n_layers=run.layers)
    return build_model(shape, max_seq_len=run.length, call_token_id=32_000, eos_id=2)


def _loader(run: Run, pool: Any, split: str, judged: bool) -> Any:
    from lacy_stream import annotated_dataloader

    train = split == "train"
    return annotated_dataloader(
        run.data,
        pool,
        split=split,
        shuffle=train,
        shuffle_seed=run.seed,
        repeat=train,
        batch_size=run.batch,
        max_seq_len=run.length,
        lanes=16,
        **({"spans_column": "spans"} if judged else {}),
    )


def _table(run: Run, pool: Any, model: Any, judged: bool) -> Any:
    """The table of the held-out targets, classes being spaCy's or the judge's."""
    import torch

    from lacy_stream.evaluate.token_table import join_tables, token_table

    network, tables = model.model.eval(), []
    device = next(network.parameters()).device
    with torch.no_grad():
        for batch in _loader(run, pool, "val", judged):
            batch = {key: value.to(device) for key, value in batch.items()}
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            tables.append(token_table(logits, batch["labels"], batch["token_class"], 32_000))
    return join_tables(tables)


# --- from tables to figures -------------------------------------------------------------------------------------------


def figures(run: Run, baseline: Run, judge: np.ndarray | None) -> dict[str, float]:
    """All figures of one run; the baseline is that of the same seed."""
    from annotator import FactClass
    from lacy_stream.evaluate.token_table import calls_by_class, losses, own_mask

    table, matched = load(run), load(baseline)
    if run.method == "baseline":
        return {"total_loss": float(table.loss.mean(dtype=np.float64))}
    call = own_mask(table, run.call_fraction, run.rank_calls_by)
    on_baseline = losses(matched, call, own=False)
    found = losses(table, call) | {f"matched_{name}": on_baseline[name] for name in ("call_loss", "non_call_loss")}
    found |= calls_by_class(table, call) | {"leads": float(table.call_leads.mean())}
    found["call_probability"] = float(-np.expm1(table.loss - table.loss_with_call.astype(np.float64)).mean())
    facts = table.token_class == FactClass.FACTUAL
    found["hardest"] = float((facts & (matched.loss >= np.quantile(matched.loss[facts], 0.4)))[call].mean())
    if judge is not None:
        found["judge_precision"] = float((judge & call).sum() / call.sum())
        found["judge_recall"] = float((judge & call).sum() / judge.sum())
    return found


def load(run: Run, name: str = "table") -> Any:
    from lacy_stream.evaluate.token_table import TokenTable

    with np.load(run.result) as file:
        return TokenTable(*(file[f"{name}/{field}"] for field in TokenTable._fields))


def seconds(runs: Sequence[Run]) -> int:
    """Wall time of the runs, one after the other; also of those that were made earlier."""
    total = 0.0
    for run in runs:
        with np.load(run.result) as file:
            total += float(file["seconds"])
    return round(total)


COLUMNS = {
    "precision": "calls that are facts, %",
    "recall": "facts that are called, %",
    "hardest": "calls among the baseline's hardest 60% of the facts, %",
    "judge_precision": "calls that the judge marked, %",
    "call_loss": "call loss",
    "matched_call_loss": "baseline there",
    "non_call_loss": "non-call loss",
    "matched_non_call_loss": "baseline there ",
    "total_loss": "total loss",
    "leads": "positions where <CALL> leads, %",
    "call_probability": "mean p(<CALL>), %",
}


def markdown(found: dict[str, list[dict[str, float]]]) -> str:
    """A row for each method: mean ± standard deviation over the seeds."""

    def cell(values: Sequence[float], percent: bool) -> str:
        if not values:
            return ""
        scale, digits = (100, 1) if percent else (1, 3)
        spread = f" ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values) * scale:.{digits}f}{spread}"

    names = [name for name in COLUMNS if any(name in row for rows in found.values() for row in rows)]
    lines = ["| method | " + " | ".join(COLUMNS[name] for name in names) + " |", "| --- " * (len(names) + 1) + "|"]
    for method, rows in found.items():
        cells = [cell([row[name] for row in rows if name in row], "%" in COLUMNS[name]) for name in names]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def orderings(found: dict[str, list[dict[str, float]]]) -> str:
    """Which of the paper's orderings show: in how many seeds each holds."""
    lines = ["| the paper says | holds in |", "| --- | --- |"]
    seeds = len(next(iter(found.values())))
    for claim, holds in PAPERS.items():
        lines.append(f"| {claim} | {_holding(holds, found, seeds)} |")
    return "\n".join(lines) + "\n"


def _holding(holds: Callable[[dict[str, dict[str, float]]], bool], found: dict, seeds: int) -> str:
    try:
        each = [holds({method: rows[seed] for method, rows in found.items() if len(rows[seed]) > 1})
                for seed in range(seeds)]  # fmt: skip
    except KeyError as missing:
        return f"not measured ({missing.args[0]} took no part)"
    return f"{sum(each)} of {seeds} seeds"


def draw(found: dict[str, list[dict[str, float]]], baselines: list[Run], out: Path) -> None:
    """Figure 5, the calls by class, and figure 3 (left), as PNG."""
    from matplotlib.figure import Figure

    from lacy_stream.evaluate.token_table import LOSS_BIN_NAMES, accuracy_by_loss
    from lacy_stream.evaluate.validation_losses import draw_losses

    calling = {method: rows for method, rows in found.items() if method != "baseline"}
    places, names = np.arange(len(calling)), list(calling)

    draw_losses(out / "losses.png", calling)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes, bottom = figure.subplots(), np.zeros(len(calling))
    for kind, colour in (("factual", "#c8553d"), ("other", "#c9c9c9"), ("grammatical", "#588b8b")):
        shares = np.array([statistics.mean(row[kind] for row in rows) for rows in calling.values()])
        axes.bar(places, shares, bottom=bottom, color=colour, label=kind)
        bottom += shares
    axes.set_xticks(places, names, rotation=35, ha="right")
    axes.set(title="What is called", ylabel="share of the calls")
    figure.legend(loc="outside right center")
    figure.savefig(out / "classes.png", dpi=150)

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = [accuracy_by_loss(load(run)) for run in baselines]
    for name, colour in (("factual", "#c8553d"), ("other", "#588b8b")):
        values = np.ma.masked_invalid([[bin["accuracy"] for bin in row[name]] for row in rows])  # a bin may be empty
        axes.errorbar(LOSS_BIN_NAMES, values.mean(0), values.std(0), color=colour, label=name, marker="o")
    axes.set(title="The baseline's greedy proposal, by the loss of the true token", ylabel="accuracy", xlabel="nats")
    axes.legend()
    figure.savefig(out / "accuracy.png", dpi=150)


# --- the whole --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL, plain or .zst")
    parser.add_argument("--work", type=Path, required=True, help="folder for shards, labels and finished runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table, the figures and the pictures")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--call-fraction", type=float, default=0.15, help="the paper also has 0.1")
    parser.add_argument("--objective", choices=OBJECTIVES, default="defer", help="of the training")
    parser.add_argument("--rank-calls-by", choices=RANKS, default="probability", help="of the models' own calls")
    parser.add_argument("--gpu", action="store_true", help="60M parameters, 262M tokens, on a GPU")
    parser.add_argument("--steps", type=int, help="instead of the scale's")
    parser.add_argument("--jobs", type=int, help="runs at once; default: the cores, on a GPU 1")
    args = parser.parse_args()

    scale = dict(SCALES["gpu" if args.gpu else "cpu"])
    scale["steps"] = args.steps or scale["steps"]
    cores = len(os.sched_getaffinity(0))
    jobs = args.jobs or (1 if args.gpu else cores)
    data, spans = prepare(args)
    methods = [method for method in args.methods if method != "llm-judge" or spans]
    common = scale | dict(
        call_fraction=args.call_fraction,
        objective=args.objective,
        rank_calls_by=args.rank_calls_by,
        data=str(data),
        work=str(args.work),
        threads=max(1, cores // jobs),
        gpu=args.gpu,
    )
    runs = [Run(method, seed, **common) for seed in range(args.seeds) for method in methods]
    if any(METHODS[method].reference for method in methods):
        in_processes([_reference(runs[0])], 1)
    in_processes(runs, jobs)

    judge = None
    if "llm-judge" in methods:
        judge = load(Run("llm-judge", 0, **common), "judge").token_class == 1
    baselines = [Run("baseline", seed, **common) for seed in range(args.seeds)]
    found = {
        method: [figures(Run(method, seed, **common), baselines[seed], judge) for seed in range(args.seeds)]
        for method in methods
    }
    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, baselines, args.out)
    settings = {key: value for key, value in common.items() if key not in ("data", "work")}
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"
    content = {"settings": settings, "machine": machine, "seconds_of_the_runs": seconds(runs), "figures": found}
    (args.out / "methods.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.out / "methods.md").write_text(markdown(found) + "\n" + orderings(found))
    print(markdown(found))
    print(orderings(found))


def in_processes(runs: Sequence[Run], jobs: int) -> None:
    """Train, several at a time, saying how far it is."""
    waiting = [run for run in runs if not run.result.exists()]
    start = time.monotonic()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for number, done in enumerate(as_completed([pool.submit(train, run) for run in waiting]), 1):
            left = (time.monotonic() - start) / number * (len(waiting) - number)
            print(f"{number} of {len(waiting)}: {done.result()}; {left / 60:.0f} min left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
