"""Formats of other tools: what their files hold, which rows come, and what is refused; reading back: tests/readers."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.exports import trees
from pipelines.exports.config import ExportConfig
from pipelines.exports.export import export
from pipelines.exports.images import Names, common_names
from pipelines.exports.trees import EqualStems
from pipelines.marks.marks import Mark, accept_marks
from pipelines.store import open_store, without_known_secrets
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.conftest import S3Server

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
DOG = Detected([18], ("dog",), [0.75], [[10, 20, 60, 40]])


def publish(table: str, run_id: str, rows: list[Row], *, days: int = 0, model: str = "detr@1") -> None:
    origin = Origin(model, 0.05, run_id, 0, NOW + timedelta(days=days))
    open_store(table).put(f"data/{run_id}/00000.parquet", encode(rows_to_table(rows, origin=origin)))


def row(uri: str, found: Detected = DOG) -> Row:
    return Row(uri, width=100, height=50, detections=found)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two pictures, one of which two runs labelled, and an error."""
    place = str(tmp_path / "table")
    publish(place, "run-1", [row("s3://lake/x/a.jpg"), row("s3://lake/x/sub/b.jpg")])
    publish(place, "run-2", [row("s3://lake/x/a.jpg"), Row("s3://lake/x/c.jpg", error_kind="denied")], days=1)
    return place


def exported(table: str, out: Path, kind: str, **options: object) -> Path:
    export(ExportConfig(table, str(out), format=kind, **options))  # type: ignore[arg-type]
    return out


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_csv_is_a_line_a_box_of_every_row(table: str, tmp_path: Path) -> None:
    assert exported(table, tmp_path / "out.csv", "csv").read_text() == (
        "uri,width,height,category_id,label,score,xmin,ymin,xmax,ymax,model\n"
        "s3://lake/x/a.jpg,100,50,18,dog,0.75,10.0,20.0,60.0,40.0,detr@1\n"
        "s3://lake/x/sub/b.jpg,100,50,18,dog,0.75,10.0,20.0,60.0,40.0,detr@1\n"
        "s3://lake/x/a.jpg,100,50,18,dog,0.75,10.0,20.0,60.0,40.0,detr@1\n"
    )


def test_a_coco_data_set_has_each_image_once_and_no_errors(table: str, tmp_path: Path) -> None:
    data = json.loads(exported(table, tmp_path / "out.json", "coco-dataset").read_text())

    assert data["images"] == [
        {"id": 1, "file_name": "sub/b.jpg", "width": 100, "height": 50},
        {"id": 2, "file_name": "a.jpg", "width": 100, "height": 50},
    ]
    assert data["categories"] == [{"id": 18, "name": "dog"}]
    assert data["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 18, "bbox": [10.0, 20.0, 50.0, 20.0], "score": 0.75, "area": 1000.0,
        "iscrowd": 0,
    }  # fmt: skip
    assert data["info"] == {"image_folder": "s3://lake/x/"}


def test_megadetector_has_shares_of_the_picture_and_failures(table: str, tmp_path: Path) -> None:
    data = json.loads(exported(table, tmp_path / "out.json", "megadetector").read_text())

    assert data["images"][0]["detections"] == [{"category": "18", "conf": 0.75, "bbox": [0.1, 0.4, 0.5, 0.4]}]
    assert data["images"][2] == {"file": "c.jpg", "failure": "denied", "detections": None}
    assert data["detection_categories"] == {"18": "dog"}
    assert data["info"]["format_version"] == "1.5"


def test_label_studio_tasks_have_percent_and_a_score_for_each_box(table: str, tmp_path: Path) -> None:
    task = json.loads(exported(table, tmp_path / "out.json", "labelstudio").read_text())[0]

    assert task["data"] == {"image": "s3://lake/x/sub/b.jpg"}
    (result,) = task["predictions"][0]["result"]
    assert (result["score"], result["original_width"], result["original_height"]) == (0.75, 100, 50)
    assert result["value"] == {
        "x": 10.0, "y": 40.0, "width": 50.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["dog"],
    }  # fmt: skip


