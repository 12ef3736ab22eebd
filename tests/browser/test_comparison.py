"""The pages of comparisons in a real browser: which boxes are changes and mistakes, and what a lower slider shows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.table.schema import Detected
from tests.browser.frames import boxes_of, set_threshold, show
from tests.pipelines.report.tables import NOW, dog_and_cat, picture, publish, row

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package, which `make test-browser` fetches


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about two runs and annotations: a dog stayed; a cat vanished, and was missed: its score is 0.3."""
    folder = tmp_path_factory.mktemp("comparison")
    table, one = str(folder / "table"), picture(folder / "images", "a.png")
    publish(table, [row(one, dog_and_cat(0.9, 0.6))])
    publish(table, [row(one, dog_and_cat(0.9, 0.3))], "run-2", now=NOW + timedelta(days=1))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 17, "bbox": [50, 20, 20, 30], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 18, "bbox": [4, 4, 36, 26], "area": 936, "iscrowd": 0},
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(coco))
    page = folder / "report.html"
    write_report(ReportConfig(table, page, run_id="run-2", against="run-1", annotations=str(folder / "instances.json")))
    return page


@pytest.fixture
def compared(browser: Browser, comparison: Path) -> Iterator[Page]:
    opened = browser.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(comparison.as_uri())
    yield opened
    assert said == []
    opened.close()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about two runs over a picture in which twenty boxes lie near each other and all vanished."""
    folder = tmp_path_factory.mktemp("crowd")
    table, one = str(folder / "table"), picture(folder / "images", "a.png")
    near = [[5 + 3 * (number % 5), 5 + 4 * (number // 5), 60, 50] for number in range(20)]
    crowded = Detected([18] * 20, ("dog",) * 20, [0.99 - number / 100 for number in range(20)], near)
    publish(table, [row(one, crowded)])
    publish(table, [row(one, Detected([], (), [], []))], "run-2", now=NOW + timedelta(days=1))
    write_report(ReportConfig(table, folder / "report.html", run_id="run-2", against="run-1"))
    return folder / "report.html"


LABELS = """() => [...document.querySelectorAll("#pictures-drift svg")].map((svg) => {
  const { width, height } = svg.viewBox.baseVal;
  const sides = [...svg.querySelectorAll("rect.label")].map((one) => ["x", "y", "width", "height"].map((name) => Number(one.getAttribute(name))));
  return [width, height, sides, [...svg.querySelectorAll("text")].map((one) => one.textContent)];
})"""  # noqa: E501 - one line of the page's language


def test_labels_cover_neither_each_other_nor_more_than_a_quarter_of_a_picture(browser: Browser, crowd: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(crowd.as_uri())
    assert boxes_of(page, "drift") == 20
    ((width, height, sides, words),) = page.evaluate(LABELS)

    assert words[0] == "vanished dog 0.99"  # the best first
    assert 2 <= len(sides) < 20
    assert sum(wide * high for _, _, wide, high in sides) <= width * height / 4
    for place, (x1, y1, wide1, high1) in enumerate(sides):
        for x2, y2, wide2, high2 in sides[:place]:
            assert x1 >= x2 + wide2 or x2 >= x1 + wide1 or y1 >= y2 + high2 or y2 >= y1 + high1
    page.locator("#pictures-drift button").click()
    assert page.locator("#large-boxes tr").count() == 20
    page.close()


def test_a_phone_shows_the_whole_table_of_what_changed(browser: Browser, crowd: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(crowd.as_uri())

    assert page.locator("#h-drift ~ .scroll").evaluate_all(
        "all => all.map(one => one.scrollWidth - one.clientWidth)"
    ) == [0]
    page.close()


def test_links_at_the_top_lead_to_each_part(compared: Page) -> None:
    links = compared.locator("nav a")
    assert links.all_inner_texts() == [
        "Against run run-1", "Against annotations", "Errors", "Runs", "Classes", "Scores and boxes", "Pictures"
    ]  # fmt: skip
    headings = compared.locator("main h2")
    assert headings.all_inner_texts() == links.all_inner_texts()
    for link in links.all():
        link.click()
        target = compared.locator(str(link.get_attribute("href")))
        box, controls = target.bounding_box(), compared.locator(".controls").bounding_box()
        assert box is not None
        assert controls is not None
        assert box["y"] >= controls["y"] + controls["height"] - 1  # not below the controls, which stay on top


def roles(page: Page, gallery: str) -> list[str | None]:
    show(page, gallery)
    boxes = page.locator(f"#pictures-{gallery} rect.box").all()
    return sorted(str(box.get_attribute("data-role")) for box in boxes)


def test_what_vanished_and_what_was_annotated_is_drawn_and_follows_slider_and_filters(compared: Page) -> None:
    assert roles(compared, "drift") == ["found", "vanished"]
    assert roles(compared, "misses") == ["found", "missed", "truth"]

    set_threshold(compared, 0.7)
    assert roles(compared, "drift") == ["found"]  # the cat had 0.6
    set_threshold(compared, 0.95)
    assert roles(compared, "misses") == ["missed", "truth"]  # annotations have no score

    compared.locator("summary", has_text="Classes").click()
    compared.get_by_label("cat", exact=True).uncheck()
    assert roles(compared, "misses") == ["truth"]


LOOKS = """gallery => {
  const svg = document.querySelector(`#pictures-${gallery} svg`);
  const boxes = [...svg.querySelectorAll("rect.box")].map((box) => [box.dataset.role, Number(box.getAttribute("opacity"))]);
  return [Object.fromEntries(boxes), [...svg.querySelectorAll("text")].map((one) => one.textContent)];
}"""  # noqa: E501 - one line of the page's language


def test_only_mistakes_and_changes_are_drawn_strongly_and_labelled(browser: Browser, tmp_path: Path) -> None:
    one = picture(tmp_path / "images", "a.png")
    dog, cat, cow = [4, 4, 40, 30], [50, 20, 70, 50], [0, 40, 20, 58]
    labels = ("dog", "cat", "cow")
    publish(str(tmp_path / "t"), [row(one, Detected([18, 17, 21], labels, [0.9, 0.8, 0.7], [dog, cat, cow]))])
    moved = Detected([18, 17], labels[:2], [0.9, 0.8], [[4, 8, 40, 34], cat])
    publish(str(tmp_path / "t"), [row(one, moved)], "run-2", now=NOW + timedelta(days=1))
    truths = [(17, [50, 20, 20, 30]), (21, [0, 40, 20, 18])]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": category, "bbox": box, "area": 600, "iscrowd": 0}
            for number, (category, box) in enumerate(truths, start=1)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 21, "name": "cow"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    compare = {"run_id": "run-2", "against": "run-1", "annotations": str(tmp_path / "truth.json")}
    write_report(ReportConfig(str(tmp_path / "t"), tmp_path / "r.html", **compare))  # type: ignore[arg-type]
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())

    for gallery in ("false-positives", "misses"):
        show(page, gallery)
        assert page.evaluate(LOOKS, gallery) == [
            {"false": 1, "found": 0.4, "missed": 1, "truth": 0.4}, ["false dog 0.90", "missed cow"]
        ]  # fmt: skip
    show(page, "drift")
    assert page.evaluate(LOOKS, "drift") == [
        {"before": 1, "moved": 1, "vanished": 1, "found": 0.4}, ["moved dog 0.90", "vanished cow 0.70"]
    ]  # fmt: skip
    before = page.locator('#pictures-drift rect.box[data-role="before"]')
    assert [before.get_attribute(name) for name in ("y", "stroke-dasharray")] == ["4", "2 4"]
    assert (
        page.locator("#pictures-drift figcaption span").first.inner_text() == "1 dog (moved), 1 cat, 1 cow (vanished)"
    )
    page.close()


def test_a_lower_slider_shows_the_box_of_what_was_missed_and_of_what_vanished(compared: Page) -> None:
    caption = compared.locator("#pictures-misses figcaption").first
    assert "missed at 0.5: 1 cat" in caption.inner_text()

    set_threshold(compared, 0.05)

    assert roles(compared, "misses") == ["found", "found", "missed", "truth"]
    assert roles(compared, "drift") == ["found", "found", "vanished"]
    assert "missed at 0.5: 1 cat" in caption.inner_text()


@pytest.mark.skipif(AXE is None, reason="no axe-core: `make test-browser` fetches it and sets AXE_CORE")
def test_nobody_is_left_out_of_a_comparison(compared: Page) -> None:
    assert AXE is not None
    compared.evaluate(Path(AXE).read_text())

    assert [(one["impact"], one["id"]) for one in compared.evaluate("axe.run()")["violations"]] == []
