"""The review loop through the tools that people correct in: a real Label Studio server, and CVAT's reader of COCO."""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.review.config import CorrectionsConfig, ReviewConfig
from pipelines.review.corrected_shards import CorrectionsSummary, shard_corrections
from pipelines.review.export import export_review
from pipelines.shards.rows import coco_json
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.pipelines.report.tables import NOW
from tests.readers.label_studio_server import LabelStudio, label_studio

Boxes = dict[str, list[tuple[str, list[float]]]]

PROGRAM: Final = os.environ.get("LABEL_STUDIO")
DATUMARO: Final = os.environ.get("DATUMARO_PYTHON")
HOW: Final = "run `make test-readers`, which makes an environment of its own for it"

IDS: Final = {"dog": 1, "traffic light": 5, "cat": 18}
PICTURES: Final[dict[str, tuple[tuple[int, int], list[tuple[str, float, list[float]]]]]] = {
    "plain.png": ((640, 480), [("dog", 0.93, [60, 50, 260, 300]), ("cat", 0.41, [400.25, 220.5, 600.125, 440.75])]),
    "cam 1/b #1 50%.png": ((401, 977), [("traffic light", 0.77, [33.333, 100.1, 377.7, 900.9])]),
    "cam 1/ä?x=1&y.png": ((800, 600), [("cat", 0.5, [0, 0, 800, 600])]),
    "turned.jpg": ((720, 1280), [("dog", 0.66, [100, 900, 700, 1200])]),
    "empty.png": ((320, 240), []),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures below `served/lake` with names that addresses must escape, one turned by EXIF, and their table."""
    rows = []
    for name, (size, found) in PICTURES.items():
        path = tmp_path / "served" / "lake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture, exif = Image.new("RGB", size, "#ddd"), Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        picture.save(path, exif=exif)
        labels = [label for label, _, _ in found]
        boxes = np.array([box for _, _, box in found], np.float64).reshape(-1, 4)
        scores = np.array([score for _, score, _ in found], np.float32)
        detected = Detected([IDS[label] for label in labels], labels, scores, boxes)
        version = path.stat().st_size
        rows.append(Row(f"file://{path}", size=version, width=size[0], height=size[1], detections=detected))
    data = encode(rows_to_table(rows, origin=Origin("detr@1", 0.05, "run-1", 0, NOW)))
    open_store(str(tmp_path / "table")).put("data/run-1/00000.parquet", data)
    return tmp_path


def take_back(folder: Path, kind: str, data: bytes) -> tuple[CorrectionsSummary, Boxes]:
    file, shards = folder / f"corrected.{kind}", folder / f"shards-{kind}"
    file.write_bytes(data)
    summary = shard_corrections(CorrectionsConfig(str(folder / "table"), str(shards), (str(file),)))
    coco = coco_json(open_store(str(shards)))
    labels = {one["id"]: one["name"] for one in coco["categories"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    found: Boxes = {name: [] for name in files.values()}
    for one in coco["annotations"]:
        found[files[one["image_id"]]].append((labels[one["category_id"]], one["bbox"]))
    return summary, found


def check(found: Boxes, wanted: Boxes) -> None:
    assert {name: [label for label, _ in boxes] for name, boxes in found.items()} == {
        name: [label for label, _ in boxes] for name, boxes in wanted.items()
    }
    for name, boxes in found.items():
        for (_, box), (_, other) in zip(boxes, wanted[name], strict=True):
            assert box == pytest.approx(other, abs=0.01)


@pytest.fixture
def studio(folder: Path) -> Iterator[LabelStudio]:
    assert PROGRAM is not None
    with label_studio(PROGRAM, folder / "data", folder / "served", folder / "server.log") as running:
        yield running


@pytest.mark.skipif(PROGRAM is None, reason=f"no Label Studio: {HOW}")
@pytest.mark.slow
def test_label_studio_shows_what_was_found_and_its_corrections_come_back(folder: Path, studio: LabelStudio) -> None:
    batch = folder / "batch"
    urls = (f"file://{folder}/served/", "/data/local-files/?d=")
    export_review(ReviewConfig(table=str(folder / "table"), out=str(batch), choice="random", count=9, image_urls=urls))
    project = studio.make_project((batch / "interface.xml").read_text(), folder / "served" / "lake")
    studio.upload(project, batch / "tasks.json")
    tasks = {task["data"]["uri"].partition("/served/lake/")[2]: task for task in studio.tasks(project)}

    assert tasks.keys() == PICTURES.keys()
    for name, (size, found) in PICTURES.items():
        (prediction,) = tasks[name]["predictions"]
        assert prediction["model_version"] == "detr@1"
        assert prediction["score"] == pytest.approx(found[0][1] if found else 0.0)
        assert [one["score"] for one in prediction["result"]] == pytest.approx([score for _, score, _ in found])
        assert tasks[name]["data"]["image"] == "/data/local-files/?d=lake/" + quote(name)
        shown = Image.open(io.BytesIO(studio.ask("GET", tasks[name]["data"]["image"])))
        assert shown.size == (size[::-1] if name == "turned.jpg" else size)

    def result(name: str) -> list[dict[str, Any]]:
        regions: list[dict[str, Any]] = tasks[name]["predictions"][0]["result"]
        return regions

    cat = result("plain.png")[1]
    cat["value"] |= {"x": 12.5, "y": 25.0, "width": 50.0, "height": 12.5, "rectanglelabels": ["dog"]}
    studio.submit(tasks["plain.png"]["id"], result("plain.png"))
    result("turned.jpg")[0]["value"]["y"] = 10.0
    studio.submit(tasks["turned.jpg"]["id"], result("turned.jpg"))
    studio.submit(tasks["cam 1/ä?x=1&y.png"]["id"], [])
    studio.submit(tasks["cam 1/b #1 50%.png"]["id"], result("cam 1/b #1 50%.png"), skipped=True)

    wanted: Boxes = {
        "plain.png": [("dog", [60, 50, 200, 250]), ("dog", [80, 120, 320, 60])],
        "turned.jpg": [("dog", [100, 128, 600, 300])],
        "cam 1/ä?x=1&y.png": [],
    }
    for kind, counts in {"JSON": (1, 1), "JSON_MIN": (0, 2), "COCO": (0, 2)}.items():
        summary, found_again = take_back(folder, kind, studio.export(project, kind))
        check(found_again, wanted)
        assert (summary.skipped, summary.not_reviewed) == counts
        assert summary.other_size == ()


def through_datumaro(instances: Path, images: Path, out: Path) -> dict[str, list[list[Any]]]:
    assert DATUMARO is not None
    script = str(Path(__file__).parent / "through_datumaro.py")
    words = [DATUMARO, script, str(instances), str(images), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, list[list[Any]]] = json.loads(done.stdout.splitlines()[-1])
    return read


def check_read(read: dict[str, list[list[Any]]]) -> None:
    assert {name: sorted(boxes) for name, boxes in read.items()} == {
        name.rpartition(".")[0]: sorted([label, pytest.approx(score), *(pytest.approx(side, abs=0.01) for side in box)]
                                        for label, score, box in found)
        for name, (_, found) in PICTURES.items()
    }  # fmt: skip


@pytest.mark.skipif(DATUMARO is None, reason=f"no datumaro: {HOW}")
@pytest.mark.slow
def test_datumaro_reads_the_file_of_an_export(folder: Path) -> None:
    """CVAT imports COCO with this library; CVAT itself is not run."""
    export(ExportConfig(str(folder / "table"), str(folder / "instances.json"), format="coco-dataset"))

    check_read(through_datumaro(folder / "instances.json", folder / "served" / "lake", folder / "through"))


@pytest.mark.skipif(DATUMARO is None, reason=f"no datumaro: {HOW}")
@pytest.mark.slow
def test_datumaro_reads_a_batch_and_what_it_writes_comes_back(folder: Path) -> None:
    """CVAT imports and exports COCO with this library; CVAT itself is not run."""
    batch, images = folder / "batch", folder / "served" / "lake"
    config = ReviewConfig(
        table=str(folder / "table"), out=str(batch), choice="random", count=9, to="coco-dataset", threshold=0.3
    )
    export_review(config)
    read = through_datumaro(batch / "instances.json", images, folder / "through")

    check_read(read)
    written = folder / "through" / "out" / "annotations" / "instances_default.json"
    assert [one["id"] for one in json.loads(written.read_text())["categories"]] == [1, 2, 3]  # numbered anew
    archive = io.BytesIO()  # CVAT's download
    with zipfile.ZipFile(archive, "w") as file:
        file.write(written, "annotations/instances_default.json")

    summary, found_again = take_back(folder, "zip", archive.getvalue())
    wanted = {
        name: sorted((label, [xmin, ymin, xmax - xmin, ymax - ymin]) for label, _, (xmin, ymin, xmax, ymax) in found)
        for name, (_, found) in PICTURES.items()
    }
    check({name: sorted(boxes) for name, boxes in found_again.items()}, wanted)
    assert (summary.reviewed, summary.unmatched, summary.classes) == (5, 0, ("dog", "traffic light", "cat"))
