"""Reports to `RunStatus` what Ray Train's controller does with the workers."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import PreemptionError, WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)


class ControllerStates(ControllerCallback):
    """Reports when the workers end, why, and for how many the controller waits; runs in the controller.

    The errors of a worker group are reported once, when the group is given up: while a machine is being taken back, Ray
    asks the workers every two seconds, and each answer has the errors of those that are lost already.
    """

    def __init__(self, status: Any) -> None:
        """Report to the handle of a `RunStatus` actor."""
        self._status = status
        self._is_known = False

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Report a new state; Ray calls this after every iteration of its loop."""
        if not self._is_known:
            self._is_known = True
            self._status.controlled_by.remote(ray.get_runtime_context().current_actor)
        if type(previous_state) is type(current_state):
            return
        if isinstance(current_state, RestartingState):
            error = current_state.training_failed_error
            if isinstance(error, WorkerGroupError):
                self._status.fail.remote(_sentence(error))
            why = "a machine was taken back" if isinstance(error, PreemptionError) else "workers were lost"
            self._status.end_group.remote(why)
        elif isinstance(current_state, ResizingState):
            self._status.end_group.remote("the cluster has room for another number of workers")
        elif isinstance(current_state, ReschedulingState):
            self._status.end_group.remote("workers could not be started")
        elif isinstance(current_state, SchedulingState):
            self._status.wait_for.remote(getattr(current_state.scaling_decision, "num_workers", None))
        elif isinstance(current_state, RunningState) and isinstance(previous_state, SchedulingState):
            self._status.wait_for.remote(None)


def last_line(error: BaseException) -> str:
    """Return the last line of an error; remote errors begin with a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _sentence(error: WorkerGroupError) -> str:
    said = [f"worker {rank}: {last_line(one)}" for rank, one in sorted(error.worker_failures.items())]
    return "; ".join(dict.fromkeys(said))
