"""Read Label Studio's exports of reviewed tasks: JSON with annotations, and JSON-MIN.

Sides are in percent of the picture. A task may have several annotations, of several people or times; JSON-MIN has an
entry for each of them, and none for skipped tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipelines.coco.values import number
from pipelines.errors import UsageError
from pipelines.review.corrections import CorrectedBox, Correction, Corrections, ExportedImage, ExportedImages, scale_to

Json = dict[str, Any]

_SHAPES: Final = frozenset({"polygon", "brush", "ellipse", "keypoint", "vector", "bitmask", "magicwand"})
_BOXES: Final = frozenset({"rectanglelabels", "labels"})


def read_label_studio(
    tasks: list[Any], *, name: str, exported: ExportedImages, file_number: int, into: Corrections
) -> None:
    """Read the tasks of an export.

    If a task has several annotations, the one marked as ground truth counts, else the last updated one. A task whose
    annotations were all cancelled is skipped; one without annotations is not reviewed; one whose annotation has no
    region is an image without objects.

    Args:
        tasks: the list in the file.
        name: name of the file in error messages.
        exported: the images that were exported.
        file_number: of the file on the command line; later files replace earlier ones.
        into: receives the corrections.

    Raises:
        UsageError: a task is not in Label Studio's format, or has a region that is not an upright box with one label.
    """
    for position, task in enumerate(tasks):
        if not isinstance(task, dict):
            raise UsageError(f"corrections {name}: entry {position} is not a task of Label Studio.")
        is_whole = isinstance(task.get("data"), dict)
        data: Json = task["data"] if is_whole else task
        uri = data.get("uri", None if "review" in data else data.get("image"))
        given = exported.find(data.get("review"), uri)
        origin = f"task {task.get('id', position)} ({data.get('uri', data.get('image'))}) of {name}"
        if given is None:
            into.add_unmatched(origin)
            continue
        reader = _Reader(given, origin, file_number, into)
        if is_whole:
            reader.read_annotations(task)
        else:
            reader.read_entry(task)


class _Reader:
    """Reads one task."""

    def __init__(self, given: ExportedImage, origin: str, file_number: int, into: Corrections) -> None:
        self._given, self._origin, self._file_number, self._into = given, origin, file_number, into

    def read_annotations(self, task: Json) -> None:
        """Read a task of the export JSON."""
        annotations = task.get("annotations", task.get("completions", []))
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            raise UsageError(f"{self._origin}: its annotations are not a list. Export it from Label Studio again.")
        for annotation in annotations:
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                self._into.skip(self._given)
                continue
            result = annotation.get("result") or []
            if not isinstance(result, list) or not all(isinstance(one, dict) for one in result):
                raise UsageError(f"{self._origin}: its result is not a list. Export it from Label Studio again.")
            self._add(annotation, list(_regions(result)))

    def read_entry(self, entry: Json) -> None:
        """Read an entry of the export JSON-MIN: regions are in fields named after the interface's tags."""
        if entry.get("annotation_id") is None:
            return  # a task without an annotation
        values = [one for value in entry.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
        self._add({**entry, "id": entry["annotation_id"]}, [("", one, one) for one in values])

    def _add(self, annotation: Json, regions: list[tuple[str, Json, Json]]) -> None:
        rank = (
            self._file_number,
            bool(annotation.get("ground_truth")),
            str(annotation.get("updated_at") or annotation.get("created_at") or ""),
            number(annotation.get("id")) or 0.0,
        )
        boxes = []
        for kind, value, sizes in regions:
            label = self._label(kind, value)
            if label is None:
                continue
            bbox = self._bbox(value, sizes)
            if bbox is None:
                return
            boxes.append(CorrectedBox(label, bbox, False, self._origin))
        self._into.add(Correction(self._given, tuple(boxes), rank))

    def _label(self, kind: str, value: Json) -> str | None:
        """Return the label of a region; None for other answers, such as choices and texts."""
        lists = [key for key in value if key.endswith("labels")]
        if not (lists or kind.endswith("labels") or kind == "rectangle" or kind in _SHAPES):
            return None
        if not set(lists) <= _BOXES or kind in _SHAPES or (kind.endswith("labels") and kind not in _BOXES):
            raise UsageError(
                f"{self._origin} has a region of the kind {kind or lists[0]}, but only boxes can be used for training. "
                "Draw it with RectangleLabels, or delete it."
            )
        labels = [label for key in lists for label in value[key]]
        if len(labels) != 1 or not isinstance(labels[0], str):
            found = "no label" if not labels else f"the labels {', '.join(map(str, labels))}"
            raise UsageError(f"{self._origin} has a box with {found}. Give each box one label, and export again.")
        return labels[0]

    def _bbox(self, value: Json, sizes: Json) -> tuple[float, float, float, float] | None:
        """Return x, y, width and height in pixels; None if the tool showed a picture of other proportions."""
        turned = [number(value.get("rotation") or 0), number(sizes.get("image_rotation") or 0)]
        if turned != [0.0, 0.0]:
            raise UsageError(
                f"{self._origin} has a box with a rotation of {next(one for one in turned if one != 0)} degrees (of "
                "the box or of its picture), which cannot be used for training. Draw it without rotation, and export "
                "again."
            )
        sides = [number(value.get(side)) for side in ("x", "y", "width", "height")]
        percents = [one for one in sides if one is not None and math.isfinite(one)]
        if len(percents) != 4:
            raise UsageError(f"{self._origin} has a box without x, y, width and height in percent. Export it again.")
        image = self._given.image
        shown = [number(sizes.get(side)) for side in ("original_width", "original_height")]
        if shown[0] is not None and shown[1] is not None and scale_to(image, (shown[0], shown[1])) is None:
            self._into.other_size.append(
                f"{self._origin} shows {shown[0]:g} x {shown[1]:g} pixels, and was labelled with {image.width} x "
                f"{image.height}"
            )
            return None
        x, y, width, height = percents
        return (
            x * image.width / 100, y * image.height / 100, width * image.width / 100, height * image.height / 100,
        )  # fmt: skip


def _regions(result: list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """Yield kind, value and sizes of each region; a box and its label with the same id are one region."""
    labelled = {one.get("id") for one in result if one.get("type") in _BOXES}
    for one in result:
        kind, value = one.get("type"), one.get("value")
        if not isinstance(kind, str) or not isinstance(value, Mapping):
            continue  # a relation between two regions
        if kind == "rectangle" and one.get("id") in labelled:
            continue
        yield kind, dict(value), one
