"""The mini-batch over all ranks.

Row r of rank k is row ``r * ranks + k`` of the mini-batch, as samplers and the stream's lanes deal rows out.
Axes: R rows of the mini-batch, B rows of this rank, T positions of a row, S signals of ``Targets``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lacy_stream import distributed as dist
from lacy_stream.objective.selectors import Targets


def uniform(seed: int, step: int, like_BT: Tensor) -> Tensor:
    """Random numbers in [0, 1) for this rank's rows of a step's mini-batch, float32 [B, T] on the CPU. Those of the
    rows of all ranks together do not depend on how many ranks there are."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows, length = like_BT.shape
    return torch.rand(rows, dist.get_world_size(), length, generator=generator)[:, dist.get_global_rank()]


def gathered(targets: Targets) -> Targets:
    """The targets of all ranks, [R, T], where R is the number of ranks times the most rows of a rank and T the longest
    row. Places that a rank does not have are not valid."""
    parts = [part for part in targets if part is not None]
    values_SBT = torch.stack([part.to(targets.loss.dtype) for part in parts])
    # All ranks must bring the same shape: pad to the largest. A padded place has valid = 0.
    rows, length = _largest(targets.valid)
    values_SBT = F.pad(values_SBT, (0, length - values_SBT.shape[2], 0, rows - values_SBT.shape[1]))
    # Stacked to [S, B, ranks, T] and flattened over B and ranks, so that row r of rank k comes to r * ranks + k.
    loss, classes, valid, random, *rest = torch.stack(list(dist.all_gather(values_SBT)), dim=2).flatten(1, 2)
    return Targets(loss, classes.to(torch.uint8), valid > 0, random, rest[0] if rest else None)


def own_part(mask_RT: Tensor | None, own_BT: Tensor) -> Tensor | None:
    """This rank's part of a mask over all ranks, of the shape of ``own_BT``."""
    if mask_RT is None:
        return None
    rows, length = own_BT.shape
    return mask_RT[dist.get_global_rank() :: dist.get_world_size()][:rows, :length]


def _largest(own_BT: Tensor) -> tuple[int, int]:
    """The most rows, and the greatest length, that a rank has."""
    shape = torch.tensor(own_BT.shape, device=own_BT.device)
    dist.all_reduce(shape, "MAX")
    rows, length = shape.tolist()
    return rows, length
