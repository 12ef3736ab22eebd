"""Metrics of training steps, summed over all workers between two lines of the log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import torch

from pipelines.training.collective import Collective
from pipelines.training.learner import Learner, StepResult

MEGA: Final = 1e6
GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Sums over all workers, exchanged before a step.

    Attributes:
        targets: number of target boxes.
        micro_batches: number of micro-batches.
        images: number of images.
        pixels: pixels of the images, without padding.
        surplus: target boxes beyond the number of queries.
        stopped: number of workers that must stop.
        checkpoint: 1 if a checkpoint is due by the clock of rank 0.
        notice: 1 if it is time to ask for a preemption notice.
        capped: 1 if a limit of time or cost is reached.
    """

    targets: float
    micro_batches: float
    images: float
    pixels: float
    surplus: float
    stopped: float
    checkpoint: float
    notice: float
    capped: float


class MetricsWindow:
    """Sums up the results of this worker's steps. `close` returns the line of all workers and resets the sums."""

    def __init__(self) -> None:
        self._begin()

    def add(self, result: StepResult, agreed: StepTotals, *, waited: float, seconds: float) -> None:
        """Add a step.

        Args:
            result: the result of this worker.
            agreed: the totals of all workers.
            waited: seconds for which this worker waited for images.
            seconds: duration of the step.
        """
        for name, value in result.parts.items():
            self._parts[name] += value
        self._micro_batches += result.micro_batches
        self._steps += 1
        self._gradient_norm += result.gradient_norm
        self._images += agreed.images
        self._pixels += agreed.pixels
        self._surplus += agreed.surplus
        self._waited += waited
        self._seconds += seconds

    def close(self, collective: Collective, learner: Learner) -> dict[str, float]:
        """Return the line of the log, the same on every worker. Collective: all workers must call it.

        Losses are means over micro-batches, `gradient_norm` is a mean over steps. Rates are those of all workers
        together, over the duration of the steps.
        """
        names = learner.part_names
        own = [*(self._parts[name] for name in names), self._micro_batches, self._waited, self._seconds]
        *parts, micro_batches, waited, seconds = collective.sum(own)
        line = {name: total / micro_batches for name, total in zip(names, parts, strict=True)}
        line |= {f"lr_{group['name']}": float(group["lr"]) for group in learner.optimizer.param_groups}
        line["gradient_norm"] = self._gradient_norm / self._steps
        line["images_per_second"] = self._images / self._seconds
        line["megapixels_per_second"] = self._pixels / self._seconds / MEGA
        line["surplus_targets"] = self._surplus
        line["data_wait_share"] = waited / seconds
        if learner.device.type == "cuda":
            line["gpu_memory_gib"] = torch.cuda.max_memory_allocated(learner.device) / GIB
        self._begin()
        return line

    def _begin(self) -> None:
        self._parts: dict[str, float] = defaultdict(float)
        self._steps = self._micro_batches = 0
        self._images = self._pixels = self._surplus = self._waited = self._seconds = self._gradient_norm = 0.0
