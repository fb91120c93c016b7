"""Causal attention without a mask, for which PyTorch has its flash kernels.

transformers looks at the positions of each row for documents that were packed. From 4.53 on it therefore hands a dense
mask [B, 1, T, T] to PyTorch where there is no padding, and so takes the slower kernels. The rows of a run are one
document after the other, and each token sees all tokens before it: there is nothing to mask.

Versions before 4.53 do so only where torch.compile traces the model, lest it be exported for rows of other lengths.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import PreTrainedModel

NAME = "sdpa_of_whole_rows"


def attend_without_mask(model: PreTrainedModel) -> None:
    """Have a model that uses PyTorch's attention do without a mask wherever rows are whole: no padding, no cache, no
    window. Versions of transformers that do so themselves are left alone."""
    if model.config._attn_implementation != "sdpa":
        return
    try:
        from transformers import masking_utils
    except ImportError:  # before 4.53
        _do_without_mask_when_traced()
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(NAME, ALL_ATTENTION_FUNCTIONS["sdpa"])
        masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    model.set_attn_implementation(NAME)


@functools.cache
def _do_without_mask_when_traced() -> None:
    from transformers.modeling_attn_mask_utils import AttentionMaskConverter

    original = AttentionMaskConverter._ignore_causal_mask_sdpa

    def ignore(*arguments: Any, **settings: Any) -> bool:
        return original(*arguments, **settings | {"is_training": True})

    AttentionMaskConverter._ignore_causal_mask_sdpa = staticmethod(ignore)  # pyright: ignore


def _mask(*arguments: Any, **settings: Any) -> Any:
    """None where each token sees all tokens before it, else what "sdpa" would get. transformers passes all by name."""
    from transformers import masking_utils

    queries = settings["cache_position"].shape[0] if "cache_position" in settings else settings.get("q_length")
    whole = settings.get("attention_mask") is None and queries == settings.get("kv_length")
    if whole and settings.get("local_size") is None and not settings.get("kv_offset"):
        return None
    return masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, **settings)
