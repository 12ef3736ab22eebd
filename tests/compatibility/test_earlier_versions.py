"""Tables, shards and training runs of an earlier version (`bucket.zip`, see `write_bucket.py`) go on with this one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.store import open_store
from pipelines.table.schema import decode
from tests.conftest import S3Server

ROOT = Path(__file__).parents[2]
BUCKET = "ray-detr-earlier"
IMAGES = 72
AP_OF_FINISHED = 0.562724  # measured by the earlier version

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def restored(moto_server: S3Server) -> str:
    """The bucket as the earlier version left it; each test works on a table or run of its own."""
    client = moto_server.client()
    client.create_bucket(Bucket=BUCKET)
    with zipfile.ZipFile(Path(__file__).with_name("bucket.zip")) as archive:
        for name in archive.namelist():
            client.put_object(Bucket=BUCKET, Key=name, Body=archive.read(name))
    return f"s3://{BUCKET}"


@pytest.fixture
def command(restored: str, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command of this version on the restored bucket, with a Ray of its own that has the server's keys."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", module, *arguments, "--endpoint", moto.endpoint, "--region", "us-east-1"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    return run


def label(command: Command, restored: str, table: str, *more: str, images: str = "lake") -> dict[str, Any]:
    done = command(
        "jobs.label", "--images", f"{restored}/{images}/", "--table", f"{restored}/tables/{table}", "--model",
        "scenes", "--device", "cpu", "--actors", "1:1", "--shard-images", "1", "--json", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def rows(moto: S3Server, table: str) -> list[dict[str, Any]]:
    store = open_store(f"s3://{BUCKET}/tables/{table}", moto.options())
    files = [decode(store.get(entry.key).data) for entry in store.list("data/")]
    # files of the earlier version have no column `settings`
    together = pa.concat_tables(files, promote_options="default")
    return sorted(together.to_pylist(), key=lambda row: str(row["uri"]))


def assert_same_labels(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Rows are equal but for the run that wrote them; boxes to 0.01 px and scores to 1e-4."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for name in ("uri", "etag", "size", "status", "error_kind", "width", "height", "model", "threshold"):
            assert row[name] == other[name], (row["uri"], name)
        assert [one["label"] for one in row["detections"]] == [one["label"] for one in other["detections"]]
        for one, two in zip(row["detections"], other["detections"], strict=True):
            assert one["category_id"] == two["category_id"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)
            assert list(one["box"].values()) == pytest.approx(list(two["box"].values()), abs=0.01)


def verified(command: Command, restored: str, table: str) -> dict[str, Any]:
    done = command("jobs.runs", "--table", f"{restored}/tables/{table}", "--verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings: dict[str, Any] = json.loads(done.stdout)
    return findings


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_table_has_nothing_to_do_and_is_verified_evaluated_and_exported(
    command: Command, restored: str, tmp_path: Path
) -> None:
    summary = label(command, restored, "finished")

    assert (summary["images"], summary["already_labelled"]) == (0, IMAGES)
    verified(command, restored, "finished")
    evaluated = command(
        "jobs.evaluate", "--table", f"{restored}/tables/finished", "--annotations", f"{restored}/lake/instances.json",
        "--allow-thresholded", "--json",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["AP"] == pytest.approx(AP_OF_FINISHED, abs=1e-4)
    exported = command(
        "jobs.export", "--table", f"{restored}/tables/finished", "--latest", "--out", str(tmp_path / "rows.jsonl")
    )
    assert exported.returncode == 0, exported.stderr
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(line["uri"] for line in lines) == [f"{restored}/lake/scene_11_{n:06d}.jpg" for n in range(IMAGES)]


@pytest.mark.ray
@pytest.mark.slow
def test_an_unfinished_run_is_resumed_where_it_was_left_and_has_the_rows_of_an_undisturbed_one(
    command: Command, restored: str, moto: S3Server
) -> None:
    summary = label(command, restored, "unfinished")

    assert (summary["resumed"], summary["images"], summary["images_this_start"]) == (True, IMAGES, 5)
    assert summary["run_id"] == "20261128-174638-7fc6"
    assert_same_labels(rows(moto, "unfinished"), rows(moto, "finished"))
    verified(command, restored, "unfinished")


@pytest.mark.ray
@pytest.mark.slow
def test_a_sealed_run_stays_sealed_and_a_new_one_labels_what_it_left(
    command: Command, restored: str, moto: S3Server
) -> None:
    summary = label(command, restored, "sealed")

    assert (summary["resumed"], summary["images"], summary["already_labelled"]) == (False, 8, 64)
    assert_same_labels(rows(moto, "sealed"), rows(moto, "finished"))
    verified(command, restored, "sealed")


@pytest.mark.ray
@pytest.mark.slow
def test_a_quarantined_image_keeps_its_row(command: Command, restored: str, moto: S3Server) -> None:
    summary = label(command, restored, "quarantined", images="poisoned")

    assert (summary["images"], summary["already_labelled"]) == (0, 4)
    assert [row["error_kind"] for row in rows(moto, "quarantined")] == ["crashed", None, None, None]
    verified(command, restored, "quarantined")


@pytest.mark.ray
@pytest.mark.slow
def test_the_lease_of_an_earlier_version_is_respected(command: Command, restored: str, moto: S3Server) -> None:
    client = moto.client()
    lease = json.loads(client.get_object(Bucket=BUCKET, Key="tables/unfinished/_lease.json")["Body"].read())
    lease["is_released"] = False
    lease["process"]["host"], lease["process"]["boot"] = "other-host", "other-boot"
    lease["heartbeat_at"] = datetime.now(UTC).isoformat()
    client.put_object(Bucket=BUCKET, Key="tables/held/_lease.json", Body=json.dumps(lease).encode())

    done = command(
        "jobs.label", "--images", f"{restored}/lake/", "--table", f"{restored}/tables/held", "--model", "scenes"
    )

    assert done.returncode == 4
    assert f"host other-host, pid {lease['process']['pid']}" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_run_goes_on_inside_its_epoch_on_the_shards_of_the_earlier_version(
    command: Command, restored: str, moto: S3Server
) -> None:
    line = (
        f"--train {restored}/shards --storage {restored}/runs --recipe finetune --finetune {restored}/models/tiny "
        "--epochs 40 --lr-drop 30 --effective-batch 2 --batch-size 1 --augmentation none --freeze-backbone none "
        "--num-workers 1:1 --device cpu --log-steps 1 --keep 1 --name stopped --json"
    )

    done = command("jobs.train", *line.split())

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["resumed"], summary["epochs"], summary["steps"], summary["starts"]) == (True, 40, 240, [17])
    before, resumed = steps_of(moto, "straight"), steps_of(moto, "stopped", after=17)
    assert sorted(resumed) == list(range(18, 241))
    for step in range(18, 38):  # later ones carry the rounding of all before them
        assert math.isclose(resumed[step], before[step], rel_tol=1e-4), step


def steps_of(moto: S3Server, run: str, *, after: int = 0) -> dict[int, float]:
    """Return the loss of each step that a run's logs have, later logs counting."""
    store = open_store(f"s3://{BUCKET}/runs/{run}", moto.options())
    lines = [
        json.loads(line)
        for entry in store.list("logs/steps-")
        for line in store.get(entry.key).data.decode().splitlines()
    ]
    return {line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > after}
