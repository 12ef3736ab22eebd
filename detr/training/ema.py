"""The moving average of a model's weights, which detects better than the last weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from detr.checkpoints.layouts import CheckpointError, summary, wrong_tensors
from detr.model import Detr

UPDATES = "updates"
"""The key of the number of updates in `MovingAverage.state_dict`."""


class MovingAverage:
    """An exponential moving average of all weights that affect detections, including batch-norm statistics.

    The decay rises with the steps, so that the influence of the initial random weights vanishes quickly: min(decay, (1
    + updates) / (20 + updates)).
    """

    def __init__(self, model: Detr, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)  # in evaluation mode

    @torch.no_grad()
    def update(self, model: Detr, *, was_taken: Tensor | None = None) -> None:
        """Update the average with the weights after one more step, on the average's device.

        Args:
            model: whose weights.
            was_taken: `()` bool, on the device: if False, the averages do not change, though the update counts until
                `forget_update`. None is True.
        """
        decay = min(self.decay, (1 + self.updates) / (20 + self.updates))
        current = model.state_dict()
        averages, values = [], []
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name])
            else:  # a trainable norm's count of batches
                average.copy_(current[name])
        if was_taken is None:
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # a weight whose value is only on the device
            changes = torch._foreach_sub(values, averages)  # noqa: SLF001 - as torch.optim's own average does
            torch._foreach_mul_(changes, was_taken * (1 - decay))
            torch._foreach_add_(averages, changes)
        self.updates += 1

    def forget_update(self) -> None:
        """Decrease the number of updates, because the step of the last one was not taken."""
        self.updates -= 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by the model's names (not copies), and the number of updates as `UPDATES`."""
        return {UPDATES: torch.tensor(self.updates), **self.model.state_dict()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Restore the state that `state_dict` returned.

        Args:
            tensors: exactly the tensors of the state.
            source: name of the file in error messages.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of a wrong shape.
        """
        wrong = wrong_tensors(
            tensors, {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}, floating=False
        )
        if wrong:
            raise CheckpointError(
                f"checkpoint {source}: {summary(wrong)}. Its moving average belongs to another network."
            )
        self.model.load_state_dict({name: tensor for name, tensor in tensors.items() if name != UPDATES})
        self.updates = int(tensors[UPDATES])
