"""How good a model of the scenes is while it trains: detections on a few unseen ones, and their truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr.classes import SCENE_CATEGORIES
from detr.images import resize, resize_shape
from detr.model import Detr
from detr.postprocess import postprocess
from detr.scene_files import PICTURE_SIZES, scene_annotations
from detr.scenes import Scene, draw_scene
from detr.scenes_training import LONGEST_SHARE, normalise

FIRST_SEED = 2 * 10**12  # neither in the pool nor in any set of `write_scenes`


@dataclass(frozen=True, slots=True)
class Unseen:
    """Scenes of one picture size: `images` uint8 `(N, 3, H, W)` and what lies in them."""

    images: Tensor
    scenes: tuple[Scene, ...]


def draw_unseen(scenes_per_size: int) -> tuple[Unseen, ...]:
    """Draw the same few scenes of every picture size, always."""
    drawn = []
    for number, (height, width) in enumerate(PICTURE_SIZES):
        first = FIRST_SEED + number * 10**6
        scenes = tuple(draw_scene(first + index, height, width) for index in range(scenes_per_size))
        images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
        drawn.append(Unseen(images, scenes))
    return tuple(drawn)


def truth(unseen: Sequence[Unseen]) -> dict[str, Any]:
    """Return the scenes' truth as COCO's json has it; image ids count from 1 in the order of the scenes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in (scene for group in unseen for scene in group.scenes):
        image_id = len(images) + 1
        images.append({"id": image_id, "height": scene.image.shape[0], "width": scene.image.shape[1]})
        annotations += scene_annotations(scene, image_id, len(annotations) + 1)
    categories = [{"id": category.id, "name": category.name} for category in SCENE_CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


@torch.no_grad()
def detect_unseen(model: Detr, unseen: Sequence[Unseen], shorter: int) -> list[dict[str, Any]]:
    """Return every query's best class as rows of COCO's results format, without threshold.

    Args:
        model: in evaluation mode.
        unseen: the scenes, each group one batch, without padding.
        shorter: the shorter side that pictures are resized to.
    """
    rows: list[dict[str, Any]] = []
    image_id = 0
    for group in unseen:
        height, width = group.images.shape[-2:]
        shape = resize_shape(height, width, shorter=shorter, longest=int(shorter * LONGEST_SHARE))
        output = model(normalise(torch.stack([resize(image, *shape) for image in group.images])), None)
        scores, classes, boxes = postprocess(output, torch.tensor([[height, width]]).expand(len(group.images), 2))
        for image in range(len(group.images)):
            image_id += 1
            for score, label, (xmin, ymin, xmax, ymax) in zip(
                scores[image].tolist(), classes[image].tolist(), boxes[image].tolist(), strict=True
            ):
                bbox = [xmin, ymin, xmax - xmin, ymax - ymin]
                category_id = SCENE_CATEGORIES[label].id
                rows.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
    return rows
