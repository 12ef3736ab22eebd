"""Formats with many files: YOLO and Pascal VOC, with a file per image, and COCO results with a list of images.

Images with an error are left out.
"""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa

from pipelines.errors import UsageError, note_incomplete
from pipelines.exports.documents import coco_boxes, coco_categories, coco_image
from pipelines.exports.images import Categories, LabelledImage, Names, labelled_images
from pipelines.exports.places import FILE_BYTES, INDEX_KEY, require_empty
from pipelines.store import Store, without_secrets


class Tree:
    """A folder to which files are written while rows are added; a record is written last."""

    def __init__(self, store: Store, names: Names, classes: Mapping[int, str]) -> None:
        """Use an empty folder.

        Args:
            store: The folder.
            names: The names of the images.
            classes: id -> name of all classes of the images, for formats that are `NUMBERED_ANEW`.

        Raises:
            UsageError: it is not empty.
        """
        del classes  # most formats have ids
        require_empty(store)
        self.files = 0
        self.names, self.categories = names, Categories()
        self._store = store
        self._keys: set[int] = set()

    def __enter__(self) -> Tree:
        """Return itself."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Keep the written files: without the record they are an unfinished export."""
        if error is not None and self.files:
            note_incomplete(error, self._store.uri)

    def add(self, rows: pa.Table) -> None:
        """Write more images."""
        for image in labelled_images(rows):
            if image.error_kind is None:
                self.categories.add(image)
                self.add_image(image)

    def finish(self, record: Mapping[str, object]) -> None:
        """Write the final files and the record."""
        self.add_end()
        whole = {**record, "image_folder": self.names.folder, "files": self.files}
        self._store.put(INDEX_KEY, _json(whole), create=True)

    @abstractmethod
    def add_image(self, image: LabelledImage) -> None:
        """Write one image without error."""

    @abstractmethod
    def add_end(self) -> None:
        """Write files about the whole export, such as its classes."""

    def put(self, key: str, data: bytes) -> None:
        """Write one file."""
        self._store.put(key, data)
        self.files += 1

    def stem(self, image: LabelledImage) -> str:
        """Return the name of an image without its suffix, by which these formats match pictures and labels.

        Raises:
            UsageError: another image has the same name.
        """
        return _take_stem(image.uri, self.names, self._keys)


def _take_stem(uri: str, names: Names, taken: set[int]) -> str:
    stem = PurePosixPath(names.of(uri)).with_suffix("").as_posix()
    if hash(stem) in taken:
        raise UsageError(
            f"{uri} and another image have the same name without suffix, {stem}, by which this format pairs "
            "pictures and labels. Export to coco-dataset instead, or rename one."
        )
    taken.add(hash(stem))
    return stem


class EqualStems:
    """Finds out before the first file is written whether two exported images have the same name without suffix.

    Memory: 16 bytes for each image, and 24 more while `are_possible` sorts them.
    """

    def __init__(self) -> None:
        self._stems, self._uris = array("q"), array("q")  # hashes

    def watch(self, columns: Iterable[pa.ChunkedArray]) -> Iterator[pa.ChunkedArray]:
        """Yield the columns of addresses unchanged."""
        for column in columns:
            for uri in column.to_pylist():
                stem = uri.rpartition(".")[0] if "." in uri.rpartition("/")[2] else uri
                self._stems.append(hash(stem))
                self._uris.append(hash(uri))
            yield column

    def are_possible(self) -> bool:
        """Return whether two addresses differ in their suffix only."""
        stems, uris = np.frombuffer(self._stems, np.int64), np.frombuffer(self._uris, np.int64)
        order = np.argsort(stems)
        stems, uris = stems[order], uris[order]
        return bool(np.any((stems[1:] == stems[:-1]) & (uris[1:] != uris[:-1])))

    @staticmethod
    def refuse(columns: Iterable[pa.ChunkedArray], names: Names) -> None:
        """Refuse the addresses of the images to export if two have the same name.

        Raises:
            UsageError: they have.
        """
        taken: set[int] = set()
        for column in columns:
            for uri in column.to_pylist():
                _take_stem(without_secrets(uri), names, taken)


