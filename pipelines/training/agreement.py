"""Values that all workers of a training run agree on: one small sum for each step, in CPU memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

PATIENT_SECONDS: Final = 6 * 3600.0  # for the official evaluator, which one worker asks while the others wait


class Agreement:
    """A channel between the workers besides that of the gradients; every worker makes it, in the same place.

    Calls are collective: every worker must make the same ones in the same order.
    """

    def __init__(self, *, seconds: int) -> None:
        """Open the channel.

        Args:
            seconds: that a worker may keep the others waiting.
        """
        self.rank = dist.get_rank()
        self.workers = dist.get_world_size()
        self._group = _new_group(seconds)
        self._patient = _new_group(PATIENT_SECONDS)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all workers, in float64: counts are exact."""
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self._group)
        return [float(value) for value in summed.tolist()]

    def meet(self) -> None:
        """Wait until every worker is here, though one has long work to do; a lost one is noticed all the same."""
        dist.barrier(group=self._patient)

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value by rank, at rank 0; nothing elsewhere."""
        gathered: list[Any] | None = [None] * self.workers if self.rank == 0 else None
        dist.gather_object(value, gathered, dst=0, group=self._group)
        return gathered or []

    def spread(self, value: Any) -> Any:
        """Return rank 0's value everywhere."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]


def _new_group(seconds: float) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    assert isinstance(group, dist.ProcessGroup), "every worker is a member"
    return group
