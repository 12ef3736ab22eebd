"""Formats with many files: YOLO and Pascal VOC, with a file per image, and COCO results with a list of images.

Images with an error are left out.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Final
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa

from pipelines.errors import UsageError, note_incomplete
from pipelines.exports.documents import coco_boxes, coco_categories, coco_image
from pipelines.exports.images import Categories, LabelledImage, Names, labelled_images
from pipelines.exports.places import FILE_BYTES, put_index, require_empty
from pipelines.exports.spool import SpoolFile
from pipelines.store import PutsFiles, Store, without_known_secrets

_LONGEST_NAME: Final = 250  # bytes of an image's name: file systems take 255, with the suffix of its label file
# XML 1.0 has only these characters; parsers read a carriage return as a line feed
_NOT_IN_XML: Final = re.compile(r"[^\t\n\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


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
        put_index(self._store, {**record, "image_folder": self.names.folder, "files": self.files})

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

    def put_file(self, key: str, file: IO[bytes]) -> None:
        """Write one file from another: in memory only for object stores, which take it in one request."""
        if isinstance(self._store, PutsFiles):
            self._store.put_file(key, file)
        else:
            self._store.put(key, file.read())
        self.files += 1

    def stem(self, image: LabelledImage) -> str:
        """Return the name of an image without its suffix, by which these formats match pictures and labels."""
        return _stem(self.names.of(image.uri))


def _stem(name: str) -> str:
    dot = name.rfind(".")  # as PurePath.with_suffix(""), which keeps the parts of every path that it has seen
    return name[:dot] if name.rfind("/") + 1 < dot < len(name) - 1 else name


class EqualStems:
    """Finds out before the first file is written whether two exported images have the same name without suffix.

    Memory: 8 bytes for each image, sorted in place.
    """

    def __init__(self) -> None:
        self._hashes = array("q")  # of whole addresses: below one folder, their ends are equal if the addresses are

    def watch(self, columns: Iterable[pa.ChunkedArray]) -> Iterator[pa.ChunkedArray]:
        """Yield the columns of addresses unchanged.

        Raises:
            UsageError: a name is too long for a file.
        """
        for column in columns:
            uris = column.to_pylist()
            self._hashes.extend(map(_hash, uris))
            for uri in uris:
                _check_length(uri)
            yield column

    def repeated(self) -> set[int]:
        """Return the hashes that two addresses have; they remain sorted."""
        hashes = np.frombuffer(self._hashes, np.int64)
        hashes.sort()
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())

    def refuse(self, columns: Iterable[pa.ChunkedArray], names: Names) -> None:
        """Refuse the same addresses, which are read once more if two of their hashes are equal.

        Raises:
            UsageError: two images have the same name.
        """
        repeated = self.repeated()
        first: dict[str, str] = {}
        for column in columns if repeated else ():
            for uri in column.to_pylist():
                if _hash(uri) in repeated:
                    shown = without_known_secrets(uri)
                    stem = _stem(names.of(shown))
                    if stem in first:
                        raise UsageError(
                            f"{first[stem]} and {shown} have the same name without suffix, {stem}, by which this "
                            "format pairs pictures and labels. Export to coco-dataset instead, or rename one."
                        )
                    first[stem] = shown


def _check_length(uri: str) -> None:
    """Refuse a web address whose query makes a longer name than file systems take.

    Raises:
        UsageError: with the address.
    """
    if uri.startswith(("http://", "https://")) and len(uri.rpartition("/")[2].encode()) > _LONGEST_NAME:
        raise UsageError(
            f"{without_known_secrets(uri)[:100]}... has a name of more than {_LONGEST_NAME} bytes, which no file can "
            "have. Export to coco-dataset instead, which has all names in one file."
        )


def _hash(uri: str) -> int:
    return hash(_stem(Names().of(without_known_secrets(uri))))


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
        # pathlib would keep the parts of every name in memory: early releases of CPython 3.12 never free them
        ElementTree.SubElement(root, "folder").text = _xml_text(posixpath.dirname(name) or ".")
        ElementTree.SubElement(root, "filename").text = _xml_text(posixpath.basename(name))
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
    """COCO results in numbered files, and `images.json`: the data set without annotations that they refer to.

    The images are in a temporary file until the end, because there may be very many with few boxes.
    """

    def __init__(self, store: Store, names: Names, classes: Mapping[int, str]) -> None:
        """Use an empty folder."""
        super().__init__(store, names, classes)
        self._file = SpoolFile()
        self._images = _JsonList(self._file, b'{"images": [\n')
        self._open_results()
        self._part = 0

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close the temporary file."""
        self._file.close()
        super().__exit__(kind, error, traceback)

    def add_image(self, image: LabelledImage) -> None:
        """Add the boxes of an image; a file of results is written when it has about 64 MB."""
        number = self._images.count + 1
        self._images.add(coco_image(image, number, self.names))
        for box in coco_boxes(image, number):
            self._results.add(box)
        if self._buffer.tell() >= FILE_BYTES:
            self._put_results()

    def add_end(self) -> None:
        """Write the last results, and the images."""
        if self._results.count or not self._part:
            self._put_results()
        categories = _line(coco_categories(self.categories))
        self._images.end(b'\n], "annotations": [], "categories": ' + categories + b"}\n")
        self.put_file("images.json", self._file.read_from_start())

    def _open_results(self) -> None:
        self._buffer = io.BytesIO()  # ready to be put: a list of lines takes twice the memory, and joining it more
        self._results = _JsonList(self._buffer, b"[\n")

    def _put_results(self) -> None:
        self._results.end(b"\n]\n")
        self.put(f"results-{self._part:05d}.json", self._buffer.getvalue())
        self._open_results()
        self._part += 1


class _JsonList:
    """A JSON list that is written to a file, one line for each entry."""

    def __init__(self, sink: IO[bytes] | SpoolFile, start: bytes) -> None:
        self.count = 0
        self._sink = sink
        self._sink.write(start)

    def add(self, entry: object) -> None:
        self._sink.write((b",\n" if self.count else b"") + _line(entry))
        self.count += 1

    def end(self, end: bytes) -> None:
        self._sink.write(end)


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


def _line(entry: object) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()


def _xml_text(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)
