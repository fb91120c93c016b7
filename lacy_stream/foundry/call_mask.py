"""``algorithms.call_mask`` of a Foundry YAML: finds ``<CALL>`` in the run's tokenizer, then is the call mask itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from llmfoundry.callbacks import HuggingFaceCheckpointer  # pyright: ignore[reportMissingImports]
from transformers import PreTrainedTokenizerBase

from lacy_stream.errors import UsageError
from lacy_stream.foundry.metrics import tell_metrics
from lacy_stream.foundry.pools import file_of_ids
from lacy_stream.foundry.settings import Annotation, check_settings
from lacy_stream.foundry.settings import CallMask as Settings
from lacy_stream.train import call_mask
from lacy_stream.train.reference import load_reference

log = logging.getLogger(__name__)

KEY = "algorithms.call_mask"
MEGABLOCKS = ("mb_moe", "mb_dmoe")
"""Kinds of ``ffn_config.ffn_type`` with which an MPT's loss is a mapping. Foundry registers them only on machines that
have MegaBlocks."""

OURS = ("call_token", "call_token_id", "reference", "seed")
"""Keys that are not handed on as they are."""


class CallMask(Algorithm):
    """A ``train.call_mask.CallMask`` that is made when the model and its tokenizer are there.

    Args:
        settings: see ``foundry.settings.CallMask``.

    Raises:
        UsageError: a setting that cannot be used; or, once there is a model, an id of <CALL> that is a piece of the
            tokenizer or that the model has no row for, or a model whose loss cannot be replaced.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = check_settings(Settings, settings, KEY)
        if (self._settings.call_token is None) == (self._settings.call_token_id is None):
            raise UsageError(
                f"{KEY}: give either call_token, such as '<CALL>', or call_token_id, the number of a row of the "
                "vocabulary that no token has"
            )
        self._mask: call_mask.CallMask | None = None

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT or (self._mask is not None and self._mask.match(event, state))

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self._mask = self._build_mask(state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            _check_batch(state)
        assert self._mask is not None, "INIT comes first"
        self._mask.apply(event, state, logger)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if self._mask is None else self._mask.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._mask is not None, "INIT comes first"
        self._mask.load_state_dict(state)

    def _build_mask(self, state: State) -> call_mask.CallMask:
        settings, model = self._settings, state.model
        if not isinstance(model, HuggingFaceModel) or model.tokenizer is None:
            raise UsageError(f"{KEY}: the model is {type(model).__name__}; it must be one of Foundry's causal models")
        _check_loss(model)
        call_token_id = _call_token_id(settings, model)
        if call_token_id not in model.tokenizer.get_vocab().values():
            _warn_of_export(state, call_token_id)
        reference = settings.reference
        mask = call_mask.CallMask(
            call_token_id,
            reference=None if reference is None else _reference(reference, model),
            seed=state.rank_zero_seed if settings.seed is None else settings.seed,
            **settings.model_dump(exclude=set(OURS)),
        )
        tell_metrics(model, call_token_id, settings.call_fraction, settings.rank_calls_by)
        return mask


def _call_token_id(settings: Settings, model: HuggingFaceModel) -> int:
    """The id of <CALL>: a row of the model's vocabulary that is not a piece."""
    tokenizer, rows = model.tokenizer, _rows(model)
    assert tokenizer is not None
    if settings.call_token is not None:
        vocabulary = tokenizer.get_vocab()
        key, number = f"call_token: {settings.call_token!r}", vocabulary.get(settings.call_token)
        if number is None:
            number = _spare_row(settings.call_token, tokenizer, rows)
    else:
        assert settings.call_token_id is not None
        number = settings.call_token_id
        key = f"call_token_id: {number}"
    if number >= rows:
        raise UsageError(
            f"{KEY}.{key} needs row {number} of the vocabulary, and the model has {rows} rows. Either let the model "
            "grow: tokenizer.kwargs.additional_special_tokens: ['<CALL>'], and for hf_causal_lm also "
            "model.allow_embedding_resizing: true; or give the vocabulary a spare row: model.vocab_size for "
            f"mpt_causal_lm, model.config_overrides.vocab_size for hf_causal_lm, at least {number + 1}"
        )
    _check_is_no_piece(key, number, tokenizer)
    return number


def _rows(model: HuggingFaceModel) -> int:
    """Rows of the model's vocabulary, in whatever way its weights are sharded."""
    return model.config.vocab_size  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def _spare_row(call_token: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Name the first row that no token has; returns its number, which may be past the last row."""
    number = max(tokenizer.get_vocab().values()) + 1
    if number < rows:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [call_token]},  # pyright: ignore[reportArgumentType]
            replace_additional_special_tokens=False,
        )
        found = tokenizer.get_vocab()[call_token]
        if found != number:
            raise UsageError(
                f"{KEY}.call_token: the tokenizer gives {call_token!r} the id {found}, which is not the first spare "
                f"row, {number}: add it yourself, by tokenizer.kwargs.additional_special_tokens"
            )
        log.info("%s is row %d of the vocabulary, the first that no token had", call_token, number)
    return number


def _check_is_no_piece(key: str, number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """<CALL> must never occur in data: it may be an added special token without another job, or no token at all."""
    if number not in tokenizer.get_vocab().values():
        return
    added = tokenizer.added_tokens_decoder.get(number)  # pyright: ignore[reportAttributeAccessIssue]
    jobs = [name for name, token in tokenizer.special_tokens_map.items() if token == tokenizer.decode([number])]
    if added is None or not added.special or jobs:
        token = tokenizer.convert_ids_to_tokens(number)  # pyright: ignore
        raise UsageError(
            f"{KEY}.{key} is {token!r}, {'the ' + jobs[0] if jobs else 'a piece'} of the tokenizer: <CALL> needs a "
            "token that no text has, such as tokenizer.kwargs.additional_special_tokens: ['<CALL>'] gives it"
        )


def _check_loss(model: HuggingFaceModel) -> None:
    kind = getattr(model.config, "ffn_config", None) or {}
    if kind.get("ffn_type") in MEGABLOCKS:
        raise UsageError(
            f"{KEY}: the model's loss is a mapping, since ffn_config.ffn_type {kind['ffn_type']!r} adds a "
            "load-balancing loss of MegaBlocks, which the call mask would drop: train this model without call_mask, or "
            "use a dense ffn_type"
        )


def _warn_of_export(state: State, call_token_id: int) -> None:
    if any(isinstance(callback, HuggingFaceCheckpointer) for callback in state.callbacks):
        log.warning(
            "the folders of hf_checkpointer will have a row for <CALL>, %d, and a tokenizer without a token for it: "
            "use call_token instead of call_token_id",
            call_token_id,
        )


def _reference(path: str, model: HuggingFaceModel) -> Any:
    """The reference model that a YAML names, with the run's tokenizer."""
    assert model.tokenizer is not None
    config = model.config
    length = getattr(config, "max_seq_len", None) or getattr(config, "max_position_embeddings", 0)
    try:
        return load_reference(path, file_of_ids(model.tokenizer, Annotation()), length)  # pyright: ignore
    except UsageError as error:
        raise UsageError(f"{KEY}.reference: {error}") from None


def _check_batch(state: State) -> None:
    keys = sorted(state.batch) if isinstance(state.batch, Mapping) else []
    if "token_class" not in keys:
        raise UsageError(
            f"{KEY}: the batch has no 'token_class' (it has {keys}): use train_loader.name: text_with_calls, which is "
            "Foundry's loader text with labels, or annotated_text"
        )
