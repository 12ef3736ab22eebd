"""The report's page in a real browser: what is drawn, what is asked for, and who can use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect

from pipelines.report.config import ReportConfig
from pipelines.report.report import write_report
from pipelines.table.schema import Detected
from tests.browser.frames import announcements, boxes_of, set_threshold, settle, show
from tests.pipelines.report.tables import dog_and_cat, picture, publish, row, write_table

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package, which `make test-browser` fetches


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(ReportConfig(write_table(folder), folder / "report.html"))
    return folder / "report.html"


COUNT_DRAWINGS = """() => {
  const draw = window.drawBoxes;
  window.drawings = new Map();
  window.drawBoxes = (svg, ...others) => {
    window.drawings.set(svg, (window.drawings.get(svg) || 0) + 1);
    draw(svg, ...others);
  };
}"""
MOVE_TEN_TIMES = """() => {
  const slider = document.getElementById("threshold");
  for (let step = 1; step <= 10; step += 1) { slider.value = step / 20; slider.dispatchEvent(new Event("input")); }
}"""


def test_ten_movements_of_the_slider_in_one_frame_draw_each_picture_near_the_window_once(
    browser: Browser, tmp_path: Path
) -> None:
    images = [picture(tmp_path / "images", f"{number}.png") for number in range(60)]
    publish(str(tmp_path / "table"), [row(one, dog_and_cat(0.9, 0.6)) for one in images])
    write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html", pictures=60))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "r.html").as_uri())
    show(page, "best")
    page.evaluate(COUNT_DRAWINGS)

    page.evaluate(MOVE_TEN_TIMES)
    settle(page)

    drawn = page.evaluate("[...window.drawings.values()]")
    assert set(drawn) == {1}
    assert 1 <= len(drawn) < 30  # of 60 in each of four galleries
    set_threshold(page, 0.7)
    show(page, "crowded")
    last = page.locator("#pictures-crowded figure").last
    last.scroll_into_view_if_needed()
    last.locator("rect.box").wait_for(state="attached", timeout=5000)  # drawn when it came near
    assert last.locator("rect.box").count() == 1
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#pictures-random figure rect.box").count() == 60
    page.close()


def test_the_controls_and_the_pictures_agree_after_going_back(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    set_threshold(page, 0.75)
    page.get_by_label("labels").uncheck()

    page.goto("about:blank")
    page.go_back()
    settle(page)

    slider = float(page.locator("#threshold").input_value())
    assert page.locator("#threshold-value").inner_text() == f"{slider:.2f}"
    assert page.locator("#shown").inner_text() == {0.75: "3", 0.5: "6"}[slider]
    show(page, "best")
    assert (page.locator("rect.label").count() > 0) is page.get_by_label("labels").is_checked()
    page.close()


def test_the_caption_of_a_crowded_picture_has_the_true_count(browser: Browser, tmp_path: Path) -> None:
    boxes = [[number % 15, number // 15, number % 15 + 9, number // 15 + 9] for number in range(191)]
    found = Detected([3] * 191, ("car",) * 191, [0.99 - number / 1000 for number in range(191)], boxes)
    publish(str(tmp_path / "table"), [row(picture(tmp_path / "images", "a.png"), found)])
    write_report(ReportConfig(str(tmp_path / "table"), tmp_path / "r.html"))
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    caption = page.locator("#pictures-crowded figcaption span").first

    assert caption.inner_text() == "100 car (the 100 best of 191 boxes)"
    set_threshold(page, 0.85)
    assert caption.inner_text() == "100 car (the 100 best of 141 boxes)"
    set_threshold(page, 0.95)
    assert caption.inner_text() == "41 car"
    page.close()


def test_a_class_that_is_switched_off_is_neither_drawn_nor_counted(page: Page) -> None:
    page.locator("summary", has_text="Classes").click()
    page.get_by_label("dog", exact=True).uncheck()
    settle(page)

    assert page.locator("#shown").inner_text() == "2"
    assert boxes_of(page, "random") == 1

    page.get_by_role("button", name="none", exact=True).click()
    assert boxes_of(page, "random") == 0
    page.get_by_role("button", name="all", exact=True).click()
    assert boxes_of(page, "random") == 4


def test_the_keyboard_moves_the_slider_and_enlarges_a_picture(page: Page) -> None:
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("#threshold-value").inner_text() == "0.51"

    show(page, "crowded")
    page.locator("#pictures-crowded button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    assert page.locator("#large-boxes tr").all_inner_texts() == [
        "found\tdog\t0.9000\t4.0, 4.0, 40.0, 30.0",
        "found\tcat\t0.6000\t50.0, 20.0, 70.0, 50.0",
    ]
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()


def test_the_large_picture_goes_on_to_the_next_and_back(page: Page) -> None:
    show(page, "crowded")
    page.locator("#pictures-crowded button").first.click()
    title, place = page.locator("#large-title"), page.locator("#large-place")
    names = page.locator("#pictures-crowded figure:has(button) strong").evaluate_all("all => all.map(one => one.title)")
    assert (title.inner_text(), place.inner_text()) == (names[0], "1 of 3: 1 dog, 1 cat")

    page.keyboard.press("ArrowRight")
    assert (title.inner_text(), place.inner_text()[:6]) == (names[1], "2 of 3")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    assert title.inner_text() == names[0]
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == names[2]
    page.get_by_role("button", name="Previous").click()
    assert title.inner_text() == names[1]
    assert page.locator("#large rect.box").count() == 1
    page.keyboard.press("Escape")


def test_a_phone_folds_all_galleries_but_the_first_and_a_desktop_none(page: Page) -> None:
    folds = page.locator("details.gallery")
    is_phone = page.viewport_size == {"width": 390, "height": 844}
    assert folds.evaluate_all("all => all.map(one => one.open)") == [
        not is_phone or number == 0 for number in range(folds.count())
    ]
    if is_phone:
        folds.nth(1).locator("summary").press("Enter")
        folds.nth(1).locator("rect.box").first.wait_for(state="attached", timeout=5000)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert folds.evaluate_all("all => all.every(one => one.open)")


def test_a_screen_reader_hears_how_many_detections_a_movement_of_the_slider_leaves(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="detections")).to_have_text("6 detections")
    set_threshold(page, 0.75)
    expect(page.get_by_role("status").filter(has_text="detections")).to_have_text("3 detections")


def test_a_screen_reader_hears_one_count_for_many_movements_and_none_for_what_changes_no_count(page: Page) -> None:
    assert announcements(page, ("#labels",), ("#labels",)) == 0
    assert 1 <= announcements(page, *(("#threshold", step / 25) for step in range(20))) <= 2
    expect(page.get_by_role("status").filter(has_text="detections")).to_have_text("3 detections")


def test_a_box_lies_where_its_row_says(page: Page) -> None:
    button = page.locator("#pictures-crowded button").first
    uri = Path(str(page.locator("#pictures-crowded strong").first.get_attribute("title")))
    assert page.locator("#pictures-crowded strong").first.text_content() == "/".join(uri.parts[-3:])
    assert str(button.get_attribute("aria-label")).endswith("/images/a.png: 1 dog, 1 cat")
    show(page, "crowded")
    dog = page.locator("#pictures-crowded figure").first.locator('rect.box[data-role="found"]').last
    assert [dog.get_attribute(side) for side in ("x", "y", "width", "height")] == ["4", "4", "36", "26"]
    # the drawing and the picture fill the same rectangle: 80 x 60 pixels of the picture are the whole of it
    image = page.locator("#pictures-crowded img").first.bounding_box()
    drawn = dog.bounding_box()
    assert image is not None
    assert drawn is not None
    assert (drawn["x"] - image["x"]) / image["width"] == pytest.approx(4 / 80, abs=0.01)
    assert drawn["width"] / image["width"] == pytest.approx(36 / 80, abs=0.02)


def test_a_missing_picture_says_so_and_the_page_is_no_wider_than_the_screen(page: Page) -> None:
    assert "The image no longer exists." in page.locator("#pictures-best").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_phone_shows_examples_of_errors_below_their_kind_and_a_run_on_one_line(
    browser: Browser, report: Path
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())

    table = page.locator("#h-errors ~ .scroll")
    example, kind, whole = (sides(table.locator("td:last-child")), sides(table.locator("tbody th")), sides(table))
    run = sides(page.locator("#h-runs ~ .scroll tbody tr"))
    page.close()

    assert example["width"] > 0.95 * whole["width"]
    assert example["y"] >= kind["y"] + kind["height"]
    assert run["height"] < 40  # pixels


def sides(found: Locator) -> FloatRect:
    """Return the place and size of the first of the elements, in pixels."""
    box = found.first.bounding_box()
    assert box is not None
    return box


@pytest.mark.skipif(AXE is None, reason="no axe-core: `make test-browser` fetches it and sets AXE_CORE")
def test_nobody_is_left_out(page: Page) -> None:
    assert AXE is not None
    page.evaluate(Path(AXE).read_text())

    def findings() -> list[str]:
        found = page.evaluate("axe.run()")["violations"]
        return [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found]

    assert findings() == []
    page.locator("summary", has_text="Classes").click()
    show(page, "crowded")
    page.locator("#pictures-crowded button").first.click()
    assert findings() == []
