"""What is found: stones and not animals, in any order of the rows, and only what no mark covers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.clock import SystemClock
from pipelines.errors import UsageError
from pipelines.marks.marks import accept_marks
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import Found, find_places
from pipelines.store import open_store
from pipelines.table.schema import Row
from tests.conftest import S3Server
from tests.pipelines.repeats.fixed_camera import SIZE, STONES, detected, picture_rows, publish


def found_in(table: str, **more: object) -> Found:
    return find_places(RepeatsConfig(table=table, **more))  # type: ignore[arg-type]


def near(box: tuple[float, ...], stone: tuple[float, ...], pixels: float = 1.0) -> bool:
    sides = np.array(box) * np.array([*SIZE, *SIZE])
    return bool(np.abs(sides - np.array(stone)).max() <= pixels)


def test_stones_are_found_and_animals_are_not(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, picture_rows("s3://lake/cam1/", 40) + picture_rows("s3://lake/cam2/", 30, stones=STONES[:1]))

    found = found_in(table)

    assert [(place.mark.folder, place.mark.images, place.boxes, place.folder_images) for place in found.places] == [
        ("s3://lake/cam1/", 40, 40, 40), ("s3://lake/cam1/", 40, 40, 40), ("s3://lake/cam2/", 30, 30, 30),
    ]  # fmt: skip
    assert sorted(stone for place in found.places[:2] for stone in STONES if near(place.mark.box, stone)) == [*STONES]
    assert near(found.places[2].mark.box, STONES[0])
    assert (found.images, found.boxes, found.covered) == (70, 40 * 3 + 30 * 2, 0)
    seen = found.places[2].seen
    assert [one.uri[-9:] for one in seen] == [
        "00000.jpg", "00006.jpg", "00012.jpg", "00018.jpg", "00024.jpg", "00029.jpg",
    ]  # fmt: skip
    assert (seen[0].width, seen[0].etag, seen[0].size) == (640, "e", 7)


def test_the_order_of_rows_and_files_changes_nothing(tmp_path: Path) -> None:
    rows = picture_rows("s3://lake/cam1/", 60) + picture_rows("s3://lake/cam2/", 60, seed=3)
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    publish(whole, rows)
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    for number in range(6):
        publish(cut, shuffled[number * 20 : number * 20 + 20], f"run-{number}")

    assert found_in(whole).places == found_in(cut).places
    assert len(found_in(whole).places) == 4


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({}, 2),
        ({"least_images": 41}, 0),
        ({"least_share": 1.0}, 2),  # they are in all pictures
        ({"most_places": 1}, 2),  # on a page; all are counted
        ({"min_score": 0.81}, 0),  # stones have 0.8 at most
        ({"max_area": 0.02}, 1),  # the larger stone has 0.026
        ({"classes": ("person",)}, 0),  # one, of a score of 0.1
        ({"classes": ("person", "animal")}, 2),
        ({"classes": ("zebra", "animal")}, 2),  # no zebra yet
        ({"iou": 0.999}, 0),
        ({"iou": 1.0}, 0),
        ({"iou": 0.7}, 2),  # a quarter of 1 - 0.7 has 17 digits
        ({"folder_levels": 1}, 2),
        ({"folder_levels": 2}, 0),  # the folder would lie above the bucket
    ],
)
def test_what_counts_can_be_chosen(tmp_path: Path, options: dict[str, object], places: int) -> None:
    table = str(tmp_path / "table")
    person = Row("s3://lake/cam2/x.jpg", "e", 7, *SIZE, detections=detected([("person", 0.1, [0, 0, 9, 9])]))
    publish(table, [*picture_rows("s3://lake/cam1/", 40), person])

    assert len(found_in(table, **options).places) == places


def test_a_place_needs_a_share_of_the_images_of_its_folder(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    rows = [
        *picture_rows("s3://lake/cam1/", 20, stones=STONES[:1]),  # in 20 of 40 images
        *picture_rows("s3://lake/cam1/", 20, stones=(), first=20),
        *picture_rows("s3://lake/cam2/", 20, stones=STONES[1:]),  # in 20 of 20
        Row("s3://lake/cam1/damaged.jpg", error_kind="missing", error="gone"),  # does not count
    ]
    publish(table, rows)

    assert [place.mark.images for place in found_in(table, least_share=0.5).places] == [20, 20]
    assert [place.mark.folder for place in found_in(table, least_share=0.51).places] == ["s3://lake/cam2/"]


def test_pictures_are_chosen_for_the_places_that_the_page_shows(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, picture_rows("s3://lake/cam1/", 40) + picture_rows("s3://lake/cam2/", 30, stones=STONES[:1]))

    assert [len(place.seen) for place in found_in(table, most_places=2, pictures=3).places] == [3, 3, 0]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("animl",), "no row has a detection of the class 'animl'. Did you mean 'animal'?"),
        (("zebra", "animl"), "no row has a detection of the class 'animl'. Did you mean 'animal'?"),
        (("zebra",), "no row has a detection of the class 'zebra'. The rows have: animal."),
    ],
)
def test_a_class_that_no_row_has_is_refused(tmp_path: Path, classes: tuple[str, ...], sentence: str) -> None:
    table = str(tmp_path / "table")
    publish(table, picture_rows("s3://lake/cam1/", 2))

    with pytest.raises(UsageError) as refused:
        found_in(table, classes=classes)
    assert str(refused.value) == f"--classes: {sentence}"


def test_archives_of_a_folder_are_one_camera_with_levels(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, [row for day in (1, 2) for row in picture_rows(f"s3://lake/cam1/day{day}.tar#/", 10, seed=day)])

    assert found_in(table).places == ()
    assert [(place.mark.folder, place.mark.images) for place in found_in(table, folder_levels=1).places] == [
        ("s3://lake/cam1/", 20)
    ] * 2


def test_a_folder_for_each_day_is_one_camera_with_levels(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    days = [picture_rows(f"s3://lake/cam1/day{day}/", 8, seed=day) for day in range(4)]
    publish(table, [row for day in days for row in day])

    assert found_in(table).places == ()
    assert [place.mark.images for place in found_in(table, folder_levels=1).places] == [32, 32]


def test_an_image_with_two_boxes_at_one_place_counts_once_and_its_newest_row_alone(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    rows = [
        Row(f"s3://lake/c/{number}.jpg", "e", 7, *SIZE, detections=detected([("animal", 0.9, STONES[0])] * 2))
        for number in range(10)
    ]
    publish(table, rows)
    publish(table, [replace(row, detections=detected([("animal", 0.9, STONES[0])])) for row in rows], "run-2")

    assert found_in(table).places == ()
    place = found_in(table, least_images=10).places[0]
    assert (place.mark.images, place.boxes) == (10, 10)


def test_classes_and_folders_are_distinguished(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    rows = [picture_rows("s3://a/c/", 10), picture_rows("s3://b/c/", 10), picture_rows("s3://b/c/", 10, label="bird")]
    publish(table, [row for part in rows for row in part])

    assert found_in(table).places == ()


def test_what_is_marked_is_not_found_again(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish(table, picture_rows("s3://lake/cam1/", 40))
    first = found_in(table)
    accept_marks(open_store(table), [first.places[0].mark], SystemClock())
    publish(table, picture_rows("s3://lake/cam1/", 20, first=40), "run-2")

    second = found_in(table)
    assert [place.mark.images for place in second.places] == [60]
    assert second.covered == 60  # of the next night, too
    accept_marks(open_store(table), [second.places[0].mark], SystemClock())
    assert found_in(table).places == ()


def test_boxes_of_a_place_are_covered_by_its_mark_and_boxes_that_wander_make_none(tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    # each box overlaps the next one by 0.92, the one after that by 0.84, the last one not at all
    rows = [
        Row(
            f"s3://lake/c/{n:03}.jpg",
            "e",
            7,
            *SIZE,
            detections=detected([("animal", 0.9, [n * 4, 10, n * 4 + 95, 90])]),
        )
        for n in range(60)
    ]
    publish(table, rows)

    assert found_in(table, least_images=8).places == ()
    assert [place.mark.images for place in found_in(table, least_images=3, iou=0.9).places] == [3] * 20


def test_a_table_without_rows_that_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = str(tmp_path / "table")
    with pytest.raises(UsageError, match="has no published rows"):
        found_in(table)
    publish(table, [Row("s3://lake/a.jpg", error_kind="missing", error="gone")])
    with pytest.raises(UsageError, match="has no image without an error"):
        found_in(table)
    with pytest.raises(UsageError, match="has no image without an error of this model and these settings"):
        found_in(table, model="detr@1")
    with pytest.raises(UsageError, match="has no rows of model other@2"):
        found_in(table, model="other@2")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"ray-detr repeats needs DuckDB: pip install 'ray-detr\[query\]'"):
        found_in(table)


def test_a_table_in_s3_is_read(moto: S3Server) -> None:
    place, options = f"{moto.bucket()}/table", moto.options()
    publish(place, picture_rows("s3://lake/cam1/", 20), options=options)

    found = find_places(RepeatsConfig(table=place, options=options))
    assert [one.mark.images for one in found.places] == [20, 20]
    accept_marks(open_store(place, options), [one.mark for one in found.places], SystemClock())
    assert find_places(RepeatsConfig(table=place, options=options)).places == ()
