"""Convert the rows of an export to images with boxes, for image-based formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines.errors import RayDetrError
from pipelines.store import without_known_secrets

SLICE_ROWS: Final = 256  # rows that are Python objects at a time
DECIMALS: Final = 3  # of pixels; scores have 6

_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS: Final = ("uri", "error_kind", "error", "width", "height", "model")


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and its N boxes, best first.

    Attributes:
        uri: its address in the table, without secrets that are known as such.
        width: pixels of the upright picture; None for an error row without a size.
        height: pixels of the upright picture; None for an error row without a size.
        error_kind: of the detection table; None without an error.
        error: the error message.
        model: `name@sha256[:12]`.
        category_ids: N.
        labels: N.
        scores: N, 0..1, six decimals.
        boxes: N times xmin, ymin, xmax, ymax in pixels, three decimals.
    """

    uri: str
    width: int | None
    height: int | None
    error_kind: str | None
    error: str | None
    model: str
    category_ids: list[int]
    labels: list[str]
    scores: list[float]
    boxes: list[list[float]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height; images without error have both.

        Raises:
            RayDetrError: one is missing.
        """
        if self.width is None or self.height is None:
            raise RayDetrError(
                f"the row of {self.uri} has boxes, but no width and height. Restore its file, or label the image again."
            )
        return self.width, self.height


def labelled_images(rows: pa.Table) -> Iterator[LabelledImage]:
    """Yield the rows one by one; 256 are Python objects at a time."""
    for first in range(0, len(rows), SLICE_ROWS):
        part = rows.slice(first, SLICE_ROWS).combine_chunks()
        columns = [part[name].to_pylist() for name in _COLUMNS]
        column = part["detections"].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        found = column.flatten()
        category_ids, labels = found.field("category_id").to_pylist(), found.field("label").to_pylist()
        scores = found.field("score").to_numpy().astype(np.float64).round(6).tolist()
        sides = [found.field("box").field(side).to_numpy() for side in _SIDES]
        boxes = np.stack(sides, axis=1).astype(np.float64).round(DECIMALS).tolist()
        stops = np.cumsum(column.value_lengths().fill_null(0).to_numpy()).tolist()
        for (start, stop), values in zip(pairwise([0, *stops]), zip(*columns, strict=True), strict=True):
            uri, kind, error, width, height, model = values
            of_image = slice(start, stop)
            yield LabelledImage(
                without_known_secrets(uri), width, height, kind, error, model,
                category_ids[of_image], labels[of_image], scores[of_image], boxes[of_image],
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
    """Names of images relative to their common folder.

    Attributes:
        folder: the address of that folder with a slash at its end, or "" if they have no common folder.
    """

    folder: str = ""

    def of(self, uri: str) -> str:
        """Return the name of an image: a relative path inside the folder."""
        rest = uri.removeprefix(self.folder).replace("://", "/")
        return "/".join(part if part not in ("", ".", "..") else "_" for part in rest.split("/"))


def common_names(uris: Iterable[pa.ChunkedArray]) -> Names:
    """Return the names of the images whose addresses are in the columns."""
    shared: str | None = None
    for column in uris:
        for uri in column.to_pylist():
            if shared is not None and uri.startswith(shared):
                continue
            shown = without_known_secrets(uri)
            shared = _parent(shown) if shared is None else shared
            while not shown.startswith(shared):
                shared = _parent(shared)
    return Names(shared or "")


def _parent(path: str) -> str:
    folder, slash, _ = path.removesuffix("/").rpartition("/")
    return folder + slash


class Categories:
    """The classes of an export, with ids and names from the rows."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def add(self, image: LabelledImage) -> None:
        """Add the classes of an image.

        Raises:
            RayDetrError: an id has two names, for example from rows of two models.
        """
        for number, name in zip(image.category_ids, image.labels, strict=True):
            self.add_class(number, name, f"that of {image.uri}")

    def add_class(self, number: int, name: str, place: str) -> None:
        """Add a class.

        Raises:
            RayDetrError: the id has another name already.
        """
        known = self.names.setdefault(number, name)
        if known != name:
            raise RayDetrError(
                f"class {number} is {known!r} in some rows and {name!r} in {place}, but this format has one name for "
                "each class. Give --model to export the rows of one model."
            )
