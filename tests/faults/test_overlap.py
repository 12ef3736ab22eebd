"""Jobs that overlap on one table: who commits first has the shard, and the table is as if there had been one job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, watched
from tests.faults.conftest import CountingRay, Drivers

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 200


@pytest.mark.parametrize("jobs", [2, 3])
def test_jobs_that_overlap_leave_the_rows_of_one(
    lake: Callable[[int], Path], counting_ray: CountingRay, tmp_path: Path, report: Callable[..., None], jobs: int
) -> None:
    options = ("--shard-images", "4", "--actors", "1:1")
    run = Drivers(lake(IMAGES), tmp_path / "table", counting_ray, tmp_path.name, options)
    started = time.monotonic()
    with watched(run.table, tmp_path / "history") as seen:
        together = [run.start() for _ in range(jobs)]
        said = [driver.communicate(timeout=300)[1] for driver in together]
    codes = [driver.returncode for driver in together]
    images = check_table(run.table, run.run_id)
    begun = images_begun(run.ray.work, run.table, run.run_id)
    report(
        line=f"{jobs} jobs at once",
        codes=codes,
        rows=images,
        planned=IMAGES,
        begun=begun,
        work=round(begun / images, 3),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    check_history(seen)
    assert codes == [0] * jobs, said
    assert images == IMAGES
    assert images <= begun <= jobs * images
