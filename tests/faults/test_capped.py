"""A run that stops at its limit of time or cost again and again labels each image once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, watched
from tests.faults.conftest import Drivers

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 1_600
STOPS = 5
CAPS = (("--max-minutes", "{minutes}"), ("--max-cost", "{minutes}", "--price-per-hour", "60"))  # one for a minute


def test_a_run_that_stops_at_its_limit_five_times_labels_no_image_twice(
    drivers: Callable[[int], Drivers], tmp_path: Path, report: Callable[..., None]
) -> None:
    run = drivers(IMAGES)
    started, minutes = time.monotonic(), dict.fromkeys(CAPS, 0.1)
    stops: list[tuple[str, int]] = []  # by which limit, and the parts that there were then
    with watched(run.table, tmp_path / "history") as seen:
        while len(stops) < STOPS:
            before, cap = run.committed(), CAPS[len(stops) % 2]
            with run.running(*(word.format(minutes=minutes[cap]) for word in cap)) as driver:
                _, err = driver.communicate(timeout=600)
            assert driver.returncode == 5, err  # 0: it has ended before the limit
            assert f"({cap[0]}) is reached" in err
            if run.committed() > before:
                stops.append((cap[0], run.committed()))
            else:
                minutes[cap] *= 1.3  # a busy machine takes longer to start the actors
        run.finish()
    check_history(seen)
    rows = check_table(run.table, run.run_id or "")
    begun = images_begun(run.ray.work, run.table, run.run_id or "")
    report(
        line="stopped by --max-minutes and --max-cost",
        stops=stops,
        rows=rows,
        planned=IMAGES,
        begun=begun,
        work=round(begun / rows, 4),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert rows == IMAGES
    assert rows <= begun <= 1.02 * rows
