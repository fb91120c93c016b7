"""Fact leakage: facts that a model states by itself when it must not call (section 5.3, appendix B, figure 2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lacy_stream.evaluate.harness import TaskResult, run_tasks
from lacy_stream.evaluate.models import training_notes
from lacy_stream.evaluate.results import Table, bars, publish

TASKS = {"qa_wikidata": "QA Wikidata", "popqa_longtail": "PopQA long tail"}
FOLDER = Path(__file__).parent / "tasks"


def evaluate_leakage(
    models: Mapping[str, str],
    out: str | os.PathLike[str],
    *,
    data: str,
    device: str,
    batch_size: int = 8,
    limit: int | None = None,
) -> None:
    """Measure the share of questions whose answer each model gives by itself. Writes leakage.json, .md and .png.

    Args:
        models: label -> path.
        out: folder for the results, and for the cache of the models' answers.
        data: folder of the two data files, see ``tasks/answers.py``.
        device: torch device.
        batch_size: sequences at a time.
        limit: number of items of each task; None for all.

    Raises:
        UsageError: a data file is missing.
    """
    manager = TaskManager(include_path=FOLDER, include_defaults=False, metadata={"data": data})
    cache = Path(out) / "answers"
    results = {
        label: run_tasks(path, list(TASKS), manager, cache, device=device, batch_size=batch_size, limit=limit)
        for label, path in models.items()
    }
    leaked = {label: [100 * result[task].metrics["contains"] for task in TASKS] for label, result in results.items()}
    table = Table(
        title="Fact leakage, <CALL> banned, three shots (answers given, %; less is better)",
        columns=["model", *TASKS.values(), "average"],
        rows=[[label, *values, sum(values) / len(values)] for label, values in leaked.items()],
        notes=[
            "The paper shows its figures as a plot only (figure 2, right).",
            *training_notes(models),
            *([f"Only the first {limit} items of each task."] if limit else []),
        ],
    )
    average = {label: sum(values) / len(values) for label, values in leaked.items()}
    bars(Path(out) / "leakage.png", "Fact leakage", "answers given (%)", average, {})
    publish(out, "leakage", {"data": data, "models": [_as_json(*result) for result in results.items()]}, table)


def _as_json(label: str, results: Mapping[str, TaskResult]) -> dict[str, Any]:
    tasks = {
        task: {
            "metrics": result.metrics,
            "items": [
                {
                    "query": sample["doc"]["query"],
                    "answers": sample["doc"]["answers"],
                    "output": sample["filtered_resps"][0],
                    "contains": sample["contains"],
                }
                for sample in result.items
            ],
        }
        for task, result in results.items()
    }
    return {"model": label, "tasks": tasks}
