"""The examples of deploy/schedulers, edited as their comments say and executed against the job server of a Ray head.

`make test-schedulers` makes the environments of Airflow and Dagster, and runs these tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from detr.scenes.files import write_scenes
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.store import open_store
from tests.faults.own_ray import LOOPBACK, own_ray

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "schedulers"
ENVIRONMENTS = os.environ.get("SCHEDULERS_DIR")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        ENVIRONMENTS is None, reason="no environments of Airflow and Dagster: run `make test-schedulers`"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    # the driver of a job is `python` of the path
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with own_ray({"num_cpus": 1, "include_dashboard": True}, environment=path) as ray:
        yield f"http://{ray.dashboard}"


class Lake:
    """A folder of two drawn scenes and the table of its detections."""

    def __init__(self, place: Path, cluster: str) -> None:
        self.images, self.table, self.cluster = place / "lake", place / "table", cluster
        write_scenes(self.images, 2, seed=7)
        self.ray_detr = place / "ray-detr"
        self.ray_detr.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs.cli "$@"\n')
        self.ray_detr.chmod(0o755)

    def edited(self, example: str) -> str:
        """Return the text of an example with the names that a user has to set."""
        text = (EXAMPLES / example).read_text()
        for ours, theirs in {
            "/opt/ray-detr/bin/ray-detr": str(self.ray_detr),
            "http://YOUR-HEAD:8265": self.cluster,
            "s3://YOUR-LAKE/": f"{self.images}/*.jpg",
            "s3://YOUR-TABLES/detections": str(self.table),
            "facebook/detr-resnet-50": "scenes",
        }.items():
            assert text.count(ours) == 1, f"{example} has {ours} {text.count(ours)} times"
            text = text.replace(ours, theirs)
        return text

    def images_of_runs(self) -> list[int]:
        return [one.images_planned for one in summarise_runs(open_store(str(self.table)))]

    def jobs(self) -> dict[str, int]:
        """Return the cluster's jobs that label this lake: submission id to exit code."""
        jobs = JobSubmissionClient(self.cluster).list_jobs()
        return {job.submission_id: job.driver_exit_code for job in jobs if str(self.table) in job.entrypoint}


@pytest.fixture
def lake(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return Lake(tmp_path, cluster)


def execute(command: list[str], place: Path, **environment: str) -> tuple[str, str]:
    """Return what a program wrote to standard output and to standard error."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **LOOPBACK, **environment}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def airflow(lake: Lake, place: Path, night: str) -> dict[str, Any]:
    """Return what run_airflow_dag.py prints, of the edited example without its pause before a retry."""
    text = lake.edited("airflow_dag.py")
    pause = "timedelta(minutes=10)"
    assert pause in text
    dags = place / "airflow" / "dags"
    dags.mkdir(parents=True, exist_ok=True)
    (dags / "airflow_dag.py").write_text(text.replace(pause, "timedelta(0)"))
    log, _ = execute(
        [
            f"{ENVIRONMENTS}/airflow/bin/python",
            str(ROOT / "tests/schedulers/run_airflow_dag.py"),
            str(dags / "airflow_dag.py"),
            night,
        ],
        place,
        AIRFLOW_HOME=str(place / "airflow"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
    )
    return json.loads(log.splitlines()[-1])


def dagster(lake: Lake, place: Path, night: str) -> dict[str, Any]:
    """Return what run_dagster_asset.py prints, of the edited example without its pause before a retry."""
    text = lake.edited("dagster_definitions.py")
    pause = "delay=600"
    assert pause in text
    (place / "dagster_definitions.py").write_text(text.replace(pause, "delay=0"))
    log, _ = execute(
        [
            f"{ENVIRONMENTS}/dagster/bin/python",
            str(ROOT / "tests/schedulers/run_dagster_asset.py"),
            "dagster_definitions.py",
            night,
        ],
        place,
        DAGSTER_HOME="",
    )
    return json.loads(log.splitlines()[-1])


NIGHT, WITH_ERRORS, WITHOUT_CLUSTER = "2026-02-01", "2026-02-02", "2026-02-03"  # slots of one cluster


def test_airflow_labels_once_for_a_dag_run(lake: Lake, tmp_path: Path) -> None:
    assert [airflow(lake, tmp_path, NIGHT)["state"] for _ in range(2)] == ["success", "success"]

    assert list(lake.jobs().values()) == [0]
    assert lake.images_of_runs() == [2]


def test_airflow_does_not_try_again_after_too_many_error_rows(lake: Lake, tmp_path: Path) -> None:
    (lake.images / "broken.jpg").write_bytes(b"not an image")

    assert airflow(lake, tmp_path, WITH_ERRORS) == {"state": "failed", "tries": 1}
    assert list(lake.jobs().values()) == [3]


def test_airflow_tries_again_where_no_cluster_answers(lake: Lake, tmp_path: Path) -> None:
    lake.cluster = "http://127.0.0.1:9"

    assert airflow(lake, tmp_path, WITHOUT_CLUSTER) == {"state": "failed", "tries": 4}


def test_dagster_labels_once_for_a_night(lake: Lake, tmp_path: Path) -> None:
    assert [dagster(lake, tmp_path, NIGHT) for _ in range(2)] == [{"success": True, "retries": 0}] * 2

    assert list(lake.jobs().values()) == [0]
    assert lake.images_of_runs() == [2]


def test_dagster_does_not_try_again_after_too_many_error_rows(lake: Lake, tmp_path: Path) -> None:
    (lake.images / "broken.jpg").write_bytes(b"not an image")

    assert dagster(lake, tmp_path, WITH_ERRORS) == {"success": False, "retries": 0}
    assert list(lake.jobs().values()) == [3]


def test_dagster_tries_again_where_no_cluster_answers(lake: Lake, tmp_path: Path) -> None:
    lake.cluster = "http://127.0.0.1:9"

    assert dagster(lake, tmp_path, WITHOUT_CLUSTER) == {"success": False, "retries": 3}


def test_cron_labels_once_for_a_night(lake: Lake, tmp_path: Path) -> None:
    lines = [line for line in lake.edited("crontab").splitlines() if line and not line.startswith("#")]
    environment = dict(line.split("=", 1) for line in lines[:-1])
    schedule, command = re.fullmatch(r"((?:[0-9*,]+ ){5}) (.*)", lines[-1]).groups()
    assert schedule == "0 2,3 * * * "

    # cron gives the command to a shell, with the assignments in its environment and \% for %
    notes = [execute(["/bin/sh", "-c", command.replace(r"\%", "%")], tmp_path, **environment)[1] for _ in range(2)]

    (job,) = lake.jobs()
    assert re.fullmatch(r"label-\d{4}-\d\d-\d\d", job)
    assert notes == [f"submitted job {job}\n", f"found job {job}\n"]
    assert lake.images_of_runs() == [2]
