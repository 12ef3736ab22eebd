"""A page stays under 5 MB, however many pictures and boxes it is asked for."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.report.config import ReportConfig
from pipelines.report.fitting import largest_limit, limited_boxes
from pipelines.report.page import limits
from pipelines.report.pictures import shrink
from pipelines.report.report import write_report
from pipelines.table.schema import Detected
from tests.pipelines.report.tables import NOW, publish, row
from tests.pipelines.report.test_drift import APPEARED, BEFORE, FOUND, MISSED, MOVED, TRUTH, data_of

SIZE = (160, 120)


def crowded(table: Path, images: int, run_id: str, days: int = 0, *, boxes: int = 100) -> None:
    """Publish rows of pictures of noise with many boxes each, whose places differ from run to run."""
    random = np.random.default_rng(days)
    folder = table.parent / "images"
    if not folder.exists():
        folder.mkdir(parents=True)
        Image.effect_noise(SIZE, 60).convert("RGB").save(folder / "0.png")
    rows = []
    for number in range(images):
        one = folder / f"{number}.png"
        if not one.exists():
            one.symlink_to(folder / "0.png")
        low = random.uniform(0, 0.5, (boxes, 2))
        sides = np.concatenate([low, low + random.uniform(0.05, 0.45, (boxes, 2))], axis=1) * [*SIZE, *SIZE]
        numbers = random.integers(0, 80, boxes)
        names = tuple(f"class {one}" for one in numbers)
        scores = np.sort(random.uniform(0.3, 1, boxes))[::-1]
        rows.append(row(str(one), Detected(numbers.tolist(), names, scores.tolist(), sides.tolist()), SIZE))
    publish(str(table), rows, run_id, now=NOW + timedelta(days=days))


def items_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for gallery in data["galleries"] for item in gallery["items"]]


@pytest.mark.slow
def test_a_page_of_many_crowded_pictures_stays_under_5_mb_and_says_what_it_left_out(tmp_path: Path) -> None:
    crowded(tmp_path / "table", 300, "run-1")
    crowded(tmp_path / "table", 300, "run-2", 1)
    config = ReportConfig(str(tmp_path / "table"), tmp_path / "r.html", run_id="run-2", against="run-1", pictures=100)

    summary = write_report(config)

    assert 3_000_000 < summary.bytes < 5_000_000
    assert (summary.unreadable, summary.pictures > 200) == (0, True)
    html = (tmp_path / "r.html").read_text()
    items = items_of(data_of(html))
    most = max(len(item["boxes"]) for item in items)
    assert 10 < most < 100
    assert f"The page is kept under 5 MB: it has at most {most} boxes of each picture." in html
    best = next(item for item in items if not any(box[6:] for box in item["boxes"]))
    assert len(best["boxes"]) + sum(count for _, count in best["more"]) == 100  # the caption has the true number


def test_too_many_pictures_are_fewer_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.report.fitting.PAGE_BYTES", 160_000)
    crowded(tmp_path / "table", 20, "run-1", boxes=3)

    summary = write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html", pictures=20))

    html = (tmp_path / "r.html").read_text()
    shown = max(len(gallery["items"]) for gallery in data_of(html)["galleries"])
    assert shown < 20
    assert f"The page is kept under 5 MB: it has at most {shown} pictures of each kind" in html
    assert 60_000 < summary.bytes < 160_000


def test_a_page_with_room_leaves_out_nothing(tmp_path: Path) -> None:
    crowded(tmp_path / "table", 2, "run-1", boxes=5)

    write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html"))

    html = (tmp_path / "r.html").read_text()
    assert "The page is kept under 5 MB" not in html
    assert {len(item["boxes"]) for item in items_of(data_of(html))} == {5}


def test_changes_mistakes_and_annotations_are_kept_before_right_boxes() -> None:
    boxes: list[list[object]] = [
        [0, 0.9, 0, 0, 9, 9, FOUND], [0, 0.8, 0, 0, 9, 9, FOUND], [0, 0.3, 0, 0, 9, 9, APPEARED],
        [0, None, 0, 0, 9, 9, TRUTH], [0, None, 0, 0, 9, 9, MISSED],
    ]  # fmt: skip

    kept, more = limited_boxes(boxes, [(4, 2), (80, 1)], 3)

    assert [box[6] for box in kept] == [APPEARED, TRUTH, MISSED]
    assert list(more) == [(4, 2), (80, 2), (90, 1)]
    assert limited_boxes(boxes, [], 5) == (boxes, [])


@pytest.mark.parametrize(("most", "formers"), [(25, 0), (50, 10)])
def test_a_box_that_moved_is_one_box_with_its_former_place_which_is_cut_first(most: int, formers: int) -> None:
    boxes = [[0, 0.5, 0, 0, 9, 9, MOVED]] * 40 + [[0, 0.9, 1, 1, 9, 9, BEFORE]] * 40

    kept, more = limited_boxes(boxes, [], most)

    drawn = [box for box in kept if box[6] != BEFORE]
    assert len(kept) - len(drawn) == formers
    assert len(drawn) + sum(count for _, count in more) == 40


def test_the_sentence_about_fewer_boxes_says_which_of_them_no_count_has() -> None:
    assert "Annotations" not in limits(30, None)
    assert limits(None, 25).endswith(
        "at most 25 boxes of each picture. Annotations and former places of moved boxes that it leaves out are in no "
        "count of boxes."
    )


def test_the_limit_is_the_largest_that_fits() -> None:
    assert largest_limit([100, 3, 50], 60, 100) == 28
    assert largest_limit([100, 3, 50], 153, 100) == 100
    assert largest_limit([9, 9], 1, 9) == 1


def test_a_picture_of_the_least_size_loses_quality_instead_of_exceeding_its_bytes() -> None:
    noise = Image.effect_noise((500, 500), 60).convert("RGB")

    small = shrink(noise, 2_900)

    assert len(small) <= 2_900
    with Image.open(io.BytesIO(small)) as read:
        assert max(read.size) == 96
