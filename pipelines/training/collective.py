"""Collective operations between training workers on small values in CPU memory, separate from the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

BARRIER_SECONDS: Final = (
    6 * 3600.0
)  # one worker computes metrics while the others wait, which may take hours with pycocotools


class Collective:
    """A gloo process group of all workers. Every worker must make the same calls in the same order."""

    def __init__(self, *, seconds: int) -> None:
        """Create the process group.

        Args:
            seconds: How long workers wait for each other.
        """
        self.rank = dist.get_rank()
        self.workers = dist.get_world_size()
        self._group = _new_group(seconds)
        self._slow_group = _new_group(BARRIER_SECONDS)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sums over all workers, in float64: counts are exact."""
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self._group)
        return [float(value) for value in summed.tolist()]

    def barrier(self) -> None:
        """Wait for all workers, up to six hours. Raises RuntimeError if one is lost."""
        dist.barrier(group=self._slow_group)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers by rank on rank 0, and an empty list on other ranks."""
        gathered: list[Any] | None = [None] * self.workers if self.rank == 0 else None
        dist.gather_object(value, gathered, dst=0, group=self._group)
        return gathered or []

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0 on every worker."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]


def _new_group(seconds: float) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    assert isinstance(group, dist.ProcessGroup), "every worker is a member"
    return group
