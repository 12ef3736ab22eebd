"""Learning rate schedules: pure functions of a run's progress."""

import math
from dataclasses import dataclass
from typing import Literal

DROP_FACTOR = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """The factor of all learning rates.

    "step" is the paper's: divided by ten after every `drop` epochs. With `epochs` above twice `drop` it drops again, as
    in the original's StepLR. "cosine" is 1 until `constant_share` of the run, then half a cosine down to `last_rate`.
    Both rise linearly over the first `warm_up_steps`, which the paper does not use.
    """

    kind: Literal["step", "cosine"] = "step"
    epochs: int = 300
    drop: int = 200  # of "step": epochs between drops
    warm_up_steps: int = 0
    constant_share: float = 0.0  # of "cosine": share of all steps
    last_rate: float = 0.01  # of "cosine": share of the full rate

    def __post_init__(self) -> None:
        if self.kind not in ("step", "cosine"):
            raise ValueError(f"schedule {self.kind!r} is not known; use 'step' or 'cosine'")
        if self.epochs < 1 or self.drop < 1:
            raise ValueError(f"epochs {self.epochs} and drop {self.drop} must be 1 or more")
        if self.warm_up_steps < 0:
            raise ValueError(f"warm_up_steps {self.warm_up_steps} must be 0 or more")
        if not 0 <= self.constant_share < 1 or not 0 <= self.last_rate <= 1:
            raise ValueError(
                f"constant_share {self.constant_share} must be at least 0 and below 1, and last_rate {self.last_rate} "
                "in 0 .. 1"
            )

    def factor(self, *, epoch: int, step: int, share: float) -> float:
        """Return the factor of one step.

        Args:
            epoch: finished epochs, 0 in the first.
            step: finished steps of the optimiser in the whole run, 0 at the first.
            share: the finished share of the whole run, 0 to 1.
        """
        warm = min(1.0, (step + 1) / self.warm_up_steps) if self.warm_up_steps else 1.0
        if self.kind == "step":
            return warm * DROP_FACTOR ** (epoch // self.drop)
        if share <= self.constant_share:
            return warm
        falling = min(1.0, (share - self.constant_share) / (1 - self.constant_share))
        return warm * (self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * falling)))
