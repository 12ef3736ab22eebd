"""Measure pages of `ray-detr report` and `repeats` in a headless Chromium: bytes, requests, first paint, first picture.

    python scripts/measure_page.py demo/report.html

Needs Chromium, which `scripts/browser.sh install` installs. Each page is opened anew, several times, at the size of a
desktop and of a phone with a CPU that is four times slower; the smallest and the median time are printed, in
milliseconds from the start of the navigation. A movement is one step of the page's slider until it is drawn.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, sync_playwright

ROUNDS: Final = 5
SCREENS: Final = {"desktop": (1280, 900, 1), "phone": (390, 844, 4)}  # width, height, slowing of the CPU
TIMES: Final = ("first paint", "loaded", "movement")

FIRST_PAINT: Final = """() => new Promise((done) => {
  const painted = () => performance.getEntriesByType("paint").find((one) => one.name === "first-contentful-paint");
  const wait = () => painted() ? done(painted().startTime) : setTimeout(wait, 5);
  wait();
})"""
LOADED: Final = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"
MOVE: Final = """() => new Promise((done) => {
  const slider = document.querySelector("input[type=range]");
  if (!slider) { done(0); return; }
  slider.stepUp();
  const began = performance.now();
  slider.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""


def measure(browser: Browser, page: Path, screen: str) -> tuple[dict[str, float], int]:
    """Return the times of one visit, and the number of requests other than for the page itself."""
    width, height, slowing = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height})
    opened = context.new_page()
    context.new_cdp_session(opened).send("Emulation.setCPUThrottlingRate", {"rate": slowing})
    asked: list[str] = []
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(page.as_uri())
    times = dict(zip(TIMES, (opened.evaluate(script) for script in (FIRST_PAINT, LOADED, MOVE)), strict=True))
    context.close()
    return times, sum(not url.startswith("data:") for url in asked) - 1


def main(pages: list[Path]) -> None:
    """Measure each page."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("there is no Chromium: scripts/browser.sh install")
    print("page, screen, MB, requests, " + ", ".join(f"{name} ms (least, median)" for name in TIMES))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for page in pages:
            for screen in SCREENS:
                visits = [measure(browser, page.resolve(), screen) for _ in range(ROUNDS)]
                times = [sorted(one[name] for one, _ in visits) for name in TIMES]
                shown = ", ".join(f"{all_[0]:.0f}, {statistics.median(all_):.0f}" for all_ in times)
                requests = max(count for _, count in visits)
                print(f"{page.name}, {screen}, {page.stat().st_size / 1e6:.1f}, {requests}, {shown}", flush=True)
        browser.close()


if __name__ == "__main__":
    main([Path(one) for one in sys.argv[1:]])
