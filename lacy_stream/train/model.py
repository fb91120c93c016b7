"""The model of a recipe, as a ComposerModel: the paper's GPT-2 (appendix A.3, table 3) or another of transformers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from composer.models import HuggingFaceModel, huggingface
from torch import Tensor
from torchmetrics import Metric
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lacy_stream.objective.methods import Rank
from lacy_stream.objective.metrics import (
    CallLoss,
    MaskModel,
    MatchedCallLoss,
    MatchedNonCallLoss,
    NonCallLoss,
    TotalLoss,
)
from lacy_stream.recipe import GPT2, Model
from lacy_stream.train.attention import attend_without_mask
from lacy_stream.train.flops import flops_of_batch, flops_per_token
from lacy_stream.train.hugging_face import causal_model
from lacy_stream.train.padding import leave_out_padding, round_up
from lacy_stream.train.transformers_names import accept_use_return_dict


def build_model(
    config: Model,
    *,
    max_seq_len: int,
    call_token_id: int,
    eos_id: int,
    call_fraction: float = 0.15,
    rank_calls_by: Rank = "probability",
    mask_from: MaskModel | None = None,
    sample_BT: Tensor | None = None,
) -> HuggingFaceModel:
    """The model of a recipe, for Composer.

    Args:
        config: the section ``model`` of a recipe.
        max_seq_len: tokens in a row.
        call_token_id: id of <CALL>, the first after the tokenizer's pieces.
        eos_id: the end-of-document token.
        call_fraction, rank_calls_by: for the validation losses; and the former for the first row of <CALL>.
        mask_from: where given, validation also has the losses on this model's call mask.
        sample_BT: see ``causal_model``; not used for a new model.
    """
    if isinstance(config, GPT2):
        model = _gpt2(config, call_token_id + 1, max_seq_len, eos_id)
    else:
        model = causal_model(
            config,
            pieces=call_token_id,
            max_seq_len=max_seq_len,
            eos_id=eos_id,
            sample_BT=sample_BT,
            call_fraction=call_fraction,
        )
    how = (call_token_id, call_fraction, rank_calls_by)
    metrics = [metric(*how) for metric in (CallLoss, NonCallLoss, TotalLoss)]
    if mask_from is not None:
        metrics += [metric(*how, mask_from=mask_from) for metric in (MatchedCallLoss, MatchedNonCallLoss)]
    return for_composer(model, metrics)


def for_composer(model: PreTrainedModel, metrics: Sequence[Metric] = ()) -> HuggingFaceModel:
    """Wrap a causal language model, with metrics for validation."""
    # Composer warns that checkpoints lack a Hugging Face tokenizer: ours is named in the recipe.
    logging.getLogger("composer.models.huggingface").setLevel(logging.ERROR)
    accept_use_return_dict()
    with known_to_be_causal():
        wrapped = HuggingFaceModel(model, use_logits=True, metrics=[], eval_metrics=list(metrics), shift_labels=True)
    if flops_per_token(model, length=1) is not None:
        wrapped.flops_per_batch = functools.partial(flops_of_batch, model)  # type: ignore[assignment]
    return wrapped


def _gpt2(config: GPT2, entries: int, max_seq_len: int, eos_id: int) -> PreTrainedModel:
    """A GPT-2 with tied embeddings and learned positions, freshly initialised from torch's generator. Its logits are
    those of the entries of the vocabulary, without the rows that pad it."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=round_up(entries, config.pad_vocab_to_multiple_of),
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
    attend_without_mask(model)
    leave_out_padding(model, entries)
    return model


@contextmanager
def known_to_be_causal() -> Iterator[None]:
    """Keep Composer from importing all 170 causal models of transformers to find that this model is one of them.

    It only wants to warn where ``shift_labels`` does not fit. One of these modules uses torch.compile, which starts a
    pool of compiler processes as well.
    """
    original = huggingface._is_registered_causal_lm
    huggingface._is_registered_causal_lm = lambda model: True
    try:
        yield
    finally:
        huggingface._is_registered_causal_lm = original
