"""The page of places that repeat in a real browser: what is unticked is not in the file that it gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from pipelines.marks.marks import read_marks
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.repeats import accept_file, write_places_page
from pipelines.store import open_store
from tests.browser.frames import announcements
from tests.pipelines.repeats.fixed_camera import SIZE, STONES, picture_rows, publish

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package, which `make test-browser` fetches
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three places: two of a camera whose pictures are there, one of a camera with a hostile name whose are gone."""
    folder = tmp_path_factory.mktemp("repeats")
    camera = folder / "camera"
    camera.mkdir()
    rows = picture_rows(f"{camera}/", 20)
    for number, row in enumerate(rows):
        noise = np.random.default_rng(number).integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
        Image.fromarray(noise).resize(SIZE).save(row.uri, quality=60)
    sized = [type(row)(row.uri, None, Path(row.uri).stat().st_size, *SIZE, detections=row.detections) for row in rows]
    publish(str(folder / "table"), sized + picture_rows(f"/{HOSTILE}/", 16, stones=STONES[:1]))
    return str(folder / "table")


@pytest.fixture(scope="module")
def report(table: str) -> Path:
    page = Path(table).parent / "repeats.html"
    write_places_page(RepeatsConfig(table=table), page)
    return page


def downloaded(page: Page, into: Path) -> list[dict[str, object]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download repeats.json").click()
    assert download.value.suggested_filename == "repeats.json"
    download.value.save_as(into)
    accepted: list[dict[str, object]] = json.loads(into.read_text())["accepted"]
    return accepted


def test_what_is_ticked_is_in_the_file_and_what_is_not_is_not(page: Page, tmp_path: Path) -> None:
    assert page.locator("#accepted").inner_text() == "3"
    assert page.locator("#boxes").inner_text() == "56"
    assert len(downloaded(page, tmp_path / "all.json")) == 3

    first = page.locator(".place .accept").first
    first.focus()
    page.keyboard.press("Space")
    assert page.locator("#accepted").inner_text() == "2"
    assert first.get_attribute("value") not in [one["id"] for one in downloaded(page, tmp_path / "two.json")]
    assert page.locator("#said").inner_text() == "repeats.json has 2 places."

    page.locator("#least").fill("17")  # the camera with the hostile name, which comes first, has 16 images
    assert page.locator(".folder:visible").count() == 1
    page.get_by_role("button", name="all", exact=True).click()  # also ticks what is not shown
    assert page.locator("#accepted").inner_text() == "2"
    page.get_by_role("button", name="accept none of", exact=False).first.click()
    assert downloaded(page, tmp_path / "none.json") == []
    page.locator("#least").fill("15")
    assert len(downloaded(page, tmp_path / "one.json")) == 1


def test_a_screen_reader_hears_the_count_once_the_slider_stands_still(page: Page) -> None:
    assert 1 <= announcements(page, *(("#least", step) for step in (20, 19, 20, 18, 20, 17) * 3)) <= 2
    expect(page.get_by_role("status").filter(has_text="places accepted")).to_have_text(
        "2 of 3 places accepted, 40 detections"
    )
    assert announcements(page, ("#as-text summary",)) == 0


def test_the_file_is_accepted_and_the_text_is_the_same(page: Page, tmp_path: Path, table: str) -> None:
    accepted = downloaded(page, tmp_path / "repeats.json")
    page.locator("summary", has_text="As text").click()
    expect(page.locator("#text")).not_to_have_value("")
    assert json.loads(page.locator("#text").input_value())["accepted"] == accepted

    accept_file(RepeatsConfig(table=table), str(tmp_path / "repeats.json"))
    assert {mark.id for mark in read_marks(open_store(table))} == {one["id"] for one in accepted}


def test_boxes_lie_where_the_rows_say_and_hostile_names_are_text(page: Page) -> None:
    whole = page.locator(".whole", has=page.locator("img")).first
    image, box = whole.locator("img").bounding_box(), whole.locator("rect.over").bounding_box()
    assert image is not None
    assert box is not None
    sides = [side / SIZE[0] for stone in STONES for side in (stone[0],)]
    assert min(abs((box["x"] - image["x"]) / image["width"] - side) for side in sides) < 0.02
    assert page.locator(".gone").first.inner_text() == "The image no longer exists."
    assert HOSTILE in page.locator("main").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.skipif(AXE is None, reason="no axe-core: `make test-browser` fetches it and sets AXE_CORE")
def test_nobody_is_left_out(page: Page) -> None:
    assert AXE is not None
    page.evaluate(Path(AXE).read_text())
    page.locator("summary", has_text="As text").click()
    page.locator(".accept").first.uncheck()

    found = page.evaluate("axe.run()")["violations"]
    assert [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found] == []
