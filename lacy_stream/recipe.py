"""A run, written down: YAML -> a checked ``Recipe``.

The keys are LLM Foundry's where it has them. Everything is checked before anything is loaded: an unknown key, a wrong
type or an impossible value stops the run with the key, the value and the way out. Recipes are plain data: no
interpolation, no code, no environment.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from lacy_stream.composer_names import Kind, class_name, nearest_name
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import NEEDS, FusedLoss, MethodName, Objective, Rank, Scope, check_fractions
from lacy_stream.schema import (
    BelowOne,
    Components,
    Fraction,
    NotNegative,
    NotNegativeFloat,
    OpenSection,
    Positive,
    PositiveFloat,
    PositiveOrAll,
    Section,
    mistakes,
    null_means,
    plain_values,
)
from lacy_stream.stream.source import WEIGHTS, Source
from lacy_stream.stream.workers.remote_settings import RemoteSettings


class RecipeError(UsageError):
    """The recipe cannot be run; the message names the key, the value and the way out."""


# --- kinds of values -----------------------------------------------------------------------------------------


def _check_duration(value: str) -> str:
    if not re.fullmatch(r"\d[\d_]{0,15}(ba|tok|sp)", value):
        raise ValueError("is not a duration in batches, tokens or samples, such as 1000ba or 5_000_000tok")
    return value


def _check_not_zero(value: str) -> str:
    if _count(value) == 0:
        raise ValueError("must be greater than 0")
    return value


def _check_microbatch(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value > 0):
        raise ValueError("must be greater than 0, or auto" if type(value) is int else "is neither a number nor auto")
    return value


def _check_placeholders(filename: str) -> str:
    known = ("run_name", "rank", "local_rank", "world_size", "local_world_size", "node_rank")
    if unknown := set(re.findall(r"{(\w*)}", filename)) - set(known):
        raise ValueError(f"has an unknown placeholder {{{min(unknown)}}}; known are {', '.join(known)}")
    return filename


DurationOrZero = Annotated[str, AfterValidator(_check_duration), Field(json_schema_extra={"format": "duration"})]
Duration = Annotated[DurationOrZero, AfterValidator(_check_not_zero)]
Microbatch = Annotated[int | Literal["auto"], BeforeValidator(_check_microbatch)]


# --- the sections --------------------------------------------------------------------------------------------


class GPT2(Section):
    """A GPT-2 style transformer with tied embeddings and learned positions."""

    name: Literal["gpt2"]
    """Family of the model."""
    d_model: Positive
    """Width; a multiple of `n_heads`."""
    n_heads: Positive
    """Attention heads of each layer."""
    n_layers: Positive
    """Layers."""
    expansion_ratio: Positive = 4
    """Width of the MLP, as a multiple of `d_model`."""
    dropout: BelowOne = 0.0
    """Dropout of embeddings, attention and residual branches."""
    vocab_size: Positive | None = None
    """The number of the tokenizer's pieces + 1, for `<CALL>`; null: computed. A number is only checked."""
    pad_vocab_to_multiple_of: Positive = 1
    """The rows of the embeddings are a multiple of this. Rows after `<CALL>` have no logits and are not exported."""

    @model_validator(mode="after")
    def _check_heads(self) -> GPT2:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model: {self.d_model} is not a multiple of n_heads, {self.n_heads}")
        return self


