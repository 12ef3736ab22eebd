"""The worked nightly set of deploy/nightly: its four steps, copied and edited as people do, on one host and on two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detr.scenes.files import write_scenes
from pipelines.labelling.run_summaries import summarise_runs
from pipelines.store import open_store
from tests.faults.own_ray import LOOPBACK, own_ray
from tests.faults.two_hosts import NEEDED, two_hosts

ROOT = Path(__file__).parents[2]
STEPS = ROOT / "deploy" / "nightly"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]  # seven jobs, minutes: `make test-schedulers`

SETTINGS = """
CLUSTER = "http://{dashboard}"
JOB_OPTIONS = ["--shared-folders"]
IMAGES = "{place}/lake/*.jpg"
TABLE = "{place}/table"
LABEL_OPTIONS = ["--max-minutes", "10"]
FROZEN_IMAGES = "{place}/frozen/"
FROZEN_ANNOTATIONS = "{place}/frozen/instances.json"
MAX_DROP = "0"
REVIEWED_IMAGES = "{place}/reviewed/"
REVIEWED_ANNOTATIONS = "{place}/reviewed/instances.json"
TRAIN_OPTIONS = ["--recipe", "scenes", "--epochs", "1", "--effective-batch", "2", "--batch-size", "2", "--lr", "0.1"]
SHARDS = "file://{place}/runs/shards"
RUNS = "file://{place}/runs"
EVALUATIONS = "file://{place}/runs/evaluations"
FIGURES = "file://{place}/runs/figures"
PROMOTIONS = "file://{place}/runs/promotions"
"""


class Nightly:
    """A copy of the steps, with settings for three small sets of drawn scenes."""

    def __init__(self, place: Path, dashboard: str, python: tuple[str, ...] = (sys.executable,)) -> None:
        """Copy the steps to a folder, to be run by the command `python` where `dashboard` is reached."""
        self.place, self._python = place, python
        for seed, (name, count) in enumerate({"lake": 2, "frozen": 4, "reviewed": 2}.items()):
            write_scenes(place / name, count, seed=seed)
        shutil.copytree(STEPS, place / "steps", ignore=shutil.ignore_patterns("__pycache__"))
        defined = [line.split(" = ")[0] for line in (STEPS / "settings.py").read_text().splitlines() if " = " in line]
        settings = SETTINGS.format(place=place, dashboard=dashboard)
        assert [line.split(" = ")[0] for line in settings.splitlines() if line] == defined
        (place / "steps" / "settings.py").write_text(settings)

    def step(self, name: str, *words: str) -> tuple[int, str]:
        """Return the exit code of a step and what it printed."""
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        env |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [*self._python, str(self.place / "steps" / f"{name}.py"), *words],
            env=env,
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout

    def models_in_use(self) -> list[str]:
        """Return the promoted models, oldest first."""
        records = sorted((self.place / "runs" / "promotions").glob("*.json"))
        return [json.loads(record.read_text())["model"] for record in records]

    def labelled(self) -> list[int]:
        """Return how many images each labelling run had."""
        return [run.images_planned for run in summarise_runs(open_store(str(self.place / "table")))]


@pytest.fixture(params=["one host", pytest.param("two hosts", marks=NEEDED)])
def nightly(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nightly]:
    # the driver of a job is `python` of the path
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    if request.param == "two hosts":
        with two_hosts(monkeypatch, HEAD_DASHBOARD="true", **path) as hosts:
            yield Nightly(tmp_path, "127.0.0.1:8265", hosts.python("head"))
        return
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    with own_ray({"num_cpus": 1, "include_dashboard": True}, environment=path) as ray:
        yield Nightly(tmp_path, ray.dashboard)


def test_a_worse_model_is_not_promoted_and_a_promoted_one_labels_only_what_is_new(nightly: Nightly) -> None:
    # the first model has nothing to be compared with
    code, log = nightly.step("promote", "--slot", "2026-10", "--model", "scenes")
    assert code == 0, log
    assert nightly.models_in_use() == ["scenes"]
    code, log = nightly.step("label", "--slot", "2026-10-31")
    assert code == 0, log
    code, log = nightly.step("evaluate", "--slot", "2026-11-01")
    assert code == 0, log
    assert "no worse by more than 0.002" in log

    # a learning rate of 0.1 ruins the model: the gate refuses it
    code, log = nightly.step("finetune", "--slot", "2026-11")
    assert code == 0, log
    candidate = f"file://{nightly.place}/runs/finetune-2026-11/model"
    assert log.splitlines()[-1] == f"candidate: {candidate}"
    code, log = nightly.step("promote", "--slot", "2026-11")
    assert code == 3, log
    assert nightly.models_in_use() == ["scenes"]

    # a copy of the model in use is not worse: it is promoted, and labels only what it finds new
    copy = shutil.copytree(ROOT / "detr/weights/scenes", nightly.place / "copy")
    code, log = nightly.step("promote", "--slot", "2026-12", "--model", str(copy))
    assert code == 0, log
    assert nightly.models_in_use() == ["scenes", str(copy)]
    write_scenes(nightly.place / "more", 1, seed=9)
    shutil.copy(nightly.place / "more" / "scene_9_000000.jpg", nightly.place / "lake")
    code, log = nightly.step("label", "--slot", "2026-12-01")
    assert code == 0, log
    assert nightly.labelled() == [2, 1]
