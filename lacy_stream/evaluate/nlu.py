"""Language understanding by lm-eval's own tasks (section 5.5, appendix B, tables 1 and 10)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

from lacy_stream.errors import UsageError
from lacy_stream.evaluate.harness import TaskResult, run_tasks
from lacy_stream.evaluate.models import labels, training_notes
from lacy_stream.evaluate.results import Table, publish
from lacy_stream.evaluate.settings import NluOptions

UPSTREAM = Path(lm_eval.tasks.__file__).parent
TASKS = {
    "arc_easy": UPSTREAM / "arc" / "arc_easy.yaml",
    "hellaswag": UPSTREAM / "hellaswag" / "hellaswag.yaml",
    "piqa": UPSTREAM / "piqa" / "piqa.yaml",
    "social_iqa": UPSTREAM / "siqa" / "siqa.yaml",
}
TITLES = {"arc_easy": "ARC Easy", "hellaswag": "HellaSwag", "piqa": "PIQA", "social_iqa": "SIQA"}
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "arc_easy": ("arc_easy_test.jsonl", "test", {"validation_split": None}),
    # Prepared as lm-eval's process_docs would.
    "hellaswag": ("hellaswag_val.jsonl.gz", "validation", {"process_docs": None, "doc_to_target": "gold"}),
    "piqa": ("piqa_valid.jsonl", "validation", {}),
    "social_iqa": ("siqa_dev.jsonl", "validation", {}),
}
"""Task -> local file, the split that it stands for, and what its columns ask for beside."""
PAPER = {
    "Random chance": (25.0, 25.0, 50.0, 33.3, 33.3),
    "Baseline": (34.8, 28.8, 59.0, 35.9, 39.6),
    "Loss-based calling": (34.3, 28.6, 57.1, 36.3, 39.1),
    "Rho-1": (35.0, 28.6, 56.8, 35.9, 39.1),
    "LLM judge": (33.8, 28.3, 57.3, 36.8, 39.1),
    "LaCy": (35.6, 28.5, 59.3, 36.2, 39.9),
}


def evaluate_nlu(options: NluOptions) -> None:
    """Accuracy of each model on ARC-Easy, HellaSwag, PIQA and SIQA; writes nlu.json and nlu.md. Without a folder with
    FILES, the data sets are those of lm-eval, from the hub.

    Raises:
        UsageError: the folder lacks a file, or the hub cannot be reached.
    """
    models, data = labels(options.models), options.data
    with tempfile.TemporaryDirectory() as folder:
        manager = hub_tasks() if data is None else local_tasks(Path(data), Path(folder))
        results = {label: run_tasks(path, list(TASKS), manager, options) for label, path in models.items()}
    table = Table(
        title="Language understanding, <CALL> banned, no partner (accuracy, %)",
        columns=["model", *TITLES.values(), "average"],
        rows=[[label, *_accuracies(result)] for label, result in results.items()],
        paper=[[label, *row] for label, row in PAPER.items()],
        source="table 1, 334M parameters",
        notes=[
            *training_notes(models),
            *([f"Only the first {options.limit} items of each task."] if options.limit else []),
            *(
                f"{label}: {result[task].cut} answers of {TITLES[task]} are longer than the model's context; they are "
                "scored by their end."
                for label, result in results.items()
                for task in TASKS
                if result[task].cut
            ),
        ],
    )
    publish(
        options.out, "nlu", {"data": data or "hub", "models": [_as_json(*result) for result in results.items()]}, table
    )


def hub_tasks() -> TaskManager:
    """lm-eval's own tasks, without its scan of all the others, which takes half a minute."""
    return TaskManager(include_path=[file.parent for file in TASKS.values()], include_defaults=False)


def local_tasks(data: Path, folder: Path) -> TaskManager:
    """The same tasks, their data from files. Their definitions are written to a folder: lm-eval merges a change into
    a task of its own only in YAML that includes it."""
    for task, (name, split, changes) in FILES.items():
        if not (data / name).is_file():
            names = ", ".join(name for name, *_ in FILES.values())
            raise UsageError(f"{data / name} does not exist; --data names a folder with {names}; without it, the hub")
        definition = {
            "include": str(TASKS[task]),
            "task": task,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str((data / name).absolute())}},
            "training_split": None,
            **changes,
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    return TaskManager(include_path=folder, include_defaults=False)


def _accuracies(results: Mapping[str, TaskResult]) -> list[float]:
    values = [100 * results[task].metrics["acc"] for task in TASKS]
    return [*values, sum(values) / len(values)]


def _as_json(label: str, results: Mapping[str, TaskResult]) -> dict[str, Any]:
    tasks = {
        task: {
            "metrics": result.metrics,
            "answers_cut": result.cut,
            "items": [
                {
                    "item": sample["doc_id"],
                    "gold": sample["target"],
                    "log_likelihoods": [response[0] for response in sample["filtered_resps"]],
                    "acc": sample["acc"],
                }
                for sample in result.items
            ],
        }
        for task, result in results.items()
    }
    return {"model": label, "tasks": tasks}
