"""Recipe -> Trainer: builds what the recipe names, runs it, and ends the worker processes."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotator import AnnotatorError, AnnotatorSettings
from annotator.labellers import find_labeller
from annotator.pipelines import find_model
from lacy_stream.errors import UsageError
from lacy_stream.recipe import (
    AdamW,
    Annotation,
    ConstantWithWarmup,
    HFCausalLM,
    Loader,
    Recipe,
    RecipeError,
    dump_recipe,
    tokenizer_path,
)
from lacy_stream.stream.pool import AnnotationPool, default_num_workers
from lacy_stream.stream.pool_stats import describe_places
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.remote_settings import check_remote
from lacy_stream.train.components import (
    build_profiler,
    check_components,
    named_optimizer,
    named_scheduler,
    other_components,
)
from lacy_stream.train.launcher import check_launcher
from lacy_stream.train.places import (
    check_places,
    local_save_folder,
    only_run_in,
    other_models,
    report_folder,
    warn_of_little_room,
)
from lacy_stream.train.recipe_data import annotator_settings
from lacy_stream.train.resume import LATEST, mend_save_folder

SAMPLE_TOKENS, SAMPLE_ROW = 4096, 512
"""Tokens of the training data, and tokens of a row, by which the first row of <CALL> in a trained model is set."""

if TYPE_CHECKING:  # composer takes 12 s to import: only once the recipe is known to be good
    from composer import ComposerModel, Trainer
    from rich.console import Console
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

    from lacy_stream.objective.metrics import MaskModel


def train(recipe: Recipe) -> None:
    """Run a recipe to its end.

    Raises:
        RecipeError: the recipe cannot be run here; nothing has been trained.
        LossError: a loss, or what would have been saved, is NaN or infinite.
        FileError: a checkpoint cannot be written.
        LacyStreamError: the data cannot be read or annotated.
    """
    check_launcher(os.environ)
    tokenizer = tokenizer_path(recipe.tokenizer.name)
    settings = annotator_settings(recipe, tokenizer)
    try:
        pieces = settings.open_tokenizer().vocab_size
    except AnnotatorError as error:
        raise RecipeError(f"tokenizer.name: {error}") from None
    # Most mistakes of a recipe are found here, before workers start and before Composer is imported.
    _check_model(recipe, pieces, tokenizer)
    _check_annotator(recipe.annotator)
    check_places(recipe)
    check_components(recipe)
    folder = local_save_folder(recipe)
    with nullcontext() if folder is None or os.environ.get("RANK", "0") != "0" else only_run_in(folder):
        _train(recipe, settings, pieces)


def _train(recipe: Recipe, settings: AnnotatorSettings, pieces: int) -> None:
    """Run a recipe that was checked.

    Args:
        settings: of the annotation workers.
        pieces: ids of the tokenizer. The first one after them is <CALL>.
    """
    # On a CPU, huge pages halve the time of a step with a vocabulary of 32,001: logits are 4 MB a row of 32.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    workers = recipe.annotator.num_workers
    if workers is None:
        workers = default_num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    # The workers load the parser while this process imports composer.
    with AnnotationPool(
        settings,
        workers,
        remote=recipe.annotator.remote,
        timeout_s=recipe.annotator.timeout_s,
        report=Report(_report_path(recipe)),
        label_cache=recipe.annotator.label_cache,
        label_cache_limit=int(recipe.annotator.label_cache_limit_gb * 1e9),
    ) as pool:
        _import_composer()
        trainer = _built(recipe, pool, call_token_id=pieces)
        try:
            _announce(recipe, trainer, pool)
            _check_ranks_agree(pool)
            if (folder := local_save_folder(recipe)) is not None and os.environ.get("RANK", "0") == "0":
                warn_of_little_room(folder, trainer.state.model)
            if trainer.state.max_duration is not None and trainer.state.timestamp >= trainer.state.max_duration:
                print(f"nothing to do: the checkpoint is at max_duration, {recipe.max_duration}", file=sys.stderr)
                return
            _fit(trainer, recipe)
            _conclude(trainer, pool)
        finally:
            trainer.close()


def _check_model(recipe: Recipe, pieces: int, tokenizer: Path) -> None:
    """Refuse, before any weights are read, a model that does not fit its tokenizer."""
    model = recipe.model
    if isinstance(model, HFCausalLM):
        from lacy_stream.train.hugging_face import read_config

        read_config(model, pieces=pieces, max_seq_len=recipe.max_seq_len)
    elif model.vocab_size not in (None, pieces + 1):
        raise RecipeError(
            f"model.vocab_size: {model.vocab_size}, but the tokenizer {tokenizer.name} has {pieces} pieces and "
            f"<CALL> takes one more id: it must be {pieces + 1} (or leave it out)"
        )


def _check_annotator(settings: Annotation) -> None:
    """Refuse, before anything is loaded, a labeller or a pipeline that is not there, and a cluster that must not be
    used."""
    if settings.remote is not None:
        try:
            check_remote(settings.remote)
        except UsageError as error:
            raise RecipeError(f"annotator.{error}") from None
    try:
        if settings.labeller is not None:
            find_labeller(settings.labeller)
        elif settings.model is not None:
            find_model(settings.model)
    except AnnotatorError as error:
        raise RecipeError(f"annotator.{error}") from None


def _report_path(recipe: Recipe) -> Path | None:
    """The file of this rank's report; None where no folder is named."""
    folder = report_folder(recipe)
    return None if folder is None else folder / f"rank{os.environ.get('RANK', '0')}.jsonl"


