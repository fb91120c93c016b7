"""`text_with_calls`: Foundry's own loader with labels, in runs that exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llmfoundry", reason="LLM Foundry is in an environment of its own: make test-foundry")

import numpy as np
from foundry_runs import CALLS

from annotator import Annotator


@pytest.mark.slow
def test_three_lines_add_calls_to_a_run(train: Callable[..., Any], annotator: Annotator) -> None:
    """A run with `text` and the same run with `text_with_calls` and `call_mask` see the same batches; those of the
    second one have the annotator's labels, 15% of the targets are called, and <CALL> is the first spare row."""
    plain, calls = train(), train(CALLS)
    assert calls.record.digests == plain.record.digests
    assert calls.record.keys[0] == plain.record.keys[0] | {"token_class"}
    assert calls.state.model.tokenizer.convert_tokens_to_ids("<CALL>") == 32_000
    fractions = [value for _, value in calls.metrics["call_mask/call_fraction"]]
    assert fractions == pytest.approx([int(0.15 * 4 * 31) / (4 * 31)] * 4)
    batch = calls.state.batch
    labelled = annotator.annotate_ids([np.asarray(row) for row in batch["input_ids"]])
    assert np.array_equal(calls.record.classes[-1], np.stack([tokens.classes for tokens in labelled]))
    assert {1, 2} <= set(np.unique(calls.record.classes[-1]))
