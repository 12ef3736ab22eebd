"""The report's page in a real browser: what is drawn, what is asked for, and who can use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipelines.report.report import ReportConfig, write_report
from tests.pipelines.report.tables import write_table

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package, which `make test-browser` fetches


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(ReportConfig(write_table(folder), folder / "report.html"))
    return folder / "report.html"


@pytest.fixture(params=["light", "dark", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The page, opened; at the end nothing was written to the console and nothing was asked for."""
    size = {"width": 390, "height": 844} if request.param == "phone" else {"width": 1280, "height": 900}
    context = browser.new_context(color_scheme="dark" if request.param == "dark" else "light", viewport=size)  # type: ignore[arg-type]
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(report.as_uri())
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    context.close()


def set_threshold(page: Page, value: float) -> None:
    page.locator("#threshold").fill(str(value))


def boxes_of(page: Page, gallery: str) -> int:
    return page.locator(f"#pictures-{gallery} rect.box").count()


def test_the_slider_changes_what_is_drawn_and_counted(page: Page) -> None:
    assert page.locator("#shown").inner_text() == "6"
    assert boxes_of(page, "random") == 4  # the two of the picture that is gone are counted and not drawn

    set_threshold(page, 0.75)
    assert page.locator("#threshold-value").inner_text() == "0.75"
    assert page.locator("#shown").inner_text() == "3"
    assert boxes_of(page, "random") == 1

    set_threshold(page, 0)
    assert page.locator("#shown").inner_text() == "7"
    assert boxes_of(page, "random") == 5


def test_a_class_that_is_switched_off_is_neither_drawn_nor_counted(page: Page) -> None:
    page.locator("summary", has_text="Classes").click()
    page.get_by_label("dog", exact=True).uncheck()

    assert page.locator("#shown").inner_text() == "2"
    assert boxes_of(page, "random") == 1

    page.get_by_role("button", name="none", exact=True).click()
    assert boxes_of(page, "random") == 0
    page.get_by_role("button", name="all", exact=True).click()
    assert boxes_of(page, "random") == 4


def test_the_keyboard_moves_the_slider_and_enlarges_a_picture(page: Page) -> None:
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#threshold-value").inner_text() == "0.51"

    page.locator("#pictures-crowded button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    assert page.locator("#large-boxes tr").all_inner_texts() == [
        "found\tdog\t0.9000\t4.0, 4.0, 40.0, 30.0",
        "found\tcat\t0.6000\t50.0, 20.0, 70.0, 50.0",
    ]
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()


def test_a_box_lies_where_its_row_says(page: Page) -> None:
    button = page.locator("#pictures-crowded button").first
    assert button.get_attribute("aria-label") == "Enlarge a.png: 1 dog, 1 cat"
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
    assert "The image is not there any more." in page.locator("#pictures-best").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.skipif(AXE is None, reason="no axe-core: `make test-browser` fetches it and sets AXE_CORE")
def test_nobody_is_left_out(page: Page) -> None:
    assert AXE is not None
    page.evaluate(Path(AXE).read_text())

    def findings() -> list[str]:
        found = page.evaluate("axe.run()")["violations"]
        return [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found]

    assert findings() == []
    page.locator("summary", has_text="Classes").click()
    page.locator("#pictures-crowded button").first.click()
    assert findings() == []
