"""The driver of a run is killed, terminated, interrupted at any moment: the same command goes on, nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, labelled_uris, watched
from tests.faults.conftest import MOST_AGAIN, Drivers
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

KILLS = 20


def kill(driver: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a driver and its children; return its exit code and what it said."""
    os.killpg(driver.pid, number)
    try:
        _, err = driver.communicate(timeout=120)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
    return driver.returncode, err


def alive_when(driver: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    def there() -> bool:
        assert driver.poll() is None, driver.communicate()
        return reached()

    wait_until(there, 180, "the driver's next parts")


def kill_drivers(
    run: Drivers, history: Path, expected: set[str], report: Callable[..., None], *, line: str, seed: int
) -> None:
    """Kill the driver at 20 random moments, finish the run, and compare its rows with the addresses to expect."""
    chance = random.Random(seed)  # noqa: S311 - a test's moments, not a secret
    started = time.monotonic()
    with watched(run.table, history) as seen:
        for _ in range(KILLS):
            with run.running() as driver:
                if chance.random() < 0.25:  # while it starts: imports, headers of archives, the plan, the probe
                    time.sleep(chance.uniform(0.0, 8.0))
                else:
                    goal = run.committed() + chance.randint(1, 12)
                    alive_when(driver, lambda goal=goal: run.committed() >= goal)  # type: ignore[misc]
                    time.sleep(chance.uniform(0.0, 0.2))
                assert kill(driver, signal.SIGKILL)[0] == -signal.SIGKILL, "it had ended before"
        run.finish()
    check_history(seen)
    rows = check_table(run.table, run.run_id or "")
    begun = images_begun(run.ray.work, run.table, run.run_id or "")
    report(
        line=line,
        seed=seed,
        kills=KILLS,
        rows=rows,
        planned=len(expected),
        begun=begun,
        work=round(begun / rows, 3),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert labelled_uris(run.table) == dict.fromkeys(expected, 1)
    assert rows <= begun <= rows + KILLS * MOST_AGAIN


def test_a_run_whose_driver_is_killed_at_20_random_moments_loses_nothing_and_repeats_what_was_in_flight(
    drivers: Callable[[int], Drivers], tmp_path: Path, report: Callable[..., None]
) -> None:
    run = drivers(600)
    expected = {f"file://{path}" for path in Path(run.lake).glob("*.jpg")}
    kill_drivers(run, tmp_path / "history", expected, report, line="driver SIGKILL", seed=1)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "terminated: run the same command again to resume."),
        (signal.SIGINT, 130, "interrupted: run the same command again to resume."),
    ],
)
def test_a_driver_that_is_told_to_stop_says_so_and_the_same_command_goes_on(
    drivers: Callable[[int], Drivers],
    tmp_path: Path,
    report: Callable[..., None],
    number: signal.Signals,
    code: int,
    said: str,
) -> None:
    run = drivers(200)
    started = time.monotonic()
    with watched(run.table, tmp_path / "history") as seen:
        driver = run.start()
        alive_when(driver, lambda: run.committed() >= 5)
        told = time.monotonic()
        left, err = kill(driver, number)
        stopping = time.monotonic() - told
        run.finish()
    assert (left, err.splitlines()[-1]) == (code, said)
    assert "Traceback" not in err
    assert "***" not in err, "Ray's C++ took the signal"
    check_history(seen)
    images = check_table(run.table, run.run_id)
    begun = images_begun(run.ray.work, run.table, run.run_id)
    report(
        line=f"driver {number.name}",
        kills=1,
        rows=images,
        planned=200,
        begun=begun,
        work=round(begun / images, 3),
        readings=len(seen),
        stopped_after=round(stopping, 2),
        seconds=round(time.monotonic() - started, 1),
    )
    assert images == 200
    assert images <= begun <= images + MOST_AGAIN
