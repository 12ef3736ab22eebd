"""The report of a table: its figures, which pictures it shows, and a page that loads nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.report import main
from pipelines.errors import RayDetrError, UsageError
from pipelines.report.config import ReportConfig
from pipelines.report.figures import Figures, score_bins
from pipelines.report.pictures import shrink
from pipelines.report.report import ReportSummary, write_page, write_report
from pipelines.report.rows import Classes, table_files
from pipelines.store import open_store
from pipelines.table.schema import Detected, Row
from tests.pipelines.report.tables import HOSTILE_URI, NOW, dog_and_cat, picture, publish, row, write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(table: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(ReportConfig(table, out, price_per_hour=36))
    return out.read_text()


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def shown(data: dict[str, Any], gallery: str) -> list[str]:
    items = next(one["items"] for one in data["galleries"] if one["id"] == gallery)
    return [Path(data["pictures"][item["picture"]]["uri"]).name for item in items]


def test_figures_are_counted_by_score(table: str) -> None:
    classes, figures = Classes(), Figures()
    for rows in table_files(open_store(table)).rows(classes):
        figures.add(rows)

    assert (figures.images, figures.ok, figures.detections) == (7, 5, 7)
    assert dict(figures.errors) == {"truncated": 1, "missing": 1}
    assert figures.error_examples["missing"] == [(HOSTILE_URI, "no such object")]
    dog, cat = classes.numbers["dog"], classes.numbers["cat"]
    assert np.flatnonzero(figures.scores[dog]).tolist() == [50, 70, 80, 90]
    assert np.flatnonzero(figures.scores[cat]).tolist() == [30, 60, 80]
    assert figures.frequent(classes, 0.75) == [dog, cat]
    # of five images without error: at 0.5 one has no box, two have one, two have two; at 0.95 none has any
    assert figures.boxes_per_image[50, :4].tolist() == [1, 2, 2, 0]
    assert figures.boxes_per_image[95, :2].tolist() == [5, 0]
    assert figures.sizes.sum() == figures.positions.sum() == 7
    assert dict(figures.origins) == {("detr@1", 0.05, None): 7}


def test_examples_of_errors_have_the_address_of_the_image_and_no_known_secret(tmp_path: Path) -> None:
    uris = ["https://h/img?id=1", "https://h/img?id=2&token=planted"]
    publish(str(tmp_path / "table"), [Row(uri, error_kind="empty", error="0 bytes") for uri in uris])
    figures = Figures()
    for rows in table_files(open_store(str(tmp_path / "table"))).rows(Classes()):
        figures.add(rows)

    assert [uri for uri, _ in figures.error_examples["empty"]] == [uris[0], "https://h/img?id=2&token=..."]


def test_detections_of_each_class_come_together_and_in_order(table: str) -> None:
    classes = Classes()
    rows = next(table_files(open_store(table)).rows(classes))

    found = {classes.names[number]: places.tolist() for number, places in rows.by_class(rows.scores >= 0.5)}

    assert found == {"dog": [0, 2, 4, 6], "cat": [1, 5]}
    assert list(rows.by_class(rows.scores > 1)) == []


def test_a_score_is_in_the_bin_of_its_first_two_decimals() -> None:
    scores = np.array([0, 0.29, 0.57, 0.58, 0.289, 0.99, 1], np.float32)

    assert score_bins(scores).tolist() == [0, 29, 57, 58, 28, 99, 99]


def test_the_page_holds_everything_and_names_no_other_place(html: str) -> None:
    tags = re.sub(r'<script type="application/json" id="data">.*?</script>', "", html, flags=re.DOTALL)

    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', tags)
    assert "default-src 'none'" in tags


def test_totals_errors_cost_and_models_are_in_the_text(html: str) -> None:
    for words in (
        "<dd>7</dd>", "<dd>2 (28.6 %)</dd>", "0.01 USD", "s3://lake/c.jpg", "the JPEG is truncated",
        "detr@1", "run-1", "the current row of each image",
    ):  # fmt: skip
        assert words in html


def test_names_of_files_are_text_and_never_markup(html: str) -> None:
    assert "<img src=x" not in html
    assert "<script>alert(2)" not in html
    assert "s3://lake/&lt;script&gt;alert(2)&lt;/script&gt;.jpg" in html
    assert any("<img src=x onerror=alert(1)>" in one["uri"] for one in data_of(html)["pictures"])


def test_galleries_show_what_they_say(html: str) -> None:
    data = data_of(html)

    assert shown(data, "best")[:2] == ["gone.png", "a.png"]
    assert shown(data, "crowded")[:2] == ["a.png", "gone.png"]
    assert shown(data, "least-certain")[0] == "b.png"
    assert len(shown(data, "random")) == 5
    names = data["classes"]
    assert shown(data, f"class-{names.index('cat')}") == ["gone.png", "a.png"]


def test_a_missing_picture_has_a_reason(html: str) -> None:
    pictures = {Path(one["uri"]).name: one for one in data_of(html)["pictures"]}

    assert pictures["gone.png"]["problem"] == "The image no longer exists."
    assert pictures["a.png"]["source"].startswith("data:image/webp;base64,")
    assert (pictures["b.png"]["width"], pictures["b.png"]["height"]) == (40, 90)


@pytest.mark.parametrize("is_size_known", [True, False])  # a web server gives neither an etag nor a size
def test_a_picture_that_has_changed_is_not_shown_with_boxes_of_the_old_one(tmp_path: Path, is_size_known: bool) -> None:
    one = picture(tmp_path / "images", "a.png")
    labelled = row(one, dog_and_cat(0.9, 0.6))
    publish(str(tmp_path / "table"), [labelled if is_size_known else replace(labelled, size=None)])
    picture(tmp_path / "images", "a.png", (81, 60))

    summary = write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html"))

    assert (summary.pictures, summary.unreadable) == (1, 1)
    assert data_of((tmp_path / "r.html").read_text())["pictures"][0]["problem"] == (
        "The image has changed since it was labelled."
    )


def test_one_run_or_the_current_row_of_each_image(tmp_path: Path) -> None:
    place, one = str(tmp_path / "table"), picture(tmp_path / "images", "a.png")
    publish(place, [row(one, dog_and_cat(0.9, 0.6))])
    publish(place, [row(one, Detected([18], ("dog",), [0.7], [[1, 1, 9, 9]]))], "run-2", now=NOW + timedelta(days=1))

    def boxes(run_id: str | None) -> list[int]:
        write_report(ReportConfig(place, tmp_path / "r.html", run_id=run_id))
        data = data_of((tmp_path / "r.html").read_text())
        return [len(item["boxes"]) for item in data["galleries"][0]["items"]]

    assert boxes(None) == [1]
    assert boxes("run-1") == [2]
    with pytest.raises(RayDetrError, match=r"has no published rows of run run-3\. Check the address, or list the runs"):
        boxes("run-3")


def test_rows_of_one_settings_are_counted_alone_and_several_are_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place, page = str(tmp_path / "table"), tmp_path / "r.html"
    a, b = (picture(tmp_path / "images", name) for name in ("a.png", "b.png"))
    found = Detected([18], ("dog",), [0.7], [[1, 1, 9, 9]])
    publish(place, [row(a, dog_and_cat(0.9, 0.6)), row(b, dog_and_cat(0.9, 0.6))], settings="threshold=0.1")
    publish(place, [row(a, found)], "run-2", now=NOW + timedelta(days=1), settings="threshold=0.5")

    def boxes(*more: str) -> int:
        main(["--table", place, "--out", str(page), *more])
        return sum(len(item["boxes"]) for item in data_of(page.read_text())["galleries"][0]["items"])

    assert boxes() == 3
    assert "(1 with threshold=0.1; 1 with threshold=0.5). --settings chooses one." in capfd.readouterr().err
    assert boxes("--settings", "threshold=0.1") == 4
    assert boxes("--settings", "threshold=0.1", "--run", "run-1") == 4
    assert "several settings" not in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"^no row of table .* has the settings threshold=0\.2\. `ray-detr runs"):
        boxes("--settings", "threshold=0.2")
    with pytest.raises(UsageError, match=r"has the settings threshold=0\.5"):
        boxes("--settings", "threshold=0.5", "--run", "run-1")


def test_all_pictures_together_keep_to_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.report.fitting.MOST_BYTES", 60_000)
    images = [picture(tmp_path / "images", f"{number}.png", (200, 150)) for number in range(8)]
    publish(str(tmp_path / "table"), [row(one, dog_and_cat(0.9, 0.6), (200, 150)) for one in images])

    write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html"))

    sources = [one["source"] for one in data_of((tmp_path / "r.html").read_text())["pictures"]]
    assert len(sources) == 8
    assert 30_000 < sum(map(len, sources)) <= 60_000


def test_a_picture_that_does_not_fit_is_made_smaller_and_keeps_its_shape() -> None:
    noise = Image.effect_noise((1000, 500), 60).convert("RGB")

    small = shrink(noise, 9_000)

    with Image.open(io.BytesIO(small)) as read:
        assert len(small) <= 9_000
        assert 96 <= read.width <= 640
        assert read.width / read.height == pytest.approx(2, abs=0.05)


def test_a_table_of_errors_only_has_a_page(tmp_path: Path) -> None:
    publish(str(tmp_path / "table"), [Row("s3://lake/c.jpg", error_kind="empty", error="0 bytes")])

    summary = write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html"))

    assert (summary.images, summary.pictures) == (1, 0)


def test_the_command_prints_what_it_wrote(table: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"

    main(["--table", table, "--out", str(out), "--json"])

    written = ReportSummary(**json.loads(capfd.readouterr().out))
    assert (written.images, written.pictures, written.unreadable) == (7, 5, 1)
    assert written.bytes == out.stat().st_size


@pytest.mark.parametrize("folder", ["file", "long" * 99])
def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RayDetrError, match=r"^cannot write the report to .*/page\.html: "):
        write_page(tmp_path / folder / "page.html", b"page")


def test_a_threshold_between_hundredths_is_wrong_use(table: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--table", table, "--threshold", "0.505"])

    assert left.value.code == 2
    assert "threshold: 0.505 is not one of 0, 0.01, ... 0.99" in capfd.readouterr().err


def test_a_page_below_a_file_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RayDetrError, match=r"^cannot write the report to .*: Not a directory\.$"):
        write_page(tmp_path / "file" / "below" / "page.html", b"")
