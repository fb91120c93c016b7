"""The keys of a Foundry YAML that this plug-in reads: those of recipes, checked in the same way, and Foundry's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from lacy_stream import recipe
from lacy_stream.errors import UsageError
from lacy_stream.schema import NotNegative, Positive, Section, mistakes, plain_values


class Annotation(recipe.Annotation):
    """The key ``annotator`` of a loader."""

    tokenizer: str | None = None
    """File of the tokenizer that gives texts their ids; null: it is found beside the run's own tokenizer."""


class TextWithCalls(Section):
    """The keys that ``text_with_calls`` has beside those of Foundry's loader."""

    annotator: Annotation = Annotation()
    """The annotator, which finds the facts."""
    lookahead: NotNegative = 4
    """Batches that are read and labelled ahead of the one that is trained on."""


class AnnotatedTextDataset(recipe.Dataset):
    """The key ``dataset`` of ``annotated_text``."""

    max_seq_len: Positive
    """Tokens in a row."""
    eos_token_id: NotNegative | None = None
    """The tokenizer's end-of-sequence id; if it is given, batches have the ``sequence_id`` of
    ``attn_uses_sequence_id``."""


class AnnotatedText(recipe.Loader):
    """The keys of ``annotated_text``: a recipe's loader, and the keys of a DataLoader that Foundry's YAMLs have."""

    dataset: AnnotatedTextDataset
    """The documents."""
    annotator: Annotation = Annotation()
    """The annotator, which finds the facts."""
    repeat: bool = True
    """Whether the stream is endless. The configuration transform sets it to false for evaluation."""
    num_workers: int = 0
    """Must be 0."""
    drop_last: bool = True
    """Taken and not used: a stream that repeats has no last batch, and one that does not pads it."""
    pin_memory: bool = True
    """Taken and not used."""
    prefetch_factor: int | None = None
    """Taken and not used."""
    persistent_workers: bool = True
    """Taken and not used."""
    timeout: float = 0
    """Taken and not used."""


class CallMask(recipe.CallMask):
    """The keys of ``call_mask``: a recipe's, and which token is ``<CALL>``."""

    call_token: str | None = None
    """The token in the run's tokenizer."""
    call_token_id: NotNegative | None = None
    """Its id, where the tokenizer has no such token."""
    accept_changes: bool = False
    """Continue from a checkpoint that was trained with another objective."""
    seed: NotNegative | None = None
    """Seed of the random draws; null: the run's."""


AnySection = TypeVar("AnySection", bound=Section)


def check_settings(schema: type[AnySection], values: Mapping[str, Any] | None, key: str) -> AnySection:
    """The settings that a part of a YAML holds.

    Args:
        values: the part; None stands for no keys.
        key: where the part stands in the YAML.

    Raises:
        UsageError: an unknown key, a wrong type or an impossible value; names each of them.
    """
    try:
        values = plain_values(dict(values or {}), key)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(f"{key}.{mistake}" for mistake in mistakes(error, schema))) from None
