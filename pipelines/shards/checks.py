"""Checks images and annotations before they are written to a shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from detr.images.decoding import Header, ImageError, TooExtreme, decode, read_header, resize_shape
from detr.training.augment_config import AugmentConfig
from pipelines.coco.categories import has_name
from pipelines.coco.text import USABLE, CocoText
from pipelines.coco.values import MOST_INT32, annotation_problem, box, has_numbers_as_text, is_crowd, shown, whole
from pipelines.errors import UsageError

EDGE_PIXELS: Final = 0.01  # boxes are often rounded, so that they exceed the picture by less

UNUSABLE: Final = frozenset(
    {"undeclared_categories", "boxes_missing", "boxes_not_finite", "boxes_without_area", "boxes_outside"}
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be trained on.

    Attributes:
        upright: whether to apply its EXIF orientation.
        is_ambiguous: whether the EXIF orientation turns it and the sizes do not show if the boxes are of the turned
            picture.
        height: pixels, after turning if `upright`.
        width: pixels, after turning if `upright`.
    """

    upright: bool
    is_ambiguous: bool
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be trained on: a kind and a message."""

    kind: str
    sentence: str


def check_picture(
    data: bytes, size: tuple[int, int] | None, *, ambiguous_upright: bool, check_decodes: bool
) -> Picture | Problem:
    """Check a picture, and decide by the size in the json whether to apply its EXIF orientation.

    Args:
        data: the encoded file.
        size: (height, width) in pixels from the json, or None.
        ambiguous_upright: whether to rotate pictures whose size does not change by rotation.
        check_decodes: whether to decode the whole picture, not only its header.
    """
    try:
        header = read_header(data)
        upright = _turned(header, size, ambiguous_upright=ambiguous_upright)
        height, width = size or ((header.height, header.width) if upright else _stored_size(header))
        if upright is not None:
            resize_shape(height, width, longest=AugmentConfig().longest)  # as training does, at its largest size
            if check_decodes:
                decode(data, upright=upright)
    except TooExtreme as error:
        return Problem(error.kind, str(error))
    except ImageError as error:
        return Problem("unreadable", f"{error.kind}: {error}")
    if upright is None:
        return Problem(
            "other_size",
            f"the json has {width} x {height} pixels (width x height), the image has {header.width} x {header.height}",
        )
    does_not_tell = size is None or _stored_size(header) == (header.height, header.width)
    return Picture(upright, header.orientation > 1 and does_not_tell, height, width)


def check_annotations(
    annotations: Iterable[Json], height: int, width: int, *, category_ids: Collection[int]
) -> tuple[Counter[str], dict[str, str]]:
    """Return the findings in an image's annotations: counts, and an example annotation for each.

    Annotations are not changed; bad boxes are handled when targets are made.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for annotation in annotations:
        counts["annotations"] += 1
        findings = _findings(annotation, height, width, category_ids)
        counts[USABLE] += "crowds" not in findings and not UNUSABLE.intersection(findings)
        for finding in findings:
            counts[finding] += 1
            if finding != "crowds":  # not a problem
                value = annotation.get("category_id" if finding == "undeclared_categories" else "bbox")
                examples.setdefault(finding, f"annotation {shown(annotation.get('id'))}: {shown(value)}")
    return counts, examples


def check_class_names(coco: CocoText, *, name: str) -> None:
    """Check the names of the classes.

    Args:
        coco: the json.
        name: name of the json in messages.

    Raises:
        UsageError: a class has no name, the name of another class, or the name N/A of unused rows of models.
    """
    ids: dict[str, int] = {}
    for category in coco.categories:
        if not has_name(category):
            raise UsageError(
                f"annotations {name}: the category {category.id} is called {category.name!r}, which is not a valid "
                "class name. Give it a name."
            )
        if category.name in ids:
            raise UsageError(
                f"annotations {name}: the categories {ids[category.name]} and {category.id} are both called "
                f"{category.name!r}. Give each category a unique name, or give their annotations one category."
            )
        ids[category.name] = category.id


def _turned(header: Header, size: tuple[int, int] | None, *, ambiguous_upright: bool) -> bool | None:
    """Return whether EXIF's rotation gives this height and width; None if neither rotated nor stored size matches."""
    stored, upright = _stored_size(header), (header.height, header.width)
    if size is None or stored == upright == size:
        return ambiguous_upright and header.orientation > 1
    if stored == size:
        return False
    return True if upright == size else None


def _stored_size(header: Header) -> tuple[int, int]:
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _findings(annotation: Mapping[str, Any], height: int, width: int, category_ids: Collection[int]) -> list[str]:
    found = ["crowds"] if is_crowd(annotation) else []
    if has_numbers_as_text(annotation):
        found.append("numbers_as_text")
    if whole(annotation.get("category_id"), MOST_INT32) not in category_ids:
        found.append("undeclared_categories")
    problem = annotation_problem(annotation)
    if problem is not None:
        return [*found, problem]
    numbers = box(annotation["bbox"])
    assert numbers is not None
    xmin, ymin, box_width, box_height = numbers
    xmax, ymax = xmin + box_width, ymin + box_height
    if min(xmax, width) <= max(xmin, 0) or min(ymax, height) <= max(ymin, 0):
        return [*found, "boxes_outside"]
    if min(xmin, ymin) < -EDGE_PIXELS or xmax > width + EDGE_PIXELS or ymax > height + EDGE_PIXELS:
        return [*found, "boxes_over_the_edge"]
    return found
