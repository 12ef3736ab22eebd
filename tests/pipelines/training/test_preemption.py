"""From a notice to Ray's drain: waiting through outages, the command that is run, what is said when Ray refuses."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import UTC, datetime

import click
import pytest
import ray

from pipelines.errors import RayDetrError
from pipelines.training.instance_metadata import MetadataUnavailable, Notice
from pipelines.training.preemption import drain, drain_command, own_node, wait_for_notice

NOTICE = Notice("AWS will terminate this spot instance", 117.9)


class Stepped:
    """A clock that is moved by sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 11, 22, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Service:
    """A metadata service that answers what it was given, one answer a question."""

    cloud = "AWS"

    def __init__(self, *answers: Notice | MetadataUnavailable | None) -> None:
        self.answers = list(answers)

    def read_notice(self) -> Notice | None:
        answer = self.answers.pop(0)
        if isinstance(answer, MetadataUnavailable):
            raise answer
        return answer


def test_the_service_is_asked_until_there_is_a_notice() -> None:
    clock = Stepped()

    assert wait_for_notice(Service(None, None, NOTICE, None), poll_seconds=5, clock=clock) == NOTICE
    assert clock.slept == [5, 5]


def test_an_outage_is_said_once_and_waited_through(caplog: pytest.LogCaptureFixture) -> None:
    away = MetadataUnavailable("timed out")
    with caplog.at_level(logging.WARNING):
        assert wait_for_notice(Service(away, away, None, NOTICE), poll_seconds=5, clock=Stepped()) == NOTICE

    assert [record.message for record in caplog.records] == [
        "AWS's metadata service does not answer; trying again: timed out",
        "AWS's metadata service answers again",
    ]


def test_the_command_is_rays_own() -> None:
    assert drain_command("10.0.0.1:6379", "ab12", NOTICE) == [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", "10.0.0.1:6379", "--node-id", "ab12",
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS will terminate this spot instance",
        "--deadline-remaining-seconds", "117",
    ]  # fmt: skip
    assert "--deadline-remaining-seconds" not in drain_command("10.0.0.1:6379", "ab12", Notice("leave", None))


def test_ray_knows_the_options_of_the_command() -> None:
    from ray.scripts.scripts import drain_node

    options = {name: parameter for parameter in drain_node.params for name in parameter.opts}
    command = drain_command("10.0.0.1:6379", "ab12", NOTICE)

    assert {word for word in command if word.startswith("--")} <= set(options)
    reasons = options["--reason"].type
    assert isinstance(reasons, click.Choice)
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons.choices


def test_a_drain_is_tried_again_and_then_given_up_with_rays_words(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[list[str]] = []

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        tries.append(command)
        return subprocess.CompletedProcess(
            command, 1, "", "Traceback\nError: The drain request is not accepted: busy\n"
        )

    monkeypatch.setattr(subprocess, "run", refuse)
    clock = Stepped()

    with pytest.raises(RayDetrError) as caught:
        drain("10.0.0.1:6379", "ab12", NOTICE, clock=clock)

    assert str(caught.value) == (
        "Ray did not drain node ab12 (Error: The drain request is not accepted: busy). "
        "Its tasks will be lost with the machine."
    )
    assert tries == [drain_command("10.0.0.1:6379", "ab12", NOTICE)] * 3
    assert clock.slept == [1, 1]


def test_a_drain_that_hangs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def hang_once(command: list[str], *, timeout: float, **options: object) -> subprocess.CompletedProcess[str]:
        tries.append(timeout)
        if len(tries) == 1:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", hang_once)

    drain("10.0.0.1:6379", "ab12", NOTICE, clock=Stepped())

    assert tries == [20, 20]


def test_a_machine_without_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", nobody)

    with pytest.raises(
        RayDetrError, match=r"is not part of a Ray cluster \(Could not find any running Ray instance\.\)"
    ):
        own_node()
