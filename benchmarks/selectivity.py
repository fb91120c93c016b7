"""Does a model call where it would be wrong about a fact? Learning curves of the objectives and of the methods.

    python benchmarks/selectivity.py train articles.jsonl.zst bios.jsonl.zst --judged spans.jsonl --work WORK
    python benchmarks/selectivity.py report --work WORK --out benchmarks/results/selectivity

A GPT-2 of a million parameters with a vocabulary of 4,095 pieces trains on millions of tokens of one text, once for
each variant: an objective, a method, a seed, and what a hypothesis changes (``VARIANTS``). At certain numbers of tokens
the model is asked about every held-out target, and the answers are kept. ``report`` makes all figures from these
tables, so a new question needs no new training.

Runs are made one after the other, ``--jobs`` at a time, in the order of ``VARIANTS``. A run that was made before is not
made again, and a table is written as soon as it is known: ``report`` can be called while ``train`` is at work.
The words of the figures: *wanted* is the mask of LaCy's rule on the held-out targets (the 15% that are facts with the
highest loss of the model itself); *precision* is the share of a model's calls that are wanted (15% by chance).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PIECES = 4095
"""With <CALL> the vocabulary has 4,096 entries."""
CALL = PIECES
LENGTH, ROWS = 128, 32
WIDTH, LAYERS, HEADS, LR, WARMUP_STEPS, WEIGHT_DECAY = 128, 2, 4, 2e-3, 100, 0.1
CALL_FRACTION = 0.15
HELD_OUT = 100_000
"""Targets that every model is asked about."""
MILESTONES = sorted(
    [250_000, 500_000, 1_500_000] + [million * 1_000_000 for million in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20)]
)


@dataclass(frozen=True)
class Variant:
    """One training run.

    Args:
        name: of its curve; runs of one name differ in their seed.
        method: of ``selectors.METHODS``.
        objective: "paper" (A.3) or "defer" (<CALL> in every softmax).
        tokens: that it is trained on.
        call_decay: weight decay of the <CALL> row alone; None for that of all weights.
        untied: <CALL> has an output row of its own, which is not an input embedding.
        call_weight: of the loss of a called target, against 1 of the others.
        ramp_tokens: the call fraction grows from 0 to 15% over this many tokens.
        judged: the text is that of the judged documents instead of the articles; llm-judge takes the judge's labels.
    """

    name: str
    method: str = "lacy"
    objective: str = "defer"
    seed: int = 0
    tokens: int = 3_000_000
    call_decay: float | None = None
    untied: bool = False
    call_weight: float = 1.0
    ramp_tokens: int = 0
    judged: bool = False

    def folder(self, work: Path) -> Path:
        return work / "runs" / f"{self.name}-{self.seed}"


REFERENCE = Variant("reference", "baseline", seed=100)
"""The reference model of rho-1: the baseline from other first weights."""

JUDGED_METHODS = ("baseline", "llm-judge", "lacy", "spacy", "loss-based")
VARIANTS = [
    Variant("paper", objective="paper", tokens=20_000_000),
    Variant("defer", tokens=20_000_000),
    REFERENCE,
    Variant("spacy", "spacy"),
    Variant("rho-1", "rho-1"),
    Variant("loss-based", "loss-based"),
    # Weight decay: the paper trains for 8 time constants 1 / (lr x decay). With these, 8 and 40 pass in 3M tokens.
    Variant("paper, decay 5.5", objective="paper", call_decay=5.5),
    Variant("defer, ramp", ramp_tokens=1_000_000),
    Variant("defer, untied", untied=True, tokens=1_500_000),
    Variant("defer, calls weigh 0.25", call_weight=0.25, tokens=1_500_000),
    # Of few documents: 1.5M tokens are about five epochs.
    *(Variant(f"judged: {method}", method, tokens=1_500_000, judged=True) for method in JUDGED_METHODS),
    Variant("paper, untied", objective="paper", untied=True, tokens=1_500_000),
    Variant("paper, decay 27", objective="paper", call_decay=27.0, tokens=1_500_000),
    *(Variant(method, method, seed=1) for method in ("spacy", "rho-1", "loss-based")),
    Variant("defer", seed=1, tokens=20_000_000),
    Variant("paper", objective="paper", seed=1, tokens=20_000_000),
    Variant("baseline", "baseline", tokens=20_000_000),
]


# --- text -> labelled tokens ------------------------------------------------------------------------------------------


def prepare(files: list[Path], work: Path) -> None:
    """Articles -> a SentencePiece model of their own, and every token with its class, in one array."""
    if (work / "tokens.npz").exists():
        return
    from lacy_stream.demo import train_tokenizer

    work.mkdir(parents=True, exist_ok=True)
    texts = list(_texts(files))
    np.random.default_rng(0).shuffle(texts)  # type: ignore[arg-type]
    train_tokenizer(texts[:2000], work / "pieces.model", PIECES)
    ids, classes = _annotated(texts, work / "pieces.model")
    np.savez(work / ".tokens.npz", ids=ids, classes=classes)
    os.replace(work / ".tokens.npz", work / "tokens.npz")
    print(f"{len(texts):,} articles, {len(ids):,} tokens, {(classes == 1).mean():.1%} of them facts", file=sys.stderr)


def prepare_judged(file: Path, work: Path) -> None:
    """Documents with a judge's spans -> every token with its class and the judge's, by the articles' tokenizer."""
    if (work / "judged.npz").exists():
        return
    from annotator import Annotator, Document

    annotator = Annotator(work / "pieces.model")
    rows = list(_rows([file]))
    by_spacy = annotator.label([Document(row["id"], row["text"]) for row in rows])
    by_judge = annotator.label([Document(row["id"], row["text"], spans=json.dumps(row["spans"])) for row in rows])
    columns = {"ids": [part.ids for part in by_spacy], "classes": [part.classes for part in by_spacy]}
    columns["judged"] = [part.classes for part in by_judge]
    # After each text, the end-of-text token: id 2, and class OTHER, which is 2 as well.
    joined = {name: np.concatenate([np.append(part, 2) for part in parts]) for name, parts in columns.items()}
    np.savez(work / ".judged.npz", **{n: v.astype(np.uint16 if n == "ids" else np.uint8) for n, v in joined.items()})
    os.replace(work / ".judged.npz", work / "judged.npz")


