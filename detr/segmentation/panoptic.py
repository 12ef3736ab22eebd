"""Panoptic segmentations: one segment for each pixel, computed from the masks of detections as in the original."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SMALLEST_AREA = 4
"""Segments of this many pixels or fewer are removed, and their pixels assigned to others."""

LAST_THING = 90
"""COCO's categories up to this id are things; the others are stuff, whose detections form one segment."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of an image: its id in the map of ids, its category, and its pixels."""

    id: int
    category_id: int
    is_thing: bool
    area: int


@dataclass(frozen=True, slots=True)
class PanopticSegmentation:
    """The segments of one image.

    Attributes:
        ids: `(height, width)` int32, the segment of each pixel of the upright image; 0 only where there is no segment.
        segments: with ids from 1, in the order of the queries.
    """

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]


def segment_pixels(
    logits: Tensor, category_ids: Tensor, *, resized: tuple[int, int], image: tuple[int, int]
) -> PanopticSegmentation:
    """Return the segmentation from the masks of kept queries; every pixel belongs to one of them.

    Two differences from the original's `PostProcessPanoptic`: its ids begin with 0, which COCO's format reserves for
    pixels without a segment, and it enlarges the masks including the padding of the batch.

    Args:
        logits: `(N, h, w)` mask logits of the image without padding.
        category_ids: `(N,)` integers, COCO's.
        resized: (height, width) of the image as the network saw it.
        image: (height, width) of the upright image.
    """
    if not len(logits):
        return PanopticSegmentation(np.zeros(image, np.int32), ())
    enlarged = F.interpolate(logits[:, None].float(), size=resized, mode="bilinear", align_corners=False)[:, 0].cpu()
    categories = [int(number) for number in category_ids]
    owners = _owners(enlarged, _merged(categories), image)
    areas = np.bincount(owners.ravel(), minlength=len(categories))
    kept = np.arange(len(categories))
    while len(kept) and (areas <= SMALLEST_AREA).any():
        # does not merge stuff again, as in the original: merged queries have no pixels, and are removed here
        kept = kept[areas > SMALLEST_AREA]
        if not len(kept):
            return PanopticSegmentation(np.zeros(image, np.int32), ())
        owners = _owners(enlarged[torch.from_numpy(kept)], np.arange(len(kept)), image)
        areas = np.bincount(owners.ravel(), minlength=len(kept))
    segments = tuple(
        Segment(place + 1, categories[query], categories[query] <= LAST_THING, int(areas[place]))
        for place, query in enumerate(kept)
    )
    return PanopticSegmentation(owners.astype(np.int32) + 1, segments)


def _merged(categories: list[int]) -> NDArray[np.intp]:
    """Map each query of stuff to the first of its category, and each thing to itself."""
    return np.array([
        query if category <= LAST_THING else categories.index(category) for query, category in enumerate(categories)
    ])  # fmt: skip


def _owners(masks: Tensor, merged: NDArray[np.intp], image: tuple[int, int]) -> NDArray[np.intp]:
    """Return the query of each pixel of the image, `(height, width)`."""
    owners = merged[masks.argmax(0).numpy()]
    # Pillow's nearest pixel differs from torch's
    resized = Image.fromarray(owners.astype(np.int32)).resize(image[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized).astype(np.intp)