class HFCausalLM(Section):
    """Any causal language model of transformers, new or continued from its weights. The keys are LLM Foundry's."""

    name: Literal["hf_causal_lm"]
    """Family of the model."""
    pretrained_model_name_or_path: str | None = None
    """Folder or hub name of a model, or `package:NAME/PATH` for a folder of an installed package; null: the defaults of
    the `model_type` that `config_overrides` names."""
    pretrained: bool = True
    """Whether to continue from the weights; `false`: only the configuration is taken."""
    gguf_file: str | None = None
    """Name of a `.gguf` file in the folder or repository, which is then read in place of its configuration and
    weights."""
    config_overrides: dict[str, Any] = {}
    """Values of the model's configuration, by transformers' names, such as `{num_hidden_layers: 12}`."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """How transformers computes attention; null: its own choice."""
    pad_vocab_to_multiple_of: Positive = 1
    """The rows of the embeddings are a multiple of this. Rows after `<CALL>` have no logits and are not exported."""

    @model_validator(mode="after")
    def _check_source(self) -> HFCausalLM:
        if self.pretrained_model_name_or_path is not None:
            return self
        if self.pretrained or self.gguf_file:
            raise ValueError(
                "pretrained_model_name_or_path: missing; name the model whose weights are continued, or set "
                "pretrained: false for a new one"
            )
        if "model_type" not in self.config_overrides:
            raise ValueError(
                "config_overrides: names no model_type; give one of transformers, such as {model_type: llama}, or a "
                "pretrained_model_name_or_path"
            )
        return self


Model = Annotated[GPT2 | HFCausalLM, Field(discriminator="name")]


class Tokenizer(Section):
    """The tokenizer of the model."""

    name: str
    """A SentencePiece model, a Hugging Face `tokenizer.json`, a folder with one of them, or `package:NAME/PATH` for one
    of an installed package."""
    eos_token: str | None = None
    """The piece that ends a document; null: the one that the model file, or the config files beside the
    `tokenizer.json`, name."""
    split_special_tokens: bool = True
    """Spell the names of special tokens in texts as the characters that they are; false: they become the special
    tokens, which only a `tokenizer.json` does."""


class Annotation(Section):
    """The annotator, which finds the facts in the texts. With `annotator: null`, texts are only tokenised."""

    model: str | None = "en_core_web_sm"
    """spaCy pipeline; null: no facts are found by parsing."""
    engine: Literal["auto", "numba", "spacy"] = "auto"
    """The program that runs the pipeline: `numba`, the engine of this package; `spacy`; or `auto`, `numba` if it
    can."""
    labeller: str | None = None
    """A labeller that marks the facts in place of the pipeline: the name of an entry point, or
    `package.module:callable`."""
    num_workers: Annotated[NotNegative, Field(le=1024)] | None = None
    """Worker processes of each rank; null: one less than the cores of the rank. 0 needs `remote`."""
    remote: RemoteSettings | None = None
    """Workers on other machines, beside those; null: none."""
    timeout_s: PositiveFloat = 60.0
    """Seconds that a worker may take for a batch before it is replaced, beside one second for every 1,000 characters.
    Where workers were measured to be slow, they have more."""
    label_cache: str | None = None
    """Folder that keeps the labels of each document, so that nothing is parsed from the second epoch on; null: off."""
    label_cache_limit_gb: PositiveFloat = 20.0
    """Gigabytes that the label cache may take on disk."""

    @model_validator(mode="after")
    def _check_workers(self) -> Annotation:
        if self.num_workers == 0 and self.remote is None:
            raise ValueError("num_workers: 0, and no remote workers; give 1 or more, or a section remote")
        return self


class Dataset(Source):
    """One source, with the keys below; or several in `streams`, by name. The keys are those of MosaicML Streaming and
    LLM Foundry."""

    local: str | None = None
    """Folder of MDS shards; with `remote`, the cache of those shards. Required where there are no `streams`."""
    streams: dict[str, Source] | None = None
    """Several sources by name; the keys of a source then belong to each of them."""
    epoch_size: Positive | None = None
    """Documents in an epoch, where streams are weighted by `proportion`; null: as many as there are."""
    shuffle: bool = False
    """Whether each epoch has an order of its own."""
    shuffle_algo: Literal["py1e", "py1br", "py1s", "py2s", "naive"] = "py1e"
    """Shuffling algorithm of MosaicML Streaming."""
    shuffle_seed: NotNegative = 17
    """Seed of the order."""
    shuffle_block_size: Positive = 1 << 18
    """Documents that are shuffled among themselves."""
    predownload: NotNegative = 1000
    """Documents ahead whose shards are fetched in the background."""
    download_retry: NotNegative = 3
    """How often a failed download is tried again."""
    download_timeout: PositiveFloat = 60.0
    """Seconds that a download may take."""

    @model_validator(mode="after")
    def _check_streams(self) -> Dataset:
        if self.local is None and not self.streams:
            raise ValueError("local: missing; give a folder of MDS shards, or several of them by name in streams")
        weights = [key for key in WEIGHTS if getattr(self, key) is not None]
        if weights and not self.streams:
            raise ValueError(f"{weights[0]}: weighs one of several streams; leave it out, or name the streams")
        beside = [key for key in Source.model_fields if getattr(self, key) != Dataset.model_fields[key].default]
        if self.streams and beside:
            raise ValueError(f"{beside[0]}: belongs to each of the streams {', '.join(self.streams)}, not beside them")
        return self

    def sources(self) -> Mapping[str, Source]:
        """The sources by their place in the dataset; "" for the only one."""
        return {f"streams.{name}": source for name, source in (self.streams or {}).items()} or {"": self}


class Loader(Section):
    """A dataloader."""

    name: Literal["annotated_text"] = "annotated_text"
    """Kind of the dataloader."""
    dataset: Dataset
    """The documents."""
    lanes: Positive = 64
    """Rows that are filled side by side, each with documents of its own; the number of ranks must divide it. The same
    number of lanes gives the same batches on any number of ranks."""
    prefetch_rows: NotNegative = 0
    """Rows that are annotated ahead on each rank; 0: four batches."""
    accept_changes: bool = False
    """Continue from a checkpoint although the data, the tokenizer, the parser, the rules or the objective have changed
    since."""


class AdamW(Section):
    """The optimizer: PyTorch's AdamW."""

    name: Literal["adamw"] = "adamw"
    """PyTorch's AdamW."""
    lr: PositiveFloat
    """Learning rate after the warm-up."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay of the running means of gradients and of their squares."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NotNegativeFloat = 0.1
    """Decoupled weight decay."""


class OtherOptimizer(OpenSection):
    """Any other optimizer. Further keys are its own arguments."""

    name: str
    """`decoupled_adamw` or another of Composer's, such as `DecoupledSGDW`; or `package.module:Class`."""
    lr: PositiveFloat
    """Learning rate after the warm-up."""


