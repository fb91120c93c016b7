"""A Foundry YAML as a whole, before anything is made of it: what no part of it can see alone."""

from __future__ import annotations

from typing import Any

from lacy_stream.errors import UsageError

LABELLED = ("text_with_calls", "annotated_text")


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check what a run says of this plug-in. Foundry calls it for every run, most of which know nothing of it.

    Evaluation loaders of annotated_text become passes that end.

    Raises:
        UsageError: a call mask whose loader gives no labels, or an epoch as a duration of an endless stream.
    """
    loader = config.get("train_loader") or {}
    if "call_mask" in (config.get("algorithms") or {}):
        _check_labelled(loader.get("name"))
    if loader.get("name") == "annotated_text":
        _check_durations(config)
    evaluation = config.get("eval_loader") or config.get("eval_loaders") or []
    for section in evaluation if isinstance(evaluation, list) else [evaluation]:
        if section.get("name") == "annotated_text":
            section.setdefault("repeat", False)
    return config


def _check_labelled(name: str | None) -> None:
    if name == "text":
        raise UsageError(
            "algorithms.call_mask: train_loader.name is 'text', whose batches have no labels: set train_loader.name: "
            "text_with_calls; its other keys, the order of the rows and the checkpoints stay as they are"
        )
    if name == "finetuning":
        raise UsageError(
            "algorithms.call_mask: train_loader.name is 'finetuning', which has no counterpart with labels: prompts "
            "and answers are separate texts there, and facts are found in whole ones. Use text_with_calls or "
            "annotated_text"
        )


def _check_durations(config: dict[str, Any]) -> None:
    for key in ("max_duration", "eval_interval", "save_interval"):
        value = config.get(key)
        if str(value).endswith("ep"):
            raise UsageError(
                f"{key}: {value!r}, but annotated_text is an endless stream of reshuffled epochs, so an epoch is no "
                "unit: use batches (1000ba), tokens (5_000_000tok) or samples (1000sp)"
            )
