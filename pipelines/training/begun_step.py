"""A training step that the device may still be computing, and its error messages."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import RayDetrError
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.learner import PendingStep, StepResult
from pipelines.training.metrics import StepTotals
from pipelines.training.recipe import Recipe


class LeftPeers(RayDetrError):
    """This worker cannot take part in a step that its peers have begun; they wait until Ray Train ends them."""


@dataclass(frozen=True, slots=True)
class BegunStep:
    """A step that the device computes, with the figures for the log.

    Attributes:
        step: returns the result.
        position: the position before the step.
        agreed: the totals of all workers.
        waited: seconds for which this worker waited for images.
        seconds: seconds that the host spent on the step.
    """

    step: PendingStep
    position: TrainingPosition
    agreed: StepTotals
    waited: float
    seconds: float


def refuse_step(result: StepResult, position: TrainingPosition, recipe: Recipe, *, speaks_for_all: bool) -> None:
    """Raise the error of a step with a non-finite gradient, on the worker whose images caused it.

    Args:
        result: the result of this worker.
        position: the position before the step.
        recipe: the recipe of the run.
        speaks_for_all: whether this worker reports the error because the loss was finite on all workers.

    Raises:
        RayDetrError: the images were this worker's, or `speaks_for_all`.
    """
    if speaks_for_all:
        raise RayDetrError(
            f"training diverged in epoch {position.epoch}, step {position.step:,}: the gradients are NaN or infinite, "
            "though every loss is finite. Lower the learning rate or the factors of the losses; the last checkpoint is "
            "kept."
        )
    if result.out_of_memory is not None:
        raise RayDetrError(out_of_memory(result.out_of_memory, position, recipe))
    if result.diverged is not None:
        ids, why = result.diverged
        raise RayDetrError(
            f"training diverged in epoch {position.epoch}, step {position.step:,}: {why}. Images of that micro-batch: "
            f"{', '.join(map(str, ids))}. Look at their boxes, or lower the learning rate; the last checkpoint is kept."
        )


def out_of_memory(what: str, position: TrainingPosition, recipe: Recipe) -> str:
    """Return the error message for a micro-batch that does not fit into the memory of a device."""
    smaller = next((size for size in range(recipe.batch_size // 2, 0, -1) if recipe.effective_batch % size == 0), None)
    remedy = (
        f"Give --batch-size {smaller} (it is {recipe.batch_size}) and another --name: the effective batch stays "
        f"{recipe.effective_batch} images, in more micro-batches"
        if smaller is not None
        else "Even one image at a time is too much: use smaller --scales, --bf16, or a larger GPU"
    )
    return (
        f"out of device memory in epoch {position.epoch}, step {position.step:,}: {what}. {remedy}; "
        "the last checkpoint is kept."
    )
