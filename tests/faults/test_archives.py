"""Images inside files: the driver is killed again and again, and every member has one row in the end."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.checks import check_history, check_table, images_begun, labelled_uris, watched
from tests.faults.conftest import MOST_AGAIN, Drivers
from tests.faults.test_driver_dies import KILLS, alive_when, kill
from tests.pipelines.lake.archives import parquet_of_images, tar_of

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]

IMAGES = 600


def archives(folder: Path, images: Sequence[bytes]) -> tuple[str, set[str]]:
    """Write tar archives, two of them damaged; return what names them, and the addresses of rows to expect."""
    expected: set[str] = set()
    for number in range(0, len(images), 200):
        path = folder / f"{number}.tar"
        members = {f"{place * 7919 % 200:03d}.jpg": one for place, one in enumerate(images[number : number + 200])}
        path.write_bytes(tar_of(members))
        expected |= {f"file://{path}#/{name}" for name in members}
    whole = tar_of([(f"{place}.jpg", one) for place, one in enumerate(images[:3])])
    (folder / "cut.tar").write_bytes(whole[: 1024 + len(images[0])])
    (folder / "none.tar").write_bytes(b"<html>not found</html>" * 100)
    expected |= {f"file://{folder}/{name}" for name in ("cut.tar", "cut.tar#/0.jpg", "none.tar")}
    return str(folder / "*.tar"), expected


def parquet(folder: Path, images: Sequence[bytes]) -> tuple[str, set[str]]:
    """Write Parquet files with a column of images; return what names them, and the addresses of rows to expect."""
    for number in range(0, len(images), 200):
        (folder / f"{number}.parquet").write_bytes(parquet_of_images(images[number : number + 200], group_rows=30))
    names = {
        f"file://{folder}/{number}.parquet#/image/{row:09d}"
        for number in range(0, len(images), 200)
        for row in range(200)
    }
    return str(folder), names


def kill_drivers(run: Drivers, history: Path, expected: set[str], report: Callable[..., None], *, line: str) -> None:
    """Kill the driver at 20 random moments, finish the run, and hold its rows against the addresses to expect."""
    chance = random.Random(2)  # noqa: S311 - a test's moments, not a secret
    started = time.monotonic()
    with watched(run.table, history) as seen:
        for _ in range(KILLS):
            with run.running() as driver:
                if chance.random() < 0.25:  # while it starts: imports, archives' headers, the plan
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


@pytest.mark.parametrize(("pack", "options"), [(archives, ()), (parquet, ("--image-column", "image"))])
def test_images_inside_files_survive_20_kills_of_the_driver(
    drivers: Callable[[int], Drivers],
    tmp_path: Path,
    report: Callable[..., None],
    pack: Callable[[Path, Sequence[bytes]], tuple[str, set[str]]],
    options: tuple[str, ...],
) -> None:
    loose = drivers(IMAGES)
    (tmp_path / "packed").mkdir()
    pictures = [path.read_bytes() for path in sorted(Path(loose.lake).glob("*.jpg"))]
    source, expected = pack(tmp_path / "packed", pictures)
    run = replace(loose, lake=source, options=(*loose.options, *options))
    kill_drivers(run, tmp_path / "history", expected, report, line=f"driver SIGKILL, {pack.__name__}")
