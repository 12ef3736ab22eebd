"""Runs Ray Train: starts and restarts workers until the run is finished or must stop."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final

import ray
import ray.exceptions
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.caps import Meter
from pipelines.cluster import silenced
from pipelines.concurrently import repeating
from pipelines.errors import CapReached, RayDetrError
from pipelines.training.config import TrainConfig
from pipelines.training.controller_states import ControllerStates, last_line
from pipelines.training.process_group import ProcessGroupConfig
from pipelines.training.run_status import RunStatus, TrainProgress
from pipelines.training.worker import train_worker
from pipelines.training.worker_group import Group
from pipelines.training.worker_spec import WorkerSpec

POLL_SECONDS: Final = 0.5
LEAST_RESIZE_SECONDS: Final = 60.0  # Ray's own
LEAVE_SECONDS: Final = 60.0  # time for workers to end when the run must stop


def fit(
    config: TrainConfig,
    group: Group,
    configuration: dict[str, Any],
    show: Callable[[TrainProgress], None],
    say: Callable[[str], None],
    *,
    start_id: str,
    versions: dict[str, str],
    scratch: str,
    meter: Meter,
) -> tuple[int, ...]:
    """Run the workers in Ray Train until the last epoch; return the steps at which they were started.

    Args:
        config: the configuration of the run.
        group: number and resources of the workers.
        configuration: the options that determine the weights, for the run's record.
        show: called with the progress of the workers.
        say: called with their notes for the user.
        start_id: identifies this execution of the command.
        versions: versions of this package and its dependencies, for the records.
        scratch: a folder for temporary files, which is removed after Ray has ended.
        meter: checks limits on time and cost.

    Raises:
        CapReached: a limit is reached; a checkpoint is written.
        RayDetrError: the run must stop, or the workers failed too often.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    status: Any = ray.remote(RunStatus).options(num_cpus=0, scheduling_strategy=here).remote(config.restarts)
    spec = WorkerSpec(config, configuration, start_id, versions, status, group.threads, scratch)
    quiet = nullcontext() if config.verbose else silenced()
    with quiet:
        while True:
            trainer = _trainer(group, spec)
            failed = None
            with _watched(status, show, say, meter):
                try:
                    trainer.fit()
                except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                    failed = error
            _, stopped, finished, starts = ray.get(status.read.remote())
            if stopped is not None:
                is_capped, step = ray.get(status.stopped_at_cap.remote())
                raise CapReached(stopped, step=step) if is_capped else RayDetrError(stopped)
            if finished:
                return tuple(starts)
            # Ray Train (2.60) gives up if workers are lost while they connect to each other: start it again, and count
            ray.get(status.fail.remote(last_line(failed) if failed else "the workers ended without a message"))


class _Trainer(TorchTrainer):
    """Ray Train's trainer without its handler of Ctrl-C, which ends the process with another exit code."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _trainer(group: Group, spec: WorkerSpec) -> _Trainer:
    """Return the trainer, which restarts workers until they end by themselves."""
    return _Trainer(
        lambda given: train_worker(given["spec"]),
        train_loop_config={"spec": spec},
        torch_config=ProcessGroupConfig(
            backend="nccl" if group.uses_gpu else "gloo", timeout_s=spec.config.collective_seconds
        ),
        # the annotations that ray.train shows are those of its first version
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            # two numbers are elastic
            num_workers=(group.least, group.most) if group.most > group.least else group.most,  # type: ignore[arg-type]
            use_gpu=group.uses_gpu,
            resources_per_worker=dict(group.resources),
            elastic_resize_monitor_interval_s=resize_seconds(spec.config.checkpoint_minutes),
        ),
        run_config=RunConfig(
            name=f"{spec.start_id}-{secrets.token_hex(2)}",
            storage_path=spec.scratch,  # for Ray's own checkpoints; the workers write those of the run
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[ControllerStates(spec.status)],  # type: ignore[list-item]
        ),
    )


def resize_seconds(checkpoint_minutes: float) -> float:
    """Return the time between two looks for room for more workers: growth discards the steps since a checkpoint.

    It is longer than the time between two checkpoints, so that there is one between two restarts.
    """
    return max(LEAST_RESIZE_SECONDS, 1.5 * 60 * checkpoint_minutes)


@contextmanager
def _watched(
    status: Any, show: Callable[[TrainProgress], None], say: Callable[[str], None], meter: Meter
) -> Iterator[None]:
    """Show progress and notes while the driver waits for Ray Train, and end Ray Train if the run must stop.

    Workers end by themselves within a minute, unless they have never begun.
    """
    ends: float | None = None

    def watch() -> bool:
        nonlocal ends
        try:
            if meter.reached.is_set():
                status.cap.remote(meter.reason)
            (progress, stopped, _, _), notes = ray.get([status.read.remote(), status.take_notes.remote()])
        except ray.exceptions.RayError:  # the cluster has ended: waiting for Ray Train raises the error
            return False
        for note in notes:
            say(note)
        if progress is not None:
            show(progress)
        if stopped is not None and ends is None:
            ends = time.monotonic() + LEAVE_SECONDS
        if ends is not None and time.monotonic() > ends:
            controller = ray.get(status.controller.remote())
            if controller is not None:
                ray.kill(controller)
                return False
        return True

    with repeating(watch, seconds=POLL_SECONDS, name="watch"):
        yield
    with suppress(ray.exceptions.RayError):  # the cluster has ended
        for note in ray.get(status.take_notes.remote()):
            say(note)
