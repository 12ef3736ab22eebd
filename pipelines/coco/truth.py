"""The parsed annotations of a COCO json, with numbers converted, and without unusable annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.coco.values import (
    MOST_INT32,
    MOST_INT64,
    area,
    box,
    id_key,
    is_crowd,
    is_finite_box,
    picture_size,
    whole,
)

Json = dict[str, Any]


def image_numbers(document: Mapping[str, Any]) -> dict[int | str, int]:
    """Return the number of each image by `id_key`: the id itself, or 1, 2, ... if any is not a 64-bit number."""
    keys = [key for image in document["images"] if (key := id_key(image.get("id"))) is not None]
    if all(isinstance(key, int) and abs(key) <= MOST_INT64 for key in keys):
        return {key: int(key) for key in keys}
    numbers: dict[int | str, int] = {}
    for position, key in enumerate(keys, start=1):
        numbers.setdefault(key, position)
    return numbers


def normal_truth(document: Mapping[str, Any], *, numbers: Mapping[int | str, int] | None = None) -> Json:
    """Return a COCO json with converted numbers, for `average_precision`.

    Images keep their fields; `original_id` is the json's id if that was replaced by a number, and height and width are
    None if the json does not have both. Annotations of images that are not declared, without a category that is a whole
    number, or without a box of four finite numbers are left out. `iscrowd` is 0 or 1, `area` a number or missing.

    Args:
        document: the parsed input of `read_coco`.
        numbers: of the images, by `id_key` of their ids; None is `image_numbers`.
    """
    numbers = image_numbers(document) if numbers is None else numbers
    images = []
    for image in document["images"]:
        key = id_key(image.get("id"))
        assert key is not None  # read_coco refuses these
        height, width = picture_size(image) or (None, None)
        normal = {**image, "id": numbers[key], "height": height, "width": width}
        if numbers[key] != key:
            normal["original_id"] = image["id"]
        images.append(normal)
    annotations = []
    for annotation in document["annotations"]:
        key = id_key(annotation.get("image_id"))
        category_id, sides = whole(annotation.get("category_id"), MOST_INT32), box(annotation.get("bbox"))
        if key not in numbers or category_id is None or sides is None or not is_finite_box(sides):
            continue
        assert key is not None
        normal = {**annotation, "image_id": numbers[key], "category_id": category_id}
        if sides != annotation["bbox"]:
            normal["bbox"] = sides
        measured = area(annotation)
        normal.pop("area", None)
        if measured is not None:
            normal["area"] = measured
        if "iscrowd" in annotation:
            normal["iscrowd"] = int(is_crowd(annotation))
        annotations.append(normal)
    categories = [{**category, "id": whole(category["id"])} for category in document["categories"]]
    return {**document, "images": images, "annotations": annotations, "categories": categories}
