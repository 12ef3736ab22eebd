"""Figures of all workers' steps between two lines of the training log."""

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
    """Sums over all workers, known before a step.

    Attributes:
        targets: boxes that are to be found.
        micro_batches: of the step.
        images: of the step.
        pixels: of the images, without padding.
        surplus: boxes that no query is left for.
        stopped: workers that cannot go on.
        checkpoint: 1 when rank 0 finds that it is time for one.
        notice: 1 when rank 0 finds that it is time to ask for a preemption notice.
        capped: 1 when rank 0 knows that a limit of time or cost is reached.
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
    """Adds up what this worker's steps gave; `close` makes a line of all workers' and begins anew."""

    def __init__(self) -> None:
        self._begin()

    def add(self, result: StepResult, agreed: StepTotals, *, waited: float, seconds: float) -> None:
        """Add a step.

        Args:
            result: of this worker.
            agreed: of all workers.
            waited: seconds for which this worker waited for its images.
            seconds: that the step took in all.
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
        """Return the line of the log, the same at every worker; collective.

        Losses are means over micro-batches, `gradient_norm` over steps; rates are of all workers together, over the
        time that steps took.
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
