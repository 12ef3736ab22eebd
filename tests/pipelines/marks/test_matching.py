"""Which detections a mark covers, and what rows look like without them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import RayDetrError
from pipelines.marks import matching
from pipelines.marks.marks import Mark
from pipelines.marks.matching import Boxes, Matcher, folders_of
from pipelines.report.overlaps import box_iou
from pipelines.table.schema import Detected, Origin, Row, rows_to_table
from tests.pipelines.repeats.fixed_camera import NOW, SIZE, detected

STONE = (0.1, 0.2, 0.3, 0.4)
PIXELS = (64.0, 96.0, 192.0, 192.0)  # the same in a picture of 640 x 480


def mark(folder: str = "s3://lake/a/", label: str = "animal", **more: object) -> Mark:
    fields: dict[str, object] = {"levels": 0, "box": STONE, "iou": 0.8, "images": 20, **more}
    return Mark(folder, label=label, **fields)  # type: ignore[arg-type]


def covered(
    marks: list[Mark], uri: str = "s3://lake/a/1.jpg", label: str = "animal", box=PIXELS, size=SIZE
) -> str | None:
    matcher = Matcher(marks)
    boxes = Boxes(pa.array([uri]), np.array([size], float), np.zeros(1, int), pa.array([label]), np.array([box]))
    found = matcher.match(boxes)[0]
    return None if found < 0 else matcher.marks[found].id


@pytest.mark.parametrize(
    ("uri", "folders"),
    [
        ("s3://lake/cam/day/1.jpg", ("s3://lake/cam/day/", "s3://lake/cam/", "s3://lake/", None)),
        ("/data/cam/1.jpg", ("/data/cam/", "/data/", "/", None)),
        ("file:///data/1.jpg", ("file:///data/", "file:///", None, None)),
        ("https://host/cam/1.jpg?sig=a/b&x=1", ("https://host/cam/", "https://host/", None, None)),
        (
            "https://host/a.tar?sig=a/b#/cam/1.jpg",
            ("https://host/a.tar#/cam/", "https://host/a.tar#/", "https://host/", None),
        ),
        ("s3://lake/what?/1#2/1.jpg", ("s3://lake/what?/1#2/", "s3://lake/what?/", "s3://lake/", None)),
        ("s3://lake/a//1\n.jpg", ("s3://lake/a//", "s3://lake/a/", "s3://lake/", None)),
        ("1.jpg", ("", None, None, None)),
    ],
)
def test_the_folder_of_an_address(uri: str, folders: tuple[str | None, ...]) -> None:
    assert tuple(folders_of(pa.array([uri]), levels)[0].as_py() for levels in range(4)) == folders


def test_a_mark_covers_its_class_in_its_folder_where_boxes_overlap_enough() -> None:
    one = mark()

    assert covered([one]) == one.id
    assert covered([one], box=(64, 96, 64 + 0.81 * 128, 192)) == one.id
    assert covered([one], box=(64, 96, 64 + 0.79 * 128, 192)) is None
    assert covered([one], label="bird") is None
    assert covered([one], uri="s3://lake/b/1.jpg") is None
    assert covered([one], uri="s3://lake/a/b/1.jpg") is None
    assert covered([one], size=(1280, 960), box=[2 * side for side in PIXELS]) == one.id  # another resolution
    assert covered([one], size=(np.nan, 480)) is None
    assert covered([one], size=(0, 480)) is None
    assert covered([one], box=(64, 96, 64, 192)) is None
    assert covered([]) is None


def test_a_mark_with_levels_covers_the_folders_of_its_folder() -> None:
    one = mark("s3://lake/a/", levels=1)

    assert covered([one], uri="s3://lake/a/monday/1.jpg") == one.id
    assert covered([one], uri="s3://lake/a/1.jpg") is None
    other = mark("s3://lake/a/monday/")
    assert covered([one, other], uri="s3://lake/a/monday/1.jpg") in (one.id, other.id)


def test_of_several_marks_the_nearest_one_covers() -> None:
    far, near = mark(box=(0.1, 0.2, 0.32, 0.4)), mark(box=(0.1, 0.2, 0.31, 0.4))

    assert covered([far, near]) == covered([near, far]) == near.id


def test_many_boxes_in_small_pieces_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MOST_PAIRS", 7)
    random = np.random.default_rng(5)
    low = random.integers(0, 6, (60, 2)) / 10
    marks = [
        mark(f"s3://lake/{n % 3}/", "ab"[n % 2], box=(x, y, x + 0.2 + n / 1000, y + 0.2), iou=0.5)
        for n, (x, y) in enumerate(low.tolist())
    ]
    owners = np.sort(random.integers(0, 9, 300))
    uris = pa.array([f"s3://lake/{n % 4}/{n}.jpg" for n in range(9)])
    labels = pa.array(random.choice(["a", "b", "c"], 300).tolist())
    corners = random.uniform(0, 300, (300, 2))
    sides = np.concatenate([corners, corners + random.uniform(80, 140, (300, 2))], axis=1)
    matcher = Matcher(marks)

    found = matcher.match(Boxes(uris, np.full((9, 2), 640.0), owners, labels, sides))

    for n in range(300):
        fits = [
            (float(box_iou(sides[n : n + 1] / 640, np.array([one.box]))[0, 0]), -place)
            for place, one in enumerate(matcher.marks)
            if uris[owners[n]].as_py().startswith(one.folder) and one.label == labels[n].as_py()
        ]
        best = max((fit for fit in fits if fit[0] >= 0.5), default=None)
        assert found[n] == (-1 if best is None else -best[1])
    assert (found >= 0).sum() > 20


def table_of(rows: list[Row]) -> pa.Table:
    return rows_to_table(rows, origin=Origin("detr@1", 0.05, "run-1", 0, NOW, "{}"))


def test_rows_without_repeats_keep_everything_else() -> None:
    walking = ("animal", 0.9, [300, 10, 400, 100])
    stone = ("animal", 0.6, PIXELS)
    rows = table_of(
        [
            Row("s3://lake/a/1.jpg", "e", 7, *SIZE, detections=detected([walking, stone])),
            Row("s3://lake/a/2.jpg", error_kind="missing", error="gone"),
            Row("s3://lake/a/3.jpg", "e", 7, *SIZE, detections=detected([stone, ("bird", 0.5, PIXELS)])),
            Row("s3://lake/b/4.jpg", "e", 7, *SIZE, detections=detected([stone])),
            Row("s3://lake/a/5.jpg", "e", 7, *SIZE, detections=Detected([], (), [], [])),
            Row("s3://lake/a/6.jpg", error_kind="fetch_failed", error="changed back"),
        ]
    )
    # earlier releases kept the masks of an image that changed back during the run
    of_all = [["walking", "stone"], None, ["stone", "bird"], ["stone"], [], ["stone"]]
    masks = pa.array(of_all, pa.list_(pa.string()))

    left, lost = Matcher([mark()]).without_repeats(rows.append_column("masks", masks))

    assert lost.tolist() == [1, 0, 1, 0, 0, 0]
    assert [None if row is None else [one["label"] for one in row] for row in left["detections"].to_pylist()] == [
        ["animal"], None, ["bird"], ["animal"], [], None,
    ]  # fmt: skip
    assert left["detections"][0][0]["box"].as_py() == {"xmin": 300.0, "ymin": 10.0, "xmax": 400.0, "ymax": 100.0}
    assert left["masks"].to_pylist() == [["walking"], None, ["bird"], ["stone"], [], None]
    assert left.schema == rows.append_column("masks", masks).schema
    assert left.drop_columns(["detections", "masks"]).equals(rows.drop_columns(["detections"]))
    assert Matcher([mark("s3://none/")]).without_repeats(rows)[0] is rows
    for count in (0, 1):  # of rows without a detection
        assert Matcher([mark()]).without_repeats(rows.slice(1, count))[0].num_rows == count
    assert Matcher([mark()]).without_repeats(rows.schema.empty_table())[1].tolist() == []


def test_masks_that_do_not_belong_to_the_detections_are_refused() -> None:
    rows = table_of([Row("s3://lake/a/1.jpg", "e", 7, *SIZE, detections=detected([("animal", 0.6, PIXELS)]))])

    with pytest.raises(RayDetrError, match="different numbers of masks and detections"):
        Matcher([mark()]).without_repeats(rows.append_column("masks", pa.array([[]], pa.list_(pa.string()))))