class ConstantWithWarmup(Section):
    """The learning rate over time: linear warm-up, then constant. `scheduler: null`: no warm-up."""

    name: Literal["constant_with_warmup"] = "constant_with_warmup"
    """Kind of the schedule."""
    t_warmup: DurationOrZero = "0ba"
    """Length of the warm-up, in the unit of `max_duration`; 0ba: none."""


class OtherScheduler(OpenSection):
    """Any other schedule. Further keys are its own arguments, such as `t_warmup` and `alpha_f`."""

    name: str
    """One of Composer's, such as `cosine_annealing_with_warmup`, `linear_with_warmup` or
    `CosineAnnealingWithWarmupScheduler`; or `package.module:Class`."""


def _by_name(ours: str) -> Discriminator:
    """Distinguish our own section from any other by its `name`; without one it is ours."""

    def kind(value: Any) -> str:
        # pydantic asks this of a mapping that it validates and of a section that it dumps.
        name = value.get("name", ours) if isinstance(value, Mapping) else getattr(value, "name", ours)
        return "ours" if name == ours else "other"

    return Discriminator(kind)


Optimizer = Annotated[
    Annotated[AdamW, Tag("ours")] | Annotated[OtherOptimizer, Tag("other")], Field(discriminator=_by_name("adamw"))
]
Scheduler = Annotated[
    Annotated[ConstantWithWarmup, Tag("ours")] | Annotated[OtherScheduler, Tag("other")],
    Field(discriminator=_by_name("constant_with_warmup")),
]


