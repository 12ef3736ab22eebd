"""Training runs on two hosts, of which one is lost or about to be: they go on with the other, to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import detr
from detr.scenes.files import write_scenes
from pipelines.shards.config import ShardConfig
from pipelines.shards.sharding import shard
from pipelines.store import open_store
from pipelines.training.checkpoints import latest_checkpoint
from tests.faults.conftest import ROOT
from tests.faults.two_hosts import NEEDED, SOON, TwoHosts, preemption, two_hosts
from tests.waiting import wait_until

pytestmark = [*NEEDED, pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

ONE_EACH = {"HEAD_CPUS": "1", "WORKER_CPUS": "1", **SOON}  # room for one worker on each host


def write_data(folder: Path, *, steps: int) -> Path:
    """Write training shards for an epoch of so many steps, each of 4 images, and return the folder."""
    truth = write_scenes(folder / "pictures", steps * 4, 5, sizes={(96, 128): 1})
    shard(ShardConfig(annotations=str(truth), images=str(folder / "pictures"), out=str(folder / "shards")))
    return folder


@contextmanager
def training(hosts: TwoHosts, data: Path, name: str, workers: str, *, minutes: str) -> Iterator[subprocess.Popen[str]]:
    """Run `ray-detr train` on the head for an epoch; it does not outlive the block."""
    command = [*hosts.python("head"), "-m", "jobs.train", "--train", str(data / "shards"), "--name", name]
    command += ["--storage", str(data), "--shared-folders", "--num-workers", workers, "--checkpoint-minutes", minutes]
    command += ["--recipe", "finetune", "--finetune", "scenes", "--epochs", "1", "--effective-batch", "4"]
    command += ["--batch-size", "2", "--device", "cpu", "--log-steps", "1", "--json"]
    environment = {**os.environ, "RAY_ADDRESS": hosts.address}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def finish(driver: subprocess.Popen[str]) -> list[int]:
    """Wait for the end of a run, which must be a good one, and return the steps at which workers were started."""
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    summary = json.loads(out)
    assert summary["epochs"] == 1
    starts: list[int] = summary["starts"]
    return starts


def newest_checkpoint(run: Path) -> int:
    """Return the step of the newest complete checkpoint of a run; -1 before there is one."""
    saved = latest_checkpoint(open_store(str(run))) if run.exists() else None
    return -1 if saved is None else saved.step


def logged(run: Path) -> list[list[int]]:
    """Return the steps in the log of each start, earlier starts first."""
    files = [file.read_text().splitlines() for file in sorted(run.glob("logs/steps-*.jsonl"))]
    return [[line["step"] for line in map(json.loads, lines) if "loss" in line] for lines in files]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(detr.load(run / "model").state_dict())


def test_a_run_that_loses_a_host_inside_an_epoch_ends_with_the_weights_of_one_worker_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    steps = 60
    data = write_data(tmp_path, steps=steps)
    with two_hosts(monkeypatch, **ONE_EACH) as hosts:
        with training(hosts, data, "alone", "1", minutes="inf") as driver:
            assert finish(driver) == [0]
        with training(hosts, data, "elastic", "1:2", minutes="1e-6") as driver:
            wait_until(lambda: newest_checkpoint(data / "elastic") >= 5, 180, "a checkpoint of step 5")
            struck = time.monotonic()
            hosts.do("kill-host")
            first, second = finish(driver)
            seconds = time.monotonic() - struck

    report(line="training on two hosts, one SIGKILL", starts=[first, second], steps=steps, seconds=seconds)
    assert first == 0
    assert 5 <= second < steps  # inside the first epoch, and with one worker where there were two
    before, after = logged(data / "elastic")
    assert before[:second] == list(range(1, second + 1))
    assert after == list(range(second + 1, steps + 1))
    alone, elastic = weights(data / "alone"), weights(data / "elastic")
    assert alone.keys() == elastic.keys()
    for name, value in alone.items():
        assert torch.equal(value, elastic[name]), name


def test_a_preemption_notice_leads_to_a_checkpoint_before_the_host_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    steps = 480  # takes long enough for a notice in the middle, which Ray answers after some seconds
    data, notice = write_data(tmp_path, steps=steps), tmp_path / "notice"
    with (
        two_hosts(monkeypatch, **ONE_EACH) as hosts,
        preemption(hosts, notice),
        training(hosts, data, "spot", "1:2", minutes="inf") as driver,
    ):
        assert driver.stderr is not None
        assert any("epoch 1 of 1  step" in line for line in driver.stderr), "the steps begin"
        assert newest_checkpoint(data / "spot") == 0
        noticed = time.monotonic()
        notice.touch()
        wait_until(lambda: newest_checkpoint(data / "spot") > 0, 100, "a checkpoint after the notice")
        waited = time.monotonic() - noticed
        saved = newest_checkpoint(data / "spot")
        hosts.do("kill-host")
        starts = finish(driver)

    report(line="preemption notice to checkpoint", seconds=round(waited, 1), starts=starts)
    assert starts[:2] == [0, saved]  # the drained host may count as lost a second time when it is gone
    assert saved < steps
