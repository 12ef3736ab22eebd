"""Convert an image's COCO annotations to training targets, by the original's rules."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr.boxes import xyxy_to_cxcywh
from detr.training.matcher import Target


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """The T objects of a picture in its current size; `normalised` returns the loss's input.

    Attributes:
        labels: `(T,)` int64, class indices.
        boxes_xyxy: `(T, 4)` float32, corners in pixels of this picture.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
    """

    labels: Tensor
    boxes_xyxy: Tensor
    height: int
    width: int

    def normalised(self) -> Target:
        """Return centre-and-size boxes as shares of this picture, without padding."""
        scale = torch.tensor([self.width, self.height, self.width, self.height], dtype=torch.float32)
        return Target(self.labels, xyxy_to_cxcywh(self.boxes_xyxy) / scale)


def image_target(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, *, class_of: Mapping[int, int]
) -> ImageTarget:
    """Return the target of one image, in the order of its annotations; it may have no objects.

    Boxes are clipped at the image's edges in float32. Crowds, boxes without area inside the image, boxes with
    non-finite numbers, and categories that are not in `class_of` are left out.

    Args:
        annotations: COCO's: `bbox` (x, y, width, height in pixels) and `category_id`; `iscrowd` defaults to 0.
        height: of the picture that the boxes were drawn on, in pixels.
        width: width of the same picture in pixels.
        class_of: class index of each category id.

    Raises:
        ValueError: a `bbox` does not have four numbers.
    """
    wanted = [one for one in annotations if not one.get("iscrowd", 0) and one["category_id"] in class_of]
    for annotation in wanted:
        if len(annotation["bbox"]) != 4:
            raise ValueError(
                f"annotation {annotation.get('id', 'without id')}: bbox is {annotation['bbox']!r}, expected the four "
                "numbers x, y, width, height"
            )
    wanted = [one for one in wanted if all(math.isfinite(number) for number in one["bbox"])]
    boxes = torch.tensor([one["bbox"] for one in wanted], dtype=torch.float32).reshape(len(wanted), 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    labels = torch.tensor([class_of[one["category_id"]] for one in wanted], dtype=torch.int64)
    return ImageTarget(labels[kept], boxes[kept], height, width)
