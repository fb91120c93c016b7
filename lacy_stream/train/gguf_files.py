"""GGUF files, which transformers opens many times."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from unittest.mock import patch


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once while a model is loaded.

    It parses the whole file, its tokenizer included, for the configuration, the tokenizer and the weights, twice for
    some of them, and lists the names of all tensors for each module of the model. For SmolLM2-135M, that took 16 of 27
    seconds.
    """
    if find_spec("gguf") is None:
        yield
        return
    import gguf

    with (
        patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield
