"""Formats with all images in one file: CSV, COCO data set, Label Studio tasks, MegaDetector results."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import IO, Any, Final

import pyarrow as pa

from pipelines.exports.formats import RowsWriter
from pipelines.exports.image_urls import image_url
from pipelines.exports.images import Categories, LabelledImage, Names, labelled_images
from pipelines.exports.spool import SpoolFile

MEGADETECTOR_VERSION: Final = "1.5"
CSV_COLUMNS: Final = (
    "uri", "width", "height", "category_id", "label", "score", "xmin", "ymin", "xmax", "ymax", "model",
)  # fmt: skip

FROM_NAME: Final = "label"
TO_NAME: Final = "image"


class CsvBoxes:
    """CSV with one line per box: image, class, score and sides in pixels. Images without a box have no line."""

    def __init__(self, sink: IO[bytes], names: Names) -> None:
        """Write the header."""
        del names  # lines have full addresses
        self._sink = sink
        self._write([CSV_COLUMNS])

    def add(self, rows: pa.Table) -> None:
        """Write the boxes of more images."""
        for image in labelled_images(rows):
            self._write(
                [
                    (image.uri, image.width, image.height, number, label, score, *box, image.model)
                    for number, label, score, box in zip(
                        image.category_ids, image.labels, image.scores, image.boxes, strict=True
                    )
                ]
            )

    def close(self) -> None:
        """Do nothing."""

    def _write(self, lines: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._sink.write(text.getvalue().encode())


class CocoDataset:
    """A COCO json with images, categories and annotations; each annotation also has its `score`.

    CVAT and FiftyOne import it. Images with an error are left out: they would count as pictures without objects.
    """

    def __init__(self, sink: IO[bytes], names: Names) -> None:
        """Begin the file: annotations are written immediately, images are collected in a temporary file."""
        self._sink, self._names, self._categories = sink, names, Categories()
        self._images = _Spool()
        self._annotations = 0
        self._is_open = True
        sink.write(b'{"annotations": [')

    def add(self, rows: pa.Table) -> None:
        """Write some more images."""
        for image in labelled_images(rows):
            if image.error_kind is not None:
                continue
            self._categories.add(image)
            self._images.add(coco_image(image, self._images.count + 1, self._names))
            for annotation in coco_boxes(image, self._images.count):
                self._annotations += 1
                separator = b"\n" if self._annotations == 1 else b",\n"
                width, height = annotation["bbox"][2:]
                whole = {"id": self._annotations, **annotation, "area": round(width * height, 3), "iscrowd": 0}
                self._sink.write(separator + _line(whole))

    def close(self) -> None:
        """Write images and categories after the annotations."""
        if not self._is_open:
            return
        self._is_open = False
        self._sink.write(b'\n], "images": [')
        self._images.write_to(self._sink)
        rest = {"categories": coco_categories(self._categories), "info": {"image_folder": self._names.folder}}
        self._sink.write(b"\n], " + _line(rest)[1:] + b"\n")


class LabelStudioTasks:
    """Label Studio tasks with predictions: sides in percent of the picture, a score for each box and each task."""

    def __init__(self, sink: IO[bytes], names: Names, image_urls: Sequence[str] = ()) -> None:
        """Begin the file."""
        del names  # tasks have full addresses, from which Label Studio loads pictures
        self._image_urls = image_urls
        self._sink, self._count, self._is_open = sink, 0, True
        sink.write(b"[")

    def add(self, rows: pa.Table) -> None:
        """Write a task for each image without error."""
        for image in labelled_images(rows):
            if image.error_kind is not None:
                continue
            self._sink.write((b",\n" if self._count else b"\n") + _line(label_studio_task(image, self._image_urls)))
            self._count += 1

    def close(self) -> None:
        """End the list."""
        if self._is_open:
            self._is_open = False
            self._sink.write(b"\n]\n")


class MegaDetectorResults:
    """MegaDetector's results format: sides as shares of the picture; images with an error have `failure`."""

    def __init__(self, sink: IO[bytes], names: Names) -> None:
        """Begin the file."""
        self._sink, self._names, self._categories = sink, names, Categories()
        self._count, self._model, self._is_open = 0, "", True
        sink.write(b'{"images": [')

    def add(self, rows: pa.Table) -> None:
        """Write some more images."""
        for image in labelled_images(rows):
            self._categories.add(image)
            self._model = image.model
            self._sink.write((b",\n" if self._count else b"\n") + _line(_megadetector_image(image, self._names)))
            self._count += 1

    def close(self) -> None:
        """Write categories and format after the images."""
        if not self._is_open:
            return
        self._is_open = False
        categories = {str(number): name for number, name in sorted(self._categories.names.items())}
        info = {"format_version": MEGADETECTOR_VERSION, "detector": self._model, "image_folder": self._names.folder}
        self._sink.write(b"\n], " + _line({"detection_categories": categories, "info": info})[1:] + b"\n")