def test_label_studio_gets_addresses_that_it_can_open(tmp_path: Path) -> None:
    table, urls = str(tmp_path / "table"), ("file:///data/", "/data/local-files/?d=")
    publish(table, "run-1", [row("file:///data/lake/a b.jpg"), Row("file:///data/c.jpg", error_kind="truncated")])

    tasks = json.loads(exported(table, tmp_path / "out.json", "labelstudio", image_urls=urls).read_text())

    assert [task["data"] for task in tasks] == [{"image": "/data/local-files/?d=lake/a%20b.jpg"}]
    with pytest.raises(
        UsageError, match=r"no address of the chosen images begins with s3://; one is file:///data/lake"
    ):
        exported(table, tmp_path / "folder", "labelstudio", image_urls=("s3://", "/"))
    assert not (tmp_path / "folder").exists()
    for kind in ("csv", "coco-dataset", "yolo", "iceberg"):
        with pytest.raises(ValueError, match=f"only Label Studio's tasks have addresses .* omit the option for {kind}"):
            ExportConfig(table, "out.name", format=kind, image_urls=urls)  # type: ignore[arg-type]


def test_yolo_has_a_file_an_image_in_folders_as_the_pictures_are(table: str, tmp_path: Path) -> None:
    out = exported(table, tmp_path / "out", "yolo")

    assert files(out) == [
        "_export.json", "data.yaml", "labels/a.txt", "labels/sub/b.txt", "predictions/a.txt", "predictions/sub/b.txt",
    ]  # fmt: skip
    assert (out / "labels/a.txt").read_text() == "0 0.350000000 0.600000000 0.500000000 0.400000000\n"
    assert (out / "predictions/a.txt").read_text() == "0 0.350000000 0.600000000 0.500000000 0.400000000 0.750000\n"
    assert '"dog"' in (out / "data.yaml").read_text()
    assert json.loads((out / "_export.json").read_text())["files"] == 5


def test_yolo_numbers_classes_by_their_ids_whatever_the_order_of_the_images(tmp_path: Path) -> None:
    def written(name: str) -> tuple[str, dict[str, str]]:
        out = exported(table, tmp_path / name, "yolo")
        lines = {path.name: path.read_text().split(" ")[0] for path in (out / "labels").iterdir()}
        return (out / "data.yaml").read_text().splitlines()[-1], lines

    table, cat = str(tmp_path / "table"), row("s3://lake/x/cat.jpg", Detected([3], ("cat",), [0.5], [[0, 0, 9, 9]]))
    publish(table, "run-1", [row("s3://lake/x/dog.jpg"), cat])
    expected = ('names: ["cat", "dog"]', {"cat.txt": "0", "dog.txt": "1"})
    assert written("first") == expected
    publish(table, "run-2", [cat, row("s3://lake/x/dog.jpg")], days=1)
    assert written("second") == expected
    accept_marks(open_store(table), [Mark("s3://lake/x/", 0, "cat", (0, 0, 0.09, 0.18), 0.85, 20)], SystemClock())
    assert written("marked") == (expected[0], {"cat.txt": "", "dog.txt": "1"})


def test_voc_counts_pixels_from_one_to_the_last_one_inside(table: str, tmp_path: Path) -> None:
    text = (exported(table, tmp_path / "out", "voc") / "Annotations/a.xml").read_text()

    assert "<bndbox><xmin>11.000</xmin><ymin>21.000</ymin><xmax>60.000</xmax><ymax>40.000</ymax></bndbox>" in text
    assert "<score>0.750000</score>" in text


def test_voc_is_xml_whatever_characters_names_and_classes_have(tmp_path: Path) -> None:
    table, letters = str(tmp_path / "table"), "\x01\r\x1f\ufffe\uffff\t\n\x7f\ufffd\U0001f98a<&>"
    shown = "?????\t\n\x7f\ufffd\U0001f98a<&>"
    label = Detected([18], (f"dog{letters}",), [0.75], [[10, 20, 60, 40]])
    publish(table, "run-1", [row(f"s3://lake/in{letters}/a{letters}.jpg", label), row("s3://lake/b.jpg", label)])

    out = exported(table, tmp_path / "out", "voc")

    root = ElementTree.parse(out / f"Annotations/in{letters}/a{letters}.xml").getroot()  # noqa: S314 - our own file
    assert [root.findtext(key) for key in ("folder", "filename", "object/name")] == [
        f"in{shown}", f"a{shown}.jpg", f"dog{shown}",
    ]  # fmt: skip