class CallMask(Section):
    """Which tokens the model delegates with `<CALL>`. `call_mask: null` is `method: baseline`."""

    method: MethodName = "lacy"
    """The method of table 5; `baseline` makes no calls."""
    call_fraction: Fraction = 0.15
    """Share of the tokens of a mini-batch that are delegated, between 0 and 1."""
    ignore_fraction: Fraction = 0.15
    """Share of the tokens that are ignored, for the methods that fill up to it."""
    call_fraction_warmup: NotNegative = 0
    """Batches over which the share of calls grows linearly to `call_fraction`; 0: none."""
    reference: str | None = None
    """For rho-1 and spacy+refloss: the reference model, a checkpoint file of a run or a Hugging Face folder, with the
    same tokenizer."""
    objective: Objective = "defer"
    """What is learned where `<CALL>` is not the target. `defer`: the true token, and not to call. `paper`: the true
    token alone, as in the paper, so that nothing lowers `<CALL>` there."""
    rank_calls_by: Rank = "probability"
    """The score of `<CALL>` by which positions are ranked, in validation losses, pages and the cascade too."""
    scope: Scope = "global"
    """The tokens among which the selection is made: `global`, the mini-batch over all ranks; `rank`, one rank's part;
    `microbatch`, each microbatch alone; `running`, each microbatch with those before it, as many as a step has, over
    all ranks. With several microbatches, `global` and `rank` take a first pass without gradient. `running` takes none,
    and the share of calls is exact on average only."""

    fused_loss: FusedLoss = "auto"
    """Compute the loss from the model's last hidden states, so that its logits are never held. `auto`: on a GPU, where
    the logits of the model are those of its output layer and nothing more; `true`: an error where they are not."""

    @model_validator(mode="after")
    def _check_method(self) -> CallMask:
        check_fractions(self.call_fraction, self.ignore_fraction)
        if NEEDS[self.method].reference and self.reference is None:
            raise ValueError(
                f"reference: {self.method} compares with a reference model, and none is named: give a checkpoint of a "
                "run, or a Hugging Face folder, with the same tokenizer"
            )
        if self.reference is not None and not NEEDS[self.method].reference:
            users = [name for name, needs in NEEDS.items() if needs.reference]
            raise ValueError(
                f"reference: {self.method} uses no reference model; leave it out, or use one of {', '.join(users)}"
            )
        return self


class GradientClipping(Section):
    """Composer's gradient clipping."""

    clipping_type: Literal["norm", "value", "adaptive"] = "norm"
    """The clipped quantity: the norm of all gradients, each value, or each norm in proportion to the weights'."""
    clipping_threshold: PositiveFloat = 1.0
    """The largest norm, value or ratio."""


class Algorithms(Components):
    """Composer algorithms, each off where it is null. Besides those below, any of Composer's by its name, or
    `package.module:Class`, with its own arguments, such as `EMA: {half_life: 100ba}`. `algorithms: null` turns all
    off."""

    call_mask: Annotated[CallMask, null_means(method="baseline")] = CallMask()
    """Which tokens are delegated; null: none."""
    gradient_clipping: GradientClipping | None = None
    """Clips the gradients; null: off."""


class SpeedMonitor(Section):
    """Composer's SpeedMonitor."""

    window_size: Positive = 10
    """Batches over which the speed is averaged."""


class EmptySection(Section):
    """A callback without settings: write `lr_monitor: {}`."""


class Callbacks(Components):
    """Composer callbacks, each off where it is null. Besides those below, any of Composer's by its name, or
    `package.module:Class`, with its own arguments, such as `optimizer_monitor: {batch_log_interval: 10}`.
    `callbacks: null` turns all off."""

    nan_monitor: EmptySection | None = EmptySection()
    """Ends the run where a loss, of the model or of the reference model, is NaN or infinite, on any rank, and before a
    checkpoint with such weights."""

    speed_monitor: SpeedMonitor | None = None
    """Logs samples, tokens and batches a second."""
    lr_monitor: EmptySection | None = None
    """Logs the learning rate."""
    memory_monitor: EmptySection | None = None
    """Logs the memory of the GPU."""
    runtime_estimator: EmptySection | None = None
    """Logs the time that the run will still take."""


class TensorBoard(Section):
    """Composer's TensorboardLogger."""

    log_dir: str | None = None
    """Folder; null: Composer's own choice."""


class WandB(Section):
    """Composer's WandBLogger."""

    project: str | None = None
    """Project of the run."""
    entity: str | None = None
    """User or team."""
    group: str | None = None
    """Group of runs."""
    name: str | None = None
    """Name of the run; null: `run_name`."""
    tags: list[str] | None = None
    """Tags of the run."""


class FileLog(Section):
    """Composer's FileLogger, which here renames the log of an earlier run (`log.txt` to `log.1.txt`) and does not
    overwrite it."""

    filename: Annotated[str, AfterValidator(_check_placeholders)] = "{run_name}/log-rank{rank}.txt"
    """Path of the log, with Composer's placeholders, such as `{run_name}` and `{rank}`."""
    flush_interval: Positive = 10
    """Batches between two writes."""


