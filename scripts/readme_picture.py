"""Make README's picture from the demo's output: `make demo`, then `python scripts/readme_picture.py demo`.

The first scene of each of four sizes is scaled to one height, and its detections are drawn as the demo draws them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset
import torch
from PIL import Image

from detr.images.drawing import draw_detections
from detr.postprocess import Detections

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "demo.jpg"
SIZES = ((640, 480), (480, 640), (360, 360), (1000, 667))  # width, height
LEAST_SCORE = 0.5  # as in jobs/demo.py
HEIGHT = 330
GAP = 8
QUALITY = 90


def draw(row: dict[str, Any]) -> Image.Image:
    """Return the scene of a table row at the height of the strip, with its boxes."""
    picture = Image.open(row["uri"].removeprefix("file://")).convert("RGB")
    scale = HEIGHT / picture.height
    found = [one for one in row["detections"] if one["score"] >= LEAST_SCORE]
    detections = Detections(
        category_ids=torch.tensor([one["category_id"] for one in found], dtype=torch.int64),
        labels=tuple(one["label"] for one in found),
        scores=torch.tensor([one["score"] for one in found]),
        boxes_xyxy=torch.tensor([list(one["box"].values()) for one in found]).reshape(-1, 4) * scale,
    )
    size = (round(picture.width * scale), HEIGHT)
    return draw_detections(picture.resize(size, Image.Resampling.LANCZOS), detections)


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Return the pictures in one row."""
    strip = Image.new("RGB", (sum(one.width + GAP for one in pictures) - GAP, HEIGHT), "white")
    left = 0
    for one in pictures:
        strip.paste(one, (left, 0))
        left += one.width + GAP
    return strip


if __name__ == "__main__":
    table = Path(sys.argv[1] if len(sys.argv) > 1 else "demo") / "table" / "data"
    if not table.is_dir():
        sys.exit(f"there is no table at {table}: run `make demo` first")
    rows = pyarrow.dataset.dataset(table).to_table(columns=["uri", "width", "height", "detections"]).to_pylist()
    chosen = [next(row for row in rows if (row["width"], row["height"]) == size) for size in SIZES]
    side_by_side([draw(row) for row in chosen]).save(TARGET, quality=QUALITY, optimize=True)
    print(f"{TARGET}: {len(chosen)} pictures, {TARGET.stat().st_size / 1000:.0f} kB")
