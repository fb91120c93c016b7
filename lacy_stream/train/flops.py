"""The arithmetic of a training step, by which Composer's SpeedMonitor logs MFU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel


def flops_per_token(model: PreTrainedModel, length: int) -> int | None:
    """Floating-point operations of forward and backward for a token of a row: 6 N + 12 L d T, as PaLM counts (Chowdhery
    et al. 2022, appendix B). N counts the weights that are multiplied: embeddings that are only looked up are left out.
    The first pass of the call mask over several microbatches is left out, too, as MFU counts the model's own work.

    Args:
        length: tokens of a row, T.

    Returns:
        None for a mixture of experts, of whose weights a token meets a part.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    looked_up = {id(model.get_input_embeddings().weight)}
    if (head := model.get_output_embeddings()) is not None:
        looked_up -= {id(head.weight)}  # tied: it is multiplied as well
    looked_up |= {id(weight) for name, weight in model.named_parameters() if name.endswith(POSITIONS)}
    weights = sum(weight.numel() for weight in model.parameters() if id(weight) not in looked_up)
    heads = config.num_attention_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return 6 * weights + 12 * config.num_hidden_layers * width * length


POSITIONS = ("wpe.weight", "embed_positions.weight")
"""How models of transformers call the embeddings of learned positions."""


def flops_of_batch(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Of a batch on this rank, as SpeedMonitor asks for them; 0 where they are not known."""
    rows, length = batch["input_ids"].shape
    return rows * length * (flops_per_token(model, length) or 0)
