"""Scenes drawn once and kept on disk: training draws its batches from them, augmented anew each time."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detr.boxes import xyxy_to_cxcywh
from detr.matcher import Target
from detr.scenes import MOST_SHAPES, draw_scene

FIRST_SEED = 10**12  # far beyond every seed of `write_scenes`, so that no set to be measured on is trained on
SHORT_SIDE = 224  # pixels: the largest side trained on is 208
RATIOS = (1.0, 1.1, 1.2, 4 / 3, 1.4, 1.5, 5 / 3, 16 / 9, 2.0, 2.25, 2.5)  # long side to short side
RATIO_WEIGHTS = (1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class PoolScenes:
    """All scenes of one shape.

    Attributes:
        images: uint8 `(N, H, W, 3)`, mapped from the file.
        labels: int64 `(N, 8)` class indices, -1 where there is no object.
        boxes_cxcywh: float32 `(N, 8, 4)`, normalised.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes_cxcywh: NDArray[np.float32]

    def target(self, index: int) -> Target:
        """Return the objects of one scene."""
        real = self.labels[index] >= 0
        return Target(torch.from_numpy(self.labels[index][real]), torch.from_numpy(self.boxes_cxcywh[index][real]))


def draw_pool(
    folder: Path, scenes_per_ratio: int, *, short_side: int = SHORT_SIDE, report: Callable[[str], None] = lambda _: None
) -> None:
    """Draw what is missing of the pool in `folder`: a file of images, of labels and of boxes for each ratio.

    Args:
        folder: made when missing.
        scenes_per_ratio: how many landscape scenes each ratio has; a file with another number is drawn again.
        short_side: of the scenes, in pixels.
        report: called with a sentence after each ratio.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, ratio in enumerate(RATIOS):
        shape = (scenes_per_ratio, short_side, round(short_side * ratio), 3)
        if _is_drawn(folder, number, shape):
            continue
        images = np.empty(shape, dtype=np.uint8)
        labels = np.full((scenes_per_ratio, MOST_SHAPES), -1, dtype=np.int64)
        boxes = np.zeros((scenes_per_ratio, MOST_SHAPES, 4), dtype=np.float32)
        for index in range(scenes_per_ratio):
            scene = draw_scene(FIRST_SEED + number * 10**6 + index, *shape[1:3])
            count = len(scene.labels)
            images[index], labels[index, :count] = scene.image, scene.labels
            corners = scene.boxes_xyxy / np.array([shape[2], shape[1]] * 2, dtype=np.float32)
            boxes[index, :count] = xyxy_to_cxcywh(torch.from_numpy(corners)).numpy()
        # images last: they say that the ratio is complete
        for name, array in (("labels", labels), ("boxes", boxes), ("images", images)):
            _write(folder / f"{number:02d}-{name}.npy", array)
        report(f"drew {scenes_per_ratio:,} scenes of ratio {ratio:.2f}")


def open_pool(folder: Path) -> tuple[PoolScenes, ...]:
    """Open the scenes that `draw_pool` drew, in the order of `RATIOS`; pictures stay on disk until they are used."""
    return tuple(
        PoolScenes(
            np.load(folder / f"{number:02d}-images.npy", mmap_mode="r"),
            np.load(folder / f"{number:02d}-labels.npy"),
            np.load(folder / f"{number:02d}-boxes.npy"),
        )
        for number in range(len(RATIOS))
    )


def _is_drawn(folder: Path, number: int, shape: tuple[int, ...]) -> bool:
    path = folder / f"{number:02d}-images.npy"
    return path.exists() and np.load(path, mmap_mode="r").shape == shape


def _write(path: Path, array: NDArray[np.generic]) -> None:
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