def test_images_of_the_web_that_differ_in_their_query_only_stay_different(tmp_path: Path) -> None:
    table, uris = str(tmp_path / "table"), [f"https://cdn.example/img?id={number}" for number in (1, 2, 3)]
    publish(table, "run-1", [row(uri) for uri in uris])

    lines = exported(table, tmp_path / "out.csv", "csv").read_text().splitlines()[1:]
    coco, tasks, megadetector = (
        json.loads(exported(table, tmp_path / f"{kind}.json", kind).read_text())
        for kind in ("coco-dataset", "labelstudio", "megadetector")
    )

    names = ["img?id=1", "img?id=2", "img?id=3"]
    assert [line.partition(",")[0] for line in lines] == uris
    assert [image["file_name"] for image in coco["images"]] == names
    assert [task["data"]["image"] for task in tasks] == uris
    assert [image["file"] for image in megadetector["images"]] == names
    for kind, suffix in (("yolo", "txt"), ("voc", "xml")):
        written = files(exported(table, tmp_path / kind, kind))
        assert [Path(name).name for name in written if name.startswith(("labels/", "Annotations/"))] == [
            f"{name}.{suffix}" for name in names
        ]


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_a_name_that_no_file_can_have_is_refused_before_the_first_file(kind: str, tmp_path: Path) -> None:
    table, out = str(tmp_path / "table"), tmp_path / "out"
    publish(table, "run-1", [row("https://h/a.jpg"), row(f"https://h/img?url={'x' * 260}")])

    with pytest.raises(UsageError, match=r"^https://h/img\?url=x+\.\.\. has a name of more than 250 bytes"):
        export(ExportConfig(table, str(out), format=kind))  # type: ignore[arg-type]

    assert not out.exists()


@pytest.mark.parametrize("kind", ["csv", "coco-dataset", "labelstudio", "megadetector", "coco", "voc"])
def test_a_secret_that_got_into_a_table_is_not_exported(kind: str, tmp_path: Path) -> None:
    """Lists with such addresses are refused; the rows are of another origin."""
    table = str(tmp_path / "table")
    publish(table, "run-1", [row("https://me:planted@h/a.jpg?w=600&token=planted"), row("https://h/b.jpg?w=600")])

    export(ExportConfig(table, str(tmp_path / "out" / "x"), format=kind))  # type: ignore[arg-type]

    text = "".join(f"{name} {(tmp_path / 'out' / name).read_text()}" for name in files(tmp_path / "out"))
    assert "planted" not in text
    assert "w=600" in text


def test_a_folder_of_a_bucket_takes_such_files_too(table: str, moto: S3Server) -> None:
    out = f"{moto.bucket()}/out"
    export(ExportConfig(table, out, format="voc", options=moto.options()))

    keys = [entry.key for entry in open_store(out, moto.options()).list()]
    assert keys == ["Annotations/a.xml", "Annotations/sub/b.xml", "_export.json", "labels.txt"]


def test_files_of_a_folder_have_as_many_images_as_importers_take(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [row(f"s3://lake/x/{number}.jpg") for number in range(5)])

    out = exported(table, tmp_path / "out", "labelstudio", file_images=3)

    tasks = [len(json.loads((out / name).read_text())) for name in files(out) if name != "_export.json"]
    assert sum(tasks) == 7
    assert max(tasks) == 3


def test_two_pictures_that_differ_in_their_suffix_are_refused_where_labels_pair_by_name(
    table: str, tmp_path: Path
) -> None:
    publish(table, "run-3", [row("s3://lake/x/a.png")])

    for kind in ("yolo", "voc"):
        with pytest.raises(UsageError, match=r"have the same name without suffix, a,.*coco-dataset instead"):
            exported(table, tmp_path / "out", kind)
        assert not (tmp_path / "out").exists()  # nothing has to be deleted before another try


def test_a_picture_that_could_not_be_read_does_not_take_the_name_of_another(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [Row("s3://lake/x/a.heic", error_kind="unsupported", error="HEIC")])

    assert "labels/a.txt" in files(exported(table, tmp_path / "out", "yolo"))


