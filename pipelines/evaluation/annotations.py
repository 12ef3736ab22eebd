"""Reads and checks the COCO annotations of an evaluation, with a digest of what determines its figures."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.coco.documents import read_document
from pipelines.coco.text import read_coco
from pipelines.coco.truth import image_numbers, normal_truth
from pipelines.errors import UsageError
from pipelines.store import StoreOptions, without_secrets

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Annotations:
    """The contents of a COCO json, and the images to evaluate.

    Attributes:
        name: the json's address as it may be shown.
        truth: the usable part of the json, from `normal_truth`.
        image_ids: of the images to evaluate.
        sha256: of everything that determines the figures over these images; see `truth_sha256`.
        findings: problems of annotations and categories, as in sharding: counts by kind.
        examples: a few sentences for each.
        numbers: of the images, by `id_key` of the json's id.
    """

    name: str
    truth: Json
    image_ids: frozenset[int]
    sha256: str
    findings: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[int | str, int] = field(default_factory=dict)

    def class_names(self) -> dict[int, str]:
        """Return the name of each declared class, by its number."""
        return {category["id"]: category["name"] for category in self.truth["categories"]}

    def by_file_name(self) -> dict[str, Json]:
        """Return all images of the json by their file name.

        Raises:
            UsageError: two images have the same file name.
        """
        named: dict[str, Json] = {}
        for image in self.truth["images"]:
            name = image["file_name"]
            if name in named:
                raise UsageError(
                    f"annotations {self.name}: two images have the file name {name!r}, by which rows are matched. Give "
                    "each image a unique name, or evaluate them separately."
                )
            named[name] = image
        return named


def read_annotations(
    uri: str, *, options: StoreOptions | None = None, picture_size: tuple[int, int] | None = None
) -> Annotations:
    """Read a COCO instances file.

    Args:
        uri: path or URI of a COCO json.
        options: how stores are reached.
        picture_size: evaluate only images of this (height, width) in pixels; None is all.

    Raises:
        RayDetrError: it cannot be read, or is something else.
        ValueError: no annotated image has that size.
    """
    name = without_secrets(uri)
    data = read_document(uri, what="the annotations", options=options)
    coco = read_coco(data, name=name)
    document = coco.document()
    if coco.is_repeated.any():
        repeated = document["images"][int(coco.is_repeated.argmax())]["id"]
        raise UsageError(f"annotations {name}: two images have the id {repeated!r:.80}. Give each a unique id.")
    if not coco.annotations:
        raise UsageError(f"annotations {name}: there are no annotations, so nothing can be measured.")
    truth = normal_truth(document)
    chosen = frozenset(
        image["id"] for image in truth["images"] if picture_size in (None, (image["height"], image["width"]))
    )
    if not chosen:
        raise ValueError(f"picture size: {_no_such_size(truth, picture_size)}")
    return Annotations(
        name, truth, chosen, truth_sha256(truth, chosen), coco.findings, coco.examples, image_numbers(document)
    )


def truth_sha256(truth: Mapping[str, Any], image_ids: Collection[int]) -> str:
    """Return a digest of everything that determines figures: the evaluated images, their boxes and the classes.

    Order, file names, segmentations and annotation ids are not included, so a data set has the same digest as a json
    and as training shards.
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


def _no_such_size(truth: Json, picture_size: tuple[int, int] | None) -> str:
    height, width = picture_size or (0, 0)
    sizes = Counter((image["height"], image["width"]) for image in truth["images"] if image["height"] is not None)
    shown = ", ".join(f"{one} x {other} ({count:,})" for (one, other), count in sizes.most_common(6))
    return f"no annotated image is {height} x {width} (height x width). The most frequent are {shown or 'unknown'}."
