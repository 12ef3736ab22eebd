"""COCO's panoptic format: a PNG of segment ids for each image, and json that describes the segments."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr.classes import COCO_PANOPTIC_CATEGORIES
from detr.segmentation.panoptic import LAST_THING, PanopticSegmentation


def to_png(ids: NDArray[np.int32]) -> bytes:
    """Return a PNG whose pixels have the colour (id % 256, id // 256 % 256, id // 65536) of their segment's id."""
    colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> NDArray[np.int32]:
    """Return the ids, `(height, width)` int32, of such a PNG.

    Raises:
        OSError: it is not an image.
    """
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        colours = np.asarray(image.convert("RGB")).astype(np.int32)
    ids: NDArray[np.int32] = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    return ids


def annotation(found: PanopticSegmentation, *, image_id: int, file_name: str) -> dict[str, Any]:
    """Return the entry of `annotations` for an image.

    Args:
        found: its segmentation.
        image_id: as in the entry of `images`.
        file_name: name of its PNG.
    """
    return {
        "image_id": image_id,
        "file_name": file_name,
        "segments_info": [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": _box(found.ids == segment.id),
                "iscrowd": 0,
            }
            for segment in found.segments
        ],
    }


def categories() -> list[dict[str, Any]]:
    """Return the entries of `categories`: COCO's 80 things and 53 kinds of stuff."""
    return [
        {"id": category.id, "name": category.name, "isthing": int(category.id <= LAST_THING)}
        for category in COCO_PANOPTIC_CATEGORIES
        if category.is_used
    ]


def _box(mask: NDArray[np.bool_]) -> list[int]:
    """Return x, y, width and height of the pixels of a segment."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]