DOCUMENTS: Final[Mapping[str, Callable[[IO[bytes], Names], RowsWriter]]] = {
    "csv": CsvBoxes,
    "coco-dataset": CocoDataset,
    "labelstudio": LabelStudioTasks,
    "megadetector": MegaDetectorResults,
}
"""The writer class of each single-file format."""


def coco_image(image: LabelledImage, number: int, names: Names) -> dict[str, Any]:
    """Return an entry of `images` of a COCO json."""
    width, height = image.size
    return {"id": number, "file_name": names.of(image.uri), "width": width, "height": height}


def coco_boxes(image: LabelledImage, number: int) -> list[dict[str, Any]]:
    """Return the boxes of an image as COCO results."""
    return [
        {
            "image_id": number,
            "category_id": category_id,
            "bbox": [xmin, ymin, round(xmax - xmin, 3), round(ymax - ymin, 3)],
            "score": score,
        }
        for category_id, score, (xmin, ymin, xmax, ymax) in zip(
            image.category_ids, image.scores, image.boxes, strict=True
        )
    ]


def coco_categories(categories: Categories) -> list[dict[str, Any]]:
    """Return the classes as `categories` of a COCO json."""
    return [{"id": number, "name": name} for number, name in sorted(categories.names.items())]


class _Spool:
    """Entries of a list in a temporary file, until the preceding part of the file is complete."""

    def __init__(self) -> None:
        self._file = SpoolFile()
        self.count = 0

    def add(self, entry: object) -> None:
        self._file.write((b",\n" if self.count else b"\n") + _line(entry))
        self.count += 1

    def write_to(self, sink: IO[bytes]) -> None:
        with closing(self._file):
            shutil.copyfileobj(self._file.read_from_start(), sink)


def _line(entry: object) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()


def label_studio_task(image: LabelledImage, image_urls: Sequence[str] = ()) -> dict[str, Any]:
    """Return an image as a Label Studio task with its boxes as a prediction; sides in percent of the picture."""
    width, height = image.size
    results = [
        {
            "id": f"box{position}",
            "type": "rectanglelabels",
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": _share(xmin, width, 100),
                "y": _share(ymin, height, 100),
                "width": _share(xmax - xmin, width, 100),
                "height": _share(ymax - ymin, height, 100),
                "rotation": 0,
                "rectanglelabels": [label],
            },
            "score": score,
        }
        for position, (label, score, (xmin, ymin, xmax, ymax)) in enumerate(
            zip(image.labels, image.scores, image.boxes, strict=True)
        )
    ]
    # importers keep the score of the prediction, and some releases drop those of its boxes: they are also in meta
    for one in results:
        one["meta"] = {"text": [f"score {one['score']}"]}
    prediction = {"model_version": image.model, "score": max(image.scores, default=0.0), "result": results}
    return {"data": {"image": image_url(image.uri, image_urls)}, "predictions": [prediction]}


def _megadetector_image(image: LabelledImage, names: Names) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": names.of(image.uri)}
    if image.error_kind is not None:
        return {**entry, "failure": f"{image.error_kind}: {image.error or ''}".rstrip(": "), "detections": None}
    width, height = image.size
    entry |= {"width": width, "height": height}
    entry["detections"] = [
        {
            "category": str(number),
            "conf": score,
            "bbox": [
                _share(xmin, width), _share(ymin, height), _share(xmax - xmin, width), _share(ymax - ymin, height),
            ],
        }
        for number, score, (xmin, ymin, xmax, ymax) in zip(
            image.category_ids, image.scores, image.boxes, strict=True
        )
    ]  # fmt: skip
    return entry


def _share(pixels: float, side: int, whole: int = 1) -> float:
    # nine digits: a hundredth of a pixel of the largest picture, whose side has under a million
    return round(whole * pixels / side, 9)
