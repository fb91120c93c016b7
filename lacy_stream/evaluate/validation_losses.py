"""Held-out losses of each model on its own call mask, and of a baseline on the same mask (A.4.3, figure 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lacy_stream.errors import UsageError
from lacy_stream.evaluate.models import labels, training_notes
from lacy_stream.evaluate.results import OURS, Table, publish
from lacy_stream.evaluate.settings import LossesOptions
from lacy_stream.evaluate.token_table import TokenTable, calls_by_class, join_tables, losses, own_mask, token_table
from lacy_stream.files import file_fingerprint
from lacy_stream.journal import Journal
from lacy_stream.progress import progress
from lacy_stream.recipe import Dataset, Recipe
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.train.checkpoint import CallingModel, load_model

PAPER = [["LaCy, 334M", "paper", "logit", "5.72", None, None, None, None, None, None]]
COLUMNS = (
    "model",
    "objective",
    "calls ranked by",
    "call loss",
    "baseline there",
    "non-call loss",
    "baseline there",
    "total loss",
    "calls that are facts, %",
    "facts that are called, %",
)
PART_BATCHES = 50
"""Batches in a part. Finished parts are kept, so an interrupted run loses at most this many batches."""


def evaluate_losses(options: LossesOptions) -> None:
    """Compute the losses of models on the same held-out rows. Writes losses.json, .md and .png.

    All models have <CALL> and the same tokenizer. The losses of the baseline are computed on the call masks of the
    others ("matched").

    Raises:
        UsageError: a model has no <CALL>, the tokenizers differ, or there is no data.
    """
    models, out = labels(options.models), Path(options.out)
    baseline = _free_label("baseline", models)  # a MODEL may have this name, too
    everyone = models | ({baseline: options.baseline} if options.baseline else {})
    loaded = {label: load_model(path) for label, path in everyone.items()}
    _check(loaded, models)
    first = next(iter(loaded.values()))
    dataset = _dataset(first, options.data, options.split or None)
    length = min(model.max_seq_len for model in loaded.values())
    tables = {}
    with AnnotationPool(replace(first.annotator_settings, model=options.parser), label_cache=out / "labels") as pool:
        for label, model in loaded.items():
            settings = {
                "model": file_fingerprint(everyone[label]),
                "data": str(dataset),
                "length": length,
                "rows": options.limit,
                "batch_size": options.batch_size,
                "annotation": pool.identity,
                "columns": list(TokenTable._fields),
            }
            with Journal(out / f"losses-{label}" / "parts.jsonl", settings) as journal:
                tables[label] = _table(label, model, pool, dataset, length, options, journal)
    fraction = options.call_fraction
    ranks = {label: options.rank_calls_by or loaded[label].rank_calls_by for label in models}
    matched = tables.get(baseline)
    found = {label: _figures(tables[label], fraction, ranks[label], matched) for label in models}
    how = {label: [_objective(loaded[label].recipe), ranks[label]] for label in models}
    draw_losses(out / "losses.png", {label: [row] for label, row in found.items()})
    targets = len(next(iter(tables.values())).loss)
    table = Table(
        "Held-out losses, nats",
        COLUMNS,
        [[label, *how[label], *_row(row)] for label, row in found.items()],
        PAPER,
        "figure 5",
        [*training_notes(models), f"{targets:,} targets; {fraction:.0%} of them on each call mask."],
    )
    figures = {label: {"objective": how[label][0], "rank_calls_by": ranks[label]} | found[label] for label in models}
    content = {"targets": targets, "call_fraction": fraction, "models": figures}
    publish(out, "losses", content, table)


def _free_label(label: str, taken: Collection[str]) -> str:
    """A label that no model has: the given one, or one that is longer."""
    while label in taken:
        label = f"{label}-to-compare"
    return label


def _check(loaded: Mapping[str, CallingModel], calling: Mapping[str, str]) -> None:
    digests = {label: hashlib.sha256(model.tokenizer.read_bytes()).hexdigest() for label, model in loaded.items()}
    first = next(iter(digests))
    for label, model in loaded.items():
        if label in calling and model.call_token_id is None:
            raise UsageError(f"{label} has no <CALL> in its vocabulary, and so no call mask: give it as --baseline")
        if digests[label] != digests[first]:
            raise UsageError(f"{label} has another tokenizer than {first}: their targets cannot be compared")


def _dataset(model: CallingModel, data: str | None, split: str | None) -> Dataset:
    if data is not None:
        return Dataset(local=data, split=split)
    if model.recipe is None or model.recipe.eval_loader is None:
        raise UsageError(f"{model.name} names no held-out data: give --data, a folder of MDS shards")
    return model.recipe.eval_loader.dataset


def _table(
    label: str,
    model: CallingModel,
    pool: AnnotationPool,
    dataset: Dataset,
    length: int,
    options: LossesOptions,
    journal: Journal,
) -> TokenTable:
    """Make the token table of a model. Parts that an earlier run has finished are read, and the others computed."""
    from lacy_stream.stream.batches import annotated_dataloader
    from lacy_stream.train.recipe_data import corpus_arguments

    folder = journal.path.parent
    loader = annotated_dataloader(
        pool=pool, batch_size=options.batch_size, max_seq_len=length, repeat=False, **corpus_arguments(dataset)
    )
    # Batches of finished parts are read once more and skipped: the loader begins at the first, and only the model is
    # slow.
    limit = None if options.limit is None else -(-options.limit // options.batch_size)
    done = sum(part["batches"] for part in journal.results)
    network: Any = model.model
    device = options.compute.set_up()
    network.to(device)
    pending: list[TokenTable] = []
    documents = pool.stats().documents
    total = len(loader.dataset.corpus)  # type: ignore[attr-defined]
    with progress(f"{label}: documents", total) as advance:
        for number, batch in enumerate(_first_batches(loader, limit)):
            if (now := pool.stats().documents) > documents:
                advance(now - documents)
                documents = now
            if number < done:
                continue
            pending.append(_batch_table(network, model, batch, device))
            if len(pending) == PART_BATCHES:
                _keep_part(pending, folder, journal)
    if pending:
        _keep_part(pending, folder, journal)
    return join_tables(TokenTable(**np.load(folder / part["file"])) for part in journal.results)


def _first_batches(batches: Any, limit: int | None) -> Iterator[dict[str, torch.Tensor]]:
    for number, batch in enumerate(batches):
        if limit is not None and number >= limit:
            return
        yield batch


@torch.no_grad()
def _batch_table(network: Any, model: CallingModel, batch: Mapping[str, torch.Tensor], device: str) -> TokenTable:
    ids, seen = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    logits = network(input_ids=ids, attention_mask=seen).logits
    call_token_id = logits.shape[-1] if model.call_token_id is None else model.call_token_id
    return token_table(logits, batch["labels"].to(device), batch["token_class"].to(device), call_token_id)


def _keep_part(pending: list[TokenTable], folder: Path, journal: Journal) -> None:
    """Write the pending tables as one part, and clear the list."""
    name = f"part-{len(journal.results):05d}.npz"
    with open(folder / name, "wb") as file:
        np.savez(file, **join_tables(pending)._asdict())
    journal.add({"file": name, "batches": len(pending)})
    pending.clear()


def _objective(recipe: Recipe | None) -> str | None:
    """The objective with which a run trained its model to call; None if unknown, or if it trained without calls."""
    if recipe is None or recipe.algorithms.call_mask.method == "baseline":
        return None
    return recipe.algorithms.call_mask.objective


def _figures(table: TokenTable, fraction: float, rank: str, baseline: TokenTable | None) -> dict[str, float]:
    """Compute the losses of a model and, on its mask, of the baseline, and the classes of its calls."""
    call = own_mask(table, fraction, rank)  # type: ignore[arg-type]
    found = losses(table, call) | calls_by_class(table, call)
    if baseline is not None:
        matched = losses(baseline, call, own=False)
        found |= {f"matched_{name}": matched[name] for name in ("call_loss", "non_call_loss")}
    return found


def _row(found: Mapping[str, float]) -> list[str | None]:
    names = ("call_loss", "matched_call_loss", "non_call_loss", "matched_non_call_loss", "total_loss")
    shares = [f"{100 * found[name]:.1f}" for name in ("precision", "recall")]
    return [*(f"{found[name]:.2f}" if name in found else None for name in names), *shares]


def draw_losses(path: Path, found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw figure 5: for each model the mean over its runs with their spread, beside the baseline on its mask."""
    from matplotlib.figure import Figure

    figure, places = Figure(figsize=(4 + 1.1 * len(found), 4.5), layout="constrained"), np.arange(len(found))
    for axes, name, title in zip(figure.subplots(1, 2), ("call_loss", "non_call_loss"), ("Call loss", "Non-call loss")):
        lowest = []
        for side, key, colour in ((-0.2, name, OURS), (0.2, f"matched_{name}", "#b9cde4")):
            values = [[row[key] for row in rows if key in row] for rows in found.values()]
            if not all(values):
                continue
            means, spreads = [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
            label = "the model" if key == name else "the baseline on its mask"
            axes.bar(places + side, means, 0.4, yerr=spreads if any(spreads) else None, color=colour, label=label)
            lowest += means
        axes.set_ylim(bottom=0.8 * min(lowest))
        axes.set_xticks(places, found, rotation=35, ha="right")
        axes.set(title=title, ylabel="nats")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncol=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
