"""Arguments and attributes of transformers that have other names in other versions: 4.51 to 5."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import torch


def weights_dtype(dtype: torch.dtype | str) -> dict[str, Any]:
    """The argument of ``from_pretrained`` and ``from_config`` that names the type of a model's weights: ``dtype``,
    which was ``torch_dtype`` before 4.56."""
    major, minor = (int(part) for part in version("transformers").split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}


def accept_use_return_dict() -> None:
    """Keep transformers 5 from warning that ``use_return_dict`` of a configuration is now ``return_dict``: Composer
    0.32 reads it at each loss and each evaluation."""
    logging.getLogger("transformers.configuration_utils").addFilter(_is_about_something_else)


def _is_about_something_else(record: logging.LogRecord) -> bool:
    return "`use_return_dict`" not in str(record.msg)
