"""A COCO json as the truth to measure by: read, checked field by field, known by what decides figures over it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipelines.file_names import file_name
from pipelines.stopped import RunStopped
from pipelines.store import StoreError, StoreOptions, Stores, without_secrets
from pipelines.strict_json import MOST, parse_json

Json = dict[str, Any]

_MOST: Final = 1e300

_COCO_FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a COCO json says, and which of its images are measured on.

    Attributes:
        name: the json's address as it may be shown.
        truth: all of it: `images`, `annotations`, `categories`.
        image_ids: of the images that are measured on.
        sha256: of what decides the figures over these images; see `truth_sha256`.
    """

    name: str
    truth: Json
    image_ids: frozenset[int]
    sha256: str

    def by_file_name(self) -> dict[str, Json]:
        """Return all images of the json by the last part of their file name.

        Raises:
            RunStopped: two have the same.
        """
        named: dict[str, Json] = {}
        for image in self.truth["images"]:
            name = file_name(image["file_name"])
            if name in named:
                raise RunStopped(
                    f"annotations {self.name}: the images {named[name]['file_name']!r} and {image['file_name']!r} have "
                    "the same file name, by which rows are matched. Give each a name of its own, or evaluate them "
                    "apart."
                )
            named[name] = image
        return named


def read_annotations(
    uri: str, *, options: StoreOptions | None = None, picture_size: tuple[int, int] | None = None
) -> Annotations:
    """Read what COCO's instances files hold.

    Args:
        uri: path or URI of a COCO json.
        options: how stores are reached.
        picture_size: measure only on images of this (height, width) in pixels; None is all.

    Raises:
        RunStopped: it cannot be read, or is something else.
        ValueError: no annotated image has that size.
    """
    name = without_secrets(uri)
    try:
        data = Stores(options).get(uri).data
    except StoreError as error:
        raise RunStopped(f"cannot read the annotations: {error}") from error
    try:
        truth = parse_json(data)
    except ValueError as error:
        raise RunStopped(f"annotations {name}: this is not JSON ({error}).") from error
    _check(truth, name)
    chosen = frozenset(
        image["id"] for image in truth["images"] if picture_size in (None, (image["height"], image["width"]))
    )
    if not chosen:
        raise ValueError(f"picture size: {_no_such_size(truth, picture_size)}")
    return Annotations(name, truth, chosen, truth_sha256(truth, chosen))


def truth_sha256(truth: Mapping[str, Any], image_ids: Collection[int]) -> str:
    """Return what equal figures need to be equal: the images measured on, their boxes and the classes, as one digest.

    Order, file names, segmentations and the ids of annotations play no part, so the same data set has the same digest
    from its json and from training shards.
    """
    chosen = set(image_ids)
    boxes = sorted(
        (
            annotation["image_id"],
            annotation["category_id"],
            *map(float, annotation["bbox"]),
            float(annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])),
            int(annotation.get("iscrowd", 0)),
        )
        for annotation in truth["annotations"]
        if annotation["image_id"] in chosen
    )
    classes = sorted((category["id"], category["name"]) for category in truth["categories"])
    return hashlib.sha256(json.dumps([sorted(chosen), boxes, classes]).encode()).hexdigest()


def _check(truth: object, name: str) -> None:
    for part, fields in _COCO_FIELDS.items():
        entries = truth.get(part) if isinstance(truth, dict) else None
        if not isinstance(entries, list) or not entries:
            raise RunStopped(
                f"annotations {name}: there are no {part}, so this is not what COCO's instances files hold."
            )
        for number, entry in enumerate(entries):
            wrong = [
                key for key, kind in fields.items() if not isinstance(entry, dict) or not _is(entry.get(key), kind)
            ]
            if part == "annotations" and not wrong:
                wrong = [key for key in ("area", "iscrowd") if key in entry and not _is_number(entry[key])]
            if wrong:
                raise RunStopped(f"annotations {name}: {part}[{number}] has no usable {' and no usable '.join(wrong)}.")
    assert isinstance(truth, dict)
    for part in ("images", "categories"):
        identifier, count = Counter(entry["id"] for entry in truth[part]).most_common(1)[0]
        if count > 1:
            raise RunStopped(
                f"annotations {name}: {count} {part} have the id {identifier}. Give each an id of its own."
            )


def _is(value: object, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
    if kind is int:
        return isinstance(value, int) and abs(value) <= MOST
    return isinstance(value, kind)


def _is_number(value: object) -> bool:
    """Return whether a value of json is a number that arithmetic can go on with; NaN is none, nor are 400 digits."""
    return isinstance(value, (int, float)) and abs(value) < _MOST


def _no_such_size(truth: Json, picture_size: tuple[int, int] | None) -> str:
    height, width = picture_size or (0, 0)
    sizes = Counter((image["height"], image["width"]) for image in truth["images"])
    shown = ", ".join(f"{one} x {other} ({count:,})" for (one, other), count in sizes.most_common(6))
    return f"no annotated image is {height} x {width} (height x width). The most frequent are {shown}."
