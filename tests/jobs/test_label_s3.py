"""The main job as users run it, on a real S3 server: `make test-s3`."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from detr.scenes.files import write_scenes
from pipelines.store import open_store
from pipelines.table.schema import decode
from tests.conftest import S3Server
from tests.pipelines.lake.archives import parquet_of_images, tar_of

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]

SCENES = 12
SIZES = {(96, 128): 1, (128, 96): 1}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lake")
    write_scenes(folder, SCENES, 4, sizes=SIZES)
    whole = (folder / "scene_4_000000.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture
def bucket(s3: S3Server, lake: Path) -> str:
    uri = s3.bucket()
    for path in lake.iterdir():
        s3.client().upload_file(str(path), uri.removeprefix("s3://"), f"2026/{path.name}")
    return uri


def label(s3: S3Server, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.label", "--model", "scenes", "--max-error-rate", "0.5", "--json"]
    command += ["--endpoint", s3.endpoint, "--region", "us-east-1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def rows(s3: S3Server, table: str) -> dict[str, dict[str, Any]]:
    return {row["uri"].rsplit("/", 1)[1]: row for row in _rows(s3, table)}


def _rows(s3: S3Server, table: str) -> list[dict[str, Any]]:
    store = open_store(table, s3.options())
    tables = [decode(store.get(entry.key).data) for entry in store.list("data/")]
    found: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    assert len({row["uri"] for row in found}) == len(found), "an image has two rows"
    return found


def test_a_bucket_becomes_a_table_in_a_bucket_and_a_second_run_finds_nothing_to_do(s3: S3Server, bucket: str) -> None:
    first = label(s3, "--images", f"{bucket}/2026/", "--table", f"{bucket}/table")
    assert first["images"] == SCENES + 3
    assert first["errors"] == {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert first["skipped"] == {".json": 1}
    table = rows(s3, f"{bucket}/table")
    assert len(table) == SCENES + 3
    assert table["scene_4_000003.jpg"]["status"] == "ok"
    assert table["scene_4_000003.jpg"]["etag"]

    second = label(s3, "--images", f"{bucket}/2026/", "--table", f"{bucket}/table")

    assert (second["images"], second["already_labelled"]) == (0, SCENES + 3)
    assert rows(s3, f"{bucket}/table") == table


def test_through_s3fs_the_rows_are_the_same(s3: S3Server, bucket: str) -> None:
    label(s3, "--images", f"{bucket}/2026/", "--table", f"{bucket}/native")
    label(s3, "--images", f"{bucket}/2026/", "--table", f"{bucket}/fsspec", "--via", "fsspec")

    native, through = rows(s3, f"{bucket}/native"), rows(s3, f"{bucket}/fsspec")

    assert native.keys() == through.keys()
    for name, row in native.items():
        same = ("uri", "etag", "size", "status", "error_kind", "width", "height", "detections", "model")
        assert {column: row[column] for column in same} == {column: through[name][column] for column in same}


def test_a_list_of_web_addresses_is_labelled_with_its_own_columns(
    s3: S3Server, bucket: str, web: str, tmp_path: Path
) -> None:
    listing = tmp_path / "todo.jsonl"
    names = [f"scene_4_{number:06d}.jpg" for number in range(4)] + ["gone.jpg"]
    listing.write_text("".join(json.dumps({"uri": f"{web}/{name}", "camera": name[-5]}) + "\n" for name in names))

    summary = label(s3, "--images", str(listing), "--table", f"{bucket}/web", "--keep", "camera")

    table = rows(s3, f"{bucket}/web")
    assert summary["errors"] == {"missing": 1}
    assert table["scene_4_000002.jpg"]["camera"] == "2"
    assert table["gone.jpg"]["error_kind"] == "missing"


def test_archives_and_parquet_files_in_a_bucket_give_the_rows_of_their_loose_images(
    s3: S3Server, bucket: str, lake: Path
) -> None:
    pictures = {path.name: path.read_bytes() for path in sorted(lake.glob("*.jpg"))}
    store = open_store(bucket, s3.options())
    store.put("packed/a#1.tar", tar_of(pictures))
    store.put("packed/b.parquet", parquet_of_images(list(pictures.values()), paths=list(pictures), group_rows=100))
    packed = ["--images", f"{bucket}/packed/*.tar", f"{bucket}/packed/*.parquet", "--image-column", "image"]

    label(s3, "--images", f"{bucket}/2026/", "--table", f"{bucket}/loose")
    first = label(s3, *packed, "--table", f"{bucket}/table")
    loose = rows(s3, f"{bucket}/loose")
    inside = {row["uri"]: row for row in _rows(s3, f"{bucket}/table")}
    assert first["images"] == len(inside) == 2 * len(pictures)
    assert (
        first["work"]["requests"] < first["images"] / 2
    )  # one for each shard and file, of few images in so small a run
    for number, name in enumerate(pictures):
        for uri in (f"{bucket}/packed/a#1.tar#/{name}", f"{bucket}/packed/b.parquet#/image/{number:09d}/{name}"):
            same = ("size", "status", "error_kind", "width", "height", "detections", "model")
            assert {column: inside[uri][column] for column in same} == {column: loose[name][column] for column in same}

    assert label(s3, *packed, "--table", f"{bucket}/table")["images"] == 0
    store.put("packed/a#1.tar", tar_of({"new.jpg": pictures["scene_4_000000.jpg"]}))
    assert label(s3, *packed, "--table", f"{bucket}/table")["images"] == 1

    through = label(s3, *packed, "--table", f"{bucket}/fsspec", "--via", "fsspec")
    assert through["images"] == len(pictures) + 1


@pytest.fixture(scope="module")
def web(lake: Path) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(lake))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
