"""A run, written down: YAML -> checked dataclasses.

The keys are LLM Foundry's where it has them. Everything is checked before anything is loaded: an unknown key,
a wrong type or an impossible value stops the run with the key, the value and the way out. Recipes are plain
data: no interpolation, no code, no environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Union, cast  # noqa: UP035  (OmegaConf reads these annotations)

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lacy_stream.errors import UsageError
from lacy_stream.methods import OBJECTIVES, RANKS


class RecipeError(UsageError):
    """The recipe cannot be run; the message names the key, the value and the way out."""


@dataclass
class Model:
    """GPT-2 style transformer. ``vocab_size``, where given, must be the tokenizer's pieces + 1 (<CALL>)."""

    name: str = "gpt2"
    d_model: int = MISSING
    n_heads: int = MISSING
    n_layers: int = MISSING
    expansion_ratio: int = 4
    dropout: float = 0.0
    vocab_size: Optional[int] = None


@dataclass
class Tokenizer:
    """``name``: path of a SentencePiece model, or ``package:NAME/PATH`` for a file of an installed package."""

    name: str = MISSING


@dataclass
class Annotation:
    """``model``: spaCy pipeline, or null to tokenise only. ``engine``: what runs it: auto, numba or spacy.
    ``labeller``: what marks the facts instead of it: the name of an entry point, or package.module:callable, see
    ``annotator.labellers``. ``num_workers``: processes per rank; null: the cores that the rank can use.
    ``label_cache``: folder that keeps the labels of each document, so that from the second epoch on nothing is parsed;
    ``label_cache_limit_gb``: what it may take."""

    model: Optional[str] = "en_core_web_sm"
    engine: str = "auto"
    labeller: Optional[str] = None
    num_workers: Optional[int] = None
    label_cache: Optional[str] = None
    label_cache_limit_gb: float = 20.0


@dataclass
class Source:
    """MDS shards with raw text, or with token ids in ``tokens_column``; see ``lacy_stream.corpus.Source``."""

    local: Optional[str] = None
    remote: Optional[str] = None
    split: Optional[str] = None
    text_column: str = "text"
    id_column: str = "id"
    tokens_column: Optional[str] = None
    token_encoding_type: str = "int64"
    annotate: bool = True
    spans_column: Optional[str] = None


@dataclass
class Stream(Source):
    """One of several sources, with its weight: at most one of the three, as in Streaming."""

    proportion: Optional[float] = None
    repeat: Optional[float] = None
    choose: Optional[int] = None


@dataclass
class Dataset(Source):
    """One source, or several in ``streams``, by name; the keys are those of Streaming and LLM Foundry."""

    streams: Optional[Dict[str, Stream]] = None
    epoch_size: Optional[int] = None
    shuffle: bool = False
    shuffle_algo: str = "py1e"
    shuffle_seed: int = 17
    shuffle_block_size: int = 1 << 18
    predownload: int = 1000
    download_retry: int = 3
    download_timeout: float = 60.0


@dataclass
class Loader:
    """``lanes``: see batches.py; the number of ranks must divide it. ``prefetch_rows``: rows annotated ahead
    on each rank; 0: four batches. ``accept_changes``: go on from a checkpoint although the data, the tokenizer, the
    parser or the rules have changed since."""

    name: str = "annotated_text"
    dataset: Dataset = field(default_factory=Dataset)
    lanes: int = 64
    prefetch_rows: int = 0
    accept_changes: bool = False


