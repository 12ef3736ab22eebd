"""Images inside files of a real S3 server: drivers and actors are killed, and every member has one row in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import S3Server
from tests.faults.checks import labelled_uris
from tests.faults.conftest import ACTORS, SHARD, CountingRay, Drivers
from tests.faults.test_actor_dies import kill_actors
from tests.faults.test_archives import IMAGES, archives, parquet
from tests.faults.test_driver_dies import kill_drivers

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]

Pack = Callable[[Path, Sequence[bytes]], tuple[str, set[str]]]
MakePacked = Callable[[Pack, tuple[str, ...]], tuple[Drivers, set[str]]]


@pytest.fixture
def packed(
    s3: S3Server,
    lake: Callable[[int], Path],
    counting_ray: CountingRay,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> MakePacked:
    """Makes a run over files in a bucket, whose table is there too, and the addresses of the rows to expect."""

    def make(pack: Pack, options: tuple[str, ...]) -> tuple[Drivers, set[str]]:
        folder, bucket = tmp_path / "packed", s3.bucket()
        folder.mkdir()
        source, expected = pack(folder, [path.read_bytes() for path in sorted(lake(IMAGES).glob("*.jpg"))])
        with ThreadPoolExecutor(8) as threads:
            for upload in [
                threads.submit(s3.client().upload_file, str(path), bucket.removeprefix("s3://"), f"packed/{path.name}")
                for path in sorted(folder.iterdir())
            ]:
                upload.result()
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)  # for what looks at the table from here
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        options += ("--endpoint", s3.endpoint, "--region", "us-east-1")
        options += ("--shard-images", str(SHARD), "--actors", f"{ACTORS}:{ACTORS}")
        there = f"{bucket}/packed"
        run = Drivers(source.replace(str(folder), there), f"{bucket}/table", counting_ray, tmp_path.name, options)
        return run, {uri.replace(f"file://{folder}", there) for uri in expected}

    return make


@pytest.mark.parametrize(("pack", "options"), [(archives, ()), (parquet, ("--image-column", "image"))])
def test_images_inside_files_of_a_bucket_survive_20_kills_of_the_driver(
    packed: MakePacked, tmp_path: Path, report: Callable[..., None], pack: Pack, options: tuple[str, ...]
) -> None:
    run, expected = packed(pack, options)
    line = f"driver SIGKILL, {pack.__name__} on S3"
    kill_drivers(run, tmp_path / "history", expected, report, line=line, seed=2)


@pytest.mark.parametrize(
    ("pack", "options", "errors"),
    [(archives, (), {"truncated": 1, "unreadable": 1}), (parquet, ("--image-column", "image"), {})],
)
def test_images_inside_files_of_a_bucket_survive_kills_of_actors(
    packed: MakePacked,
    tmp_path: Path,
    report: Callable[..., None],
    pack: Pack,
    options: tuple[str, ...],
    errors: Mapping[str, int],
) -> None:
    run, expected = packed(pack, options)
    line = f"actor SIGKILL, {pack.__name__} on S3"
    kill_actors(run, tmp_path / "history", report, line=line, seed=1, images=len(expected), errors=errors)
    assert labelled_uris(run.table) == dict.fromkeys(expected, 1)
