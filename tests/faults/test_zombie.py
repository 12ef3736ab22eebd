"""A process that stood still while its run was sealed, and goes on: it must change nothing that a reader sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.labelling.lease import LEASE_KEY, LEASE_SECONDS
from pipelines.labelling.plan import write_plan
from pipelines.labelling.publish import commit_part
from pipelines.labelling.run import Run, RunRequest
from pipelines.labelling.seal import seal_run
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, open_store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, rows_to_table
from tests.conftest import S3Server
from tests.faults.checks import check_history, images_begun, labelled_uris, watched
from tests.faults.conftest import ROOT, Drivers
from tests.faults.reader import table_files
from tests.pipelines.labelling.runs import start_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.slow]

NOW = datetime(2026, 11, 26, tzinfo=UTC)
LAKE = [LakeObject(f"s3://b/{number:03d}", "e") for number in range(12)]
REQUEST = RunRequest("detr@1", "1", {}, 3, {})

# publishes the first segment, and stands still between having read its parts and creating its table file
PUBLISHER = """
import os, signal, sys
from datetime import UTC, datetime
from pipelines.labelling import publish
from pipelines.labelling.manifest import read_manifest
from pipelines.labelling.run import find_unfinished
from pipelines.errors import RayDetrError
from pipelines.store import open_store

put_if_absent = publish.put_if_absent
def stand_still(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
    return put_if_absent(*arguments)
publish.put_if_absent = stand_still

table = open_store(sys.argv[1])
run = find_unfinished(table)
segment = next(iter(read_manifest(table, run.run_id)))
try:
    publish.publish_group(table, run, segment)
except RayDetrError as stopped:
    sys.exit(f"error: {stopped}")
"""

# a driver that does so in the midst of a whole run, once
DRIVER = """
import os, signal
from jobs import exits, label
from pipelines.labelling import publish

put_if_absent = publish.put_if_absent
def stand_still(*arguments):
    publish.put_if_absent = put_if_absent
    os.kill(os.getpid(), signal.SIGSTOP)
    return put_if_absent(*arguments)
publish.put_if_absent = stand_still
exits.run(label.main)
"""


def nothing_yet(items: Sequence[LakeObject]) -> list[bool]:
    return [False] * len(items)


def begin(table: Path) -> Run:
    """Plan a run of one segment and commit all of its parts."""
    store = open_store(str(table))
    run, _ = start_run(store, REQUEST, now=NOW, tail="0001")

    listing = Listing((lambda after: (item for item in LAKE if after is None or item.uri > after),), NO_COLUMNS)
    for segment in write_plan(store, run.run_id, listing, nothing_yet, shard_images=3):
        for shard in segment.shards:
            rows = [Row(item.uri, item.etag, detections=Detected([], (), [], [])) for item in LAKE[shard * 3 :][:3]]
            origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
            commit_part(store, run.run_id, shard, rows_to_table(rows, origin=origin), token="first")
    return run


def is_stopped(process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def fall_silent(table: Store) -> None:
    """Date the last heartbeat of a table's lease back, instead of waiting for as long."""
    record = json.loads(table.get(LEASE_KEY).data)
    record["heartbeat_at"] = (datetime.now(UTC) - timedelta(seconds=LEASE_SECONDS + 1)).isoformat()
    table.put(LEASE_KEY, json.dumps(record).encode())


@pytest.mark.parametrize("sealed", [True, False])
def test_a_publisher_that_stood_still_while_its_run_was_sealed_changes_nothing_when_it_goes_on(
    tmp_path: Path, report: Callable[..., None], sealed: bool
) -> None:
    table = tmp_path / "table"
    run = begin(table)
    started = time.monotonic()
    with watched(table, tmp_path / "history") as seen:
        zombie = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(table)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: is_stopped(zombie), 60, "the publisher's standing still")
            if sealed:
                seal_run(open_store(str(table)), run, now=NOW)
            os.kill(zombie.pid, signal.SIGCONT)
            _, err = zombie.communicate(timeout=60)
        finally:
            if zombie.poll() is None:
                zombie.kill()
                zombie.communicate()
    rows = labelled_uris(table).total()
    report(
        line="publisher SIGSTOP, " + ("sealed, " if sealed else "") + "SIGCONT",
        code=zombie.returncode,
        rows=rows,
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    check_history(seen)
    if sealed:
        assert (zombie.returncode, rows) == (1, 0)
        assert err.startswith(f"error: run {run.run_id} of file://{table} was sealed by another command")
    else:  # the same without the seal: it is the seal that holds it
        assert (zombie.returncode, rows, err) == (0, len(LAKE), "")


@pytest.mark.ray
def test_a_driver_that_stood_still_in_mid_publish_while_another_start_sealed_its_run_says_so_and_leaves(
    drivers: Callable[[int], Drivers],
    moto: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    report: Callable[..., None],
) -> None:
    # in a bucket: a folder's lock is the kernel's, and nobody has it before a driver that stands still is gone
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)  # for the reader, and for this process
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    table, images = f"{moto.bucket()}/table", 200
    plain = drivers(images)
    plain = replace(plain, table=table, options=(*plain.options, "--endpoint", moto.endpoint, "--region", "us-east-1"))
    first, second = replace(plain, run_id="first", program=("-c", DRIVER)), replace(plain, run_id="second")
    started = time.monotonic()
    with watched(table, tmp_path / "history") as seen, first.running() as zombie:
        wait_until(lambda: is_stopped(zombie), 120, "the driver's standing still")
        with second.running("--new-run") as refused:
            _, refusal = refused.communicate(timeout=60)
        fall_silent(open_store(table))
        second.finish("--new-run")
        told = time.monotonic()
        os.kill(zombie.pid, signal.SIGCONT)
        _, err = zombie.communicate(timeout=120)
        left_after = time.monotonic() - told
    rows = {name: pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows for name, data in table_files(table)}
    report(
        line="driver SIGSTOP in mid-publish, sealed by another start, SIGCONT",
        codes=[refused.returncode, zombie.returncode],
        rows=sum(rows.values()),
        planned=images,
        begun=images_begun(first.ray.work, table, "first") + images_begun(first.ray.work, table, "second"),
        said=err.splitlines()[-1],
        left_after=round(left_after, 1),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    check_history(seen)
    assert refused.returncode == 4
    assert f"pid {zombie.pid}," in refusal
    assert zombie.returncode == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "first" in err.splitlines()[-1] or "has lost its lease" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert {name.rpartition("-")[0] for name, count in rows.items() if count} == {"second"}
    uris = labelled_uris(table)
    assert (len(uris), uris.total()) == (images, images)