def _import_composer() -> None:
    """Import what the run needs, if it was not imported. No garbage is looked for meanwhile, nor later among what was
    imported: it all stays, and looking takes a quarter of the time."""
    if "composer" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        import composer  # noqa: F401

        import lacy_stream.train.model  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def _built(recipe: Recipe, pool: AnnotationPool, call_token_id: int) -> Trainer:
    """``build_trainer``, with advice where a checkpoint that it loads belongs to another run."""
    from lacy_stream.objective.call_objective import ObjectiveError
    from lacy_stream.stream.batches import PositionError

    try:
        return build_trainer(recipe, pool, call_token_id)
    except (pickle.UnpicklingError, KeyError, EOFError) as error:
        if recipe.load_path is None:
            raise
        raise RecipeError(f"load_path: {recipe.load_path!r} is no checkpoint of a run: {error}") from None
    except (RuntimeError, PositionError, ObjectiveError) as error:
        # A RuntimeError may have any cause. It is explained if it names weights that do not fit.
        mismatches = [line.strip() for line in str(error).splitlines() if "mismatch" in line or "Missing key" in line]
        if not isinstance(error, PositionError | ObjectiveError) and not mismatches:
            raise
        source = recipe.load_path or recipe.save_folder
        other = "load_path" if recipe.load_path else "save_folder, or start over: autoresume=false save_overwrite=true"
        raise RecipeError(
            f"the checkpoint in {source} does not fit this recipe: {mismatches[0] if mismatches else error}. "
            f"Name another {other}"
        ) from None


