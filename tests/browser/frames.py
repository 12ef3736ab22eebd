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


COUNT_ANNOUNCEMENTS = """async (steps) => {
  let count = 0;
  const observer = new MutationObserver((changes) => { count += changes.length; });
  const live = [...document.querySelectorAll("[role=status], output")].filter((one) => one.ariaLive !== "off");
  for (const one of live) observer.observe(one, { childList: true, characterData: true, subtree: true });
  for (const step of steps) {
    const control = document.querySelector(step[0]);
    if (step.length === 1) control.click();
    else { control.value = step[1]; control.dispatchEvent(new Event("input")); }
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  window.dispatchEvent(new Event("resize"));
  await new Promise((done) => setTimeout(done, 1000));
  observer.disconnect();
  return count;
}"""


def announcements(page: Page, *steps: tuple[str, float] | tuple[str]) -> int:
    """Move controls to values, or click them, a frame each, and count the changes of texts that are announced."""
    count: int = page.evaluate(COUNT_ANNOUNCEMENTS, steps)
    return count