@pytest.mark.parametrize("kind", ["coco-dataset", "coco", "yolo", "voc"])
def test_rows_that_are_not_written_do_not_change_the_names_of_pictures(table: str, kind: str, tmp_path: Path) -> None:
    def written(name: str, **options: object) -> dict[str, str]:
        out = exported(table, tmp_path / (f"{name}.json" if kind == "coco-dataset" else name), kind, **options)
        found = [out] if out.is_file() else [out / file for file in files(out)]
        return {str(path.relative_to(out)): path.read_text() for path in found if path.name != "_export.json"}

    before = written("before")
    assert "lake" not in str(before).replace("s3://lake/x/", "")
    publish(table, "run-3", [Row("s3://lak/x/c.jpg", error_kind="missing", error="no bucket")], days=2)
    assert written("error") == before
    publish(table, "run-4", [row("file:///tmp/trial.jpg")], days=3, model="other@2")
    assert written("model", model="detr@1") == before


def test_megadetector_names_its_failures_and_all_other_pictures_by_one_folder(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [Row("s3://lak/x/c.jpg", error_kind="missing", error="no bucket")], days=2)

    data = json.loads(exported(table, tmp_path / "out.json", "megadetector").read_text())

    assert [one["file"] for one in data["images"]] == [
        "lake/x/sub/b.jpg", "lake/x/a.jpg", "lake/x/c.jpg", "lak/x/c.jpg",
    ]  # fmt: skip


def test_a_class_number_with_two_names_is_refused(table: str, tmp_path: Path) -> None:
    publish(table, "run-3", [row("s3://lake/x/d.jpg", Detected([18], ("cat",), [0.5], [[0, 0, 9, 9]]))])

    with pytest.raises(RayDetrError, match=r"class 18 is 'dog' in some rows and 'cat' in that of .*Give --model"):
        exported(table, tmp_path / "out.json", "coco-dataset")
    with pytest.raises(RayDetrError, match=r"class 18 is 'dog' in some rows and 'cat' in those of .*Give --model"):
        exported(table, tmp_path / "yolo", "yolo")
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "yolo").exists()  # the class names are known before the first of its many files


class FullDisk(io.BytesIO):
    """A temporary file on a disk that is full after the first image."""

    def write(self, data: Buffer) -> int:
        if self.tell() > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("kind", ["coco", "coco-dataset"])
