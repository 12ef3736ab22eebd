"""Waiting for what a page draws: once a frame, and only near the window."""

from __future__ import annotations

from playwright.sync_api import Page

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"


def settle(page: Page) -> None:
    """Wait until the page has drawn what was changed."""
    page.evaluate(FRAMES)


def show(page: Page, gallery: str) -> None:
    """Scroll a gallery into the window: other pictures are not drawn."""
    page.locator(f"#pictures-{gallery}").scroll_into_view_if_needed()
    settle(page)