def build_trainer(recipe: Recipe, pool: AnnotationPool, call_token_id: int) -> Trainer:
    """The Composer Trainer of a recipe, ready for ``fit``.

    Args:
        recipe: checked.
        pool: annotates for training and validation; the caller closes it.
        call_token_id: id of <CALL>, the number of pieces of the tokenizer.
    """
    import torch
    from composer import Trainer
    from composer.utils import dist, reproducibility

    from lacy_stream.train.model import build_model

    _check_precision(recipe)
    save_folder = local_save_folder(recipe)
    if recipe.autoresume and save_folder is not None and dist.get_global_rank() == 0:
        mend_save_folder(save_folder, pool.report)
    reproducibility.seed_all(recipe.seed)  # the model's first weights, too
    ranks = dist.get_world_size()
    gpu = torch.cuda.is_available()
    if recipe.fsdp_config and not gpu and os.environ.get("FSDP_VERSION") != "2":
        raise RecipeError(
            "fsdp_config: Composer's FSDP1 shards models on GPUs only, and there is none: set fsdp_config=null, or "
            "choose FSDP2 by the environment variable FSDP_VERSION=2"
        )
    if not gpu and recipe.precision != "fp32":
        warnings.warn(f"no GPU: precision fp32 instead of {recipe.precision}", stacklevel=1)
    batch_size = recipe.global_train_batch_size // ranks
    microbatch = recipe.device_train_microbatch_size
    if isinstance(microbatch, int):
        microbatch = min(microbatch, batch_size)
    elif not gpu:  # "auto" looks for the largest that fits the GPU
        microbatch = batch_size
    train_loader = _loader(recipe.train_loader, pool, recipe, batch_size, repeat=True)
    eval_loader = None
    if recipe.eval_loader is not None:
        eval_loader = _loader(recipe.eval_loader, pool, recipe, recipe.device_eval_batch_size, repeat=False)
    model = build_model(
        recipe.model,
        max_seq_len=recipe.max_seq_len,
        call_token_id=call_token_id,
        eos_id=pool.settings.open_tokenizer().eos_id,
        call_fraction=recipe.algorithms.call_mask.call_fraction,
        rank_calls_by=recipe.algorithms.call_mask.rank_calls_by,
        mask_from=_mask_model(recipe, pool, call_token_id),
        sample_BT=_sample_of_text(recipe, train_loader, pool) if _starts_from_weights(recipe) else None,
    )
    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=eval_loader,
        optimizers=_optimizer(recipe, model),
        schedulers=_scheduler(recipe),
        algorithms=_algorithms(recipe, pool, call_token_id),
        callbacks=[*_callbacks(recipe), *_checkpoint_callbacks(recipe)],
        loggers=_loggers(recipe),
        max_duration=recipe.max_duration.replace("_", ""),
        # Composer warns of settings for an evaluation that there is not.
        eval_interval=recipe.eval_interval.replace("_", "") if eval_loader is not None else 0,
        eval_subset_num_batches=recipe.eval_subset_num_batches if eval_loader is not None else -1,
        device_train_microbatch_size=microbatch,
        precision=recipe.precision if gpu else "fp32",
        compile_config=recipe.compile_config,
        profiler=None if recipe.profiler is None else build_profiler(recipe.profiler),
        parallelism_config={"fsdp": recipe.fsdp_config} if recipe.fsdp_config else None,
        run_name=recipe.run_name,
        progress_bar=recipe.progress_bar,
        log_to_console=recipe.log_to_console,
        console_log_interval=recipe.console_log_interval.replace("_", ""),
        save_folder=recipe.save_folder,
        save_interval=recipe.save_interval.replace("_", ""),
        save_num_checkpoints_to_keep=recipe.save_num_checkpoints_to_keep,
        save_overwrite=recipe.save_overwrite,
        load_path=recipe.load_path,
        load_weights_only=recipe.load_weights_only,
        load_ignore_keys=recipe.load_ignore_keys or None,
        spin_dataloaders=recipe.spin_dataloaders,
        autoresume=recipe.autoresume,
        seed=recipe.seed,
        dist_timeout=recipe.dist_timeout,
    )
    if recipe.compile_config is not None:
        from lacy_stream.train.compiling import guard_compiled

        guard_compiled(trainer.state.model, fallback=recipe.compile_fallback)
    return trainer


def _check_precision(recipe: Recipe) -> None:
    """Refuse bf16 on a card that would only emulate it."""
    import torch

    if recipe.precision != "amp_bf16" or not torch.cuda.is_available():
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError(
            f"precision: amp_bf16, but {torch.cuda.get_device_name()} has no bf16: set precision=amp_fp16, or "
            "precision=fp32"
        )


def _starts_from_weights(recipe: Recipe) -> bool:
    """Whether the weights of a Hugging Face model are the first of the run: no checkpoint will be loaded over them."""
    folder = local_save_folder(recipe)
    resumes = recipe.autoresume and folder is not None and (folder / LATEST).exists()
    return isinstance(recipe.model, HFCausalLM) and recipe.model.pretrained and not recipe.load_path and not resumes