def test_a_full_temporary_folder_is_named_instead_of_that_of_the_export(
    kind: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", FullDisk)
    monkeypatch.setattr(trees, "FILE_BYTES", 1)  # so that results are written before

    with pytest.raises(RayDetrError, match=r"^cannot write a temporary file to .*: No space .* set TMPDIR") as stop:
        exported(table, tmp_path / ("out" if kind == "coco" else "out.json"), kind)
    notes = getattr(stop.value, "__notes__", [])
    assert ["is incomplete" in note for note in notes] == ([True] if kind == "coco" else [])


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["s3://b/x/1.jpg", "s3://b/x/y/2.jpg"], ["1.jpg", "y/2.jpg"]),
        (["s3://b/xy/1.jpg", "s3://b/xz/1.jpg"], ["xy/1.jpg", "xz/1.jpg"]),
        (["s3://a/1.jpg", "s3://b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["s3://a/1.jpg", "file:///d/1.jpg"], ["s3/a/1.jpg", "file/_/d/1.jpg"]),
        (["s3://b/x/../../1.jpg", "s3://b/2.jpg"], ["x/_/_/1.jpg", "2.jpg"]),
        (["https://h/1.jpg?X-Amz-Signature=abc", "https://h/2.jpg"], ["1.jpg?X-Amz-Signature=...", "2.jpg"]),
    ],
)
def test_names_are_relative_to_the_folder_of_all_and_stay_inside(uris: list[str], names: list[str]) -> None:
    found = common_names([pa.chunked_array([pa.array([uri])]) for uri in uris])

    assert [found.of(without_known_secrets(uri)) for uri in uris] == names


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        ("s3://lake/detections", {}, "does not name an Iceberg table: write NAMESPACE.TABLE"),
        ("lake.detections", {"latest": True}, "whole files are registered"),
    ],
)
def test_what_iceberg_cannot_have_is_refused(out: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExportConfig("table", out, format="iceberg", **options)  # type: ignore[arg-type]


MEMORY = """
import sys
from jobs.export import main
from pipelines.exports import places, trees
places.FILE_BYTES = trees.FILE_BYTES = 1_000_000
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
main(["--table", sys.argv[1], "--to", sys.argv[2], "--out", sys.argv[3] + "/few"])
before = peak()
main(["--table", sys.argv[1] + "-many", "--to", sys.argv[2], "--out", sys.argv[3] + "/many"])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector"])
def test_memory_does_not_grow_with_the_boxes(kind: str, tmp_path: Path) -> None:
    """Two hundred thousand boxes into files of a megabyte; ten million into files as they are: the next test."""
    found = Detected([18] * 100, ("dog",) * 100, [0.75] * 100, [[10, 20, 60, 40]] * 100)
    publish(str(tmp_path / "table"), "run-1", [row("s3://lake/x/a.jpg", found)])
    publish(str(tmp_path / "table-many"), "run-1", [row(f"s3://lake/x/{number}.jpg", found) for number in range(2000)])

    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "table"), kind, str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = int(done.stdout.split()[-1])
    assert grown < 90


@pytest.mark.slow
@pytest.mark.long
def test_ten_million_boxes_are_exported_with_less_than_500_mb(tmp_path: Path) -> None:
    """Twenty minutes of CPU, and 5 GB of disk for the largest output."""
    script = ROOT / "scripts" / "measure_exports.py"

    done = subprocess.run(
        [sys.executable, str(script), "--images", "100000", "--boxes", "100", "--most-mb", "500"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("10,000,000 boxes of 100,000 images")
    assert done.stdout.count("\n| ") == 1 + 9  # a head, and a line for each format


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector"])
def test_of_many_images_with_one_box_nothing_is_kept_while_they_are_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("places", "trees"):
        monkeypatch.setattr(f"pipelines.exports.{module}.FILE_BYTES", 10_000)

    def held_at_the_end(images: int) -> int:
        table, held = str(tmp_path / f"table-{images}"), [0]
        for first in range(0, images, 250):
            publish(table, f"run-{first}", [row(f"s3://lake/x/{first + number:08}.jpg") for number in range(250)])
        config = ExportConfig(table, str(tmp_path / f"out-{images}"), format=kind)  # type: ignore[arg-type]
        tracemalloc.start()
        try:
            export(config, show=lambda _rows, _total: held.append(tracemalloc.get_traced_memory()[0]))
        finally:
            tracemalloc.stop()
        return held[-1]

    held_at_the_end(250)  # imports
    assert (held_at_the_end(3_000) - held_at_the_end(500)) / 2_500 < 20


@pytest.mark.parametrize(("more", "are_refused"), [("s3://lake/7.png", True), ("s3://lake/8a.png", False)])
def test_equal_names_are_looked_for_with_a_few_bytes_for_each_image(more: str, are_refused: bool) -> None:
    uris = [f"s3://lake/{number}.jpg" for number in range(20_000)]
    columns = [pa.chunked_array([part]) for part in (uris[:10_000], uris[10_000:], [more])]
    stems = EqualStems()
    tracemalloc.start()
    try:
        for _ in stems.watch(columns):
            pass
        held, _ = tracemalloc.get_traced_memory()
        assert len(stems.repeated()) == are_refused
    finally:
        tracemalloc.stop()

    assert held < 16 * len(uris)
    with (
        pytest.raises(
            UsageError, match=r"s3://lake/7\.jpg and s3://lake/7\.png have the same name without suffix, 7, by"
        )
        if are_refused
        else nullcontext()
    ):
        stems.refuse(columns, Names("s3://lake/"))


def test_a_table_of_errors_only_is_a_folder_without_labels(tmp_path: Path) -> None:
    publish(str(tmp_path / "table"), "run-1", [Row("s3://lake/x/c.jpg", error_kind="denied")])

    assert files(exported(str(tmp_path / "table"), tmp_path / "out", "yolo")) == ["_export.json", "data.yaml"]


def test_images_of_coco_results_are_the_same_in_a_folder_and_in_a_bucket(
    table: str, tmp_path: Path, moto: S3Server
) -> None:
    out = f"{moto.bucket()}/out"
    export(ExportConfig(table, out, format="coco", options=moto.options()))
    local = (exported(table, tmp_path / "out", "coco") / "images.json").read_bytes()

    assert [image["file_name"] for image in json.loads(local)["images"]] == ["sub/b.jpg", "a.jpg"]
    assert open_store(out, moto.options()).get("images.json").data == local