def _texts(files: list[Path]) -> Iterator[str]:
    return (row["text"] for row in _rows(files))


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    import zstandard

    for file in files:
        with open(file, "rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw) if file.suffix == ".zst" else raw
            for line in io.TextIOWrapper(stream, encoding="utf-8"):
                yield json.loads(line)


def _annotated(texts: list[str], tokenizer: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids (uint16) and classes (uint8) of all texts, each followed by the end-of-text token."""
    from annotator import AnnotatorSettings, Document
    from lacy_stream import AnnotationPool

    parts: list[Any] = []
    start, ahead = time.monotonic(), 200
    with AnnotationPool(AnnotatorSettings(tokenizer), len(os.sched_getaffinity(0))) as pool:
        futures = []
        for number, text in enumerate([*texts, *[""] * ahead]):
            if number < len(texts):
                futures.append(pool.submit(Document(str(number), text)))
            if number >= ahead:
                parts.append(futures[number - ahead].result())
                futures[number - ahead] = None  # type: ignore[call-overload]
                if len(parts) % 1000 == 0:
                    left = (time.monotonic() - start) / len(parts) * (len(texts) - len(parts))
                    print(f"annotated {len(parts):,} of {len(texts):,}; {left:.0f} s left", file=sys.stderr, flush=True)
    ids = np.concatenate([np.append(part.ids, 2) for part in parts]).astype(np.uint16)
    return ids, np.concatenate([np.append(part.classes, 2) for part in parts]).astype(np.uint8)


# --- training ---------------------------------------------------------------------------------------------------------


def train(variant: Variant, work: Path) -> str:
    """Train one variant, writing a table at each milestone. Returns a line about it."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from lacy_stream.objective import losses, selectors

    torch.set_num_threads(1)
    losses._CHUNK["cpu"] = 1 << 19
    folder, start = variant.folder(work), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    ids, classes, judged = _read(work, variant)
    labels_of_training = judged if variant.method == "llm-judge" else classes
    rows = len(ids)
    held_out = min(HELD_OUT // (LENGTH - 1), rows // 10)
    model = build(variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    reference = None
    if selectors.METHODS[variant.method].reference:
        reference = build(REFERENCE)
        reference.load_state_dict(torch.load(REFERENCE.folder(work) / "weights.pt"))
    method = selectors.METHODS[variant.method]
    order = torch.randperm(rows - held_out, generator=torch.Generator().manual_seed(variant.seed)) + held_out
    random = torch.Generator().manual_seed(1000 + variant.seed)
    milestones = [tokens for tokens in MILESTONES if tokens <= variant.tokens]
    seen = 0
    for step in range(math.ceil(variant.tokens / (ROWS * LENGTH))):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP_STEPS)
        chosen = order[torch.arange(step * ROWS, (step + 1) * ROWS) % len(order)]
        inputs, labels = ids[chosen].long(), ids[chosen].long()[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)[:, :-1]
        found = losses.token_losses(logits, labels, CALL)
        valid = torch.ones_like(labels, dtype=torch.bool)
        uniform = torch.rand(labels.shape, generator=random)
        reference_loss = None
        if reference is not None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                reference_loss = losses.true_losses(reference(inputs)[:, :-1], labels, CALL)
        targets = selectors.Targets(
            found.true.detach(), labels_of_training[chosen][:, 1:], valid, uniform, reference_loss
        )
        fraction = CALL_FRACTION * min(1.0, seen / variant.ramp_tokens) if variant.ramp_tokens else CALL_FRACTION
        count = selectors.budget(valid, fraction)
        call, ignore = method.select(targets, count, count)
        loss = losses.training_loss(found, valid, call, ignore, objective=variant.objective)
        if call is not None and variant.call_weight != 1:
            loss = loss - (1 - variant.call_weight) * (found.call * call).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if variant.call_decay is not None:  # of the row alone, beside the decay that all weights have
            with torch.no_grad():
                model.call_row().mul_(1 - optimizer.param_groups[0]["lr"] * variant.call_decay)
        seen += inputs.numel()
        if milestones and seen >= milestones[0]:
            tokens = milestones.pop(0)
            table = _table(model, ids[:held_out], classes[:held_out], judged[:held_out])
            np.savez(folder / ".table.npz", seconds=time.monotonic() - start, **table)
            os.replace(folder / ".table.npz", folder / f"{tokens}.npz")
            print(
                f"{variant.name} {variant.seed}: {tokens / 1e6:g}M tokens, held-out loss {table['loss'].mean():.3f}, "
                f"{seen / (time.monotonic() - start):,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    torch.save(model.state_dict(), folder / ".weights.pt")
    os.replace(folder / ".weights.pt", folder / "weights.pt")
    return f"{variant.name} {variant.seed} in {(time.monotonic() - start) / 60:.0f} min"


def _read(work: Path, variant: Variant) -> tuple[Any, Any, Any]:
    """Ids, classes and the judge's classes in rows, [rows, LENGTH]; where there is no judge, classes twice."""
    import torch

    with np.load(work / ("judged.npz" if variant.judged else "tokens.npz")) as file:
        names = ("ids", "classes", "judged" if variant.judged else "classes")
        count = len(file["ids"]) // LENGTH
        columns = [file[name][: count * LENGTH].reshape(count, LENGTH) for name in names]
    ids, classes, judged = columns
    return torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(classes), torch.from_numpy(judged)


def build(variant: Variant) -> Any:
    """The model of a variant: ids [B, T] -> logits [B, T, 4096]."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(
                vocab_size=PIECES + 1,
                n_positions=LENGTH,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=HEADS,
                activation_function="gelu_pytorch_tanh",  # GPT-2's own, as one operation
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                attn_implementation="eager",  # on a CPU the fastest at 128 positions
            )
            self.gpt2 = GPT2LMHeadModel(config)
            self.call = torch.nn.Parameter(torch.randn(WIDTH) * 0.02) if variant.untied else None

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.gpt2.transformer(input_ids=ids).last_hidden_state
            logits = self.gpt2.lm_head(hidden)
            if self.call is None:
                return logits
            return torch.cat([logits[..., :CALL], (hidden @ self.call)[..., None].to(logits.dtype)], dim=-1)

        def call_row(self) -> torch.Tensor:
            return self.gpt2.lm_head.weight[CALL] if self.call is None else self.call

    torch.manual_seed(variant.seed)
    return Model()


def _table(model: Any, ids: Any, classes: Any, judged: Any) -> dict[str, np.ndarray]:
    """What the model does at each held-out target, [n]: the loss of the true token without <CALL> (nats), the logit of
    <CALL>, its log-odds log p / (1 - p), whether it leads; the class of the target, and the judge's."""
    import torch

    from lacy_stream.objective.losses import token_losses

    columns: dict[str, list[Any]] = {name: [] for name in ("loss", "logit", "log_odds", "leads", "correct")}
    with torch.no_grad():
        for rows in ids.split(ROWS):
            rows = rows.long()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(rows)[:, :-1].float()
            columns["loss"].append(token_losses(logits, rows[:, 1:], CALL).true)
            columns["logit"].append(logits[..., CALL])
            columns["log_odds"].append(logits[..., CALL] - torch.logsumexp(logits[..., :CALL], dim=-1))
            columns["leads"].append(logits.argmax(-1) == CALL)
            columns["correct"].append(logits[..., :CALL].argmax(-1) == rows[:, 1:])
    table = {name: torch.cat([part.flatten() for part in parts]).numpy() for name, parts in columns.items()}
    return table | {"token_class": classes[:, 1:].flatten().numpy(), "judged": judged[:, 1:].flatten().numpy()}


def run_all(variants: list[Variant], work: Path, jobs: int) -> None:
    """Train what is not there yet, the reference before what needs it."""
    waiting = [variant for variant in variants if not (variant.folder(work) / "weights.pt").exists()]
    start = time.monotonic()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for number, done in enumerate(as_completed([pool.submit(train, variant, work) for variant in waiting]), 1):
            minutes = (time.monotonic() - start) / 60
            print(f"{number} of {len(waiting)} after {minutes:.0f} min: {done.result()}", file=sys.stderr, flush=True)


# --- from tables to figures -------------------------------------------------------------------------------------------


def figures(table: dict[str, np.ndarray], baseline: dict[str, np.ndarray] | None) -> dict[str, float]:
    """All figures of one table; ``by_logit`` and ``by_probability`` prefix those that depend on the ranking."""
    factual, loss = table["token_class"] == 1, table["loss"].astype(np.float64)
    wanted = _highest(np.where(factual, loss, -np.inf), int(CALL_FRACTION * len(loss)))
    found = {"loss": loss.mean(), "facts": factual.mean(), "leads": table["leads"].mean()}
    found["call_probability"] = (1 / (1 + np.exp(-table["log_odds"].astype(np.float64)))).mean()
    for rank, score, first in (("logit", "logit", table["leads"]), ("probability", "log_odds", None)):
        call = _highest(table[score], int(CALL_FRACTION * len(loss)), first)
        values = {
            "precision": wanted[call].mean(),
            "calls_factual": factual[call].mean(),
            "call_loss": loss[call].mean(),
            "rest_loss": loss[~call].mean(),
        }
        if "judged" in table and not np.array_equal(table["judged"], table["token_class"]):
            values["calls_judged"] = (table["judged"] == 1)[call].mean()
        if baseline is not None:
            theirs = baseline["loss"].astype(np.float64)
            values |= {"baseline_call_loss": theirs[call].mean(), "baseline_rest_loss": theirs[~call].mean()}
        found |= {f"by_{rank}/{name}": value for name, value in values.items()}
    return {name: float(value) for name, value in found.items()}


def _highest(score: np.ndarray, count: int, first: np.ndarray | None = None) -> np.ndarray:
    """The ``count`` targets with the highest scores, those of ``first`` before all others: bool."""
    order = np.lexsort((-score, np.zeros(len(score)) if first is None else ~first))
    chosen = np.zeros(len(score), bool)
    chosen[order[:count]] = True
    return chosen


def collect(work: Path) -> dict[str, dict[int, dict[int, dict[str, float]]]]:
    """Name -> seed -> tokens -> figures, of all tables that are there. The baseline beside a model is the one of its
    seed, or of seed 0 where there is no other, at the same number of tokens."""
    found: dict[str, dict[int, dict[int, dict[str, float]]]] = {}
    for variant in VARIANTS:
        baseline = Variant("judged: baseline" if variant.judged else "baseline")
        for file in variant.folder(work).glob("[0-9]*.npz"):
            beside = baseline.folder(work) / file.name
            of_baseline = dict(np.load(beside)) if beside.exists() and variant.method != "baseline" else None
            curve = found.setdefault(variant.name, {}).setdefault(variant.seed, {})
            curve[int(file.stem)] = figures(dict(np.load(file)), of_baseline)
    return found


PERCENT = ("precision", "calls_factual", "calls_judged", "leads", "call_probability", "facts")
COLUMNS = {
    "{rank}/precision": "calls that are wanted, %",
    "{rank}/calls_factual": "calls that are facts, %",
    "{rank}/calls_judged": "calls that the judge marked, %",
    "{rank}/call_loss": "loss on calls",
    "{rank}/rest_loss": "loss on the rest",
    "{rank}/baseline_call_loss": "baseline on the calls",
    "{rank}/baseline_rest_loss": "baseline on the rest",
    "loss": "loss on all",
    "call_probability": "mean p(<CALL>), %",
    "leads": "positions where <CALL> leads, %",
}


def table_of(found: dict, names: list[str], tokens: int) -> str:
    """A Markdown row for each name and ranking at a number of tokens: the mean over the seeds, and their range."""
    columns = list(COLUMNS.values())
    lines = ["| variant | ranked by | seeds | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 3) + "|"]
    for name in names:
        rows = [curve[tokens] for curve in found.get(name, {}).values() if tokens in curve]
        for rank in ("logit", "probability") if rows and not name.endswith("baseline") else ():
            cells = [_cell([row.get(key.format(rank=f"by_{rank}")) for row in rows], key) for key in COLUMNS]
            lines.append(f"| {name} | {rank} | {len(rows)} | " + " | ".join(cells) + " |")
        if rows and name.endswith("baseline"):
            cells = [_cell([row["loss"] for row in rows], key) if key == "loss" else "" for key in COLUMNS]
            lines.append(f"| {name} | | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None], key: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    scale, digits = (100, 1) if key.rpartition("/")[2] in PERCENT else (1, 2)
    text = f"{scale * sum(known) / len(known):.{digits}f}"
    return text + (f" ({scale * min(known):.{digits}f} to {scale * max(known):.{digits}f})" if len(known) > 1 else "")


def draw_objectives(found: dict, path: Path) -> None:
    """Learning curves of the two objectives under both rankings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = {
        "precision": "calls that are wanted (%; chance 15)",
        "calls_factual": "calls that are facts (%)",
        "call_loss": "the model's loss on its calls (nats)",
        "baseline_call_loss": "the baseline's loss on these calls (nats)",
        "call_probability": "mean p(<CALL>) (%)",
        "rest_loss": "the model's loss on the rest (nats)",
    }
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, panels.items()):
        for name, colour in (("paper", "#c8553d"), ("defer", "#3b6ea5")):
            for rank, style in (("logit", "--"), ("probability", "-")):
                for seed, curve in found.get(name, {}).items():
                    full = key if key == "call_probability" else f"by_{rank}/{key}"
                    points = [(t / 1e6, row[full]) for t, row in sorted(curve.items()) if full in row]
                    scale = 100 if key in PERCENT else 1
                    label = f"{name}, by {rank}" if seed == 0 else None
                    axes.plot(*zip(*[(x, scale * y) for x, y in points]), style, color=colour, label=label)
        axes.set(title=title, xlabel="million tokens")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=4)
    figure.savefig(path, dpi=130)


def draw_variants(found: dict, names: list[str], title: str, path: Path) -> None:
    """Precision and share of facts of several variants, calls ranked by probability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("precision", "calls_factual"), ("calls that are wanted (%)", "calls that are facts (%)")
    ):
        for number, name in enumerate(name for name in names if name in found):
            for seed, curve in found[name].items():
                points = [(t / 1e6, 100 * row[f"by_probability/{key}"]) for t, row in sorted(curve.items()) if t <= 3e6]
                axes.plot(
                    *zip(*points), "-" if seed == 0 else ":", color=f"C{number}", label=name if not seed else None
                )
        axes.set(title=f"{title}: {label}", xlabel="million tokens")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=130)


METHODS = ["loss-based", "rho-1", "spacy", "defer"]
JUDGED = [f"judged: {method}" for method in ("loss-based", "llm-judge", "spacy", "lacy", "baseline")]
HYPOTHESES = [
    "paper", "paper, decay 5.5", "paper, decay 27", "paper, untied",
    "defer", "defer, untied", "defer, ramp", "defer, calls weigh 0.25",
]  # fmt: skip


def report(work: Path, out: Path) -> None:
    """Write OUT.json with every figure, OUT.md with the tables, and pictures in the folder OUT."""
    found = collect(work)
    out.mkdir(parents=True, exist_ok=True)
    draw_objectives(found, out / "objectives.png")
    draw_variants(found, METHODS, "methods", out / "methods.png")
    draw_variants(found, HYPOTHESES, "hypotheses", out / "hypotheses.png")
    (out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    last = max(set(found["paper"][0]) & set(found["defer"][0]))
    text = ""
    for title, names, tokens in [
        ("The objectives", ["paper", "defer", "baseline"], last),
        ("The objectives", ["paper", "defer", "baseline"], 3_000_000),
        ("The methods, with `defer` (`defer` is LaCy)", [*METHODS, "baseline"], 1_500_000),
        ("The methods, with `defer` (`defer` is LaCy)", [*METHODS, "baseline"], 3_000_000),
        ("The hypotheses", [*HYPOTHESES, "baseline"], 1_500_000),
        ("The hypotheses", [*HYPOTHESES, "baseline"], 3_000_000),
        ("On the judged documents, with `defer`", JUDGED, 1_500_000),
    ]:
        text += f"## {title}, {tokens / 1e6:g}M tokens\n\n{table_of(found, names, tokens)}\n"
    (out / "tables.md").write_text(text)
    print(text)


def export(name: str, seed: int, work: Path, out: Path) -> None:
    """A trained variant as a folder for `benchmarks/cascade_value.py`."""
    import torch

    from lacy_stream.train.checkpoint import CallingModel
    from lacy_stream.train.export import write_folder

    variant = next(v for v in VARIANTS if (v.name, v.seed) == (name, seed))
    model = build(variant)
    model.load_state_dict(torch.load(variant.folder(work) / "weights.pt"))
    model.gpt2.config.eos_token_id = model.gpt2.config.bos_token_id = 2
    out.mkdir(parents=True)
    write_folder(CallingModel(model.gpt2.eval(), work / "pieces.model", CALL, 2, LENGTH, name, None), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training, reporting, exporting = (commands.add_parser(name) for name in ("train", "report", "export"))
    training.add_argument("files", type=Path, nargs="+", help="JSONL with text, plain or .zst")
    training.add_argument("--judged", type=Path, help="JSONL with text and spans of a judge, for llm-judge")
    training.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    exporting.add_argument("name", help="of the variant")
    exporting.add_argument("--seed", type=int, default=0)
    for command in (training, reporting, exporting):
        command.add_argument("--work", type=Path, required=True, help="folder for tokens, tables and weights")
    for command in (reporting, exporting):
        command.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    if args.command == "train":
        prepare(args.files, args.work)
        if args.judged is not None:
            prepare_judged(args.judged, args.work)
        run_all([variant for variant in VARIANTS if args.judged or not variant.judged], args.work, args.jobs)
    elif args.command == "report":
        report(args.work, args.out)
    else:
        export(args.name, args.seed, args.work, args.out)


if __name__ == "__main__":
    main()
