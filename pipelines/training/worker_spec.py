"""Arguments of a training worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The arguments of a worker.

    Attributes:
        config: the configuration of the run.
        configuration: the options that determine the weights, and what identifies the shards, for the run's record.
        start_id: identifies the execution of the command.
        versions: versions of this package and its dependencies, for the records.
        status: handle of the `pipelines.training.run_status.RunStatus` actor.
        threads: threads that decode and augment.
        scratch: a folder on the driver's machine for temporary files, which the driver removes.
    """

    config: TrainConfig
    configuration: dict[str, Any]
    start_id: str
    versions: dict[str, str]
    status: Any
    threads: int
    scratch: str
