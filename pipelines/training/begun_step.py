"""A training step that the device may still be computing, and its error messages."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import RayDetrError
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.learner import PendingStep, StepResult
from pipelines.training.metrics import StepTotals
from pipelines.training.recipe import Recipe


class LeftPeers(RayDetrError):
    """This worker cannot take part in a step that its peers are in: they wait until somebody ends them."""


@dataclass(frozen=True, slots=True)
class BegunStep:
    """A step that was given to the device, and what is logged of it once it is done.

    Attributes:
        step: gives its result.
        position: before it.
        agreed: of all workers.
        waited: seconds for which this worker waited for its images.
        seconds: that the host was busy with it.
    """

    step: PendingStep
    position: TrainingPosition
    agreed: StepTotals
    waited: float
    seconds: float


def refuse_step(result: StepResult, position: TrainingPosition, recipe: Recipe, *, speaks_for_all: bool) -> None:
    """Stop all workers, which see the same gradients; who had the images that gave them says which they were.

    Args:
        result: of this worker.
        position: before the step.
        recipe: of the run.
        speaks_for_all: no worker's losses are to blame, and this one says so.

    Raises:
        RayDetrError: this worker had them, or speaks for all.
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
    """Return what a run is stopped with when a micro-batch does not fit into the memory of a device."""
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
