"""The mini-batch over all ranks: its random numbers, and the masks that are selected among all of its targets.

Row b of rank r is row ``b * ranks + r`` of the mini-batch, because samplers and the stream's lanes deal rows out to the
ranks in turn. So the mini-batch has the same rows in the same order for any number of ranks, and so have its masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lacy_stream import distributed as dist
from lacy_stream.errors import UsageError
from lacy_stream.objective.methods import Scope
from lacy_stream.objective.selectors import Selection, Selector, Targets, budget


class Masks(NamedTuple):
    """The selection for rows of this rank, masks bool [B, T] or None; and ``learned_share``, a scalar: the targets that
    are not ignored, as a share of all targets among which the selection was made."""

    selection: Selection
    learned_share: Tensor

    def rows(self, start: int, count: int) -> Masks:
        """The masks of ``count`` rows from ``start`` on; the share remains that of the whole."""
        part = (None if mask_BT is None else mask_BT[start : start + count] for mask_BT in self.selection)
        return Masks(Selection(*part), self.learned_share)


def uniform(seed: int, step: int, like_BT: Tensor) -> Tensor:
    """Random numbers in [0, 1) for this rank's rows of a step's mini-batch, float32 [B, T] on the CPU. Those of the
    rows of all ranks together do not depend on how many ranks there are."""
    # Each pair of a seed and a step below a million has a generator of its own.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows, length = like_BT.shape
    # Every rank draws for all ranks. Flattened over B and R, the numbers are in the order of the mini-batch's rows.
    random_BRT = torch.rand(rows, dist.get_world_size(), length, generator=generator)
    return random_BRT[:, dist.get_global_rank()]


def select_masks(
    selector: Selector, targets: Targets, call_fraction: float, ignore_fraction: float, scope: Scope
) -> Masks:
    """The masks of these targets, selected among them and, with scope ``global``, those of all other ranks.

    Args:
        selector: which targets are called and which are ignored.
        targets: of this rank, [B, T].
        call_fraction, ignore_fraction: shares of the valid targets.
        scope: ``global`` is collective.

    Raises:
        UsageError: the selector returned something other than masks.
    """
    if scope != "global" or dist.get_world_size() == 1:
        return _apply_selector(selector, targets, call_fraction, ignore_fraction)
    # Every rank selects among all targets, and so finds the same masks, of which it keeps its own rows.
    masks = _apply_selector(selector, gather_targets(targets), call_fraction, ignore_fraction)
    own = (own_part(mask_MT, targets.valid) for mask_MT in masks.selection)
    return Masks(Selection(*own), masks.learned_share)


class RecentTargets:
    """The targets of the last microbatches of all ranks, as many as a step has: among them a microbatch is selected
    where the scope is ``running``. They are kept flattened, so that steps may have rows of other lengths."""

    def __init__(self) -> None:
        self._before: list[Targets] = []  # of the last step that was whole
        self._now: list[Targets] = []
        self._microbatches = 0

    def begin_step(self, microbatches: int) -> None:
        """Begin a step. One that was broken off, for lack of memory, leaves nothing."""
        self._before, self._now, self._microbatches = self.of_last_step(), [], microbatches

    def of_last_step(self) -> list[Targets]:
        """The targets of the last step that was whole, microbatch by microbatch, each [N]."""
        return self._now if self._now and len(self._now) == self._microbatches else self._before

    def restore(self, parts: Sequence[Targets]) -> None:
        """Continue after a step with these microbatches."""
        self._before, self._now = list(parts), []

    def add(self, targets: Targets) -> Targets:
        """The targets of the last microbatches and these ones, which are the last [N]."""
        earlier, new = self._before + self._now, _flattened([targets])
        self._now.append(new)
        return _flattened([*earlier[max(0, len(earlier) - self._microbatches + 1) :], new])


def _flattened(parts: Sequence[Targets]) -> Targets:
    """Several parts of the targets as one, of any shapes, [N], on the device of the last of them."""
    device = parts[-1].valid.device
    columns = [[value.flatten().to(device) for value in column if value is not None] for column in zip(*parts)]
    return Targets(*(torch.cat(column) for column in columns if column))


def select_running_masks(
    selector: Selector, targets: Targets, recent: RecentTargets, call_fraction: float, ignore_fraction: float
) -> Masks:
    """The masks of one microbatch, selected among its targets on all ranks and those of the microbatches before it.
    Collective. Arguments and errors as for ``select_masks``."""
    everyone = targets if dist.get_world_size() == 1 else gather_targets(targets)
    masks = _apply_selector(selector, recent.add(everyone), call_fraction, ignore_fraction)
    shape = everyone.valid.shape
    newest = (None if mask_N is None else mask_N[-shape.numel() :].view(shape) for mask_N in masks.selection)
    if everyone is not targets:
        newest = (own_part(mask_MT, targets.valid) for mask_MT in newest)
    return Masks(Selection(*newest), masks.learned_share)


def _apply_selector(selector: Selector, targets: Targets, call_fraction: float, ignore_fraction: float) -> Masks:
    counts = (budget(targets.valid, fraction) for fraction in (call_fraction, ignore_fraction))
    call, ignore = selector(targets, *counts)
    for name, mask in (("call", call), ("ignore", ignore)):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != targets.valid.shape):
            raise UsageError(
                f"the selector's {name} mask is {mask.dtype} {list(mask.shape)}: it must be bool, "
                f"{list(targets.valid.shape)}, as the targets are"
            )
    call = None if call is None else call & targets.valid
    ignore = None if ignore is None else ignore & targets.valid
    if call is not None and ignore is not None:
        ignore = ignore & ~call
    tokens = targets.valid.sum().clamp(min=1)
    learned = tokens if ignore is None else tokens - ignore.sum()
    return Masks(Selection(call, ignore), learned / tokens)


def gather_targets(targets: Targets) -> Targets:
    """The targets of all ranks, [M, T], where M is the number of ranks times the most rows of a rank and T the longest
    row. Places that a rank does not have are not valid."""
    parts = [part for part in targets if part is not None]
    # One array, so that there is one gathering. Classes and bools are exact in floating point.
    values_KBT = torch.stack([part.to(targets.loss.dtype) for part in parts])
    # All ranks must bring the same shape: pad to the largest. A padded place has valid = 0.
    rows, length = _largest(targets.valid)
    values_KBT = F.pad(values_KBT, (0, length - values_KBT.shape[2], 0, rows - values_KBT.shape[1]))
    values_KBRT = torch.stack(dist.all_gather(values_KBT), dim=2)
    # Flattened over B and R, row b of rank r comes to b * ranks + r.
    # The order of the fields of ``Targets``.
    loss, classes, valid, random, *rest = values_KBRT.flatten(1, 2)
    return Targets(loss, classes.to(torch.uint8), valid > 0, random, rest[0] if rest else None)


def own_part(mask_MT: Tensor | None, own_BT: Tensor) -> Tensor | None:
    """This rank's part of a mask over all ranks, of the shape of ``own_BT``: the inverse of ``gather_targets``."""
    if mask_MT is None:
        return None
    rows, length = own_BT.shape
    return mask_MT[dist.get_global_rank() :: dist.get_world_size()][:rows, :length]


def _largest(own_BT: Tensor) -> tuple[int, int]:
    """The most rows, and the greatest length, that a rank has."""
    rows, length = dist.all_reduce_on_host(list(own_BT.shape), "MAX")
    return int(rows), int(length)
