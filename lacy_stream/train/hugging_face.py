"""Any causal language model of transformers: new from a configuration, or continued from weights."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from annotator.packages import package_file
from lacy_stream.objective.auxiliary_loss import COEFFICIENTS
from lacy_stream.objective.call_objective import evaluating
from lacy_stream.recipe import HFCausalLM, RecipeError
from lacy_stream.train import gguf_files
from lacy_stream.train.attention import attend_without_mask
from lacy_stream.train.call_row import set_call_row
from lacy_stream.train.padding import leave_out_padding, resize_vocabulary, round_up
from lacy_stream.train.transformers_names import weights_dtype

log = logging.getLogger(__name__)


def read_config(wanted: HFCausalLM, *, pieces: int, max_seq_len: int) -> PretrainedConfig:
    """The configuration of a model, checked before its weights are read.

    Args:
        pieces: ids of the tokenizer. The first id after them is <CALL>.
        max_seq_len: of the run's rows.

    Raises:
        RecipeError: there is no such model; or it is not causal; or it does not fit the tokenizer or the rows.
    """
    config = _found(wanted)
    _refuse_not_causal(config)
    config = _apply_overrides(config, wanted)
    text = config.get_text_config()
    if wanted.pretrained_model_name_or_path is None:
        if "pad_token_id" not in wanted.config_overrides:
            config.pad_token_id = None  # the default of a type of models means nothing with another tokenizer
        if "vocab_size" not in wanted.config_overrides:
            text.vocab_size = pieces + 1
    if text.vocab_size < pieces:
        raise RecipeError(_too_small(wanted, text.vocab_size, pieces))
    if not wanted.pretrained:
        text.vocab_size = round_up(max(text.vocab_size, pieces + 1), wanted.pad_vocab_to_multiple_of)
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and positions < max_seq_len:
        raise RecipeError(
            f"max_seq_len: {max_seq_len}, but {_name(wanted)} has {positions} positions: set max_seq_len={positions}, "
            f"or model.config_overrides.max_position_embeddings={max_seq_len} where its positions are not learned"
        )
    return config


def causal_model(
    wanted: HFCausalLM,
    *,
    pieces: int,
    max_seq_len: int,
    eos_id: int,
    sample_BT: Tensor | None = None,
    call_fraction: float = 0.15,
) -> PreTrainedModel:
    """The model of a recipe, float32, on the CPU, with a row for <CALL>, the first id after the tokenizer's pieces. Its
    logits end there: rows that pad the vocabulary have none.

    Args:
        pieces, max_seq_len: as in ``read_config``.
        eos_id: the end-of-document token.
        sample_BT: int64; ids of text. A model that is continued gets a row for <CALL> by which p(<CALL>) is near
            ``call_fraction`` on it; None where a checkpoint will be loaded.

    Raises:
        RecipeError: as ``read_config``; or the weights are not those of a causal model; or it gives no logits.
    """
    config = read_config(wanted, pieces=pieces, max_seq_len=max_seq_len)
    trained = getattr(config, "call_token_id", None) == pieces  # by a lacy-stream run, which this one continues
    if not wanted.pretrained:
        model = AutoModelForCausalLM.from_config(config, **weights_dtype(torch.float32), **_attention(wanted))
        check_causal(model)
    else:
        model = _load_weights(wanted, config)
        check_causal(model)
        _add_call(model, wanted, pieces)
        if sample_BT is not None and not trained:
            probability = set_call_row(model, pieces, sample_BT, call_fraction)
            log.warning("model: the row of <CALL> (id %d) starts with p(<CALL>) of %.3f", pieces, probability)
    _warn_of_unused_router_loss(model)
    if wanted.attn_implementation is None:
        attend_without_mask(model)
    leave_out_padding(model, pieces + 1)
    return note_special_ids(model, call_token_id=pieces, eos_id=eos_id)


def model_of_config(values: Mapping[str, Any]) -> PreTrainedModel:
    """A model with random weights, from the configuration that a checkpoint holds."""
    values = dict(values)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(config, **weights_dtype(torch.float32))


def note_special_ids(model: PreTrainedModel, *, call_token_id: int, eos_id: int) -> PreTrainedModel:
    """Note in the model's configuration which ids are <CALL> and the end of a document."""
    for config in (model.config, model.generation_config):
        if config is not None:
            config.bos_token_id = config.eos_token_id = eos_id
    model.config.use_cache = False
    model.config.call_token_id = call_token_id
    return model


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model that does not give logits without labels, or whose logits depend on later tokens.

    Raises:
        RecipeError: naming the class of the model.
    """
    name = type(model).__name__
    # The rows differ in their last token only. A causal model has the same logits at the three positions before it.
    rows_BT = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]], device=model.device)
    try:
        with evaluating(model):
            outputs = model(input_ids=rows_BT, use_cache=False)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RecipeError(f"model: {name} cannot read token ids alone: {str(error).splitlines()[0]}") from None
    logits_BTV = getattr(outputs, "logits", None)
    if logits_BTV is None or logits_BTV.shape[:2] != rows_BT.shape:
        raise RecipeError(f"model: {name} gives no logits for each token, so its loss cannot be replaced")
    if not torch.allclose(logits_BTV[0, :3], logits_BTV[1, :3], rtol=0, atol=1e-4 * logits_BTV.abs().max().item()):
        raise RecipeError(f"model: the logits of {name} depend on later tokens, so it is no causal language model")


def _found(wanted: HFCausalLM) -> PretrainedConfig:
    """The configuration of the model that is named, or the default one of a type of models."""
    path = wanted.pretrained_model_name_or_path
    try:
        if path is None:
            return AutoConfig.for_model(wanted.config_overrides["model_type"])
        return AutoConfig.from_pretrained(_place(path), **_gguf(wanted))
    except (OSError, ValueError, KeyError, ImportError) as error:
        key = "config_overrides.model_type" if path is None else "pretrained_model_name_or_path"
        value = wanted.config_overrides["model_type"] if path is None else path
        raise RecipeError(f"model.{key}: {value!r}: {str(error).strip().splitlines()[0]}") from None


def _place(path: str) -> str:
    try:
        return str(package_file(path))
    except ModuleNotFoundError as error:
        raise RecipeError(f"model.pretrained_model_name_or_path: {error}") from None


def _gguf(wanted: HFCausalLM) -> dict[str, str]:
    return {} if wanted.gguf_file is None else {"gguf_file": wanted.gguf_file}


def _attention(wanted: HFCausalLM) -> dict[str, str]:
    return {} if wanted.attn_implementation is None else {"attn_implementation": wanted.attn_implementation}


def _name(wanted: HFCausalLM) -> str:
    return wanted.pretrained_model_name_or_path or wanted.config_overrides["model_type"]


def _refuse_not_causal(config: PretrainedConfig) -> None:
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise RecipeError(f"model: a {kind} model is no causal language model of transformers")
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_decoder and not config.is_encoder_decoder
    if encoder:
        raise RecipeError(
            f"model: a {kind} model is an encoder: each token sees the later ones, so it cannot learn to predict them. "
            "Name a causal language model"
        )


def _apply_overrides(config: PretrainedConfig, wanted: HFCausalLM) -> PretrainedConfig:
    overrides, where = dict(wanted.config_overrides), "model.config_overrides"
    if wanted.pretrained_model_name_or_path is not None:
        _override(config, overrides, where)
        return config
    kind = overrides.pop("model_type")
    _override(config, overrides, where)
    try:  # from the beginning, since some values follow from others unless they are given
        return AutoConfig.for_model(kind, **overrides)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{where}: {str(error).splitlines()[0]}") from None


def _override(config: PretrainedConfig, overrides: Mapping[str, Any], where: str) -> None:
    """Set values of a configuration. transformers takes every name and ignores those that it does not know."""
    known = set(config.to_dict()) | set(config.attribute_map) | set(type(config)().to_dict())
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise RecipeError(
                f"{where}.{key}: unknown key of a {config.model_type} model (value {value!r}); "
                f"the nearest known key is {near}"
            )
        inner = getattr(config, key, None)
        if isinstance(inner, PretrainedConfig) and isinstance(value, Mapping):
            _override(inner, value, f"{where}.{key}")
        else:
            setattr(config, key, value)


def _too_small(wanted: HFCausalLM, rows: int, pieces: int) -> str:
    problem = f"{_name(wanted)} has {rows} rows in its vocabulary, and the tokenizer has ids up to {pieces - 1}: "
    if wanted.pretrained:
        return f"model.pretrained_model_name_or_path: {problem}name the model's own tokenizer"
    out = ", or leave it out" if "vocab_size" in wanted.config_overrides else ""
    return f"model.config_overrides.vocab_size: {problem}give {pieces + 1} or more{out}"


def _load_weights(wanted: HFCausalLM, config: PretrainedConfig) -> PreTrainedModel:
    path = wanted.pretrained_model_name_or_path
    assert path is not None, "a recipe that continues names a model"
    try:
        with gguf_files.read_once():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                _place(path),
                config=config,
                output_loading_info=True,
                **weights_dtype(torch.float32),
                **_gguf(wanted),
                **_attention(wanted),
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise RecipeError(
            f"model.pretrained_model_name_or_path: {path!r} cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from None
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise RecipeError(
            f"model.pretrained_model_name_or_path: {path!r} has no weights for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}: it is no whole {type(model).__name__}"
        )
    return model


def _add_call(model: PreTrainedModel, wanted: HFCausalLM, call_token_id: int) -> None:
    """Make sure that there is a row for <CALL>: a spare one, or a new one, which the log mentions."""
    embeddings: Any = model.get_input_embeddings()
    before = embeddings.weight.shape[0]
    rows = round_up(max(before, call_token_id + 1), wanted.pad_vocab_to_multiple_of)
    if rows == before:
        return
    resize_vocabulary(model, rows)
    log.warning("model: the vocabulary of %s grew from %d to %d rows for <CALL>", _name(wanted), before, rows)


def _warn_of_unused_router_loss(model: PreTrainedModel) -> None:
    config = model.config
    weighted = [name for name in COEFFICIENTS if getattr(config, name, None)]
    if weighted and getattr(config, "output_router_logits", None) is False:
        log.warning(
            "model: %s has %s, which transformers leaves out of the loss. To balance its experts, set "
            "model.config_overrides.output_router_logits=true",
            type(model).__name__,
            weighted[0],
        )
