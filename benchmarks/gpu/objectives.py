"""What do ``paper`` and ``defer`` make of a model, beside a baseline? Three models learn from the same batches."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from learner import Learner, make_model
from report import PIECES, TOKENIZER, Check

from annotator import AnnotatorSettings, FactClass
from lacy_stream import AnnotationPool, annotated_dataloader
from lacy_stream.evaluate.token_table import TokenTable, calls_by_class, join_tables, losses, own_mask, token_table
from lacy_stream.objective.methods import OBJECTIVES, RANKS
from lacy_stream.recipe import tokenizer_path

BASELINE = "baseline"
CALL_FRACTION = 0.15
TOY_STEPS = 6
WARM_STEPS = 100
"""Steps in which the rate of learning grows."""


def run(check: Check) -> None:
    size, rows, length, lr, held_out = ("toy", 8, 64, 2e-3, 2) if check.toy else ("42M", 64, 512, 6e-4, 24)
    data, evaluation_s = check.data(), 0 if check.toy else 35
    learners = {
        name: Learner(
            check,
            make_model(size, PIECES, length, 128),
            PIECES,
            lr,
            method=BASELINE if name == BASELINE else "lacy",
            objective="defer" if name == BASELINE else name,
            call_fraction=CALL_FRACTION,
        )
        for name in (BASELINE, *OBJECTIVES)
    }
    with AnnotationPool(AnnotatorSettings(tokenizer_path(TOKENIZER)), num_workers=1 if check.toy else None) as pool:
        loader_settings: dict[str, Any] = {"batch_size": rows, "max_seq_len": length, "lanes": rows}
        loader = annotated_dataloader(data, pool, split="train", shuffle=True, **loader_settings)
        tokens = train(check, learners, loader, lr, check.seconds_left() - evaluation_s, rows * length)
        val = annotated_dataloader(data, pool, split="val", repeat=False, **loader_settings)
        tables = evaluate(check, learners, itertools.islice(val, held_out))
    for name, table in tables.items():
        check.report("held out", objective=name, tokens=tokens, **figures(table, tables[BASELINE], name == BASELINE))


def train(
    check: Check, learners: dict[str, Learner], loader: Any, lr: float, seconds: float, tokens_per_batch: int
) -> int:
    """Train all on the same batches until the time is over. Returns the tokens that each of them has seen."""
    start, interval = time.monotonic(), 2 if check.toy else 100
    for step, batch in enumerate(loader):
        share_of_time = (time.monotonic() - start) / seconds
        if share_of_time >= 1 or (check.toy and step == TOY_STEPS):
            return step * tokens_per_batch
        batch = {key: value.to(check.device, non_blocking=True) for key, value in batch.items()}
        for learner in learners.values():
            for group in learner.optimizer.param_groups:
                # It grows, holds, and falls to a tenth in the last fifth of the time.
                group["lr"] = lr * min(1.0, (step + 1) / WARM_STEPS, max(0.1, (1 - share_of_time) / 0.2))
            learner.step(batch)
        if step % interval == interval - 1:
            metrics = {name: learner.objective.metrics() for name, learner in learners.items()}
            tokens = (step + 1) * tokens_per_batch
            check.report(
                "train",
                step=step + 1,
                tokens_per_s=round(tokens / (time.monotonic() - start)),
                rest_loss={name: round(values["rest_loss"], 4) for name, values in metrics.items()},
                precision={name: round(values["precision"], 4) for name, values in metrics.items() if name != BASELINE},
            )
    raise AssertionError("the stream is endless")


@torch.no_grad()
def evaluate(check: Check, learners: dict[str, Learner], batches: Any) -> dict[str, TokenTable]:
    found: dict[str, list[TokenTable]] = {name: [] for name in learners}
    for batch in batches:
        batch = {key: value.to(check.device) for key, value in batch.items()}
        for name, learner in learners.items():
            with check.autocast():
                # Without the attention mask: padding comes after the text, and its targets are not valid.
                logits_BTV = learner.network.eval()(input_ids=batch["input_ids"]).logits
            logits_BTV = logits_BTV[..., : PIECES + 1].float()
            found[name].append(token_table(logits_BTV, batch["labels"], batch["token_class"], PIECES))
    return {name: join_tables(tables) for name, tables in found.items()}


def figures(table: TokenTable, baseline: TokenTable, is_baseline: bool) -> dict[str, Any]:
    """Losses on held-out text in nats, and what the calls are, by each ranking; the baseline's losses on the same calls
    as ``matched_…``."""
    facts = table.token_class == FactClass.FACTUAL
    values: dict[str, Any] = {
        "targets": len(table.loss),
        "total_loss": float(table.loss.mean(dtype=np.float64)),
        "factual_loss": float(table.loss[facts].mean(dtype=np.float64)),
    }
    if is_baseline:
        return rounded(values)
    wanted = np.zeros_like(facts)
    by_loss = np.argsort(np.where(facts, -table.loss, np.inf), kind="stable")
    wanted[by_loss[: min(int(CALL_FRACTION * len(facts)), int(facts.sum()))]] = True
    values["call_leads"] = float(table.call_leads.mean())
    values["call_probability"] = float(-np.expm1(table.loss - table.loss_with_call.astype(np.float64)).mean())
    for rank in RANKS:
        calls = own_mask(table, CALL_FRACTION, rank)
        matched = losses(baseline, calls, own=False)
        values[rank] = rounded(
            losses(table, calls)
            | {f"matched_{name}": value for name, value in matched.items()}
            | calls_by_class(table, calls)
            | {"wanted": float(wanted[calls].mean())}
        )
    return rounded(values)


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
