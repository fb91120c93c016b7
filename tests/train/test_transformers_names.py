"""Names that transformers has changed are right in the version that is installed."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hugging_face import LENGTH, PIECES, batches, fit, new, wanted

from lacy_stream.train.hugging_face import causal_model, model_of_config
from lacy_stream.train.model import for_composer

pytestmark = pytest.mark.model


def test_nothing_is_deprecated(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A model is made, trained by Composer, evaluated, saved and continued without one word about a deprecated name."""
    transformers_log = logging.getLogger("transformers")
    transformers_log.propagate = True
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.filterwarnings("error", message=".*(torch_dtype|use_return_dict)")
        model: Any = new("llama")
        wrapped = for_composer(model)
        fit(model, batches())
        assert wrapped.eval_forward(next(iter(batches()))).shape[-1] == PIECES + 1
        model.save_pretrained(tmp_path)
        assert model_of_config(model.config.to_dict()).dtype == torch.float32
        settings = {"pretrained_model_name_or_path": str(tmp_path), "pretrained": True, "config_overrides": {}}
        again = causal_model(wanted("llama").model_copy(update=settings), pieces=PIECES, max_seq_len=LENGTH, eos_id=2)
    assert again.dtype == torch.float32
    assert "deprecated" not in caplog.text
