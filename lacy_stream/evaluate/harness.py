"""A model class for lm-eval, and a run of its tasks that can be resumed.

<CALL> is banned (section 5.3). Its logit is -inf, so the log-likelihoods of the other tokens are renormalised, and
<CALL> is never generated.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from annotator.tokenizers import is_tokenizer_json
from lacy_stream.errors import UsageError
from lacy_stream.evaluate.settings import BenchmarkOptions
from lacy_stream.files import file_fingerprint
from lacy_stream.train.checkpoint import CallingModel, load_model

_HFLM: Any = HFLM  # its own decorator hides its type


@register_model("lacy")
class LacyLM(_HFLM):
    """A checkpoint of a run or an exported folder, with <CALL> banned.

    Once this module is imported, lm-eval knows it as "lacy". lm-eval's command line does not import it, so use
    ``lm_eval.simple_evaluate(LacyLM(PATH), tasks=[...])``.

    Args:
        model: a loaded model, or a path.
        batch_size: sequences at a time.
        device: torch device; None for the CPU.
    """

    def __init__(
        self, model: CallingModel | str, batch_size: int | str = 8, device: str | None = None, **_: Any
    ) -> None:
        loaded = load_model(model) if isinstance(model, str | os.PathLike) else model
        self._call_token_id = loaded.call_token_id
        loaded.model.to(device or "cpu")  # type: ignore[arg-type]
        tokenizer = hf_tokenizer(loaded)
        is_ours = loaded.other_start is None
        super().__init__(
            pretrained=loaded.model.eval(),
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=loaded.max_seq_len,
            # Models of others are read as their tokenizer says.
            add_bos_token=False if is_ours else None,
            prefix_token_id=loaded.eos_id if is_ours else None,  # of an empty context, as for an exported folder
        )

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        if self._call_token_id is not None:
            logits[..., self._call_token_id :] = -torch.inf  # with the rows that pad the vocabulary
        return logits

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        # lm-eval cuts contexts that are too long, but fails on answers that are. These are scored by their end.
        cut = [(key, context, answer[-self.max_length :]) for key, context, answer in requests]
        return super()._loglikelihood_tokens(cut, **kwargs)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        if self._call_token_id is not None:
            kwargs["bad_words_ids"] = [[id] for id in range(self._call_token_id, self.model.config.vocab_size)]
        return super()._model_generate(context, max_length, stop, **kwargs)


def hf_tokenizer(model: CallingModel) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model as one of transformers. That of a run is set as in the run.

    transformers has two classes for SentencePiece. The one used here calls SentencePiece itself. The fast one converts
    the file, which needs a matching protobuf, and by default it encodes white space in another way. Names of special
    tokens in a text are read as text.
    """
    path = model.tokenizer
    if model.other_start is not None:
        with contextlib.suppress(OSError, ValueError, ImportError):  # a SentencePiece model without its settings
            return AutoTokenizer.from_pretrained(path.parent)
    if is_tokenizer_json(path) and model.recipe is None:
        return AutoTokenizer.from_pretrained(path.parent)
    if is_tokenizer_json(path):  # of a checkpoint: no model may lie beside it
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            eos_token=model.open_tokenizer().pieces()[model.eos_id],
            split_special_tokens=model.annotator_settings.split_special_tokens,
        )
    return LlamaTokenizer(vocab_file=str(path), legacy=True, add_bos_token=False, split_special_tokens=True)


@dataclass(frozen=True)
class TaskResult:
    """The result of a task."""

    metrics: dict[str, float]
    """Mean metrics, 0 to 1."""
    items: list[dict[str, Any]]
    """The items as lm-eval logs them."""
    cut: int = 0
    """Number of answers that are longer than the model's context, and were scored by their end."""


def run_tasks(
    path: str, tasks: Sequence[str], manager: TaskManager, options: BenchmarkOptions
) -> dict[str, TaskResult]:
    """Run tasks on one model. lm-eval shows the progress. The answers are kept in the folder ``answers`` of
    ``options.out``, from which an interrupted run is resumed.

    Args:
        path: checkpoint or folder of the model.
        tasks: names of tasks that the manager knows.

    Raises:
        UsageError: the data of a task is on the hub, and the hub cannot be reached.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns if the model is an object
    cache = Path(options.out) / "answers"
    cache.mkdir(parents=True, exist_ok=True)
    model: Any = LacyLM(path, batch_size=options.batch_size, device=options.compute.set_up())  # type: ignore[call-arg]
    try:
        results: Any = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=options.limit,
            use_cache=str(cache / file_fingerprint(path)),
            bootstrap_iters=0,
        )
    except ConnectionError as error:
        raise UsageError(f"the Hugging Face hub did not deliver the tasks' data: {error}. Give --data DIR") from error
    return {
        task: TaskResult(
            _metrics(results["results"][task]),
            results["samples"][task],
            sum(_is_cut(model, *request) for item in results["samples"][task] for request in item["arguments"]),
        )
        for task in tasks
    }


def _is_cut(model: Any, context: str, answer: Any) -> bool:
    """Whether an answer to be scored is longer than the model's context."""
    return isinstance(answer, str) and len(model.tok_encode(answer)) > model.max_length


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """Select the metrics of lm-eval's row, without errors and counts, and shorten "acc,none" to "acc"."""
    return {
        name.split(",")[0]: float(value)
        for name, value in row.items()
        if name.endswith(",none") and "_stderr" not in name and isinstance(value, int | float)
    }
