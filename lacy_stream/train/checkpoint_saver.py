"""Callbacks around the checkpoints of a run: only good ones are written, and the last good one is kept."""

from __future__ import annotations

import contextlib
import errno
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from composer import callbacks
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import get_save_filename
from composer.utils.file_helpers import format_name_with_dist
from torch import Tensor

from lacy_stream.errors import FileError
from lacy_stream.objective.step_check import LossError


class FiniteWeights(Callback):
    """Ends a run instead of writing a checkpoint whose weights, or moments of the optimizer, are NaN or infinite, and
    instead of ending well with such weights.

    It has to stand before what writes the checkpoints. Their last one stays as it is.

    Args:
        save_interval: of the checkpoints, as Composer's ``save_interval``.
    """

    def __init__(self, save_interval: str) -> None:
        self._is_due = create_interval_scheduler(save_interval)
        self._last_batch = -1  # after which the weights were looked at

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Look at all weights before a checkpoint. Collective.

        Raises:
            LossError: one of them is NaN or infinite, on some rank.
        """
        if self._is_due(state, Event.BATCH_CHECKPOINT):
            self._check(state, ", so no checkpoint was written")

    def fit_end(self, state: State, logger: Logger) -> None:
        """Look at all weights at the end, where no loss of a next batch would show them. Collective.

        Raises:
            LossError: one of them is NaN or infinite, on some rank.
        """
        self._check(state, "")

    def _check(self, state: State, consequence: str) -> None:
        if self._last_batch == state.timestamp.batch.value:
            return
        self._last_batch = state.timestamp.batch.value
        # The extremes of a tensor are found without a copy of it, and are NaN if one number is.
        extremes = [torch.stack(torch.aminmax(tensor)) for tensor in _trained_tensors(state)]
        unusable = [~torch.isfinite(pair).all() for pair in extremes]
        count = state.device.tensor_to_device(torch.tensor([0.0]))
        if unusable:
            count = torch.stack(unusable).sum(dtype=torch.float32).reshape(1).to(count.device)
        dist.all_reduce(count, "SUM")
        if count.item():
            raise LossError(
                f"after batch {state.timestamp.batch.value}, weights of the model or moments of the optimizer are NaN "
                f"or infinite{consequence}. Start from the last checkpoint, with a lower learning rate or gradient "
                "clipping"
            )


def _trained_tensors(state: State) -> Iterator[Tensor]:
    """The parameters, and what the optimizers keep for each weight, as far as this rank has them."""
    shapes = {parameter: parameter.shape for parameter in state.model.parameters()}
    kept: Iterable[Tensor] = (
        value
        for optimizer in state.optimizers
        for parameter, values in optimizer.state.items()
        for value in values.values()
        if isinstance(value, Tensor) and value.shape == shapes.get(parameter)  # pyright: ignore[reportArgumentType]
    )
    for tensor in (*shapes, *kept):
        to_local = getattr(tensor, "to_local", None)  # of a DTensor of FSDP
        local: Tensor = tensor if to_local is None else to_local()
        if local.is_floating_point() and local.numel():  # a rank may have no part of a small tensor
            yield local.detach()


class CheckpointSaver(callbacks.CheckpointSaver):
    """Composer's, for a local folder, with three differences. (The name is Composer's, since checkpoints hold it.)

    - An older checkpoint is deleted only when the losses of the batch after a newer one were finite: weights that are
      of no use may be finite numbers, and show in the next loss.
    - The checkpoints that earlier processes of the run have left count among those to keep.
    - If a checkpoint cannot be written, its half file is deleted, and the error says what to do.
    """

    _sharded = False
    _is_due = False

    def fit_start(self, state: State, logger: Logger) -> None:
        super().fit_start(state, logger)
        if dist.get_global_rank() == 0:
            self.saved_checkpoints = [*self._earlier(state), *self.saved_checkpoints]

    def batch_end(self, state: State, logger: Logger) -> None:
        super().batch_end(state, logger)
        self._delete_old()

    def fit_end(self, state: State, logger: Logger) -> None:
        super().fit_end(state, logger)
        self._delete_old()

    def _earlier(self, state: State) -> list[str]:
        """What earlier processes of this run have saved up to here, the oldest first, as far as it is still there."""
        folder, found = Path(format_name_with_dist(self.folder, state.run_name)), []
        for name, timestamp in self.all_saved_checkpoints_to_timestamp.items():
            sharded = state.fsdp_sharded_state_dict_enabled
            path = folder.joinpath(*Path(name).parts[-2:]) if sharded else folder / Path(name).name
            if timestamp.batch <= state.timestamp.batch and path.exists() and str(path) not in self.saved_checkpoints:
                found.append(str(path))
        return found

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        try:
            super()._save_checkpoint(state, logger)
        except Exception as error:
            reason = _why_not_written(error)
            if reason is None:
                raise
            half = Path(get_save_filename(state, self.filename.format(state, keep_placeholders=True)))
            with contextlib.suppress(OSError):
                if not zipfile.is_zipfile(half):  # a whole one ends with the directory of an archive
                    half.unlink()
            free = shutil.disk_usage(half.parent).free if half.parent.is_dir() else 0
            raise FileError(
                f"save_folder: the checkpoint {half.name} cannot be written: {reason}. {half.parent} has "
                f"{free / 1e9:.2f} GB free. Make room there, and start the same command again: with autoresume=true it "
                "continues from the last whole checkpoint"
            ) from error

    def _rotate_checkpoints(self, sharding_enabled: bool = False) -> None:
        self._sharded, self._is_due = sharding_enabled, True

    def _delete_old(self) -> None:
        if not self._is_due:
            return
        self._is_due = False
        while len(self.saved_checkpoints) > self.num_checkpoints_to_keep:
            old = Path(self.saved_checkpoints.pop(0))
            if not self._sharded:
                old.unlink(missing_ok=True)
            elif dist.get_global_rank() == 0:
                shutil.rmtree(old.parent, ignore_errors=True)


def _why_not_written(error: BaseException | None) -> str | None:
    """Why a file could not be written; None for an error of another kind. PyTorch's writer of archives replaces the
    system's error by one of its own, ``enforce fail at inline_container``."""
    archive = False
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, FileExistsError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{error.strerror or error}{' (the disk is full, or a quota is used up)' if full else ''}"
        archive |= isinstance(error, RuntimeError) and "inline_container" in str(error)
        error = error.__cause__ or error.__context__
    return "the disk took only a part of it" if archive else None
