"""A headless Chromium, driven by its DevTools protocol; Debian's package is enough."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

HOW_TO_GET_IT = "no Chromium: run `make test-browser`, which installs Debian's package"


@pytest.fixture(scope="module")  # while it runs, this thread has an event loop that others would trip over
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip(HOW_TO_GET_IT)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # tests may run as root
        yield started
        started.close()
