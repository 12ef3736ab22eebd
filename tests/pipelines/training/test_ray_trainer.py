"""What the driver does while Ray Train runs the workers."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines.caps import Caps, Meter
from pipelines.training import ray_trainer
from pipelines.training.run_status import RunStatus


class Handle:
    """A `RunStatus` that is called like an actor."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._status, name))


def test_notes_of_workers_reach_the_user_also_those_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray_trainer, "POLL_SECONDS", 0.01)
    status, said = RunStatus(5), list[str]()

    with ray_trainer._watched(Handle(status), lambda _: None, said.append, Meter(Caps())):
        status.note("tracker wandb failed")
        ends = time.monotonic() + 10
        while not said and time.monotonic() < ends:
            time.sleep(0.01)
        during = list(said)
        status.note("tracker mlflow failed")

    assert during == ["tracker wandb failed"]
    assert said == ["tracker wandb failed", "tracker mlflow failed"]
