"""The ranks of a run, by torch.distributed: the stream and the objective work under any trainer.

Before the process group is made, the rank and the world size are those that the launcher put into the environment
(RANK and WORLD_SIZE, as torchrun and Composer's launcher do), and 0 of 1 without a launcher.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def get_global_rank() -> int:
    return dist.get_rank() if _is_initialized() else int(os.environ.get("RANK", 0))


def get_world_size() -> int:
    return dist.get_world_size() if _is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def all_reduce(tensor: Tensor, operation: str) -> None:
    """Replace the tensor by its "SUM", "MIN" or "MAX" over the ranks."""
    if _is_parallel():
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))


def all_reduce_on_host(values: Sequence[float], operation: str) -> list[float]:
    """The "SUM", "MIN" or "MAX" of numbers that the host knows, over the ranks: nothing waits for a GPU. Collective."""
    if not _is_parallel():
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(reduced, getattr(dist.ReduceOp, operation), group=_group_of_hosts(dist.group.WORLD))
    return reduced.tolist()


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks, by rank. They must be of one shape and dtype."""
    if not _is_parallel():
        return [tensor]
    gathered = [tensor.new_empty(tensor.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return gathered


def all_gather_object(value: T) -> list[T]:
    """The values of all ranks, by rank. They are pickled."""
    if not _is_parallel():
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


@functools.lru_cache(maxsize=1)
def _group_of_hosts(world: object) -> dist.ProcessGroup | None:
    """All ranks of the world, in a group that reduces tensors on the CPU, as that of NCCL does not. Collective."""
    return None if "gloo" in dist.get_backend_config() else dist.new_group(backend="gloo")


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_parallel() -> bool:
    """Whether there are several ranks, which then must have made a process group.

    Raises:
        RuntimeError: a launcher has started several ranks, and there is no process group yet.
    """
    if get_world_size() == 1:
        return False
    if not _is_initialized():
        raise RuntimeError(
            f"WORLD_SIZE says that there are {get_world_size()} ranks, but torch.distributed has no process group: "
            "call torch.distributed.init_process_group, or composer.utils.dist.initialize_dist, first"
        )
    return True