@dataclass
class Optimizer:
    name: str = "adamw"
    lr: float = MISSING
    betas: List[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.1


@dataclass
class Scheduler:
    """Linear warm-up, then constant."""

    name: str = "constant_with_warmup"
    t_warmup: str = "0ba"


@dataclass
class CallMask:
    """See ``lacy_stream.call_mask.CallMask``. ``reference``: for rho-1 and spacy+refloss, a checkpoint file of a run or
    a Hugging Face folder, with the same tokenizer. ``objective``: defer or paper; ``rank_calls_by``: probability or
    logit, for validation losses, pages and the cascade too; see ``lacy_stream.methods``."""

    method: str = "lacy"
    call_fraction: float = 0.15
    ignore_fraction: float = 0.15
    reference: Optional[str] = None
    objective: str = "defer"
    rank_calls_by: str = "probability"
    scope: str = "global"


@dataclass
class GradientClipping:
    clipping_type: str = "norm"
    clipping_threshold: float = 1.0


@dataclass
class Algorithms:
    call_mask: CallMask = field(default_factory=CallMask)
    gradient_clipping: Optional[GradientClipping] = None


@dataclass
class SpeedMonitor:
    window_size: int = 10


@dataclass
class Empty:
    """A callback without settings: write ``lr_monitor: {}``."""


@dataclass
class Callbacks:
    speed_monitor: Optional[SpeedMonitor] = None
    lr_monitor: Optional[Empty] = None
    memory_monitor: Optional[Empty] = None
    runtime_estimator: Optional[Empty] = None


@dataclass
class TensorBoard:
    log_dir: Optional[str] = None


@dataclass
class WandB:
    project: Optional[str] = None
    entity: Optional[str] = None
    group: Optional[str] = None
    name: Optional[str] = None
    tags: Optional[List[str]] = None


@dataclass
class FileLog:
    """``filename`` may hold Composer's placeholders, for example ``{run_name}/log-rank{rank}.txt``."""

    filename: str = "{run_name}/log-rank{rank}.txt"
    flush_interval: int = 10


@dataclass
class Loggers:
    tensorboard: Optional[TensorBoard] = None
    wandb: Optional[WandB] = None
    file: Optional[FileLog] = None


@dataclass
class Recipe:
    """A whole run. Durations are strings such as ``400000ba``, ``50_000_000tok``; the training stream is an
    endless run of epochs, so ``ep`` is not a duration. ``report_folder``: where restarts, retries and documents
    without labels are written down; null: ``report`` in a local ``save_folder``."""

    run_name: Optional[str] = None
    seed: int = 17
    max_seq_len: int = MISSING
    model: Model = field(default_factory=Model)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    annotator: Annotation = field(default_factory=Annotation)
    train_loader: Loader = field(default_factory=Loader)
    eval_loader: Optional[Loader] = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    algorithms: Algorithms = field(default_factory=Algorithms)
    callbacks: Callbacks = field(default_factory=Callbacks)
    loggers: Loggers = field(default_factory=Loggers)
    max_duration: str = MISSING
    global_train_batch_size: int = MISSING
    device_train_microbatch_size: Union[int, str] = "auto"
    device_eval_batch_size: int = 1
    eval_interval: str = "1000ba"
    eval_subset_num_batches: int = -1
    eval_mask_from: Optional[str] = None
    precision: str = "amp_bf16"
    fsdp_config: Optional[Dict[str, Any]] = None
    progress_bar: bool = True
    log_to_console: bool = False
    console_log_interval: str = "1ba"
    save_folder: Optional[str] = None
    save_interval: str = "1000ba"
    save_num_checkpoints_to_keep: int = -1
    save_overwrite: bool = False
    report_folder: Optional[str] = None
    load_path: Optional[str] = None
    autoresume: bool = False
    dist_timeout: float = 600.0


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` each, the value as YAML.

    Raises:
        RecipeError: naming the key, the value and the way out.
    """
    try:
        loaded = OmegaConf.load(Path(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"recipe {os.fspath(path)!r} cannot be read: {error}") from None
    try:
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise RecipeError(f"override {override!r} is not of the form key.sub=value")
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))  # does not interpolate
            OmegaConf.update(loaded, key, cast(dict, parsed)["value"], merge=False, force_add=True)
        values = OmegaConf.to_container(loaded)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"recipe {os.fspath(path)!r} {' '.join(overrides)}: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {os.fspath(path)!r} is not a mapping of keys to values")
    return check_recipe(values)


def check_recipe(values: Mapping[Any, Any]) -> Recipe:
    """Plain values -> Recipe. Raises ``RecipeError`` as ``load_recipe`` does."""
    _refuse_unknown_keys(values, Recipe, "")
    _refuse_interpolation(values, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), dict(values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a key"
        raise RecipeError(f"{key}: {_value_at(values, key)!r} does not fit: {_first_line(error)}") from None
    for key in sorted(OmegaConf.missing_keys(merged)):
        raise RecipeError(f"{key}: missing, and it has no default")
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, Recipe)
    for problem in _problems(recipe):
        raise RecipeError(problem)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that ``load_recipe`` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def package_file(name: str) -> Path:
    """A path, or the file of an installed package that ``package:NAME/PATH`` stands for.

    Raises:
        ModuleNotFoundError: no such package.
    """
    if not name.startswith("package:"):
        return Path(name)
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name!r} names the package {package!r}, which is not installed")
    return Path(spec.origin).parent / inside


def tokenizer_path(name: str) -> Path:
    """The file that ``tokenizer.name`` stands for.

    Raises:
        RecipeError: no such file or package.
    """
    try:
        path = package_file(name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"tokenizer.name: {error} (mistral_common comes with `pip install mistral-common`)") from None
    if not path.is_file():
        raise RecipeError(
            f"tokenizer.name: there is no file {str(path)!r}; give the path of a SentencePiece "
            "model, or package:mistral_common/data/tokenizer.model.v1"
        )
    return path


# --- the checks ------------------------------------------------------------------------------------------


def _refuse_unknown_keys(values: Mapping[Any, Any], schema: type, where: str) -> None:
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            nearest = _nearest_key(str(key), where, hints)
            raise RecipeError(
                f"{where}{key}: unknown key (value {value!r}); "
                + (f"the nearest known key is {nearest}" if nearest else f"known are {', '.join(hints) or 'none'}")
            )
        inner = next((t for t in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(t)), None)
        named = next((t for t in typing.get_args(hints[key]) if typing.get_origin(t) is dict), None)
        if isinstance(value, Mapping) and isinstance(inner, type):
            _refuse_unknown_keys(value, inner, f"{where}{key}.")
        elif isinstance(value, Mapping) and named is not None and dataclasses.is_dataclass(typing.get_args(named)[1]):
            for name, part in value.items():
                if not isinstance(part, Mapping):
                    raise RecipeError(f"{where}{key}.{name}: {part!r} is not a mapping of keys to values")
                _refuse_unknown_keys(part, typing.get_args(named)[1], f"{where}{key}.{name}.")
        elif inner is not None and value is not None:
            raise RecipeError(f"{where}{key}: {value!r} is not a mapping of keys to values")


def _nearest_key(key: str, where: str, beside: Mapping[str, Any]) -> str | None:
    """The known key that was probably meant: one at the same place, or one of that name at another."""
    if near := difflib.get_close_matches(key, beside, n=1, cutoff=0.7):
        return where + near[0]
    elsewhere = {path.rpartition(".")[2]: path for path in sorted(_paths(Recipe), reverse=True)}
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    return elsewhere[near[0]] if near else None


def _paths(schema: type, where: str = "") -> Iterator[str]:
    """Every dotted key of a recipe."""
    for key, hint in typing.get_type_hints(schema).items():
        yield where + key
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _paths(inner, f"{where}{key}.")


def _value_at(values: Mapping[Any, Any], key: str) -> Any:
    """The value at a dotted key of plain values; None where there is none."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _refuse_interpolation(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_interpolation(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for inner in value:
            _refuse_interpolation(inner, where)
    elif isinstance(value, str) and "${" in value:
        raise RecipeError(f"{where}: {value!r} is an interpolation; recipes are plain values, write it out")


MOST_WORKERS = 1024
_LOGGER_PACKAGES = {"loggers.tensorboard": "tensorboard", "loggers.wandb": "wandb"}
_PLACEHOLDERS = ("run_name", "rank", "local_rank", "world_size", "local_world_size", "node_rank")

_DURATION = re.compile(r"\d[\d_]{0,15}(ba|tok|sp)")
METHOD_NAMES = [  # of lacy_stream.selectors, which imports torch
    "baseline", "loss-based", "rho-1", "llm-judge", "spacy", "lacy", "spacy+refloss", "lacy+ignorefacts", "lacy+ignore"
]  # fmt: skip
_NEED_REFERENCE = ["rho-1", "spacy+refloss"]
_NEED_FACTS = ["llm-judge", "spacy", "lacy", "spacy+refloss", "lacy+ignorefacts", "lacy+ignore"]
_CHOICES = {
    "model.name": ["gpt2"],
    "annotator.engine": ["auto", "numba", "spacy"],
    "train_loader.name": ["annotated_text"],
    "eval_loader.name": ["annotated_text"],
    "train_loader.dataset.shuffle_algo": ["py1e", "py1br", "py1s", "py2s", "naive"],
    "eval_loader.dataset.shuffle_algo": ["py1e", "py1br", "py1s", "py2s", "naive"],
    "optimizer.name": ["adamw"],
    "scheduler.name": ["constant_with_warmup"],
    "algorithms.call_mask.method": METHOD_NAMES,
    "algorithms.call_mask.scope": ["global", "rank", "microbatch"],
    "algorithms.call_mask.objective": list(OBJECTIVES),
    "algorithms.call_mask.rank_calls_by": list(RANKS),
    "algorithms.gradient_clipping.clipping_type": ["norm", "value", "adaptive"],
    "precision": ["amp_bf16", "amp_fp16", "fp32"],
}
_POSITIVE = [
    "max_seq_len",
    "model.d_model",
    "model.n_heads",
    "model.n_layers",
    "model.expansion_ratio",
    "model.vocab_size",
    "annotator.num_workers",
    "optimizer.lr",
    "optimizer.eps",
    "global_train_batch_size",
    "device_eval_batch_size",
    "dist_timeout",
    "callbacks.speed_monitor.window_size",
    "algorithms.gradient_clipping.clipping_threshold",
    "loggers.file.flush_interval",
    "annotator.label_cache_limit_gb",
] + [
    f"{loader}.{key}"
    for loader in ("train_loader", "eval_loader")
    for key in ("lanes", "dataset.shuffle_block_size", "dataset.download_timeout", "dataset.epoch_size")
]
_NOT_NEGATIVE = ["optimizer.weight_decay", "seed"] + [
    f"{loader}.{key}"
    for loader in ("train_loader", "eval_loader")
    for key in ("prefetch_rows", "dataset.download_retry", "dataset.shuffle_seed", "dataset.predownload")
]
_DURATIONS = ["max_duration", "eval_interval", "save_interval", "console_log_interval", "scheduler.t_warmup"]


def _problems(recipe: Recipe) -> Iterator[str]:
    """What is impossible in a recipe whose keys and types are right."""
    for key, choices in _CHOICES.items():
        if (value := _get(recipe, key)) is not None and value not in choices:
            yield f"{key}: {value!r} is not one of {choices}"
    for key in _POSITIVE:
        if (value := _get(recipe, key)) is not None and not 0 < value < math.inf:
            yield f"{key}: {value!r} must be greater than 0, and finite"
    for key in _NOT_NEGATIVE:
        if (value := _get(recipe, key)) is not None and not 0 <= value < math.inf:
            yield f"{key}: {value!r} must not be negative, and finite"
    for key in _DURATIONS:
        if not _DURATION.fullmatch(value := _get(recipe, key)):
            yield f"{key}: {value!r} is not a duration in batches, tokens or samples, such as 1000ba or 5_000_000tok"
    for key in ("save_num_checkpoints_to_keep", "eval_subset_num_batches"):
        if (value := _get(recipe, key)) != -1 and value < 1:
            yield f"{key}: {value!r} must be at least 1, or -1 for all"
    if recipe.seed >= 1 << 32:
        yield f"seed: {recipe.seed!r} must be less than 2^32"
    for key in ("max_duration", "eval_interval", "save_interval", "console_log_interval"):
        if _count(value := _get(recipe, key)) == 0:
            yield f"{key}: {value!r} must be greater than 0"
    warmup = recipe.scheduler.t_warmup
    if _count(warmup) and _unit(warmup) != _unit(recipe.max_duration):
        yield (
            f"scheduler.t_warmup: {warmup!r} is counted in another unit than max_duration, {recipe.max_duration!r}: "
            "give both in the same"
        )
    for key, package in _LOGGER_PACKAGES.items():
        if _get(recipe, key) is not None and importlib.util.find_spec(package) is None:
            yield f"{key}: the package {package} is not installed: pip install {package}"
    if recipe.loggers.file is not None:
        unknown = set(re.findall(r"{(\w*)}", recipe.loggers.file.filename)) - set(_PLACEHOLDERS)
        if unknown:
            yield f"loggers.file.filename: unknown placeholder {{{min(unknown)}}}; known are {', '.join(_PLACEHOLDERS)}"
    if (recipe.annotator.num_workers or 1) > MOST_WORKERS:
        yield f"annotator.num_workers: {recipe.annotator.num_workers} processes per rank; at most {MOST_WORKERS}"
    if recipe.autoresume and (recipe.save_folder is None or recipe.run_name is None or recipe.save_overwrite):
        yield "autoresume: true needs a save_folder, a run_name, and save_overwrite: false (or set autoresume=false)"
    if recipe.load_path and "://" not in recipe.load_path and not Path(recipe.load_path).exists():
        if "{" not in recipe.load_path:  # Composer's placeholders, for example {rank}
            yield f"load_path: there is no file {recipe.load_path!r}"
    yield from _method_problems(recipe)
    if not 0 <= recipe.model.dropout < 1:
        yield f"model.dropout: {recipe.model.dropout!r} must lie in [0, 1)"
    if recipe.max_seq_len < 2:
        yield f"max_seq_len: {recipe.max_seq_len!r} must be at least 2"
    if recipe.model.d_model % recipe.model.n_heads:
        yield f"model.d_model: {recipe.model.d_model} is not a multiple of model.n_heads, {recipe.model.n_heads}"
    if len(recipe.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.optimizer.betas):
        yield f"optimizer.betas: {recipe.optimizer.betas!r} must be two numbers in [0, 1)"
    if isinstance(recipe.device_train_microbatch_size, str) and recipe.device_train_microbatch_size != "auto":
        yield f"device_train_microbatch_size: {recipe.device_train_microbatch_size!r} is neither a number nor auto"
    if isinstance(recipe.device_train_microbatch_size, int) and recipe.device_train_microbatch_size < 1:
        yield f"device_train_microbatch_size: {recipe.device_train_microbatch_size!r} must be greater than 0"
    for key in ("train_loader", "eval_loader"):
        if (loader := _get(recipe, key)) is not None:
            yield from _dataset_problems(f"{key}.dataset", loader.dataset)
    yield from _rank_problems(recipe, int(os.environ.get("WORLD_SIZE", "1")))


def _method_problems(recipe: Recipe) -> Iterator[str]:
    """What a token-selection method lacks."""
    where, mask = "algorithms.call_mask", recipe.algorithms.call_mask
    if not 0 < mask.call_fraction < 1:
        yield (
            f"{where}.call_fraction: {mask.call_fraction!r} must lie between 0 and 1 (the paper: 0.15; for no calls, "
            "method: baseline)"
        )
    if not 0 <= mask.ignore_fraction <= 1 - mask.call_fraction:
        yield (
            f"{where}.ignore_fraction: {mask.ignore_fraction!r} must lie between 0 and what call_fraction, "
            f"{mask.call_fraction!r}, leaves of 1 (the paper: 0.15)"
        )
    if mask.method in _NEED_FACTS and (unlabelled := _unlabelled(recipe)) is not None:
        yield (
            f"annotator.model: null gives no facts to delegate in {unlabelled}; name a spaCy pipeline, an "
            "annotator.labeller, or the spans_column of labels that come with the data, or use method: baseline"
        )
    if mask.method == "llm-judge" and recipe.annotator.labeller is None and not _has_spans(recipe):
        yield (
            f"{where}.method: llm-judge takes labels that come with the data: name their spans_column in "
            "train_loader.dataset (lacy-stream prepare makes one), or an annotator.labeller"
        )
    if mask.method in _NEED_REFERENCE and mask.reference is None:
        yield (
            f"{where}.reference: {mask.method} compares with a reference model, and none is named: give a checkpoint "
            "of a run, or a Hugging Face folder, with the same tokenizer"
        )
    if mask.method not in _NEED_REFERENCE and mask.reference is not None:
        yield f"{where}.reference: {mask.method} uses no reference model; leave it out, or use one of {_NEED_REFERENCE}"


def _unlabelled(recipe: Recipe) -> str | None:
    """The first source of training data of which nothing says what is a fact, although it is to be annotated."""
    if recipe.annotator.model is not None or recipe.annotator.labeller is not None:
        return None
    sources = _sources("train_loader.dataset", recipe.train_loader.dataset)
    return next((place for place, source in sources.items() if source.annotate and not source.spans_column), None)


def _sources(where: str, dataset: Dataset) -> Mapping[str, Source]:
    """The sources of a dataset by their place in the recipe."""
    return {f"{where}.streams.{name}": stream for name, stream in (dataset.streams or {}).items()} or {where: dataset}


def _has_spans(recipe: Recipe) -> bool:
    """Whether labels come with a source of the training data."""
    return any(source.spans_column for source in _sources("train_loader.dataset", recipe.train_loader.dataset).values())


def _dataset_problems(where: str, dataset: Dataset) -> Iterator[str]:
    streams = dataset.streams or {}
    for place, source in _sources(where, dataset).items():
        if source.spans_column is not None and source.tokens_column is not None:
            yield f"{place}.spans_column: {source.spans_column!r} counts characters of a text; tokens_column has none"
        if source.spans_column is not None and not source.annotate:
            yield f"{place}.spans_column: {source.spans_column!r} brings labels, and annotate: false wants none"
    if dataset.local is None and not streams:
        yield f"{where}.local: missing; give a folder of MDS shards, or several of them by name in {where}.streams"
    for name, stream in streams.items():
        if stream.local is None:
            yield f"{where}.streams.{name}.local: missing; it is a folder of MDS shards, or the cache of remote"
        weights = {key: getattr(stream, key) for key in ("proportion", "repeat", "choose")}
        given = {key: weight for key, weight in weights.items() if weight is not None}
        if len(given) > 1:
            yield f"{where}.streams.{name}: {' and '.join(given)} exclude one another"
        for key, weight in given.items():
            if not 0 <= weight < math.inf:
                yield f"{where}.streams.{name}.{key}: {weight!r} must not be negative, and finite"
    if streams:
        beside = [f.name for f in dataclasses.fields(Source) if getattr(dataset, f.name) != f.default]
        if beside:
            yield f"{where}.{beside[0]}: belongs to each of the streams {', '.join(streams)}, not beside them"


def _rank_problems(recipe: Recipe, ranks: int) -> Iterator[str]:
    if recipe.global_train_batch_size % ranks:
        yield f"global_train_batch_size: {recipe.global_train_batch_size} cannot be shared by {ranks} ranks"
    for key in ("train_loader.lanes", "eval_loader.lanes"):
        if (lanes := _get(recipe, key)) is not None and lanes % ranks:
            yield f"{key}: {lanes} cannot be shared by {ranks} ranks; choose a multiple of {ranks}"


def _count(duration: str) -> int:
    return int(duration.rstrip("batoksp").replace("_", ""))


def _unit(duration: str) -> str:
    return duration.lstrip("0123456789_")


def _get(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key; None where a part of the recipe is absent."""
    value: Any = recipe
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
