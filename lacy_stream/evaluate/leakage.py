"""Fact leakage: facts that a model tells although it may not call (section 5.3, appendix B, figure 2 right)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lacy_stream.evaluate.harness import TaskResult, run_tasks
from lacy_stream.evaluate.models import labels, training_notes
from lacy_stream.evaluate.results import Table, bars, publish
from lacy_stream.evaluate.settings import LeakageOptions

TASKS = {"qa_wikidata": "QA Wikidata", "popqa_longtail": "PopQA long tail"}
FOLDER = Path(__file__).parent / "tasks"


def evaluate_leakage(options: LeakageOptions) -> None:
    """Share of the questions whose answer each model gives by itself; writes leakage.json, .md and .png.

    Raises:
        UsageError: the folder lacks one of its files, see ``tasks/answers.py``.
    """
    models, out = labels(options.models), Path(options.out)
    manager = TaskManager(include_path=FOLDER, include_defaults=False, metadata={"data": options.data})
    results = {label: run_tasks(path, list(TASKS), manager, options) for label, path in models.items()}
    leaked = {label: [100 * result[task].metrics["contains"] for task in TASKS] for label, result in results.items()}
    table = Table(
        title="Fact leakage, <CALL> banned, three shots (answers given, %; less is better)",
        columns=["model", *TASKS.values(), "average"],
        rows=[[label, *values, sum(values) / len(values)] for label, values in leaked.items()],
        notes=[
            "The paper shows its figures as a plot only (figure 2, right).",
            *training_notes(models),
            *([f"Only the first {options.limit} items of each task."] if options.limit else []),
        ],
    )
    average = {label: sum(values) / len(values) for label, values in leaked.items()}
    bars(out / "leakage.png", "Fact leakage", "answers given (%)", average, {})
    publish(out, "leakage", {"data": options.data, "models": [_as_json(*result) for result in results.items()]}, table)


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
