"""The page of a training run in a real browser: it asks for nothing, and slider and filters redraw its pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pipelines.report.config import TrainingReportConfig
from pipelines.report.training import write_training_report
from tests.browser.frames import show
from tests.pipelines.report.training_runs import write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package, which `make test-browser` fetches


@pytest.fixture(scope="module", params=["with pictures", "without"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    run = write_run(folder, has_val=request.param == "with pictures")
    write_training_report(TrainingReportConfig(run, folder / "training.html"))
    return folder / "training.html"


def boxes(page: Page, role: str) -> int:
    show(page, "validation")
    return page.locator(f'#pictures-validation rect.box[data-role="{role}"]').count()


def test_charts_and_pictures_are_drawn_and_follow_the_slider(page: Page) -> None:
    assert page.locator("figure.chart svg.lines").count() >= 7
    chart = page.locator("figure.chart", has_text="AP over epochs").locator("svg.curve .line1 path").bounding_box()
    assert chart is not None
    assert chart["width"] > 50
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("figure.chart", has_text="AP over epochs").get_by_text("Numbers").click()
    assert page.locator("figure.chart", has_text="AP over epochs").locator("tbody tr").all_inner_texts() == [
        "1\t0.25\t0.5\t0.125",
        "2\t0.5\t0.75\t0.25",
    ]
    assert page.locator("nav a").all_inner_texts() == page.locator("main h2").all_inner_texts()
    if page.locator("#threshold").count() == 0:
        assert "without --val" in page.locator("main").inner_text()
        return

    found, truth = boxes(page, "found"), boxes(page, "truth")
    assert found > 0
    assert truth > 0
    page.locator("#threshold").fill("0")
    assert boxes(page, "found") > found
    assert boxes(page, "truth") == truth
    page.locator("summary", has_text="Classes").click()
    page.get_by_role("button", name="none", exact=True).click()
    assert (boxes(page, "found"), boxes(page, "truth")) == (0, 0)


@pytest.mark.skipif(AXE is None, reason="no axe-core: `make test-browser` fetches it and sets AXE_CORE")
def test_nobody_is_left_out(page: Page) -> None:
    assert AXE is not None
    page.evaluate(Path(AXE).read_text())
    for summary in page.locator("summary").all():
        summary.click()

    found = page.evaluate("axe.run()")["violations"]
    assert [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found] == []
