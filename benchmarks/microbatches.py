"""What does a call mask over several microbatches cost: exact with a first pass, or inexact without?

    python benchmarks/microbatches.py demo/data --tokenizer demo/pieces.model --steps 300

The data is what ``lacy-stream prepare`` writes. A GPT-2 of the size of the demo is trained with ``scope: global``, the
exact one. Beside it, ``running`` and ``microbatch`` choose from the same losses, so that only the choice differs.
Reported for each, over the steps after ``--skip``: the share of calls that differ from the exact ones (in one of the
two masks and not in both, by the size of both), and how far the share of calls of a step is from 15%.

Then, on the last model, the time of a step of each scope, and of one microbatch with all rows, in turns within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from annotator import AnnotatorSettings
from lacy_stream.benchmark.measure import machine
from lacy_stream.objective.call_objective import CallObjective
from lacy_stream.objective.methods import Scope
from lacy_stream.recipe import GPT2
from lacy_stream.stream.batches import annotated_dataloader
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.train.model import build_model

INEXACT: tuple[Scope, ...] = ("running", "microbatch")
Microbatches = list[dict[str, Tensor]]


class RecordedObjective(CallObjective):
    """An objective that keeps the call masks of a step: ``masks``, bool [B, T] of each selection."""

    def begin_step(self, *arguments: Any, **settings: Any) -> None:
        self.masks: list[Tensor] = []
        super().begin_step(*arguments, **settings)

    def _select(self, targets: Any) -> Any:
        chosen = super()._select(targets)
        self.masks.append(chosen.selection.call)
        return chosen


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, objective: CallObjective, step: int, parts: Microbatches
) -> list[Tensor]:
    """One step; the logits of its microbatches."""
    objective.begin_step(step, parts, model)
    kept = []
    for part in parts:
        logits = model(input_ids=part["input_ids"]).logits
        objective(logits, part).backward()
        kept.append(logits.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return kept


def compare(args: argparse.Namespace, model: nn.Module, optimizer: Any, steps: Iterator[Microbatches]) -> dict:
    """Train exactly, and choose by the other scopes from the same losses."""
    exact, call = RecordedObjective(args.call), args.call
    others = {scope: RecordedObjective(call, scope=scope) for scope in INEXACT}
    differing: dict[str, list[float]] = {scope: [] for scope in others}
    shares: dict[str, list[float]] = {scope: [] for scope in others}
    for step in range(args.steps):
        parts = next(steps)
        logits = train_step(model, optimizer, exact, step, parts)
        wanted = torch.cat(exact.masks)
        for scope, objective in others.items():
            objective.begin_step(step, parts, model)
            for part, kept in zip(parts, logits, strict=True):
                objective.mean_loss(kept, part)
            mask = torch.cat(objective.masks)
            if step >= args.skip:
                differing[scope].append(((mask ^ wanted).sum() / (mask.sum() + wanted.sum())).item())
                shares[scope].append(mask.sum().item() / (mask.numel() - len(mask)))  # a row's last place has no target
        if step % 20 == 0:
            print(f"step {step} of {args.steps}", file=sys.stderr)
    return {
        scope: {
            "differing_calls": round(statistics.mean(differing[scope]), 4),
            "mean_share": round(statistics.mean(shares[scope]), 4),
            "mean_error_of_a_step": round(statistics.mean(abs(share - 0.15) for share in shares[scope]), 4),
            "largest_error_of_a_step": round(max(abs(share - 0.15) for share in shares[scope]), 4),
        }
        for scope in others
    }


def measure(args: argparse.Namespace, model: nn.Module, optimizer: Any, steps: Iterator[Microbatches]) -> dict:
    """Seconds of a step."""
    scopes: dict[str, Scope] = {"global": "global", "running": "running", "microbatch": "microbatch", "whole": "global"}
    objectives = {name: CallObjective(args.call, scope=scope) for name, scope in scopes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in scopes}
    for number in range(args.rounds + 1):
        parts = next(steps)
        whole = [{key: torch.cat([part[key] for part in parts]) for key in parts[0]}]
        for name, objective in objectives.items():
            start = time.process_time()
            train_step(model, optimizer, objective, number, whole if name == "whole" else parts)
            if number:  # the first warms up
                seconds[name].append(time.process_time() - start)
    return {
        name: {
            "ms_of_cpu": round(1000 * statistics.median(values), 1),
            "times_global": round(statistics.median(a / b for a, b in zip(values, seconds["global"], strict=True)), 3),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that lacy-stream prepare wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--skip", type=int, default=20, help="first steps that are not counted")
    parser.add_argument("--rows", type=int, default=16, help="of a mini-batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20, help="of the measurement of time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(17)
    settings = AnnotatorSettings(args.tokenizer)
    tokenizer = settings.open_tokenizer()
    args.call = tokenizer.vocab_size
    config = GPT2(name="gpt2", d_model=128, n_heads=4, n_layers=2)
    built = build_model(config, max_seq_len=args.length, call_token_id=args.call, eos_id=tokenizer.eos_id)
    model: Any = built.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    with AnnotationPool(settings, num_workers=1) as pool:
        shape = {"batch_size": args.rows, "max_seq_len": args.length}
        loader = iter(annotated_dataloader(args.data, pool, split="train", shuffle=True, **shape))
        size = args.rows // args.microbatches

        def steps() -> Iterator[Microbatches]:
            for batch in loader:
                parts = {key: value.split(size) for key, value in batch.items() if torch.is_tensor(value)}
                yield [{key: part[number] for key, part in parts.items()} for number in range(args.microbatches)]

        found = {"calls": compare(args, model, optimizer, steps()), "time": measure(args, model, optimizer, steps())}
    found |= {"settings": {key: str(value) for key, value in vars(args).items() if key != "json"}, "machine": machine()}
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
