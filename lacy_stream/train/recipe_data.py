"""The data and the annotator that a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from annotator import AnnotatorSettings, Document
from lacy_stream.errors import UsageError
from lacy_stream.recipe import Dataset, Recipe
from lacy_stream.stream.source import WEIGHTS, Source


def corpus_arguments(dataset: Dataset) -> dict[str, Any]:
    """The arguments of ``open_corpus`` that a recipe's dataset stands for."""
    values = dict(dataset)
    source = {key: values.pop(key) for key in Source.model_fields}
    for weight in WEIGHTS:  # they weigh one of several streams
        source.pop(weight)
    if streams := values.pop("streams"):
        return values | {"data": streams}
    return values | {"data": source.pop("local")} | source


def annotator_settings(recipe: Recipe, tokenizer: Path) -> AnnotatorSettings:
    """The annotator of a recipe, with the file of its tokenizer."""
    return AnnotatorSettings(
        tokenizer,
        recipe.annotator.model,
        recipe.annotator.engine,
        recipe.annotator.labeller,
        eos_token=recipe.tokenizer.eos_token,
        split_special_tokens=recipe.tokenizer.split_special_tokens,
    )


def held_out_documents(recipe: Recipe, count: int) -> list[Document]:
    """The first documents of a run's validation split.

    Raises:
        UsageError: the recipe has none.
    """
    from lacy_stream.stream.corpus import open_corpus

    loader = recipe.eval_loader
    if loader is None:
        raise UsageError("the recipe of this checkpoint has no eval_loader: name a text file instead")
    corpus = open_corpus(**corpus_arguments(loader.dataset))
    return [corpus.document(position) for position in range(min(count, len(corpus)))]
