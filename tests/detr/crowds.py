"""Large pictures of many small shapes: what is found of them, and how often each object at a seam is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import PCG64, Generator
from torch import Tensor

from detr.classes import SCENE_CATEGORIES
from detr.evaluation.average_precision import AveragePrecision, average_precision
from detr.evaluation.coco_results import result_rows
from detr.postprocess import Detections
from detr.scenes.files import scene_annotations
from detr.scenes.scene import Scene, _drawn, _place, draw_background
from detr.tiles import Tiling

HEIGHT, WIDTH, SHAPES = 3000, 4000, 120
SCORE = 0.5  # of a detection that counts an object


@dataclass(frozen=True, slots=True)
class SeamCounts:
    """Objects that a seam cuts, as a rule no longer than the overlap: all, counted once, counted more often."""

    objects: int
    once: int
    more: int


def draw_crowd(
    seed: int, height: int, width: int, *, shapes: int, diameters: tuple[float, float] = (20.0, 640.0)
) -> Scene:
    """Draw a picture with many shapes whose nominal diameters in pixels are log-uniform; some find no place."""
    rng = Generator(PCG64([seed, height, width, shapes]))
    image = draw_background(rng, height, width)
    return _drawn(rng, image, _place(rng, height, width, shapes, diameters, scale=1.0))


def crowds(seed: int, pictures: int) -> list[Scene]:
    """Return pictures of 4,000 x 3,000 pixels with some 115 shapes of 20 to 640 pixels each."""
    return [draw_crowd(1000 * seed + number, HEIGHT, WIDTH, shapes=SHAPES) for number in range(pictures)]


def pixels_of(scene: Scene) -> Tensor:
    """Return the picture as `(3, H, W)`."""
    return torch.from_numpy(scene.image).permute(2, 0, 1)


def precision(scenes: Sequence[Scene], found: Sequence[Detections]) -> AveragePrecision:
    """Measure detections against the truth of their scenes."""
    images: list[Mapping[str, Any]] = []
    annotations: list[Mapping[str, Any]] = []
    rows: list[Mapping[str, Any]] = []
    for number, (scene, one) in enumerate(zip(scenes, found, strict=True), 1):
        images.append({"id": number, "height": HEIGHT, "width": WIDTH})
        annotations += scene_annotations(scene, number, len(annotations) + 1)
        rows += result_rows(number, one.category_ids.tolist(), one.scores.tolist(), one.boxes_xyxy.tolist())
    categories = [{"id": one.id, "name": one.name} for one in SCENE_CATEGORIES]
    return average_precision({"images": images, "annotations": annotations, "categories": categories}, rows)


def count_at_seams(
    scenes: Sequence[Scene], found: Sequence[Detections], tiling: Tiling, *, any_length: bool = False
) -> SeamCounts:
    """Count detections with a score of 0.5 or more that lie half or more in an object of their class.

    They must cover a tenth of it at least: the network also takes single corners of a large shape for small shapes.
    """
    tiles = tiling.tiles(HEIGHT, WIDTH)
    columns = {side for tile in tiles for side in (tile.left, tile.right)} - {0, WIDTH}
    rows = {side for tile in tiles for side in (tile.top, tile.bottom)} - {0, HEIGHT}
    longest = tiling.overlap * torch.tensor([tiling.width, tiling.height])
    if any_length:
        longest = torch.tensor([WIDTH, HEIGHT])
    total = [0, 0, 0]
    for scene, one in zip(scenes, found, strict=True):
        truth = torch.from_numpy(scene.boxes_xyxy)
        ids = torch.tensor([SCENE_CATEGORIES[label].id for label in scene.labels.tolist()])
        at_seam = torch.tensor([
            any(left < column < right for column in columns) or any(top < row < bottom for row in rows)
            for left, top, right, bottom in truth.tolist()
        ]) & (truth[:, 2:] - truth[:, :2] <= longest).all(dim=1)  # fmt: skip
        sure = one.scores >= SCORE
        boxes, classes = one.boxes_xyxy[sure], one.category_ids[sure]
        low = torch.maximum(boxes[:, None, :2], truth[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], truth[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2)
        own, its = ((corners[:, 2:] - corners[:, :2]).prod(dim=1) for corners in (boxes, truth))
        counts = (shared >= 0.5 * own[:, None]) & (shared >= 0.1 * its) & (classes[:, None] == ids)
        times = counts.sum(dim=0)[at_seam]
        total = [total[0] + len(times), total[1] + int((times == 1).sum()), total[2] + int((times > 1).sum())]
    return SeamCounts(*total)
