"""Validation pictures of a training run, with annotations and detections of the run's model, on the CPU."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipelines.coco.values import is_finite_box
from pipelines.errors import RayDetrError
from pipelines.models import load_detector
from pipelines.report.examples import LEAST_SCORE, MOST_BOXES, left_out_bins
from pipelines.report.fitting import DRAWN_BOXES, LEAST_BYTES, PAGE_BYTES, largest_limit, limited_boxes
from pipelines.report.page import limits
from pipelines.report.pictures import MOST_BYTES, Picture, picture_budget, picture_of
from pipelines.shards.reader import INDEX_KEY, ShardReader, TrainingImage, decode_training_image, read_index
from pipelines.store import StoreOptions, open_store

if TYPE_CHECKING:
    from detr.postprocess import Detections

OTHER_BYTES: Final = 700_000  # of the page: charts, settings and addresses
MOST_PICTURES: Final = (PAGE_BYTES - OTHER_BYTES - 50 * DRAWN_BOXES) // LEAST_BYTES

Box = Sequence[Any]
"""Class number, score (None for truth), four sides in pixels, and 1 for truth, else 0."""


@dataclass(frozen=True, slots=True)
class ValidationPictures:
    """Pictures with found and annotated boxes.

    Attributes:
        pictures: in the form of the page.
        boxes: of each picture; at most 100 found ones.
        limits: what the page leaves out to stay under 5 MB, in sentences; empty if nothing.
        more: of each picture, the found boxes that are not in `boxes`, counted by the bin of their score.
        classes: names, the most frequent first; class numbers of boxes are indices of this list.
        images: number of images in the shards.
    """

    pictures: Sequence[Picture]
    boxes: Sequence[Sequence[Box]]
    more: Sequence[Sequence[tuple[int, int]]]
    classes: Sequence[str]
    images: int
    limits: str = ""


def predict_pictures(
    model: str, shards: str, *, index_sha256: str | None, most: int, options: StoreOptions
) -> ValidationPictures:
    """Detect objects in a few images of shards, evenly spread over them.

    Args:
        model: a reference for `load_model`.
        shards: URI of training shards.
        index_sha256: hash of the shards' index; others are refused. None takes any.
        most: number of images.
        options: access to both.

    Raises:
        RayDetrError: the model or the shards cannot be read, or the shards have changed.
        StoreError: a store refused or did not answer.
        FloatingPointError: the model returned NaN.
    """
    store = open_store(shards, options)
    index = read_index(store)
    if index_sha256 not in (None, hashlib.sha256(store.get(INDEX_KEY).data).hexdigest()):
        raise RayDetrError(f"the shards at {store.uri} are not those that the run was evaluated with.")
    reader = ShardReader(store, index)
    groups = [(file, group, rows) for file, one in enumerate(index.files) for group, rows in enumerate(one.row_groups)]
    images: list[TrainingImage] = []
    wanted, first = spread(index.images, min(most, MOST_PICTURES)), 0
    for file, group, rows in groups:
        places = [place - first for place in wanted if first <= place < first + rows]
        if places:
            read = reader.read_group(file, group)
            images += [read[place] for place in places]
        first += rows
    detector, _ = load_detector(model, options, device="cpu", precision="fp32", threshold=LEAST_SCORE)
    pixels = [decode_training_image(image) for image in images]
    found = detector(pixels) if pixels else []
    names = {category.id: category.name for category in index.categories}
    counts = Counter(name for one in found for name in one.labels)
    counts.update(_name(one, names) for image in images for one in _drawable(image))
    classes = sorted(counts, key=lambda name: (-counts[name], name))
    numbers = {name: number for number, name in enumerate(classes)}
    whole = [
        ([*_found(one, numbers), *_annotated(image, names, numbers)], left_out_bins(one.scores[MOST_BOXES:].numpy()))
        for image, one in zip(images, found, strict=True)
    ]
    lengths = [len(boxes) for boxes, _ in whole]
    limit = largest_limit(lengths, DRAWN_BOXES, max(lengths, default=1))
    shown = [limited_boxes(boxes, more, limit) for boxes, more in whole]
    room = PAGE_BYTES - OTHER_BYTES - len(json.dumps(shown))
    budget = picture_budget(len(images), min(MOST_BYTES, max(0, room)))
    return ValidationPictures(
        pictures=[picture_of(image.file_name, one, budget) for image, one in zip(images, pixels, strict=True)],
        boxes=[boxes for boxes, _ in shown],
        more=[more for _, more in shown],
        classes=classes,
        images=index.images,
        limits=limits(
            MOST_PICTURES if min(most, index.images) > MOST_PICTURES else None,
            limit if any(length > limit for length in lengths) else None,
        ),
    )


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the indices 0 .. `count` - 1, evenly spaced."""
    shown = min(count, most)
    return [place * count // shown for place in range(shown)]


def _name(annotation: Mapping[str, Any], names: Mapping[int, str]) -> str:
    number = annotation["category_id"]
    return names.get(number, f"category {number}")


def _found(found: Detections, numbers: Mapping[str, int]) -> Sequence[Box]:
    rows = zip(found.labels, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
    return [(numbers[name], round(score, 4), *(round(side, 2) for side in box), 0) for name, score, box in rows][
        :MOST_BOXES
    ]


def _drawable(image: TrainingImage) -> list[Mapping[str, Any]]:
    """Return the annotations that evaluation counts: those with a box of finite numbers."""
    return [one for one in image.annotations if is_finite_box(one["bbox"])]


def _annotated(image: TrainingImage, names: Mapping[int, str], numbers: Mapping[str, int]) -> list[Box]:
    return [
        (numbers[_name(one, names)], None, *(round(side, 2) for side in (x, y, x + width, y + height)), 1)
        for one in _drawable(image)
        for x, y, width, height in [one["bbox"]]
    ]