class Loggers(Components):
    """Composer loggers, each off where it is null. Besides those below, any of Composer's by its name, or
    `package.module:Class`, with its own arguments, such as `mlflow: {experiment_name: lacy}`. `loggers: null` turns all
    off."""

    tensorboard: TensorBoard | None = None
    """Logs for TensorBoard."""
    wandb: WandB | None = None
    """Logs to Weights & Biases."""
    file: FileLog | None = None
    """Logs to a text file."""


class Profiler(OpenSection):
    """Composer's profiler. Further keys are its own arguments, such as `torch_prof_folder`."""

    schedule: dict[str, Any] = {}
    """Arguments of Composer's `cyclic_schedule`, such as `{wait: 10, active: 4}`."""
    json_trace_handler: dict[str, Any] = {}
    """Arguments of Composer's `JSONTraceHandler`, such as `{folder: traces}`."""


class Recipe(Section):
    """A whole run. A duration counts batches (`400000ba`), tokens (`50_000_000tok`) or samples (`1000sp`); the training
    data is an endless run of epochs, so an epoch is not a unit of duration."""

    run_name: str | None = None
    """Name of the run, in logs and checkpoints; null: Composer invents one."""
    seed: Annotated[NotNegative, Field(lt=1 << 32)] = 17
    """Seed of the weights and of everything that is drawn at random."""
    max_seq_len: Annotated[int, Field(strict=True, ge=2)]
    """Tokens in a row."""
    model: Model
    """The model; `name` is its family."""
    tokenizer: Tokenizer
    """The tokenizer."""
    annotator: Annotated[Annotation, null_means(model=None)] = Annotation()
    """The annotator, which finds the facts; null: there are none."""
    train_loader: Loader
    """The training data."""
    eval_loader: Loader | None = None
    """The validation data; null: no validation."""
    optimizer: Optimizer
    """The optimizer."""
    scheduler: Annotated[Scheduler, null_means()] = ConstantWithWarmup()
    """The learning rate over time; null: constant."""
    algorithms: Annotated[Algorithms, null_means(call_mask=None)] = Algorithms()
    """Composer algorithms; null: none, so no calls."""
    callbacks: Annotated[Callbacks, null_means(nan_monitor=None)] = Callbacks()
    """Composer callbacks; null: none."""
    loggers: Annotated[Loggers, null_means()] = Loggers()
    """Composer loggers; null: none."""
    max_duration: Duration
    """Duration of the run."""
    global_train_batch_size: Positive
    """Rows in a batch, over all ranks; the number of ranks must divide it."""
    device_train_microbatch_size: Microbatch = "auto"
    """Rows that a rank trains on at once; `auto`: as many as fit the GPU."""
    device_eval_batch_size: Positive = 1
    """Rows that a rank validates at once."""
    eval_interval: Duration = "1000ba"
    """How often the model is validated."""
    eval_subset_num_batches: PositiveOrAll = -1
    """Batches in a validation; -1: all."""
    eval_mask_from: str | None = None
    """Another model, a checkpoint file or a Hugging Face folder: validation also gives the losses on its calls."""
    precision: Literal["amp_bf16", "amp_fp16", "fp32"] = "amp_bf16"
    """Composer's precision; without a GPU it is always fp32."""
    fsdp_config: dict[str, Any] | None = None
    """Composer's FSDP settings, for models that do not fit one GPU; null: DDP."""
    compile_config: dict[str, Any] | None = None
    """Arguments of `torch.compile`; `{}`: its defaults; null: the model is not compiled."""
    compile_fallback: bool = True
    """Whether a model that cannot be compiled is trained uncompiled, with a warning; false: the run stops."""
    profiler: Profiler | None = None
    """Composer's profiler; null: off."""
    progress_bar: bool = True
    """Whether Composer draws its progress bar."""
    log_to_console: bool = False
    """Whether metrics are also printed."""
    console_log_interval: Duration = "1ba"
    """How often metrics are printed."""
    save_folder: str | None = None
    """Folder for checkpoints; null: none are written."""
    save_interval: Duration = "1000ba"
    """How often a checkpoint is written."""
    save_num_checkpoints_to_keep: PositiveOrAll = -1
    """How many checkpoints are kept; -1: all."""
    save_overwrite: bool = False
    """Whether checkpoints of an earlier run in `save_folder` may be replaced."""
    report_folder: str | None = None
    """Folder for the report of faults: restarts, retries and documents without labels; null: `report` in a local
    `save_folder`."""
    load_path: str | None = None
    """Checkpoint to start from; null: a new model."""
    load_weights_only: bool = False
    """Whether only the weights of `load_path` are taken: optimizer, step and position of the data are then new."""
    load_ignore_keys: list[str] = []
    """Parts of `load_path` that are not loaded, as Composer names them, such as `state/optimizers`."""
    spin_dataloaders: bool = True
    """Whether a stream without a saved position is run through to the step of the checkpoint."""
    autoresume: bool = False
    """Whether the same command continues from the last checkpoint in `save_folder`."""
    dist_timeout: PositiveFloat = 600.0
    """Seconds after which a rank stops waiting for the others."""

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        for problem in _problems(self):
            raise ValueError(problem)
        return self


