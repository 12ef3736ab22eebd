"""What Ray Train's controller reports of the workers. Ray's own loop decides what happens to them."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.preemption import PreemptionInfo

from pipelines.training.controller_states import ControllerStates
from pipelines.training.ray_trainer import resize_seconds
from pipelines.training.run_status import RunStatus

FOUR = SchedulingState(ResizeDecision(num_workers=4, resources_per_worker={"CPU": 1.0}))
LOST = WorkerHealthCheckFailedError("not healthy", RayActorError(error_msg="its node has died", preempted=True))
STOPPED = "the limit is reached, and no worker is running. Run the same command again to resume."


class Handle:
    """A `RunStatus` that is called like an actor."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._status, name))


@pytest.fixture(autouse=True)
def controller(monkeypatch: pytest.MonkeyPatch) -> str:
    handle = "the controller"
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=handle))
    return handle


def pass_through(status: RunStatus, *states: TrainControllerState) -> None:
    states_of = ControllerStates(Handle(status))
    for before, after in pairwise(states):
        states_of.after_controller_state_update(before, after)


def stage(status: RunStatus) -> str:
    progress = status.read()[0]
    assert progress is not None
    return progress.stage


def preempted() -> PreemptionError:
    return PreemptionError(PreemptionInfo(1, {"node": [1]}), drain_timed_out=True)


def test_a_lost_host_is_one_failure_however_often_ray_asks_its_workers() -> None:
    status = RunStatus(2)
    status.begin(40)
    polls = iter(
        [WorkerGroupPollStatus({0: WorkerStatus(running=True), 1: WorkerStatus(running=False, error=LOST)})] * 9
    )
    controller = object.__new__(TrainController)
    controller._controller_callback_manager = CallbackManager([ControllerStates(Handle(status))])
    controller._failure_policy = create_failure_policy(FailureConfig(max_failures=-1))
    controller._run_config = SimpleNamespace(failure_config=FailureConfig())
    controller._run_attempt_id = "first"
    ends = int((time.time() + 100) * 1000)
    controller._state = PreemptingState(PreemptionInfo(ends, {"node": [1]}), time.time())

    async def poll() -> WorkerGroupPollStatus:
        return next(polls)

    controller._poll_workers = poll
    for _ in range(8):
        asyncio.run(controller._run_control_loop_iteration())
    assert isinstance(controller.get_state(), PreemptingState)
    controller._state = PreemptingState(PreemptionInfo(1, {"node": [1]}), time.time())  # its time is over
    asyncio.run(controller._run_control_loop_iteration())

    assert isinstance(controller.get_state(), RestartingState)
    assert status.read()[1] is None
    assert stage(status) == "waiting for workers (a machine was taken back)"
    assert status.begin(40) is None


def test_errors_of_workers_are_failures_with_their_last_lines() -> None:
    status = RunStatus(1)
    status.begin(7)
    errors: dict[int, Exception] = {1: ValueError("Traceback ...\nkilled"), 0: ValueError("a peer was lost")}

    pass_through(status, RunningState(), RunningState(), RestartingState(WorkerGroupError("", errors)), FOUR)

    assert "(worker 0: a peer was lost; worker 1: killed)" in str(status.begin(7))


@pytest.mark.parametrize(
    "states",
    [
        (RunningState(), PreemptingState(PreemptionInfo(1, {"node": [1]}), 0.0), RestartingState(preempted()), FOUR),
        (RunningState(), ResizingState(FOUR.scaling_decision), FOUR),
    ],
    ids=["a machine is taken back", "another number of workers"],
)
@pytest.mark.parametrize("is_capped_before", [True, False])
def test_a_limit_stops_a_run_that_waits_for_room(
    states: tuple[TrainControllerState, ...], is_capped_before: bool
) -> None:
    status = RunStatus(5)
    status.begin(0)
    if is_capped_before:
        status.cap("the limit is reached")

    pass_through(status, *states)

    if not is_capped_before:
        assert status.read()[1] is None
        assert stage(status).startswith("starting 4 workers as soon as there is room (")
        status.cap("the limit is reached")
    assert (status.read()[1], status.stopped_at_cap()) == (STOPPED, (True, None))


@pytest.mark.parametrize(("minutes", "seconds"), [(0.1, 60.0), (10.0, 900.0), (float("inf"), float("inf"))])
def test_workers_do_not_grow_more_often_than_they_write_checkpoints(minutes: float, seconds: float) -> None:
    assert resize_seconds(minutes) == seconds


def test_the_controller_can_be_ended_from_every_thread(controller: str) -> None:
    status = RunStatus(5)
    assert status.controller() is None

    pass_through(status, FOUR, RunningState())

    assert status.controller() == controller
    assert stage(status) == "starting workers"
