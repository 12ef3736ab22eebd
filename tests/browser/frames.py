"""Waiting for what a page draws: once a frame, and only near the window."""

from __future__ import annotations

from playwright.sync_api import Page

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"


def settle(page: Page) -> None:
    """Wait until the page has drawn what was changed."""
    page.evaluate(FRAMES)


def show(page: Page, gallery: str) -> None:
    """Open a gallery and scroll it into the window: other pictures are not drawn."""
    page.locator(f"#pictures-{gallery}").evaluate(
        "one => { const fold = one.closest('details'); if (fold) fold.open = true; }"
    )
    page.locator(f"#pictures-{gallery}").scroll_into_view_if_needed()
    settle(page)


def set_threshold(page: Page, value: float) -> None:
    page.locator("#threshold").fill(str(value))
    settle(page)


def boxes_of(page: Page, gallery: str) -> int:
    show(page, gallery)
    return page.locator(f"#pictures-{gallery} rect.box").count()
