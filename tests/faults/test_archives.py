"""Images inside files: the driver is killed again and again, and every member has one row in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Drivers
from tests.faults.test_driver_dies import kill_drivers
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
    line = f"driver SIGKILL, {pack.__name__}"
    kill_drivers(run, tmp_path / "history", expected, report, line=line, seed=2)