# --- reading and writing -------------------------------------------------------------------------------------


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check that it can be run here.

    Args:
        path: YAML file. It may name another one in ``extends``, relative to its own folder, and then holds only what
            differs: mappings are merged key by key, and any other value replaces that of the base.
        overrides: ``key.sub=value`` each, the value as YAML.

    Raises:
        RecipeError: naming the key, the value and the way out.
    """
    try:
        loaded = _read_extended(Path(path))
        for override in overrides:
            _override(loaded, override)
        values = OmegaConf.to_container(loaded)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"recipe {os.fspath(path)!r} {' '.join(overrides)}: {str(error).splitlines()[0]}") from None
    recipe = check_recipe(cast(dict, values))
    # These checks are about this machine. They are no part of ``check_recipe``, which also reads the recipes in
    # checkpoints of other machines.
    for problem in _problems_here(recipe):
        raise RecipeError(problem)
    return recipe


def _override(values: Any, override: str) -> None:
    """Set one value by ``key.sub=value``."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[\w+\])*", key):
        raise RecipeError(f"override {override!r} is not of the form key.sub=value")
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))  # does not interpolate
    try:
        OmegaConf.update(values, key, cast(dict, parsed)["value"], merge=False, force_add=True)
    except (OmegaConfBaseException, AttributeError, IndexError, TypeError, ValueError):
        place, _, last = key.rpartition(".")
        raise RecipeError(
            f"override {override!r}: {place} is no mapping with the key {last!r}. Give the whole of it: "
            f"{place or key}=value"
        ) from None


def check_recipe(values: Mapping[Any, Any]) -> Recipe:
    """Plain values -> Recipe, on any machine. Raises ``RecipeError`` with one line for each mistake."""
    try:
        values = plain_values(values)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(mistakes(error, Recipe))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that ``load_recipe`` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))


def _read_extended(path: Path) -> Any:
    """The values of a recipe over those of the recipe that it extends."""
    values = _read(path)
    if (name := values.pop("extends", None)) is None:
        return OmegaConf.create(values)
    base = path.parent / str(name)
    if not base.is_file():
        raise RecipeError(f"extends: {name!r} in {str(path)!r}: there is no file {str(base)!r}")
    inherited = _read(base)
    if "extends" in inherited:
        raise RecipeError(
            f"extends: {name!r} in {str(path)!r} extends {inherited['extends']!r} itself; name a complete recipe"
        )
    return OmegaConf.create(_merge(inherited, values))


def _merge(base: Any, values: Any) -> Any:
    """The values over those of a base. A section with another ``name`` has other keys, so it replaces that of the
    base."""
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    if "name" in values and base.get("name", values["name"]) != values["name"]:
        return values
    return base | {key: _merge(base[key], value) if key in base else value for key, value in values.items()}


