"""A frozen reference model -> its loss of each target, for the methods that need one (rho-1, spacy+refloss)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lacy_stream.errors import UsageError
from lacy_stream.objective.batch import Batch, logits_of
from lacy_stream.objective.losses import true_losses, vocab_size


class ReferenceLosses:
    """The losses of a model that is not trained, and the time that they take.

    Args:
        model: a causal language model of transformers with the run's tokenizer, with or without an entry for <CALL>. It
            is frozen, and moved to the device of the first batch.
        call_token_id: id of <CALL>.
    """

    def __init__(self, model: torch.nn.Module, call_token_id: int) -> None:
        self._model, self._call_token_id = model.eval().requires_grad_(False), call_token_id
        self._device = torch.device("cpu")
        self._stopwatch = _Stopwatch()

    @torch.no_grad()
    def __call__(self, batch: Batch, targets_BT: Tensor) -> Tensor:
        """The loss of each target in nats, float32 [B, T].

        Raises:
            UsageError: the model has another vocabulary.
        """
        if self._device != targets_BT.device:
            self._device = targets_BT.device
            self._model.to(self._device)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        with self._stopwatch.running(self._device):
            logits = logits_of(self._model(**inputs))
            if vocab_size(logits) not in (self._call_token_id, self._call_token_id + 1):
                raise UsageError(
                    f"the reference model's vocabulary has {vocab_size(logits)} entries: it must be that of the "
                    f"tokenizer, {self._call_token_id}, or one more for <CALL>"
                )
            return true_losses(logits, targets_BT, self._call_token_id)

    def clear_clock(self) -> None:
        self._stopwatch.clear()

    def seconds(self) -> float:
        """Seconds since ``clear_clock``, on this rank."""
        return self._stopwatch.seconds()


class _Stopwatch:
    """Seconds of work on a device. On a GPU, nothing waits for the work until the seconds are asked for."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []  # of CUDA

    def clear(self) -> None:
        self._seconds, self._events = 0.0, []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            yield
            end.record(torch.cuda.current_stream(device))
            self._events.append((start, end))
        else:
            before = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - before

    def seconds(self) -> float:
        for _, end in self._events:
            end.synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000  # from milliseconds
