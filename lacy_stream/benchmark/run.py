"""The run of `lacy-stream benchmark`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from annotator import AnnotatorSettings
from lacy_stream.benchmark.figures import summarise
from lacy_stream.benchmark.measure import machine, measure, schedule, steps, turns_of_a_worker
from lacy_stream.benchmark.report import report
from lacy_stream.benchmark.settings import MODEL, TOKENIZER, BenchmarkError, BenchmarkOptions, worker_counts
from lacy_stream.benchmark.texts import measure_out, package_texts, read_texts
from lacy_stream.files import file_errors, try_folder


def run(options: BenchmarkOptions) -> None:
    """Measure, print and write.

    Raises:
        BenchmarkError: the options do not fit together, there is too little text, or the annotator cannot be loaded.
        RecipeError, PrepareError, FileError: the recipe or the texts cannot be read, or DIR cannot be written.
    """
    from lacy_stream.progress import progress

    settings, against = annotators(options)
    cores = len(os.sched_getaffinity(0))
    groups = schedule(worker_counts(options.workers, cores), options.rounds)
    if options.out is not None:
        with file_errors(options.out, "written"):
            Path(options.out).mkdir(parents=True, exist_ok=True)
            try_folder(options.out)
    source = read_texts(options.files, options.read) if options.files else package_texts()
    texts = measure_out(source, options.warm_up, options.tokens_per_turn, turns_of_a_worker(groups))
    with progress("steps of the benchmark", steps(groups, against is not None)) as on_progress:
        found = measure(settings, texts, groups, against=against, on_progress=on_progress)
    figures = summarise(found, describe(settings, found.identity), machine(), cores)
    report(figures, options.tokens_per_s, options.out)


def annotators(options: BenchmarkOptions) -> tuple[AnnotatorSettings, AnnotatorSettings | None]:
    """The annotator that is measured, and the one that it is compared with, if any.

    Raises:
        BenchmarkError: there is nothing to compare, or no such tokenizer, pipeline or labeller.
        RecipeError: the recipe cannot be used.
    """
    settings = _recipes_annotator(options.recipe) if options.recipe is not None else _annotator(options)
    if options.against is None:
        return settings, None
    if settings.engine == "spacy" or settings.labeller is not None or settings.model is None:
        raise BenchmarkError(
            "--against spacy compares the engine with spaCy, and this annotator does not run the engine: leave it out"
        )
    return settings, replace(settings, engine="spacy")


def describe(settings: AnnotatorSettings, identity: dict[str, str]) -> dict[str, str]:
    """What is measured, in the words of a recipe. The engine is the one that ran, by ``Annotator.identity``."""
    described = {"tokenizer": os.fspath(settings.tokenizer)}
    if settings.labeller is not None:
        return described | {"labeller": settings.labeller}
    if settings.model is None:
        return described | {"model": "none"}
    return described | {"model": settings.model, "engine": "numba" if "engine" in identity else "spacy"}


def _annotator(options: BenchmarkOptions) -> AnnotatorSettings:
    from annotator.errors import AnnotatorError
    from annotator.tokenizers import tokenizer_file

    tokenizer = options.tokenizer or TOKENIZER
    try:
        tokenizer_file(tokenizer)
    except AnnotatorError as error:
        raise BenchmarkError(f"--tokenizer: {error}") from None
    return AnnotatorSettings(tokenizer, options.model or MODEL, options.engine or "auto", options.labeller)


def _recipes_annotator(name: str) -> AnnotatorSettings:
    from lacy_stream.recipe import load_recipe, tokenizer_path
    from lacy_stream.train.recipe_data import annotator_settings

    recipe = load_recipe(name)
    settings = annotator_settings(recipe, tokenizer_path(recipe.tokenizer.name))
    return replace(settings, tokenizer=recipe.tokenizer.name)  # the name that people know
