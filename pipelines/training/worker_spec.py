"""Arguments of a training worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is started with.

    Attributes:
        config: of the run.
        configuration: what the run's record says decides the outcome: the config's, and which shards these are.
        start_id: of the driver's start; whoever claims the run later ends this one.
        versions: of the code, for the records.
        board: the driver's actor of `pipelines.training.run_status.RunStatus`.
        threads: that decode and augment.
        scratch: a folder on the driver's machine for temporary files, which the driver removes in the end.
    """

    config: TrainConfig
    configuration: dict[str, Any]
    start_id: str
    versions: dict[str, str]
    board: Any
    threads: int
    scratch: str
