"""Images inside tar archives and Parquet files, labelled through a real Ray and read back from the table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from detr.scenes.files import write_scenes
from pipelines.clock import SystemClock
from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.verify import verify_table
from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.store import open_store
from tests.pipelines.lake.archives import parquet_of_images, tar_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def rows(config: LabelConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.dataset.dataset(f"{config.table}/data").to_table().to_pylist()
    return found


def test_images_inside_files_have_rows_as_loose_ones_and_are_labelled_again_when_their_file_changes(
    local_ray: str, tmp_path: Path
) -> None:
    write_scenes(tmp_path / "scenes", 8, 4, sizes={(96, 128): 1})
    pictures = {path.name: path.read_bytes() for path in sorted((tmp_path / "scenes").glob("*.jpg"))}
    (tmp_path / "lake").mkdir()
    lake = f"file://{tmp_path}/lake"
    loose = next(iter(pictures))
    (tmp_path / "lake" / loose).write_bytes(pictures[loose])
    (tmp_path / "lake" / "a.tar").write_bytes(tar_of(reversed(pictures.items())))
    (tmp_path / "lake" / "b.tar").write_bytes(tar_of(pictures)[:2_000])
    (tmp_path / "lake" / "c.parquet").write_bytes(parquet_of_images(list(pictures.values()), paths=list(pictures)))
    config = LabelConfig(
        (f"{lake}/{loose}", f"{lake}/*.tar", f"{lake}/*.parquet"),
        table=str(tmp_path / "table"),
        model="scenes",
        device="cpu",
        actors=(1, 1),
        shard_images=4,
        image_column="image",
        max_error_rate=0.5,
    )

    summary = label(config)

    found = {row["uri"]: row for row in rows(config)}
    expected = [f"{lake}/{loose}", f"{lake}/b.tar", f"{lake}/b.tar#/{loose}"]
    expected += [f"{lake}/a.tar#/{name}" for name in pictures]
    expected += [f"{lake}/c.parquet#/image/{row:09d}/{name}" for row, name in enumerate(pictures)]
    assert sorted(found) == sorted(expected)
    assert summary.images == 19
    assert summary.errors == {"truncated": 2}
    for place, name in enumerate(pictures):
        inside = found[f"{lake}/a.tar#/{name}"]
        assert inside["size"] == len(pictures[name])
        assert inside["detections"] == found[f"{lake}/c.parquet#/image/{place:09d}/{name}"]["detections"]
    assert found[f"{lake}/a.tar#/{loose}"]["detections"] == found[f"{lake}/{loose}"]["detections"]
    assert label(config).images == 0

    verification = verify_table(open_store(config.table), clock=SystemClock())
    assert (verification.images, list(verification.findings)) == (19, [])
    report = write_report(ReportConfig(table=config.table, out=tmp_path / "report.html"))
    page = report.out.read_text()
    assert page.count("data:image/webp") >= 4
    assert "cannot be read" not in page
    export(ExportConfig(table=config.table, out=str(tmp_path / "coco.json"), format="coco-dataset"))
    names = {image["file_name"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]}
    assert f"a.tar#/{loose}" in names

    (tmp_path / "lake" / "a.tar").write_bytes(tar_of({**pictures, "new.jpg": pictures[loose]}))
    again = label(replace(config, images=(f"{lake}/*.tar",), image_column=None))
    assert (again.images, again.already_labelled) == (9, 2)
    assert Counter(row["uri"] for row in rows(config))[f"{lake}/a.tar#/{loose}"] == 2