def _read(path: Path) -> dict[Any, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {str(path)!r} is not a mapping of keys to values")
    return values


def tokenizer_path(name: str) -> Path:
    """The file that ``tokenizer.name`` stands for.

    Raises:
        RecipeError: no such file or package.
    """
    from annotator import AnnotatorError  # imports numpy, which --help does not need
    from annotator.tokenizers import tokenizer_file

    try:
        return tokenizer_file(name)
    except AnnotatorError as error:
        raise RecipeError(f"tokenizer.name: {error}") from None


# --- rules between keys --------------------------------------------------------------------------------------


def _problems(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each pair of keys that contradict one another, in a recipe whose sections are right."""
    warmup = getattr(recipe.scheduler, "t_warmup", None)
    if isinstance(warmup, str) and re.fullmatch(r"[\d_]+(ba|tok|sp)", warmup):
        if _count(warmup) and _unit(warmup) != _unit(recipe.max_duration):
            yield (
                f"scheduler.t_warmup: {warmup!r} is counted in another unit than max_duration, "
                f"{recipe.max_duration!r}: give both in the same"
            )
    if recipe.autoresume and (recipe.save_folder is None or recipe.run_name is None or recipe.save_overwrite):
        yield "autoresume: true needs a save_folder, a run_name, and save_overwrite: false (or set autoresume=false)"
    method, annotator, data = recipe.algorithms.call_mask.method, recipe.annotator, recipe.train_loader.dataset
    labels_come = any(source.spans_column for source in data.sources().values())
    if NEEDS[method].facts and annotator.model is None and annotator.labeller is None:
        for place, source in data.sources().items():
            if source.annotate and not source.spans_column:
                yield (
                    f"annotator.model: null gives no facts to delegate in "
                    f"{'.'.join(filter(None, ['train_loader.dataset', place]))}; name a spaCy pipeline, an "
                    "annotator.labeller, or the spans_column of labels that come with the data, or use method: baseline"
                )
    if method == "llm-judge" and annotator.labeller is None and not labels_come:
        yield (
            "algorithms.call_mask.method: llm-judge takes labels that come with the data: name their spans_column in "
            "train_loader.dataset (lacy-stream prepare makes one), or an annotator.labeller"
        )


def _problems_here(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each reason why a recipe cannot run on this machine with this number of ranks."""
    yield from _unknown_names(recipe)
    for package, logger in {"tensorboard": recipe.loggers.tensorboard, "wandb": recipe.loggers.wandb}.items():
        if logger is not None and importlib.util.find_spec(package) is None:
            yield f"loggers.{package}: the package {package} is not installed: pip install {package}"
    path = recipe.load_path
    if path and "://" not in path and "{" not in path and not Path(path).exists():  # "{": Composer's placeholders
        yield f"load_path: there is no file {path!r}"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.global_train_batch_size % ranks:
        yield f"global_train_batch_size: {recipe.global_train_batch_size} cannot be shared by {ranks} ranks"
    for key, loader in {"train_loader": recipe.train_loader, "eval_loader": recipe.eval_loader}.items():
        if loader is not None and loader.lanes % ranks:
            yield f"{key}.lanes: {loader.lanes} cannot be shared by {ranks} ranks; choose a multiple of {ranks}"


def _unknown_names(recipe: Recipe) -> Iterator[str]:
    """Optimizers, schedulers, callbacks, loggers and algorithms that Composer does not have."""
    named: dict[Kind, tuple[Any, Any]] = {
        "optimizer": (AdamW, recipe.optimizer),
        "scheduler": (ConstantWithWarmup, recipe.scheduler),
    }
    for key, (ours, section) in named.items():
        known = (ours.model_fields["name"].default,)
        if isinstance(section, OtherOptimizer | OtherScheduler) and not _is_known(key, section.name):
            near = nearest_name(key, section.name, known)
            yield f"{key}.name: {section.name!r} is unknown; the nearest known name is {near}"
    sections: dict[Kind, Components] = {
        "callbacks": recipe.callbacks,
        "loggers": recipe.loggers,
        "algorithms": recipe.algorithms,
    }
    for key, section in sections.items():
        for name, arguments in section.further.items():
            if not _is_known(key, name):
                near = nearest_name(key, name, tuple(type(section).model_fields))
                yield f"{key}.{name}: unknown key (value {arguments}); the nearest known key is {key}.{near}"


def _is_known(kind: Kind, name: str) -> bool:
    return ":" in name or class_name(kind, name) is not None


def _count(duration: str) -> int:
    return int(duration.rstrip("batoksp").replace("_", ""))


def _unit(duration: str) -> str:
    return duration.lstrip("0123456789_")
