"""The loaders ``text_with_calls`` and ``annotated_text`` of a Foundry YAML."""

from __future__ import annotations

import logging
from typing import Any

from composer.core import DataSpec
from llmfoundry.data import text_data  # pyright: ignore[reportMissingImports]
from llmfoundry.data.utils import get_tokens_per_batch_func  # pyright: ignore[reportMissingImports]
from transformers import PreTrainedTokenizerBase

from lacy_stream.errors import UsageError
from lacy_stream.foundry.labelled import Borders, LabelledLoader
from lacy_stream.foundry.pools import close_with, file_of_ids, file_of_texts, shared_pool
from lacy_stream.foundry.settings import AnnotatedText, TextWithCalls, check_settings
from lacy_stream.stream.batches import annotated_dataloader
from lacy_stream.train.recipe_data import corpus_arguments

log = logging.getLogger(__name__)


def text_with_calls(
    tokenizer: PreTrainedTokenizerBase,
    device_batch_size: int,
    annotator: dict[str, Any] | None = None,
    lookahead: int = 4,
    **text: Any,
) -> DataSpec:
    """Foundry's ``text`` loader, its batches labelled.

    Args:
        annotator, lookahead: see ``TextWithCalls``.
        text: the keys of Foundry's loader.

    Raises:
        UsageError: a setting that cannot be used, or no file goes with the tokenizer.
    """
    settings = check_settings(TextWithCalls, {"annotator": annotator or {}, "lookahead": lookahead}, "train_loader")
    path = file_of_ids(tokenizer, settings.annotator)
    borders = Borders(*(text.get("dataset", {}).get(key) for key in ("eos_token_id", "bos_token_id")))
    spec = text_data.build_text_dataloader(tokenizer=tokenizer, device_batch_size=device_batch_size, **text)
    loader = LabelledLoader(spec.dataloader, shared_pool(path, settings.annotator), settings.lookahead, borders)
    close_with(loader, path, settings.annotator)
    spec.dataloader = loader
    return spec


def annotated_text(tokenizer: PreTrainedTokenizerBase, device_batch_size: int, **keys: Any) -> DataSpec:
    """The stream of this package: raw text, tokenised, annotated and packed while the run trains.

    Args:
        keys: see ``AnnotatedText``.

    Raises:
        UsageError: a setting that cannot be used, or no file goes with the tokenizer.
    """
    settings = check_settings(AnnotatedText, keys, "train_loader" if keys.get("repeat", True) else "eval_loader")
    if settings.num_workers:
        raise UsageError(
            f"num_workers: {settings.num_workers}, but annotated_text reads in the trainer's process and annotates in "
            "processes of its own: set num_workers: 0, and their number as annotator.num_workers"
        )
    path, difference = file_of_texts(tokenizer, settings.annotator)
    if difference is not None:
        log.warning(
            "annotated_text tokenises by %s, which is not the run's tokenizer: %s. Loaders of raw text, in-context "
            "tasks and exported folders use the run's",
            path,
            difference,
        )
    corpus = corpus_arguments(settings.dataset)
    eos_token_id, max_seq_len = corpus.pop("eos_token_id"), corpus.pop("max_seq_len")
    loader = annotated_dataloader(
        pool=shared_pool(path, settings.annotator),
        batch_size=device_batch_size,
        max_seq_len=max_seq_len,
        repeat=settings.repeat,
        lanes=settings.lanes,
        prefetch_rows=settings.prefetch_rows,
        accept_changes=settings.accept_changes,
        **corpus,
    )
    # The call mask of a Foundry run looks <CALL> up in the run's tokenizer, which may have it as an added token.
    loader.dataset.vocab_size = None  # pyright: ignore[reportAttributeAccessIssue]
    close_with(loader, path, settings.annotator)
    if eos_token_id is not None:
        loader.collate_fn = text_data.ConcatenatedSequenceCollatorWrapper(loader.collate_fn, eos_token_id=eos_token_id)
    return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())
