"""Detector actors are killed while a run goes on: it ends by itself, loses nothing, and repeats what was in flight.

An actor's threads fetch its images: there is no fetching process that could be killed alone, and whatever is being
fetched, decoded, detected or committed when an actor is killed dies with it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.faults.checks import Begun, begun, check_history, check_table, images_begun, watched
from tests.faults.conftest import ACTORS, MOST_AGAIN, Drivers
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

KILLS = 8


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def kill_actors(
    run: Drivers,
    history: Path,
    report: Callable[..., None],
    *,
    line: str,
    seed: int,
    images: int,
    errors: Mapping[str, int],
) -> None:
    """Kill actors of a run at random moments, and hold what it leaves against its plan."""
    chance = random.Random(seed)  # noqa: S311 - a test's moments, not a secret

    def of_run() -> list[Begun]:
        return [one for one in begun(run.ray.work) if one.run_id == run.run_id]

    started = time.monotonic()
    with watched(run.table, history) as seen, run.running("--json") as driver:
        for _ in range(KILLS):
            goal = len(of_run()) + chance.randint(4, 16)
            wait_until(lambda goal=goal: len(of_run()) >= goal, 120, "the next shards")  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.1))
            victim = chance.choice([pid for pid in sorted({one.pid for one in of_run()[-4:]}) if is_alive(pid)])
            os.kill(victim, signal.SIGKILL)
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    check_history(seen)
    rows = check_table(run.table, run.run_id)
    work = images_begun(run.ray.work, run.table, run.run_id)
    report(
        line=line,
        seed=seed,
        kills=KILLS,
        rows=rows,
        planned=images,
        begun=work,
        work=round(work / rows, 3),
        processes=len({one.pid for one in of_run()}),
        readings=len(seen),
        seconds=round(time.monotonic() - started, 1),
    )
    assert rows == images
    assert json.loads(out)["errors"] == errors  # a death is no image's fault unless it happens to the image alone
    assert rows <= work <= rows + KILLS * MOST_AGAIN // ACTORS


@pytest.mark.parametrize("seed", [1])
def test_a_run_whose_actors_are_killed_at_random_moments_ends_by_itself_and_loses_nothing(
    drivers: Callable[[int], Drivers], tmp_path: Path, report: Callable[..., None], seed: int
) -> None:
    kill_actors(drivers(400), tmp_path / "history", report, line="actor SIGKILL", seed=seed, images=400, errors={})
