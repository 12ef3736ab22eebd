"""What is looked at before an image goes into a shard: its picture, which may leave it out, and its boxes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from detr.augment import AugmentConfig
from detr.images import Header, ImageError, TooExtreme, decode, read_header, resize_shape
from pipelines.shards.rows import usable_box

EDGE_PIXELS: Final = 0.01  # boxes are often rounded, and so reach over an edge by less

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be trained on. `is_ambiguous`: EXIF turns it, and its height and width stay the same."""

    upright: bool
    is_ambiguous: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be trained on; the sentence is for people."""

    kind: str
    sentence: str


def check_picture(
    data: bytes, height: int, width: int, *, ambiguous_upright: bool, check_decodes: bool
) -> Picture | Problem:
    """Return how the picture is to be turned so that it has the height and width that the boxes were drawn on.

    Args:
        data: the encoded file.
        height: pixels, as the json says.
        width: likewise.
        ambiguous_upright: whether a picture of the same height and width turned and unturned is turned.
        check_decodes: whether the whole picture is decoded, not only its header.
    """
    try:
        header = read_header(data)
        upright = _turned(header, height, width, ambiguous_upright=ambiguous_upright)
        if upright is not None:
            resize_shape(height, width, longest=AugmentConfig().longest)  # as training will, whatever it draws
            if check_decodes:
                decode(data, upright=upright)
    except TooExtreme as error:
        return Problem(error.kind, str(error))
    except ImageError as error:
        return Problem("unreadable", f"{error.kind}: {error}")
    if upright is None:
        return Problem(
            "other_size",
            f"the json says {width} x {height} pixels (width x height), the picture has {header.width} x "
            f"{header.height}",
        )
    stored = _stored_size(header)
    return Picture(upright, header.orientation > 1 and stored == (header.height, header.width))


def check_annotations(
    annotations: Iterable[Json], height: int, width: int, *, category_ids: Collection[int]
) -> tuple[Counter[str], dict[str, str]]:
    """Return what is found in the annotations of an image: counts, and for each an annotation as an example.

    Nothing is changed: what becomes of a bad box is the business of whoever makes targets of it.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for annotation in annotations:
        counts["annotations"] += 1
        shown = f"annotation {_shown(annotation.get('id'))}: {_shown(annotation.get('bbox'))}"
        for finding in _findings(annotation, height, width, category_ids):
            counts[finding] += 1
            if finding != "crowds":  # nobody's concern
                examples.setdefault(finding, shown)
    return counts, examples


def _turned(header: Header, height: int, width: int, *, ambiguous_upright: bool) -> bool | None:
    """Return whether EXIF's turn gives that height and width, None where neither the turned nor the stored has them."""
    stored, upright = _stored_size(header), (header.height, header.width)
    if stored == upright == (height, width):
        return ambiguous_upright and header.orientation > 1
    if stored == (height, width):
        return False
    return True if upright == (height, width) else None


def _stored_size(header: Header) -> tuple[int, int]:
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _findings(annotation: Mapping[str, Any], height: int, width: int, category_ids: Collection[int]) -> list[str]:
    found = ["crowds"] if annotation.get("iscrowd") else []
    category_id = annotation.get("category_id")
    if isinstance(category_id, bool) or not isinstance(category_id, int | float) or category_id not in category_ids:
        found.append("undeclared_categories")
    box = usable_box(annotation.get("bbox"))
    if box is None:
        return [*found, "boxes_missing"]
    if not all(map(math.isfinite, box)):
        return [*found, "boxes_not_finite"]
    xmin, ymin, box_width, box_height = box
    xmax, ymax = xmin + box_width, ymin + box_height
    if box_width <= 0 or box_height <= 0:
        return [*found, "boxes_without_area"]
    if min(xmax, width) <= max(xmin, 0) or min(ymax, height) <= max(ymin, 0):
        return [*found, "boxes_outside"]
    if min(xmin, ymin) < -EDGE_PIXELS or xmax > width + EDGE_PIXELS or ymax > height + EDGE_PIXELS:
        return [*found, "boxes_over_the_edge"]
    return found


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
