"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from lacy_stream.cascade.settings import DELEGATION_METHODS, ESTIMATORS, Decoding, Delegation
from lacy_stream.objective.methods import RANKS

Settings = TypeVar("Settings")
Add = Callable[..., argparse.Action]
"""``add_argument`` of a parser or a group."""


def add_delegation(add: Add) -> None:
    """--delegate, --rank-calls-by and --call-rate, and what ``add_threshold`` adds."""
    default = Delegation()
    add(
        "--delegate",
        dest="method",
        choices=DELEGATION_METHODS,
        default=default.method,
        help=f"default: {default.method}, by the score of <CALL>",
    )
    add_rank(add)
    add(
        "--call-rate",
        type=float,
        default=default.call_rate,
        metavar="F",
        help=f"the partner's share of the tokens (default: {default.call_rate})",
    )
    add_threshold(add)


def add_rank(add: Add) -> None:
    """--rank-calls-by."""
    add(
        "--rank-calls-by",
        choices=RANKS,
        help="the score of <CALL>; logit is the paper's (default: that of the model's run)",
    )


def add_threshold(add: Add) -> None:
    """--estimator and --seed."""
    default = Delegation()
    add(
        "--estimator",
        choices=ESTIMATORS,
        default=default.estimator,
        help="of the threshold: tracking holds the rate; paper is the quantile of all that was seen",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help=f"of random delegation (default: {default.seed})")


def add_decoding(add: Add, batch_size: int | None, batch_size_help: str) -> None:
    """--max-new-tokens, --batch-size and --repetition-penalty."""
    default = Decoding()
    add(
        "--max-new-tokens",
        type=int,
        default=default.max_new_tokens,
        metavar="N",
        help=f"longest text (default: {default.max_new_tokens})",
    )
    add("--batch-size", type=int, default=batch_size, metavar="N", help=f"texts at a time (default: {batch_size_help})")
    add(
        "--repetition-penalty",
        type=float,
        default=default.repetition_penalty,
        metavar="F",
        help=f"of both models (default: {default.repetition_penalty}; 1 for none)",
    )


def add_device(add: Add) -> None:
    """--device."""
    add("--device", metavar="NAME", help="torch device (default: cuda if available, else cpu)")


def settings_of(kind: type[Settings], args: argparse.Namespace, **values: Any) -> Settings:
    """The dataclass whose fields stand in the parsed arguments, except those that are given here."""
    given = {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}  # type: ignore[arg-type]
    return kind(**given | values)


def device_of(args: argparse.Namespace) -> str:
    """The torch device that was asked for, or the default."""
    import torch

    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")
