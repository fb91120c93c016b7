"""GPT-2 style models, as a ComposerModel (appendix A.3, table 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from composer.models import HuggingFaceModel, huggingface
from transformers import GPT2Config, GPT2LMHeadModel

from lacy_stream.objective.methods import Rank
from lacy_stream.objective.metrics import (
    CallLoss,
    MaskModel,
    MatchedCallLoss,
    MatchedNonCallLoss,
    NonCallLoss,
    TotalLoss,
)
from lacy_stream.recipe import Model


def build_model(
    config: Model,
    *,
    vocab_size: int,
    max_seq_len: int,
    call_token_id: int,
    eos_id: int,
    call_fraction: float = 0.15,
    rank_calls_by: Rank = "probability",
    mask_from: MaskModel | None = None,
) -> HuggingFaceModel:
    """A GPT-2 with tied embeddings and learned positions, freshly initialised from torch's generator.

    Args:
        config: width, heads, layers, MLP ratio.
        vocab_size: entries of the vocabulary, <CALL> included.
        max_seq_len: positions.
        call_token_id, call_fraction, rank_calls_by: for the validation losses.
        eos_id: the end-of-document token.
        mask_from: where given, validation also has the losses on this model's call mask.
    """
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=max_seq_len,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.expansion_ratio * config.d_model,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=eos_id,
            eos_token_id=eos_id,
            use_cache=False,
        )
    )
    how = (call_token_id, call_fraction, rank_calls_by)
    metrics = [metric(*how) for metric in (CallLoss, NonCallLoss, TotalLoss)]
    if mask_from is not None:
        metrics += [metric(*how, mask_from=mask_from) for metric in (MatchedCallLoss, MatchedNonCallLoss)]
    # Composer warns that checkpoints lack a Hugging Face tokenizer: ours is SentencePiece's own, named in the recipe.
    logging.getLogger("composer.models.huggingface").setLevel(logging.ERROR)
    with _known_to_be_causal():
        return HuggingFaceModel(gpt2, use_logits=True, metrics=[], eval_metrics=metrics, shift_labels=True)


@contextmanager
def _known_to_be_causal() -> Iterator[None]:
    """Keep Composer from importing all 170 causal models of transformers to find that GPT-2 is one of them.

    It only wants to warn where ``shift_labels`` does not fit. One of these modules uses torch.compile, which starts a
    pool of compiler processes as well.
    """
    original = huggingface._is_registered_causal_lm
    huggingface._is_registered_causal_lm = lambda model: True
    try:
        yield
    finally:
        huggingface._is_registered_causal_lm = original