class YoloTree(Tree):
    """YOLO: `labels/NAME.txt` with class, centre and size as shares; `predictions/NAME.txt` with the score, too.

    Data set loaders expect lines of five numbers; ultralytics writes a sixth, the score, to predictions. Classes are
    numbered from 0 in the order of their ids, so that the order of the images does not matter.
    """

    def __init__(self, store: Store, names: Names, classes: Mapping[int, str]) -> None:
        """Use an empty folder."""
        super().__init__(store, names, classes)
        self._classes = dict(sorted(classes.items()))
        self._numbers = {category_id: number for number, category_id in enumerate(self._classes)}

    def add_image(self, image: LabelledImage) -> None:
        """Write the labels of an image."""
        width, height = image.size
        lines = []
        for category_id, (xmin, ymin, xmax, ymax) in zip(image.category_ids, image.boxes, strict=True):
            number = self._numbers[category_id]
            shares = (
                (xmin + xmax) / 2 / width,
                (ymin + ymax) / 2 / height,
                (xmax - xmin) / width,
                (ymax - ymin) / height,
            )
            lines.append(f"{number} " + " ".join(f"{share:.9f}" for share in shares))
        stem = self.stem(image)
        self.put(f"labels/{stem}.txt", "".join(f"{line}\n" for line in lines).encode())
        scored = zip(lines, image.scores, strict=True)
        self.put(f"predictions/{stem}.txt", "".join(f"{line} {score:.6f}\n" for line, score in scored).encode())

    def add_end(self) -> None:
        """Write `data.yaml`; JSON is YAML, and quotes every name."""
        names = [self.categories.names.get(category_id, name) for category_id, name in self._classes.items()]
        described = {"path": ".", "train": "images", "val": "images", "nc": len(names), "names": names}
        self.put("data.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in described.items()).encode())


class VocTree(Tree):
    """Pascal VOC: `Annotations/NAME.xml`, sides in pixels from 1 on as VOC counts, and a `score` for each object."""

    def add_image(self, image: LabelledImage) -> None:
        """Write the objects of an image."""
        name = self.names.of(image.uri)
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "folder").text = PurePosixPath(name).parent.as_posix()
        ElementTree.SubElement(root, "filename").text = _xml_text(PurePosixPath(name).name)
        size = ElementTree.SubElement(root, "size")
        for side, pixels in zip(("width", "height", "depth"), (*image.size, 3), strict=True):
            ElementTree.SubElement(size, side).text = str(pixels)
        ElementTree.SubElement(root, "segmented").text = "0"
        for label, score, box in zip(image.labels, image.scores, image.boxes, strict=True):
            found = ElementTree.SubElement(root, "object")
            for key, text in (
                ("name", _xml_text(label)),
                ("pose", "Unspecified"),
                ("truncated", "0"),
                ("difficult", "0"),
            ):
                ElementTree.SubElement(found, key).text = text
            ElementTree.SubElement(found, "score").text = f"{score:.6f}"
            sides = ElementTree.SubElement(found, "bndbox")
            # VOC counts pixels from 1 and includes the last: only the low sides change
            for side, value, shift in zip(("xmin", "ymin", "xmax", "ymax"), box, (1, 1, 0, 0), strict=True):
                ElementTree.SubElement(sides, side).text = f"{value + shift:.3f}"
        self.put(f"Annotations/{self.stem(image)}.xml", ElementTree.tostring(root, encoding="utf-8") + b"\n")

    def add_end(self) -> None:
        """Write the names of the classes."""
        self.put("labels.txt", "".join(f"{name}\n" for _, name in sorted(self.categories.names.items())).encode())


class CocoTree(Tree):
    """COCO results in numbered files, and `images.json`: the data set without annotations that they refer to."""

    def __init__(self, store: Store, names: Names, classes: Mapping[int, str]) -> None:
        """Use an empty folder."""
        super().__init__(store, names, classes)
        self._images = _JsonList(b'{"images": [\n')
        self._results = _JsonList(b"[\n")
        self._part = 0

    def add_image(self, image: LabelledImage) -> None:
        """Add the boxes of an image; a file of results is written when it has about 64 MB."""
        number = self._images.count + 1
        self._images.add(coco_image(image, number, self.names))
        for box in coco_boxes(image, number):
            self._results.add(box)
        if self._results.size >= FILE_BYTES:
            self._put_results()

    def add_end(self) -> None:
        """Write the last results, and the images."""
        if self._results.count or not self._part:
            self._put_results()
        categories = _line(coco_categories(self.categories))
        self.put("images.json", self._images.ended(b'\n], "annotations": [], "categories": ' + categories + b"}\n"))

    def _put_results(self) -> None:
        self.put(f"results-{self._part:05d}.json", self._results.ended(b"\n]\n"))
        self._results = _JsonList(b"[\n")
        self._part += 1


class _JsonList:
    """A JSON list as bytes ready to be put: a list of lines takes twice the memory, and joining it more."""

    def __init__(self, start: bytes) -> None:
        self.count = 0
        self._sink = io.BytesIO()
        self._sink.write(start)

    @property
    def size(self) -> int:
        return self._sink.tell()

    def add(self, entry: object) -> None:
        self._sink.write((b",\n" if self.count else b"") + _line(entry))
        self.count += 1

    def ended(self, end: bytes) -> bytes:
        self._sink.write(end)
        return self._sink.getvalue()


TREES: Final[Mapping[str, Callable[[Store, Names, Mapping[int, str]], Tree]]] = {
    "yolo": YoloTree,
    "voc": VocTree,
    "coco": CocoTree,
}
"""The writer class of each folder format."""

PAIRED_BY_STEM: Final = ("yolo", "voc")
"""The formats that pair pictures and labels by the name without suffix."""

NUMBERED_ANEW: Final = ("yolo",)
"""The formats that number classes from 0 instead of using their ids."""


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _line(entry: object) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()


def _xml_text(text: str) -> str:
    # XML 1.0 does not allow control characters
    return "".join(letter if letter >= " " or letter in "\t\n" else "?" for letter in text)
