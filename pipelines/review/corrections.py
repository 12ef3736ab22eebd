"""Corrections of exported images: match them to images, and read the drawn boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.coco.names import ImageNames
from pipelines.coco.text import read_coco
from pipelines.coco.values import box, id_key, is_crowd, number, picture_size, whole
from pipelines.errors import UsageError
from pipelines.review.batches import Batch, ReviewImage

Json = dict[str, Any]
Size = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """An image of a batch: the batch's number, and the image's index in it."""

    batch: int
    place: int
    image: ReviewImage


@dataclass(frozen=True, slots=True)
class CorrectedBox:
    """A box that a person drew or left unchanged.

    Attributes:
        label: name of the class.
        bbox: x, y, width, height in pixels of the upright picture.
        is_crowd: whether it covers a group of objects.
        origin: its position in the file, for messages.
    """

    label: str
    bbox: tuple[float, float, float, float]
    is_crowd: bool
    origin: str


@dataclass(frozen=True, slots=True)
class Correction:
    """A person's answer for one image; the one with the highest rank counts."""

    given: ExportedImage
    boxes: tuple[CorrectedBox, ...]
    rank: tuple[Any, ...] = ()


class ExportedImages:
    """All exported images of a table's batches, indexed by their names in files of corrections."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.images = [
            ExportedImage(batch.number, place, image) for batch in batches for place, image in enumerate(batch.images)
        ]
        self._by_id = {f"{one.batch}/{one.place}": one for one in self.images}
        self._by_uri: dict[str, ExportedImage | None] = {}
        newest: dict[str, int] = {}
        for one in self.images:  # the newest of several batches counts; two images of one batch are ambiguous
            for uri in one.image.shown_uris:
                self._by_uri[uri] = None if newest.get(uri) == one.batch else one
                newest[uri] = one.batch

    def find(self, review_id: object, uri: object) -> ExportedImage | None:
        """Return the image of a task by its `review` or, if that is missing, by its address.

        Args:
            review_id: batch and index, such as `3/17`; from another table its image has another address.
            uri: the image's address.
        """
        if not isinstance(review_id, str):
            return self._by_uri.get(uri) if isinstance(uri, str) else None
        found = self._by_id.get(review_id)
        is_other = found is not None and isinstance(uri, str) and uri not in found.image.shown_uris
        return None if is_other else found


@dataclass(slots=True)
class Corrections:
    """The contents of files of corrections.

    Attributes:
        found: the valid answer by batch and index.
        skipped: batch and index of skipped images.
        unmatched: number of tasks or images that are not in a batch.
        unmatched_example: one of them.
        repeated: number of answers that another answer replaces.
        other_size: sentences about images that the tool showed with other proportions than the labelled picture.
    """

    found: dict[tuple[int, int], Correction] = field(default_factory=dict)
    skipped: set[tuple[int, int]] = field(default_factory=set)
    unmatched: int = 0
    unmatched_example: str | None = None
    repeated: int = 0
    other_size: list[str] = field(default_factory=list)

    def add(self, correction: Correction) -> None:
        """Add an answer; it replaces an earlier one for the same image unless that has a higher rank."""
        key = (correction.given.batch, correction.given.place)
        earlier = self.found.get(key)
        self.repeated += earlier is not None
        if earlier is None or correction.rank >= earlier.rank:
            self.found[key] = correction

    def skip(self, given: ExportedImage) -> None:
        """Record that an image was skipped."""
        self.skipped.add((given.batch, given.place))

    def add_unmatched(self, what: str) -> None:
        """Count a task or an image that is not in a batch."""
        self.unmatched += 1
        self.unmatched_example = self.unmatched_example or what


def scale_to(image: ReviewImage, size: Size) -> tuple[float, float] | None:
    """Return the factors of x and y from a picture in the tool to the labelled picture.

    Tools may show a smaller copy. None if the proportions differ by more than a pixel of the copy, for example for
    another picture or a rotated one.

    Args:
        image: the labelled image.
        size: width and height in the tool.
    """
    width, height = size
    if width <= 0 or height <= 0 or abs(height - width * image.height / image.width) > max(1.0, width / image.width):
        return None
    return image.width / width, image.height / height


def read_coco_corrections(
    data: bytes, *, name: str, exported: ExportedImages, file_number: int, into: Corrections
) -> None:
    """Read a corrected COCO json. All of its images count as reviewed, because COCO cannot mark the others.

    Args:
        data: the json.
        name: its name in error messages.
        exported: the images that were exported.
        file_number: of the file on the command line; later files replace earlier ones.
        into: receives the corrections.

    Raises:
        UsageError: this is not a COCO json, an annotation has no box or class, or an image is ambiguous.
    """
    document = read_coco(data, name=name).document()
    labels = {whole(one["id"]): str(one["name"]) for one in document["categories"]}
    annotations = _by_image(document, name)
    info = document.get("info")
    batch = info.get("table_batch") if isinstance(info, dict) else None
    matches = _match_names([image["file_name"] for image in document["images"]], exported, name, batch=batch)
    # for a picture with EXIF rotation, 1.23 writes the size of the stored pixels, but boxes of the upright picture
    is_label_studio = isinstance(info, dict) and info.get("contributor") == "Label Studio"
    for image in document["images"]:
        given = matches.get(image["file_name"])
        if given is None:
            into.add_unmatched(str(image["file_name"]))
            continue
        size = picture_size(image)
        if is_label_studio and size == (given.image.width, given.image.height):  # height, width: of the stored picture
            size = size[::-1]
        scale = (1.0, 1.0) if size is None else scale_to(given.image, (size[1], size[0]))
        if scale is None:
            into.other_size.append(_other_size(image["file_name"], size, given.image))
            continue
        boxes = tuple(
            _coco_box(one, labels, scale, f"annotation {one.get('id')} of {image['file_name']} in {name}")
            for one in annotations[id_key(image["id"])]
        )
        into.add(Correction(given, boxes, (file_number,)))


def _by_image(document: Json, name: str) -> dict[int | str | None, list[Json]]:
    """Return the annotations of each image by `id_key` of its id: 5, 5.0 and "5" are equal."""
    annotations: dict[int | str | None, list[Json]] = {}
    for image in document["images"]:
        key = id_key(image.get("id"))
        if key is None or key in annotations:
            what = "has no id" if key is None else f"has the id {key} of another image"
            raise UsageError(f"corrections {name}: the image {image.get('file_name')!r} {what}. Export again.")
        annotations[key] = []
    for annotation in document["annotations"]:
        key = id_key(annotation.get("image_id"))
        if key is None or key not in annotations:
            raise UsageError(
                f"corrections {name}: annotation {annotation.get('id')} is of image {annotation.get('image_id')!r}, "
                "which is not in the file. Export again."
            )
        annotations[key].append(annotation)
    return annotations


def _match_names(
    file_names: Sequence[str], exported: ExportedImages, name: str, *, batch: object
) -> dict[str, ExportedImage]:
    """Return the image of each file name, by its exported name, else by the end of its address.

    Args:
        file_names: of the corrected file.
        exported: the images that were exported.
        name: of the corrected file, for messages.
        batch: the batch named in the file; None if the tool dropped it.
    """
    wanted = set(file_names)
    names = ImageNames(sorted(wanted))
    named: dict[str, dict[str, ExportedImage]] = defaultdict(dict)
    others: dict[str, dict[str, ExportedImage]] = defaultdict(dict)
    for one in exported.images:
        if batch not in (None, one.batch):
            continue
        if one.image.name in wanted:
            named[one.image.name][one.image.uri] = one
        elif (match := names.find(one.image.shown_uri)) is not None:
            others[match.name][one.image.uri] = one
    matches = {}
    for file_name, several in {**others, **named}.items():
        if len(several) > 1:
            first, second = sorted(several)[:2]
            raise UsageError(
                f"corrections {name}: the file name {file_name!r} may belong to {first} or to {second}. Keep the "
                "folders of the exported file names, or the `table_batch` of the exported file's `info`."
            )
        matches[file_name] = next(iter(several.values()))
    return matches


def _coco_box(annotation: Json, labels: dict[int | None, str], scale: tuple[float, float], origin: str) -> CorrectedBox:
    sides, category_id = box(annotation.get("bbox")), whole(annotation.get("category_id"))
    if sides is None:
        raise UsageError(f"{origin} has no bbox of four numbers. Draw boxes, and export again.")
    if category_id not in labels:
        raise UsageError(f"{origin} has the category {category_id}, which the file does not declare. Export again.")
    attributes = annotation.get("attributes")
    if isinstance(attributes, dict) and number(attributes.get("rotation")) not in (None, 0.0):
        raise UsageError(f"{origin} is a rotated box, which cannot be used for training. Draw it without rotation.")
    x, y, width, height = sides
    bbox = (x * scale[0], y * scale[1], width * scale[0], height * scale[1])
    return CorrectedBox(labels[category_id], bbox, is_crowd(annotation), origin)


def _other_size(what: str, size: tuple[int, int] | None, image: ReviewImage) -> str:
    height, width = size or (0, 0)
    return f"{what} has {width} x {height} pixels, and was labelled with {image.width} x {image.height}"
