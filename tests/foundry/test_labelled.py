"""The loader that labels the batches of another one, without Foundry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from workers import ThreadWorkers

from annotator import AnnotatorSettings
from lacy_stream.errors import UsageError
from lacy_stream.foundry.labelled import Borders, LabelledLoader
from lacy_stream.stream.pool import AnnotationPool


@pytest.mark.parametrize("read", ["int32", "uint16"])
def test_ids_read_in_a_narrower_type(tokenizer_path: Path, read: str) -> None:
    """Rows that Foundry has read in a narrower type than they were written in are refused, with the key to set."""
    ids = np.arange(3000, 3016, dtype=np.int64)
    right, wrong = torch.from_numpy(ids), torch.from_numpy(ids.view(read).astype(np.int64))
    with AnnotationPool(AnnotatorSettings(tokenizer_path, None), 1, start_worker=ThreadWorkers()) as pool:

        def labelled(row: torch.Tensor) -> LabelledLoader:
            return LabelledLoader(DataLoader([{"input_ids": row}], batch_size=1), pool, 1, Borders())

        assert next(iter(labelled(right)))["token_class"].shape == (1, 16)
        with pytest.raises(UsageError, match="token_encoding_type: zeros follow upon each token id.*int64|int32"):
            next(iter(labelled(wrong)))
