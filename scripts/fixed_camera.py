"""Draw the pictures of fixed cameras: shapes that stay where they are, and shapes that move.

    python scripts/fixed_camera.py --out cameras --pictures 24

Each camera has a background with three shapes ("stones") that are in all of its pictures; in each picture two others
lie somewhere else, and light and noise change. `truth.json` has the boxes: {"camera1": {"stones": ..., "moving": ...}}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image

from detr.classes import SCENE_CATEGORIES
from detr.scenes.scene import Shape, draw_background, draw_shape, place_shapes

HEIGHT, WIDTH = 240, 320
STONES, MOVING = 3, 2
MOST_AREA = 0.15  # of the picture, so that shapes are within the size limit

Box = list[float]


def draw_camera(seed: int, pictures: int) -> tuple[list[NDArray[np.uint8]], list[tuple[str, Box]], list[list[Box]]]:
    """Draw the pictures of one camera.

    Returns:
        The pictures, uint8 `(240, 320, 3)`; class and box of each stone; the boxes of moving shapes, by picture.
    """
    camera = Generator(PCG64([seed, HEIGHT, WIDTH]))
    background = draw_background(camera, HEIGHT, WIDTH)
    stones = _apart(camera, STONES, [])
    for stone in stones:
        draw_shape(camera, background, stone)
    drawn, moving = [], []
    for number in range(pictures):
        rng = Generator(PCG64([seed, number, HEIGHT, WIDTH]))
        animals = _apart(rng, MOVING, stones)
        image = background.copy()
        for animal in animals:
            draw_shape(rng, image, animal)
        light, noise = rng.uniform(0.75, 1.15), rng.normal(0, rng.uniform(0, 6), image.shape)
        drawn.append(np.clip(image * light + noise, 0, 255).astype(np.uint8))
        moving.append([list(animal.box_xyxy) for animal in animals])
    named = [(SCENE_CATEGORIES[stone.class_index].name, list(stone.box_xyxy)) for stone in stones]
    return drawn, named, moving


def _apart(rng: Generator, count: int, others: list[Shape]) -> list[Shape]:
    """Choose shapes that touch neither each other nor some others."""
    chosen: list[Shape] = []
    while len(chosen) < count:
        for shape in place_shapes(rng, HEIGHT, WIDTH):
            left, top, right, bottom = shape.box_xyxy
            is_small = (right - left) * (bottom - top) <= MOST_AREA * HEIGHT * WIDTH
            if is_small and len(chosen) < count and not any(_touch(shape, one) for one in [*others, *chosen]):
                chosen.append(shape)
    return chosen


def _touch(one: Shape, other: Shape) -> bool:
    (left, top, right, bottom), (low, high, far, deep) = one.box_xyxy, other.box_xyxy
    return left < far and low < right and top < deep and high < bottom


def main() -> None:
    """Draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24, help="of each camera")
    parser.add_argument("--cameras", type=int, default=2)
    args = parser.parse_args()
    truth = {}
    for seed in range(1, args.cameras + 1):
        folder = args.out / f"camera{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures, stones, moving = draw_camera(seed, args.pictures)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{number:04}.jpg", quality=92)
        truth[folder.name] = {"stones": stones, "moving": moving}
    (args.out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    print(f"drew {args.cameras * args.pictures} pictures of {args.cameras} cameras into {args.out}")


if __name__ == "__main__":
    main()
