"""Whole runs on a real S3 server behind a proxy that makes it misbehave: `make test-faults-s3`.

Images, plan, parts and table files all go through it. However bad the store is, each image has its one row in the end,
and none of the rows is an error: an error of the environment is never recorded as an image's error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Server
from tests.faults.checks import check_history, check_table, images_begun, watched
from tests.faults.conftest import CountingRay, Drivers
from tests.faults.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]

IMAGES = 600
SHARD = 5
ACTORS = 2

LINES = {
    "nothing": Faults(),  # what the others are to be compared with
    "20 % 503": Faults(slow_down=0.2),
    "10 % resets": Faults(reset=0.1),
    "10 % truncated": Faults(truncate=0.1),
    "200 ms latency": Faults(latency_seconds=0.2),
    "every 10th PUT lost": Faults(lost_every=10),
    "10 % short bodies that look whole": Faults(shorten=0.1, matching=r"\.jpg"),
    "20 % throttled as 403": Faults(denied=0.2, matching=r"\.jpg"),
    "all mixed": Faults(slow_down=0.2, reset=0.1, truncate=0.1, latency_seconds=0.2, lost_every=10),
}


@dataclass(frozen=True)
class Behind:
    """A command whose store is behind the proxy, and the same store without it."""

    proxy: FaultProxy
    drivers: Drivers


@dataclass(frozen=True)
class Stopped:
    """A driver that has stopped by itself: after how long, and how many images of begun shards are not committed."""

    seconds: float
    in_vain: int


@pytest.fixture
def behind(
    s3: S3Server,
    lake: Callable[[int], Path],
    counting_ray: CountingRay,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Behind]:
    bucket = s3.bucket()
    images = sorted(lake(IMAGES).iterdir())
    with ThreadPoolExecutor(8) as threads:
        uploads = [
            threads.submit(s3.client().upload_file, str(path), bucket.removeprefix("s3://"), f"2026/{path.name}")
            for path in images
        ]
        for upload in uploads:
            upload.result()
    # who looks at the table from here sees the server itself
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with fault_proxy(s3.endpoint) as proxy:
        options = ("--shard-images", str(SHARD), "--actors", f"{ACTORS}:{ACTORS}", "--json")
        options += ("--endpoint", proxy.endpoint, "--region", "us-east-1")
        yield Behind(proxy, Drivers(f"{bucket}/2026/", f"{bucket}/table", counting_ray, tmp_path.name, options))


def check(
    line: str,
    behind: Behind,
    out: str,
    seen: Sequence[Mapping[str, Any]],
    seconds: float,
    report: Callable[..., None],
    *,
    stopped: Stopped | None = None,
) -> None:
    """Hold the run that has ended against its plan, and write down what it cost."""
    drivers, proxy = behind.drivers, behind.proxy
    summary = json.loads(out)
    check_history(seen)
    images = check_table(drivers.table, drivers.run_id)
    begun = images_begun(drivers.ray.work, drivers.table, drivers.run_id)
    report(
        line=f"store: {line}",
        seed=proxy.faults.seed,
        rows=images,
        planned=IMAGES,
        errors=summary["errors"],
        begun=begun,
        work=round(begun / images, 3),
        requests=dict(proxy.requests),
        injected=dict(proxy.injected),
        readings=len(seen),
        labelling_seconds=round(summary["labelling_seconds"], 1),
        **({} if stopped is None else {"stopped_after": round(stopped.seconds, 1), "in_vain": stopped.in_vain}),
        seconds=round(seconds, 1),
    )
    assert images == IMAGES
    assert summary["errors"] == {}
    again = 0 if stopped is None else stopped.in_vain
    assert images <= begun <= images + again, "a store that misbehaves costs patience, and no work that was done"


@pytest.mark.parametrize("line", LINES)
def test_a_run_on_a_store_that_misbehaves_ends_with_each_image_in_its_row_and_no_error(
    behind: Behind, tmp_path: Path, report: Callable[..., None], line: str
) -> None:
    behind.proxy.faults = LINES[line]
    started = time.monotonic()
    with watched(behind.drivers.table, tmp_path / "history") as seen:
        out = behind.drivers.finish()
    check(line, behind, out, seen, time.monotonic() - started, report)


def test_a_store_that_is_down_for_a_minute_in_the_middle_is_waited_for(
    behind: Behind, tmp_path: Path, report: Callable[..., None]
) -> None:
    started = time.monotonic()
    with watched(behind.drivers.table, tmp_path / "history") as seen, behind.drivers.start() as driver:
        wait_until(lambda: driver.poll() is not None or behind.drivers.committed() >= 5, 180, "the first parts")
        behind.proxy.go_down(60.0)
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    check("down for 60 s", behind, out, seen, time.monotonic() - started, report)


def stops(behind: Behind, break_it: Callable[[], None], sentence: str) -> Stopped:
    """Have a run on its way meet what stops it."""
    drivers = behind.drivers
    with drivers.start() as driver:
        wait_until(lambda: driver.poll() is not None or drivers.committed() >= 5, 180, "the first parts")
        break_it()
        broken = time.monotonic()
        _, err = driver.communicate(timeout=900)
    assert driver.returncode == 1, err
    assert err.splitlines()[-1].startswith("error: ")
    assert sentence in err.splitlines()[-1]
    begun = images_begun(drivers.ray.work, drivers.table, drivers.run_id)
    return Stopped(time.monotonic() - broken, begun - SHARD * drivers.committed())


def test_a_token_that_expires_in_the_middle_stops_the_run_and_is_nobodys_row(
    behind: Behind, tmp_path: Path, report: Callable[..., None]
) -> None:
    def expire() -> None:
        behind.proxy.faults = Faults(expired=1.0, matching=r"\.jpg")

    started = time.monotonic()
    with watched(behind.drivers.table, tmp_path / "history") as seen:
        stopped = stops(behind, expire, "The session has expired: log in again.")
        behind.proxy.faults = Faults()
        out = behind.drivers.finish()
    check("token expired", behind, out, seen, time.monotonic() - started, report, stopped=stopped)


def test_a_store_that_is_lost_stops_the_run_and_the_same_command_goes_on_when_it_is_back(
    behind: Behind, tmp_path: Path, report: Callable[..., None]
) -> None:
    started = time.monotonic()
    with watched(behind.drivers.table, tmp_path / "history") as seen:
        stopped = stops(behind, lambda: behind.proxy.go_down(3600.0), "un the same command again")
        behind.proxy.come_back()
        out = behind.drivers.finish()
    check("lost", behind, out, seen, time.monotonic() - started, report, stopped=stopped)
