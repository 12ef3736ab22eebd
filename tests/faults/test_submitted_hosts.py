"""Jobs that `ray-detr submit` submitted to two hosts, of which one is lost: they end well, and a slot runs once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from detr.scenes.files import write_scenes
from tests.faults.checks import begun, check_history, check_table, images_begun, watched
from tests.faults.conftest import ROOT, SHARD, counting
from tests.faults.test_training_hosts import ONE_EACH, logged, newest_checkpoint, weights, write_data
from tests.faults.test_two_hosts import ACTORS, IN_FLIGHT
from tests.faults.two_hosts import NEEDED, SOON, TwoHosts, two_hosts
from tests.waiting import wait_until

pytestmark = [*NEEDED, pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 800
SLOT = "2026-11-29T02:00"
MODEL = ("--model", "scenes", "--device", "cpu")


def environment(work: Path | None = None) -> dict[str, str]:
    """Return the environment of hosts that run jobs: `python` is this one, and the packages are this checkout's."""
    counted = {} if work is None else counting(work)
    return {
        **SOON,
        **counted,
        "HEAD_DASHBOARD": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [counted.get("PYTHONPATH")])]),
    }


@contextmanager
def submitted(hosts: TwoHosts, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Run `ray-detr submit` on the head for the slot; it does not outlive the block, unlike the job."""
    submit = [*hosts.python("head"), "-m", "jobs.submit", "--address", "http://127.0.0.1:8265", "--slot", SLOT]
    with subprocess.Popen(
        [*submit, "--", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def note(process: subprocess.Popen[str]) -> str:
    """Return what `submit` says first: whether it has submitted a job or found one."""
    assert process.stderr is not None
    return process.stderr.readline()


def jobs(hosts: TwoHosts) -> Mapping[str, int]:
    """Return the jobs that the cluster knows, each with the exit code of its driver."""
    ask = (
        "import json\nfrom ray.job_submission import JobSubmissionClient\n"
        "known = JobSubmissionClient('http://127.0.0.1:8265').list_jobs()\n"
        "print(json.dumps({job.submission_id: job.driver_exit_code for job in known if job.submission_id}))"
    )
    done = subprocess.run([*hosts.python("head"), "-c", ask], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_and_lose_a_host(hosts: TwoHosts, command: tuple[str, ...], is_at_work: Callable[[], bool]) -> dict[str, Any]:
    """Submit a command twice, lose the worker once both hosts work, and submit it again when all has ended.

    Return what the three calls of `submit` said first, their exit codes, and the seconds from the loss to the end.
    """
    with submitted(hosts, *command) as first:
        said = [note(first)]
        wait_until(is_at_work, 300, f"work of the worker; the job has exit code {first.poll()}")
        with submitted(hosts, *command) as second:
            said.append(note(second))
            assert first.poll() is None, "the job has ended before the host is lost"
            struck = time.monotonic()
            hosts.do("kill-host")
            log, rest = first.communicate(timeout=500)
            log_again, rest_again = second.communicate(timeout=60)
            seconds = time.monotonic() - struck
    assert first.returncode == 0, rest + log
    assert second.returncode == 0, rest_again + log_again
    with submitted(hosts, *command) as third:
        said.append(note(third))
        third.communicate(timeout=60)
    assert log_again == log
    codes = [first.returncode, second.returncode, third.returncode]
    return {"said": said, "exit_codes": codes, "ended_after": round(seconds, 1), "log": log}


def check_one_job(ran: Mapping[str, Any], command: str) -> None:
    name = f"{command}-{SLOT.replace(':', '.')}"
    assert ran["said"] == [f"submitted job {name}\n", f"found job {name}\n", f"found job {name}\n"]
    assert ran["exit_codes"] == [0, 0, 0]


def run_by_hand(hosts: TwoHosts, command: tuple[str, ...]) -> None:
    """Run a command on the one host that is left."""
    done = subprocess.run(
        [*hosts.python("head"), "-m", "jobs.cli", *command],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": hosts.address},
        stderr=subprocess.PIPE,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr


def test_a_submitted_labelling_run_that_loses_a_host_has_every_row_once(
    lake: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    work, table = tmp_path / "work", tmp_path / "table"
    command = (
        "label",
        "--images",
        str(lake(IMAGES)),
        "--table",
        str(table),
        "--run-id",
        "run",
        "--shared-folders",
        *MODEL,
    )
    command += ("--shard-images", str(SHARD), "--actors", ACTORS)
    with two_hosts(monkeypatch, **environment(work)) as hosts, watched(table, tmp_path / "history") as seen:
        ran = run_and_lose_a_host(hosts, command, lambda: sum(one.host == "worker" for one in begun(work)) >= 20)
        known = jobs(hosts)

    check_history(seen)
    rows = check_table(table, "run")
    work_done = images_begun(work, table, "run")
    report(
        line="submitted label on two hosts, one SIGKILL",
        rows=rows,
        planned=IMAGES,
        begun=work_done,
        work=round(work_done / rows, 3),
        **{key: ran[key] for key in ("exit_codes", "ended_after")},
        jobs=known,
    )
    check_one_job(ran, "label")
    assert known == {"label-2026-11-29T02.00": 0}
    assert rows == IMAGES
    assert {one.run_id for one in begun(work)} == {"run"}
    assert rows <= work_done <= rows + IN_FLIGHT


def test_a_submitted_training_run_that_loses_a_host_goes_on_to_the_weights_of_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    steps = 60
    data = write_data(tmp_path, steps=steps)

    def train(name: str, workers: str, minutes: str) -> tuple[str, ...]:
        options = ("--num-workers", workers, "--checkpoint-minutes", minutes, "--recipe", "finetune")
        options += ("--finetune", "scenes", "--epochs", "1", "--effective-batch", "4", "--batch-size", "2")
        places = ("--train", str(data / "shards"), "--name", name, "--storage", str(data), "--shared-folders")
        return ("train", *places, *options, "--device", "cpu", "--log-steps", "1")

    with two_hosts(monkeypatch, **{**ONE_EACH, **environment()}) as hosts:
        ran = run_and_lose_a_host(
            hosts, train("elastic", "1:2", "1e-6"), lambda: newest_checkpoint(data / "elastic") >= 5
        )
        known = jobs(hosts)
        run_by_hand(hosts, train("alone", "1", "inf"))

    before, after = logged(data / "elastic")
    resumed = after[0] - 1
    report(
        line="submitted train on two hosts, one SIGKILL",
        steps=steps,
        resumed_after=resumed,
        **{key: ran[key] for key in ("exit_codes", "ended_after")},
        jobs=known,
    )
    check_one_job(ran, "train")
    assert known == {"train-2026-11-29T02.00": 0}
    assert 5 <= resumed < steps
    assert before[:resumed] == list(range(1, resumed + 1))
    assert after == list(range(resumed + 1, steps + 1))
    elastic, expected = weights(data / "elastic"), weights(data / "alone")
    assert elastic.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, elastic[name]), name


def test_a_submitted_evaluation_that_loses_a_host_has_the_figures_of_one_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    work, pictures = tmp_path / "work", tmp_path / "pictures"
    count = 600
    annotations = write_scenes(pictures, count, 5, sizes={(96, 128): 1})

    def evaluate(name: str, actors: str) -> tuple[str, ...]:
        places = ("--images", str(pictures), "--annotations", str(annotations), "--actors", actors, "--shared-folders")
        return (
            "evaluate",
            *MODEL,
            *places,
            "--keep-table",
            str(tmp_path / name),
            "--output",
            str(tmp_path / f"{name}.json"),
        )

    with two_hosts(monkeypatch, **environment(work)) as hosts:
        ran = run_and_lose_a_host(
            hosts, evaluate("lost", ACTORS), lambda: any(one.host == "worker" for one in begun(work))
        )
        known = jobs(hosts)
        run_by_hand(hosts, evaluate("alone", "1:1"))

    lost, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("lost", "alone"))
    hosts_of = {one.host for one in begun(work)}
    report(
        line="submitted evaluate on two hosts, one SIGKILL",
        images=count,
        ap=lost["AP"],
        **{key: ran[key] for key in ("exit_codes", "ended_after")},
        jobs=known,
    )
    check_one_job(ran, "evaluate")
    assert known == {"evaluate-2026-11-29T02.00": 0}
    assert hosts_of == {"head", "worker"}
    assert lost == expected
