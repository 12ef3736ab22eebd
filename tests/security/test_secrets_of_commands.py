"""No secret in what a command prints, logs or leaves behind when it fails, whichever way it does."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import pipelines.labelling.label
import pipelines.labelling.reach
import pipelines.shards.sharding
import pipelines.store.web
from jobs.exits import run
from pipelines.clock import SystemClock
from pipelines.errors import LeaseHeld, RayDetrError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.lease import holding
from pipelines.labelling.run import RunRequest
from pipelines.store import open_store
from tests.pipelines.labelling.runs import start_run
from tests.security.conftest import (
    HUB_TOKEN,
    KEY_ID,
    PASSWORD,
    SECRET_KEY,
    SESSION_TOKEN,
    SIGNED,
    Gossip,
    leaked,
    leaked_in_files,
    planted,
    told,
)

ROOT = Path(__file__).parents[2]
Catch = Callable[[Callable[[], object]], str]

ON_S3 = {
    "label": "--images s3://lake/2026/ --table {tmp}/table --model scenes",
    "label a list": "--images s3://lake/list.csv --table {tmp}/table --model scenes",
    "label into S3": "--images {tmp} --table s3://lake/table --model scenes",
    "label through fsspec": "--images s3://lake/2026/ --table {tmp}/table --model scenes --via fsspec",
    "plan": "--images s3://lake/2026/ --table s3://lake/table",
    "plan with a model": "--images s3://lake/2026/ --table {tmp}/table --model s3://lake/model",
    "plan with a .pth": "--images s3://lake/2026/ --table {tmp}/table --model s3://lake/model.pth",
    "detect": "s3://lake/a.jpg --model scenes",
    "detect with a model": "{tmp} --model s3://lake/model",
    "shard": "--annotations s3://lake/a.json --images s3://lake/2026/ --out {tmp}/shards",
    "shard into S3": "--annotations {tmp}/a.json --images {tmp} --out s3://lake/shards",
    "train": "--train s3://lake/shards --storage {tmp}/runs --name r --recipe scenes",
    "evaluate": "--annotations s3://lake/a.json --table {tmp}/table",
    "evaluate a table": "--annotations {tmp}/a.json --table s3://lake/table",
    "evaluate results": "--annotations {tmp}/a.json --results s3://lake/results.json",
    "evaluate a baseline": "--annotations {tmp}/a.json --table {tmp}/table --baseline s3://lake/baseline.json",
    "evaluate a model": "--annotations {tmp}/a.json --images s3://lake/2026/ --model scenes",
    "runs": "--table s3://lake/table",
    "runs verified": "--table s3://lake/table --verify --json",
    "export": "--table s3://lake/table --out {tmp}/out.parquet",
    "query": "--table s3://lake/table SELECT",
    "label an inventory": "--images s3://lake/x/manifest.json --table {tmp}/table --model scenes",
}
WEB = f"http://user:{PASSWORD}@127.0.0.1:9"
ADDRESSES = {
    "label an image": f"--images {WEB}/a.jpg --table {{tmp}}/table --model scenes",
    "label a signed image": f"--images http://127.0.0.1:9/a.jpg?{SIGNED} --table {{tmp}}/table --model scenes",
    "label a folder": f"--images ftp://user:{PASSWORD}@127.0.0.1:9/x/ --table {{tmp}}/table --model scenes",
    "label a bucket": f"--images s3://{KEY_ID}:{SECRET_KEY}@lake/x/ --table {{tmp}}/table --model scenes",
    "label a signed list": f"--images http://127.0.0.1:9/list.csv?{SIGNED} --table {{tmp}}/table --model scenes",
    "label a list of signed": "--images {tmp}/signed.csv --table {tmp}/table --model scenes",
    "label into a table": f"--images {{tmp}} --table s3://{KEY_ID}:{SECRET_KEY}@lake/t --model scenes",
    "label into a share": f"--images {{tmp}} --table sftp://user:{PASSWORD}@127.0.0.1:9/t --model scenes",
    "label with a model": f"--images {{tmp}} --table {{tmp}}/table --model {WEB}/model.pth",
    "label with a signed model": f"--images {{tmp}} --table {{tmp}}/table --model http://127.0.0.1:9/m.pth?{SIGNED}",
    "label at an endpoint": f"--images s3://lake/ --table {{tmp}}/table --model scenes --endpoint {WEB}",
    "label mistyped": f"--images {{tmp}} --table {{tmp}}/table --model scenes --imges {WEB}/a.jpg?{SIGNED}",
    "label without a model": f"--images {WEB}/a.jpg --table {{tmp}}/table --threshold {WEB}",
    "plan": f"--images {WEB}/ --table {{tmp}}/table",
    "plan with a model": f"--images {{tmp}} --table {{tmp}}/table --model {WEB}",
    "plan at an endpoint": f"--images s3://lake/ --table {{tmp}}/table --endpoint {WEB}",
    "detect": f"{WEB}/a.jpg?{SIGNED} --model scenes",
    "detect as JSON": f"{WEB}/a.jpg?{SIGNED} --model scenes --json",
    "detect with a model": f"{{tmp}} --model {WEB}/a/model",
    "detect no file": f"http:/user:{PASSWORD}@127.0.0.1/a.jpg --model scenes",
    "shard": f"--annotations {WEB}/a.json?{SIGNED} --images {{tmp}} --out {{tmp}}/shards",
    "shard images": f"--annotations {{tmp}}/a.json --images ftp://user:{PASSWORD}@127.0.0.1:9/ --out {{tmp}}/shards",
    "shard into": f"--annotations {{tmp}}/a.json --images {{tmp}} --out s3://{KEY_ID}:{SECRET_KEY}@lake/shards",
    "train": f"--train {WEB}/shards --storage {{tmp}}/runs --name r --recipe scenes",
    "shard at an endpoint": f"--annotations s3://lake/a.json --images {{tmp}} --out {{tmp}}/s --endpoint {WEB}",
    "train at an endpoint": f"--train s3://lake/s --storage {{tmp}}/r --name r --recipe scenes --endpoint {WEB}",
    "evaluate at an endpoint": f"--annotations s3://lake/a.json --table {{tmp}}/table --endpoint {WEB}",
    "train into": f"--train {{tmp}} --storage s3://{KEY_ID}:{SECRET_KEY}@lake --name r --recipe scenes",
    "evaluate": f"--annotations {WEB}/a.json?{SIGNED} --table {{tmp}}/table",
    "evaluate a table": f"--annotations {{tmp}}/a.json --table s3://{KEY_ID}:{SECRET_KEY}@lake/table",
    "evaluate results": f"--annotations {{tmp}}/a.json --results {WEB}/results.json?{SIGNED}",
    "evaluate a model": f"--annotations {{tmp}}/a.json --images {WEB}/val/ --model scenes",
    "runs": f"--table s3://{KEY_ID}:{SECRET_KEY}@lake/table",
    "runs of a share": f"--table ftp://user:{PASSWORD}@127.0.0.1:9/table",
    "runs at an endpoint": f"--table s3://lake/table --endpoint {WEB}",
    "export": f"--table ftp://user:{PASSWORD}@127.0.0.1:9/table --out {{tmp}}/out.parquet",
    "query": f"--table ftp://user:{PASSWORD}@127.0.0.1:9/table SELECT",
    "query in a bucket": f"--table s3://{KEY_ID}:{SECRET_KEY}@lake/table SELECT",
    "query at an endpoint": f"--table s3://lake/table --endpoint {WEB} SELECT",
    "export into": f"--table {{tmp}}/table --out s3://{KEY_ID}:{SECRET_KEY}@lake/out",
    "export at an endpoint": f"--table s3://lake/table --out {{tmp}}/out.parquet --endpoint {WEB}",
    "evaluate with a model": f"--annotations {{tmp}}/a.json --images {{tmp}} --model {WEB}/m.pth",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of a user: annotations, a list of signed addresses, and something that is no image."""
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(coco))
    (tmp_path / "signed.csv").write_text(f"uri\nhttp://127.0.0.1:9/a.jpg?{SIGNED}\n")
    (tmp_path / "a.jpg").write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pipelines.labelling.reach, "REACH_SECONDS", 0.0)
    monkeypatch.setattr(pipelines.store.web, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(pipelines.shards.sharding, "REACH_SECONDS", 0.0)
    return tmp_path


def command(line: str, name: str, folder: Path, *more: str) -> Callable[[], None]:
    main = importlib.import_module(f"jobs.{name.split()[0]}").main
    return lambda: run(main, [*line.format(tmp=folder).split(), *more])


@pytest.mark.parametrize("name", ON_S3)
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "ExpiredToken"), (403, "SignatureDoesNotMatch"), (403, "AccessDenied"), (404, "NoSuchBucket")],
)
def test_a_command_whose_store_repeats_what_it_was_shown(
    gossip: Gossip, caught: Catch, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, status: int, code: str
) -> None:
    planted(monkeypatch, AWS_ENDPOINT_URL=gossip.endpoint)
    gossip.status, gossip.code = status, code

    text = caught(command(ON_S3[name], name, folder))

    assert any(KEY_ID in headers.get("authorization", "") for _, headers in gossip.requests)  # it had them to tell
    assert "exit code 1" in text
    assert "s3://lake" in text
    assert leaked(text) == set()
    assert leaked_in_files([folder / "table", folder / "shards", folder / "runs", folder / "cache"]) == {}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_command_that_is_given_a_secret_in_an_address(
    caught: Catch, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    planted(monkeypatch)

    text = caught(command(ADDRESSES[name], name, folder))

    assert "exit code 1" in text or "exit code 2" in text
    assert leaked(text) == set()
    assert leaked_in_files([folder / "table", folder / "shards", folder / "runs", folder / "cache"]) == {}


def test_the_record_of_a_run_and_what_is_said_of_another_configuration(folder: Path) -> None:
    table = open_store(str(folder / "table"))

    def begin(signed: str, threshold: float) -> None:
        images = (f"https://user:{PASSWORD}@host/list.csv?{signed}",)
        config = LabelConfig(images, str(folder / "table"), "scenes", threshold=threshold)
        request = RunRequest("m@1", "1", config.resume_identity(), shard_images=4, versions={})
        start_run(table, request, now=datetime(2026, 11, 26, tzinfo=UTC), tail="a1b2")

    begin(SIGNED, 0.5)
    begin(SIGNED.replace("77", "88"), 0.5)  # signed anew, it is the same list
    with pytest.raises(RayDetrError, match="another configuration") as refused:
        begin(SIGNED, 0.1)

    assert leaked(told(refused.value)) == set()
    assert leaked_in_files([folder / "table"]) == {}


def test_the_lease_and_what_is_said_of_its_holder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    planted(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["jobs.label", f"--images={WEB}/list.csv?{SIGNED}"])
    table = open_store(str(folder / "table"))

    def hold(token: str) -> None:
        with holding(table, can_swap=False, token=token, wait_seconds=0.0, say=lambda _: None, clock=SystemClock()):
            if token == "first":
                hold("second")

    with pytest.raises(LeaseHeld) as refused:
        hold("first")

    assert leaked(told(refused.value)) == set()
    assert leaked_in_files([folder / "table"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_the_hub_is_shown_a_token_and_repeats_it(gossip: Gossip, folder: Path, status: int) -> None:
    gossip.status = status
    environment = {
        **os.environ,
        "HF_ENDPOINT": gossip.endpoint,
        "HF_HOME": str(folder / "hub"),
        "HF_TOKEN": HUB_TOKEN,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
    }
    line = [sys.executable, "-m", "jobs.detect", str(folder / "a.jpg"), "--model", "facebook/detr-resnet-50"]

    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert any(HUB_TOKEN in headers.get("authorization", "") for _, headers in gossip.requests)
    assert done.returncode == 1, done.stderr
    assert "facebook/detr-resnet-50" in done.stderr
    assert leaked(done.stdout + done.stderr) == set()
    assert leaked_in_files([folder / "hub"]) == {}