def _sample_of_text(recipe: Recipe, loader: DataLoader, pool: AnnotationPool) -> Tensor:
    """Ids of the first documents of the training data, int64 [B, T], about SAMPLE_TOKENS in all."""
    import numpy as np
    import torch

    dataset: Any = loader.dataset
    tokenizer, length = pool.settings.open_tokenizer(), min(recipe.max_seq_len, SAMPLE_ROW)
    ids: list[Any] = []
    for position in range(SAMPLE_TOKENS):  # a document has a token at least
        document = dataset.corpus.document(position)
        own = tokenizer.encode(document.text).ids if document.ids is None else document.ids
        ids += [own[:SAMPLE_TOKENS], [tokenizer.eos_id]]
        if sum(map(len, ids)) >= SAMPLE_TOKENS:
            break
    joined_N = torch.from_numpy(np.concatenate(ids).astype(np.int64))
    return joined_N[: max(len(joined_N) // length, 1) * length].reshape(-1, min(length, len(joined_N)))


def _loader(loader: Loader, pool: AnnotationPool, recipe: Recipe, batch_size: int, repeat: bool) -> DataLoader:
    from lacy_stream.stream.batches import annotated_dataloader
    from lacy_stream.train.recipe_data import corpus_arguments

    return annotated_dataloader(
        pool=pool,
        batch_size=batch_size,
        max_seq_len=recipe.max_seq_len,
        repeat=repeat,
        lanes=loader.lanes,
        prefetch_rows=loader.prefetch_rows,
        accept_changes=loader.accept_changes,
        **corpus_arguments(loader.dataset),
    )


def _optimizer(recipe: Recipe, model: ComposerModel) -> Optimizer:
    import torch

    if (named := named_optimizer(recipe)) is not None:
        return named.build(model.parameters())
    settings = recipe.optimizer
    assert isinstance(settings, AdamW)
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=torch.cuda.is_available(),  # one pass over weights and moments instead of several
    )


def _scheduler(recipe: Recipe) -> Any:
    from composer.optim import ConstantScheduler, ConstantWithWarmupScheduler

    if (named := named_scheduler(recipe)) is not None:
        return named.build()
    assert isinstance(recipe.scheduler, ConstantWithWarmup)
    # What is left without the letters of its unit (ba, tok, sp) is the number.
    warmup = recipe.scheduler.t_warmup.replace("_", "")
    return ConstantScheduler() if int(warmup.rstrip("batoksp")) == 0 else ConstantWithWarmupScheduler(warmup)


def _algorithms(recipe: Recipe, pool: AnnotationPool, call_token_id: int) -> list[Any]:
    from composer.algorithms import GradientClipping

    from lacy_stream.train.call_mask import CallMask

    mask, clipping = recipe.algorithms.call_mask, recipe.algorithms.gradient_clipping
    reference = _other_model("algorithms.call_mask.reference", recipe, pool)
    algorithms: list[Any] = [
        CallMask(
            call_token_id,
            mask.call_fraction,
            mask.method,
            mask.scope,
            ignore_fraction=mask.ignore_fraction,
            call_fraction_warmup=mask.call_fraction_warmup,
            reference=reference,
            objective=mask.objective,
            rank_calls_by=mask.rank_calls_by,
            fused_loss=mask.fused_loss,
            accept_changes=recipe.train_loader.accept_changes,
            check_losses=recipe.callbacks.nan_monitor is not None,
            seed=recipe.seed,
        )
    ]
    if clipping is not None:
        algorithms.append(GradientClipping(clipping.clipping_type, clipping.clipping_threshold))
    return algorithms + [component.build() for component in other_components("algorithms", recipe.algorithms)]


def _mask_model(recipe: Recipe, pool: AnnotationPool, call_token_id: int) -> MaskModel | None:
    from lacy_stream.objective.metrics import MaskModel

    model = _other_model("eval_mask_from", recipe, pool)
    if model is None:
        return None
    if model.config.vocab_size <= call_token_id:
        raise RecipeError(f"eval_mask_from: {recipe.eval_mask_from!r} has no entry for <CALL> in its vocabulary")
    return MaskModel(model, call_token_id, recipe.algorithms.call_mask.rank_calls_by)


def _other_model(key: str, recipe: Recipe, pool: AnnotationPool) -> PreTrainedModel | None:
    """The model that a key of the recipe names; None where it names none."""
    from lacy_stream.train.reference import load_reference

    if (path := other_models(recipe).get(key)) is None:
        return None
    try:
        return load_reference(path, Path(pool.settings.tokenizer), recipe.max_seq_len)
    except UsageError as error:
        raise RecipeError(f"{key}: {error}") from None


def _callbacks(recipe: Recipe) -> list[Any]:
    import torch
    from composer.callbacks import LRMonitor, MemoryMonitor, RuntimeEstimator, SpeedMonitor

    from lacy_stream.train.monitor import StreamMonitor
    from lacy_stream.train.record import RunRecord

    wanted = recipe.callbacks
    callbacks: list[Any] = [StreamMonitor(), RunRecord(dump_recipe(recipe))]
    if wanted.speed_monitor is not None:
        callbacks.append(SpeedMonitor(window_size=wanted.speed_monitor.window_size))
    callbacks += [LRMonitor()] if wanted.lr_monitor is not None else []
    callbacks += [MemoryMonitor()] if wanted.memory_monitor is not None and torch.cuda.is_available() else []
    callbacks += [RuntimeEstimator()] if wanted.runtime_estimator is not None else []
    return callbacks + [component.build() for component in other_components("callbacks", wanted)]


def _checkpoint_callbacks(recipe: Recipe) -> list[Any]:
    """What writes the checkpoints, and what looks at the weights before. Composer writes those of a remote folder."""
    from composer.callbacks import CheckpointSaver as ComposerSaver

    from lacy_stream.train.checkpoint_saver import CheckpointSaver, FiniteWeights

    interval = recipe.save_interval.replace("_", "")
    found: list[Any] = [FiniteWeights(interval)] if recipe.callbacks.nan_monitor is not None else []
    if recipe.save_folder is None:
        return found
    named = [component.find() for component in other_components("callbacks", recipe.callbacks)]
    if "://" not in recipe.save_folder and not any(issubclass(kind, ComposerSaver) for kind in named):
        path = recipe.save_folder.lstrip("/")
        found.append(
            CheckpointSaver(
                folder=recipe.save_folder,
                remote_file_name=f"{path}/ep{{epoch}}-ba{{batch}}-rank{{rank}}.pt",
                latest_remote_file_name=f"{path}/latest-rank{{rank}}.pt",
                save_interval=interval,
                overwrite=recipe.save_overwrite,
                num_checkpoints_to_keep=recipe.save_num_checkpoints_to_keep,
            )
        )
    return found


def _loggers(recipe: Recipe) -> list[Any]:
    from composer.loggers import TensorboardLogger, WandBLogger

    from lacy_stream.train.run_log import RunLog

    wanted = recipe.loggers
    loggers: list[Any] = []
    if wanted.tensorboard is not None:
        loggers.append(TensorboardLogger(log_dir=wanted.tensorboard.log_dir))
    if wanted.wandb is not None:
        loggers.append(
            WandBLogger(
                project=wanted.wandb.project,
                entity=wanted.wandb.entity,
                group=wanted.wandb.group,
                name=wanted.wandb.name,
                tags=wanted.wandb.tags,
            )
        )
    if wanted.file is not None:
        # Without capturing: the progress bar's redraws would break up the lines.
        loggers.append(
            RunLog(
                filename=wanted.file.filename,
                flush_interval=wanted.file.flush_interval,
                capture_stdout=False,
                capture_stderr=False,
                log_traces=False,  # a line for each algorithm at each event
            )
        )
    return loggers + [component.build() for component in other_components("loggers", wanted)]


def _fit(trainer: Trainer, recipe: Recipe) -> None:
    import torch

    from lacy_stream.objective.step_check import LossError

    try:
        trainer.fit()
    except torch.OutOfMemoryError as error:
        raise _too_little_memory(trainer, recipe, error) from error
    except RuntimeError as error:
        # Composer's, where not even one row is small enough.
        if "failed with an internal microbatch of size 1" not in str(error):
            raise
        raise _too_little_memory(trainer, recipe, error) from error
    except LossError as error:
        raise LossError(f"{error}. {_last_checkpoint(trainer)}".rstrip(". ")) from None
    except FileExistsError as error:  # Composer's, before the first batch; it advises a key of its own
        raise RecipeError(
            f"save_folder: {recipe.save_folder!r} has checkpoints of an earlier run "
            f"({error.args[0].split(' may ')[0]}). "
            "Continue that run with autoresume=true, replace it with save_overwrite=true, or name another folder"
        ) from None


def _too_little_memory(trainer: Trainer, recipe: Recipe, error: Exception) -> RecipeError:
    """The keys by which a run takes less memory of the GPU."""
    evaluates = trainer.state.dataloader_label not in (None, "train")
    key = "device_eval_batch_size" if evaluates else "device_train_microbatch_size"
    size = getattr(recipe, key)
    problem = f"{key}: the GPU has too little memory for {size} rows of {recipe.max_seq_len} tokens"
    way_out = f"set {key} to less than {size}"
    if size in (1, "auto"):
        problem = f"{key}: {size}, but the GPU has too little memory for one row of {recipe.max_seq_len} tokens"
        way_out = "shard the model (fsdp_config), or set a smaller max_seq_len or a smaller model"
    return RecipeError(f"{problem} ({str(error).splitlines()[0].strip()}): {way_out}")


def _last_checkpoint(trainer: Trainer) -> str:
    """Where a run that has ended too early may be continued, in a sentence; on rank 0, which writes the checkpoints."""
    from composer.utils import dist

    saved = trainer.saved_checkpoints
    if dist.get_global_rank():
        return ""
    return f"The last checkpoint is {saved[-1]}" if saved else "No checkpoint has been written"


def _announce(recipe: Recipe, trainer: Trainer, pool: AnnotationPool) -> None:
    """Print once what is about to run, before the progress bar appears."""
    from composer.utils import dist
    from rich.console import Console
    from rich.markup import escape

    if dist.get_global_rank() == 0:
        parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
        tokens = recipe.global_train_batch_size * recipe.max_seq_len
        console = Console(stderr=True, highlight=False)
        remote = "" if pool.remote is None else f" and {pool.remote.num_workers} at {escape(pool.remote.address)}"
        console.print(
            f"{_new_line(console)}[bold]{escape(trainer.state.run_name)}[/]: {parameters / 1e6:,.1f}M parameters, "
            f"{tokens:,} tokens a batch, "
            f"{dist.get_world_size()} rank(s) with {pool.num_workers} annotation worker(s) each{remote}"
        )


def _check_ranks_agree(pool: AnnotationPool) -> None:
    """Refuse ranks whose workers would label otherwise than those of rank 0. Collective.

    Raises:
        UsageError: names what differs.
    """
    from lacy_stream import distributed as dist

    if dist.get_world_size() == 1:
        return
    first, *others = dist.all_gather_object(pool.identity)
    for rank, identity in enumerate(others, start=1):
        if differences := [key for key in dict.fromkeys([*first, *identity]) if first.get(key) != identity.get(key)]:
            raise UsageError(
                f"the annotation workers of rank {rank} would label otherwise than those of rank 0: they differ in "
                f"{', '.join(differences)}. Give all nodes the same packages and files"
            )


def _new_line(console: Console) -> str:
    """Composer's progress bar leaves the cursor of a terminal at the end of its line."""
    return "\n" if console.is_terminal else ""


def _conclude(trainer: Trainer, pool: AnnotationPool) -> None:
    from composer.utils import dist
    from rich.console import Console

    from lacy_stream.train.monitor import StreamMonitor, describe_rate

    if dist.get_global_rank() == 0:
        console = Console(stderr=True, highlight=False)
        stats = pool.stats()
        console.print(_new_line(console) + describe_rate(stats, parsed=pool.settings.finds_facts), markup=False)
        if places := describe_places(stats):
            console.print(places, markup=False)
        for monitor in trainer.state.callbacks:
            if isinstance(monitor, StreamMonitor):
                console.print(monitor.summary, markup=False)
        for document, reason in pool.quarantine.items():
            console.print(f"no fact labels for {document!r}: {reason}", markup=False)
        for name, value in trainer.state.eval_metric_values.items():
            console.print(f"held-out {name}: {value:.3f} nats")
