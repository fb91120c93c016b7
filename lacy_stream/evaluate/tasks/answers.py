"""The data of the fact leakage tasks, and the rule by which an output contains an answer. lm-eval loads this file by
its path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors

POPQA_FILE, QA_WIKIDATA_FILE = "popqa_longtail.jsonl", "bigbench_qa_wikidata.jsonl"

COMPLETIONS = [
    (r"What is (.+)'s occupation\?", r"\1's occupation is"),
    (r"In what city was (.+) born\?", r"\1 was born in the city of"),
    (r"In what country is (.+)\?", r"\1 is in the country of"),
    (r"What is (.+) the capital of\?", r"\1 is the capital of"),
    (r"What genre is (.+)\?", r"The genre of \1 is"),
    (r"What sport does (.+) play\?", r"\1 plays the sport of"),
    (r"What color is (.+)\?", r"The color of \1 is"),
    (r"What is the (.+)\?", r"The \1 is"),
    (r"Who (is|was) the (.+)\?", r"The \2 \1"),
]
"""PopQA's questions are made from one template a property. Each is rewritten as the start of its answer. In the paper a
language model rewrites them (appendix B)."""


def completion(question: str) -> str:
    """The start of the sentence that answers a PopQA question.

    Raises:
        UsageError: the question follows none of PopQA's templates.
    """
    for pattern, start in COMPLETIONS:
        if re.fullmatch(pattern, question):
            return re.sub(pattern, start, question)
    raise UsageError(f"{question!r} follows none of PopQA's templates")


def contains_answer(output: str, answers: Sequence[str]) -> bool:
    """Tell whether the output contains any gold answer, letter by letter. This is the rule of Self-RAG, from which the
    PopQA long tail comes. "pol", an alias of politician in PopQA, is contained in "Napoli"."""
    return any(answer in output for answer in answers)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The metric of one item: 1.0 if an answer has leaked, else 0.0."""
    return {"contains": float(contains_answer(results[0], doc["answers"]))}


def popqa_longtail(data: str | None = None, **_: Any) -> Any:
    """Load PopQA's rare entities. A query is the question and its completion form, and has several gold answers."""
    rows = _rows(data, POPQA_FILE)
    return _dataset(
        {"query": f"{row['question']} {completion(row['question'])}", "answers": row["answers"]} for row in rows
    )


def qa_wikidata(data: str | None = None, **_: Any) -> Any:
    """Load BIG-bench's QA Wikidata. A query is the start of a sentence, and has one gold answer."""
    rows = _rows(data, QA_WIKIDATA_FILE)
    return _dataset({"query": row["context"], "answers": [row["continuation"]]} for row in rows)


def _rows(data: str | None, name: str) -> Iterator[dict[str, Any]]:
    path = Path(data or ".") / name
    if not path.is_file():
        raise UsageError(f"{path} does not exist; --data names the folder of {POPQA_FILE} and {QA_WIKIDATA_FILE}")
    with file_errors(path, "read"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UsageError(f"line {number} of {path} is no JSON: {error}") from None


def _dataset(rows: Iterable[dict[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(list(rows))})
