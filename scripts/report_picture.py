"""Make README's picture of a report: `make demo`, then `python scripts/report_picture.py demo/report.html`.

Needs Chromium, which `scripts/browser.sh install` installs. Two parts of the page, its top and the pictures of its
worst false positives, are placed side by side.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "report.jpg"
WIDTH, HEIGHT = 1200, 2600  # pixels of the page
PARTS = ((0, 1000), (1450, 2450))  # pixels from the top
SCALE = 0.5
QUALITY = 88


def screenshot(page: Path, target: Path) -> None:
    """Write a picture of the beginning of a page."""
    subprocess.run(  # noqa: S603 - the program that the documentation names
        [  # noqa: S607
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--virtual-time-budget=4000", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={target}",
            page.resolve().as_uri(),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def main(page: Path) -> None:
    """Write the picture of a report."""
    with TemporaryDirectory() as folder:
        screenshot(page, Path(folder) / "page.png")
        whole = Image.open(Path(folder) / "page.png").convert("RGB")
    parts = [whole.crop((0, top, WIDTH, bottom)) for top, bottom in PARTS]
    size = (round(WIDTH * SCALE), round((PARTS[0][1] - PARTS[0][0]) * SCALE))
    picture = Image.new("RGB", (size[0] * len(parts), size[1]), "white")
    for number, part in enumerate(parts):
        picture.paste(part.resize(size, Image.Resampling.LANCZOS), (number * size[0], 0))
    picture.save(TARGET, quality=QUALITY, optimize=True)
    print(f"wrote {TARGET}: {picture.width} x {picture.height} pixels, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
