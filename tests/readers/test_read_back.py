"""Every export format, read back by the tool that receives it: same boxes, same scores, errors where it has them.

Tools that this project does not need otherwise are in an environment of their own: `make test-readers` makes it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

Boxes = Mapping[str, Sequence[Sequence[Any]]]

READERS = os.environ.get("READERS_PYTHON")
NEEDS_READERS = pytest.mark.skipif(READERS is None, reason="no environment of the readers: run `make test-readers`")
NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
SIZES = {"a.png": (640, 480), "cam 1/b.png": (401, 977), "cam 1/ä.png": (80, 60), "empty.png": (33, 44)}
LABELS = {1: "dog", 5: "traffic light", 18: "cat"}


def found(size: tuple[int, int], count: int, seed: int) -> Detected:
    random = np.random.default_rng(seed)
    ids = random.choice(list(LABELS), count)
    low = random.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + random.uniform(0.05, 0.39, (count, 2))], axis=1) * [*size, *size]
    scores = np.sort(random.uniform(0.05, 1, count))[::-1]
    return Detected(ids, [LABELS[number] for number in ids.tolist()], scores.astype(np.float32), boxes)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, one without a box, and one error; in a table beside them."""
    folder = tmp_path_factory.mktemp("exports")
    rows = []
    for number, (name, size) in enumerate(SIZES.items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        count = 0 if name == "empty.png" else 7
        detected = found(size, count, number)
        rows.append(Row(f"file://{path}", width=size[0], height=size[1], detections=detected))
    rows.append(Row(f"file://{folder}/images/cam 1/bad.png", error_kind="truncated", error="the PNG ends early"))
    (folder / "images" / "cam 1" / "bad.png").write_bytes(b"\x89PNG")
    data = encode(rows_to_table(rows, origin=Origin("detr@1", 0.05, "run-1", 0, NOW)))
    open_store(str(folder / "table")).put("data/run-1/00000.parquet", data)
    return folder


@pytest.fixture(scope="module")
def expected(lake: Path) -> Boxes:
    boxes = {}
    for number, (name, size) in enumerate(SIZES.items()):
        detected = found(size, 0 if name == "empty.png" else 7, number)
        columns = zip(detected.labels, np.asarray(detected.scores), np.asarray(detected.boxes_xyxy), strict=True)
        boxes[name.rpartition("/")[2]] = [[label, float(score), *map(float, box)] for label, score, box in columns]
    return boxes


def check(read: Boxes, expected: Boxes, *, with_scores: bool = True) -> None:
    assert {name: len(boxes) for name, boxes in read.items()} == {name: len(boxes) for name, boxes in expected.items()}
    for name, boxes in read.items():
        for box, wanted in zip(boxes, expected[name], strict=True):
            assert box[0] == wanted[0]
            assert box[2:] == pytest.approx(wanted[2:], abs=0.01)
            if with_scores:
                assert box[1] == pytest.approx(wanted[1], abs=1e-6)


def read_by_tool(kind: str, path: str, images: Path, environment: Mapping[str, str] | None = None) -> tuple[Boxes, Any]:
    assert READERS is not None
    script = str(Path(__file__).parent / "reading.py")
    done = subprocess.run(
        [READERS, script, kind, path, str(images)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    return {name.rpartition("/")[2]: boxes for name, boxes in read["boxes"].items()}, read["failures"]


def written(lake: Path, out: Path, kind: str) -> str:
    export(ExportConfig(str(lake / "table"), str(out), format=kind))  # type: ignore[arg-type]
    return str(out)


def test_csv_has_a_line_for_each_box(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    read = defaultdict(list)
    with Path(written(lake, tmp_path / "out.csv", "csv")).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            assert (int(line["width"]), int(line["height"])) in SIZES.values()
            sides = [float(line[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            read[line["uri"].rpartition("/")[2]].append([line["label"], float(line["score"]), *sides])

    check(read, {name: boxes for name, boxes in expected.items() if boxes})


def test_pycocotools_reads_a_data_set(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    check(of_coco(COCO(written(lake, tmp_path / "out.json", "coco-dataset"))), expected)


def test_pycocotools_reads_results_beside_their_images(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    folder = written(lake, tmp_path / "out", "coco")
    images = COCO(f"{folder}/images.json")

    check(of_coco(images.loadRes(f"{folder}/results-00000.json")), expected)


def of_coco(read: COCO) -> Boxes:
    names = {category["id"]: category["name"] for category in read.loadCats(read.getCatIds())}
    boxes: dict[str, list[list[Any]]] = {image["file_name"].rpartition("/")[2]: [] for image in read.imgs.values()}
    for one in read.anns.values():
        x, y, width, height = one["bbox"]
        name = read.imgs[one["image_id"]]["file_name"].rpartition("/")[2]
        boxes[name].append([names[one["category_id"]], one["score"], x, y, x + width, y + height])
    return boxes


@NEEDS_READERS
@pytest.mark.slow
def test_supervision_reads_voc(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    out = written(lake, tmp_path / "out", "voc")

    boxes, _ = read_by_tool("voc", out, lake / "images")
    check(boxes, {name: expected[name] for name in ("a.png", "empty.png")}, with_scores=False)  # its loader is flat
    assert (tmp_path / "out" / "Annotations" / "a.xml").read_text().count("<score>") == 7


@NEEDS_READERS
@pytest.mark.slow
def test_supervision_reads_yolo(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    boxes, _ = read_by_tool("yolo", written(lake, tmp_path / "out", "yolo"), lake / "images")

    check(boxes, {name: expected[name] for name in ("a.png", "empty.png")})


@NEEDS_READERS
@pytest.mark.slow
def test_supervision_reads_a_coco_data_set(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    boxes, _ = read_by_tool("coco-dataset", written(lake, tmp_path / "out.json", "coco-dataset"), lake / "images")

    check(boxes, expected, with_scores=False)


@NEEDS_READERS
@pytest.mark.slow
def test_megadetectors_validator_accepts_the_results(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    boxes, failures = read_by_tool(
        "megadetector", written(lake, tmp_path / "out.json", "megadetector"), lake / "images"
    )

    check(boxes, expected)
    assert {name.rpartition("/")[2]: why for name, why in failures.items()} == {
        "bad.png": "truncated: the PNG ends early"
    }


@NEEDS_READERS
@pytest.mark.slow
def test_label_studio_accepts_the_predictions(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    boxes, _ = read_by_tool("labelstudio", written(lake, tmp_path / "out.json", "labelstudio"), lake / "images")

    check(boxes, expected)


@NEEDS_READERS
@pytest.mark.slow
def test_pyiceberg_reads_the_registered_files(lake: Path, tmp_path: Path, expected: Boxes) -> None:
    """Registering needs pyiceberg, too, so the export runs there, with our packages behind its own."""
    assert READERS is not None
    catalog = {
        "PYICEBERG_CATALOG__DEFAULT__TYPE": "sql",
        "PYICEBERG_CATALOG__DEFAULT__URI": f"sqlite:///{tmp_path}/catalog.db",
        "PYICEBERG_CATALOG__DEFAULT__WAREHOUSE": f"file://{tmp_path}/warehouse",
    }
    ours = next(one for one in sys.path if one.endswith("site-packages"))
    table = tmp_path / "table"
    shutil.copytree(lake / "table", table)
    code = (
        f"import sys; sys.path.append({ours!r}); from jobs.export import main; "
        f"main(['--table', {str(table)!r}, '--to', 'iceberg', '--out', 'lake.detections'])"
    )
    root = str(Path(__file__).parents[2])

    def register() -> str:
        done = subprocess.run(
            [READERS, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **catalog}, cwd=root
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "5 of 5 rows, 1 file: lake.detections" in register()
    assert "5 of 5 rows, 0 files: lake.detections" in register()  # it is there already
    later = [Row(f"file://{lake}/images/later.png", width=9, height=9, detections=found((9, 9), 1, 9), kept=("north",))]
    origin = Origin("detr@1", 0.05, "run-2", 0, NOW)
    data = encode(rows_to_table(later, pa.schema([("station", pa.string())]), origin=origin))
    open_store(str(table)).put("data/run-2/00000.parquet", data)
    assert "6 of 6 rows, 1 file: lake.detections" in register()  # with a column that the table did not have

    boxes, failures = read_by_tool("iceberg", "lake.detections", lake / "images", catalog)
    assert len(boxes["later.png"]) == 1
    check({name: one for name, one in boxes.items() if name != "later.png"}, expected)
    assert {name.rpartition("/")[2]: why for name, why in failures.items()} == {
        "bad.png": "truncated: the PNG ends early"
    }
    assert not list(tmp_path.rglob("warehouse/**/data/*.parquet"))
