"""Reads training shards: Parquet files of photographs with annotations, listed in an index."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from detr.classes import Category
from detr.images.decoding import ImageError, decode
from pipelines.errors import RayDetrError, UsageError
from pipelines.parquet_files import open_object, parquet_of
from pipelines.shards.parquet_groups import read_row_group
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import Count, parse_json, record_of

INDEX_KEY: Final = "index.json"
INDEX_VERSION: Final = 1
SCHEMA_VERSION: Final = 1
ORIGIN: Final = "origin"  # top-level field of a json from `ray-detr review`: the table and the corrections

Json = dict[str, Any]

# A value that does not have the type of its column is in `other` under its name, so that nothing of the json is lost.
_ANNOTATION: Final = pa.struct(
    [
        pa.field("position", pa.int64(), nullable=False),  # in the json's list of annotations
        pa.field("id", pa.int64()),
        pa.field("category_id", pa.int32()),  # the data set's own
        pa.field("bbox", pa.list_(pa.field("element", pa.float64(), nullable=False), 4)),  # x, y, width, height
        pa.field("area", pa.float64()),  # pixels; of the segmentation where there is one
        pa.field("iscrowd", pa.bool_()),
        pa.field("segmentation", pa.string()),  # json; null where the annotation has none
        pa.field("other", pa.string()),  # json of all other fields; null without other fields
    ]
)

SHARD_SCHEMA: Final = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),  # in the json's list of images
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # pixels, as the boxes were drawn
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # the file as it was found
        pa.field("upright", pa.bool_(), nullable=False),  # whether a reader must turn the picture by its EXIF
        pa.field("annotations", pa.list_(pa.field("element", _ANNOTATION, nullable=False)), nullable=False),
        pa.field("other", pa.string()),  # json of the image's other fields; null without other fields
    ]
)

METADATA_PREFIX: Final = "ray_detr."
SIZES_KEY: Final = f"{METADATA_PREFIX}sizes"  # in a file's metadata: json of (height, width) of its images, in order
FOOTER_THREADS: Final = 8

_TRAINING_COLUMNS: Final = [
    *("image_id", "file_name", "height", "width", "image", "upright"),
    *(f"annotations.list.element.{name}" for name in ("id", "category_id", "iscrowd")),
    "annotations.list.element.bbox.list.element",
]


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard: one Parquet file. `row_groups` has the number of rows of each row group."""

    key: str
    rows: Count
    sha256: str
    size_bytes: Count
    row_groups: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The index of shards. It is written last, so that all files that it lists are complete.

    Attributes:
        files: the shards, which contain every image once.
        categories: ids and names, as in the json.
        images: number of images in the shards.
        annotations: number of annotations in the shards, including crowds and unusable ones.
        other: the other top-level fields of the json.
        left_out: the file of images that cannot be trained on, which is needed only to restore the json; or None.
        report: counts of findings.
        examples: a few messages for each count that may be a problem.
    """

    files: tuple[ShardFile, ...]
    categories: tuple[Category, ...]
    images: Count
    annotations: Count
    other: Json
    left_out: ShardFile | None = None
    report: Mapping[str, Count] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image with its annotations.

    Attributes:
        image_id: id of the image in the data set.
        file_name: name in the json.
        height: pixels of the picture that `decode_training_image` returns, to which the boxes refer.
        width: pixels of the same picture.
        data: the encoded file.
        upright: whether decoding applies the EXIF orientation.
        annotations: in the json's order: `id` (or None), `category_id`, `bbox` (x, y, width, height in pixels) and
            `iscrowd` (0 or 1). Annotations without a category or a box of four numbers are omitted; boxes can have any
            size and position.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    data: bytes
    upright: bool
    annotations: tuple[Mapping[str, Any], ...]


def write_index(store: Store, index: ShardIndex) -> None:
    """Create the index, which makes the shards valid.

    Raises:
        RayDetrError: another index exists.
        StoreError: the store refused or did not answer.
    """
    data = json.dumps({"version": INDEX_VERSION, **asdict(index)}, ensure_ascii=False, indent=1).encode()
    if put_if_absent(store, INDEX_KEY, data) != data:
        raise RayDetrError(
            f"{join_uri(store.uri, INDEX_KEY)} exists already with other contents: two jobs wrote shards to the same "
            "folder. Choose an empty folder and start again."
        )


def read_index(store: Store) -> ShardIndex:
    """Return the index of the shards in `store`.

    Raises:
        RayDetrError: the index is missing or damaged.
        StoreError: the store refused or did not answer.
    """
    name = join_uri(store.uri, INDEX_KEY)
    try:
        data = store.get(INDEX_KEY).data
    except NotFound as error:
        raise UsageError(
            f"there are no training shards at {store.uri}: {INDEX_KEY} is missing. Check the address; shards that are "
            "being written get it last, and `ray-detr shard` with the same options resumes unfinished ones."
        ) from error
    try:
        fields = parse_json(data)
        version = fields.pop("version")
        if version != INDEX_VERSION:
            raise RayDetrError(
                f"{name} has version {version}, and this release reads {INDEX_VERSION}: use the release that wrote it, "
                "or write the shards again."
            )
        other = fields["other"]  # a part of another program's json, which may contain NaN
        return replace(record_of(ShardIndex, fields | {"other": {}}), other=other)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RayDetrError(
            f"{name} is damaged: it cannot be read as the index of training shards ({error})."
        ) from error


class ShardReader:
    """Reads row groups of shards. Footers are fetched once. Can be used by several threads.

    Memory: the footers (some kilobytes for each file), and the returned images.
    """

    def __init__(self, store: Store, index: ShardIndex) -> None:
        """Take the store of the shards and their index, without reading."""
        self._store, self._index = store, index
        self._footers: dict[int, pq.FileMetaData] = {}
        self._lock = threading.Lock()

    def read_group(self, file: int, group: int) -> list[TrainingImage]:
        """Read the images of a row group with one request. File and row group are counted from 0, as in the index.

        Raises:
            RayDetrError: the file is damaged, or differs from the index.
            StoreError: the store refused or did not answer.
        """
        key, footer = self._index.files[file].key, self._footer(file)
        rows = read_row_group(self._store, key, footer, group, _TRAINING_COLUMNS).to_pylist()
        return [_training_image(row) for row in rows]

    def read_sizes(self) -> list[list[tuple[int, int]]]:
        """Return (height, width) of every image, a list for each row group of all files in order.

        Reads footers only.

        Raises:
            RayDetrError: a file is damaged, or differs from the index.
            StoreError: the store refused or did not answer.
        """
        sizes: list[list[tuple[int, int]]] = []
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            for file, footer in zip(
                self._index.files, pool.map(self._footer, range(len(self._index.files))), strict=True
            ):
                rows = iter(parse_json(footer.metadata[SIZES_KEY.encode()]))
                sizes += [[(height, width) for height, width in islice(rows, count)] for count in file.row_groups]
        return sizes

    def read_image_ids(self) -> list[list[int]]:
        """Return the id of every image, a list for each row group of all files in order.

        Reads one column of 8 bytes for each image.

        Raises:
            RayDetrError: a file is damaged, or differs from the index.
            StoreError: the store refused or did not answer.
        """
        ids: list[list[int]] = []
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            for file, column in zip(
                self._index.files, pool.map(self._image_ids, range(len(self._index.files))), strict=True
            ):
                rows = iter(column)
                ids += [list(islice(rows, count)) for count in file.row_groups]
        return ids

    def _image_ids(self, file: int) -> list[int]:
        self._footer(file)  # raises an error if the file differs from the index
        listed = self._index.files[file]
        with parquet_of(join_uri(self._store.uri, listed.key)):
            table = open_object(self._store, listed.key, listed.size_bytes).read(columns=["image_id"])
        return [int(number) for number in table.column("image_id").to_pylist()]

    def _footer(self, file: int) -> pq.FileMetaData:
        with self._lock:
            footer = self._footers.get(file)
        if footer is None:
            listed = self._index.files[file]
            footer = open_object(self._store, listed.key, listed.size_bytes).metadata
            _check_is_listed(footer, listed, join_uri(self._store.uri, listed.key))
            with self._lock:
                self._footers[file] = footer
        return footer


def decode_training_image(image: TrainingImage) -> Tensor:
    """Decode the picture to which the boxes refer, `(3, height, width)` uint8 RGB.

    Nearly black pictures are not refused: shards of versions that did not refuse them have them.

    Raises:
        RayDetrError: the bytes are not a picture of this size.
    """
    try:
        pixels = decode(image.data, upright=image.upright, check_scale=False)
    except ImageError as error:
        raise RayDetrError(
            f"image {image.image_id} ({image.file_name}) cannot be decoded: {error}. Write the shards without "
            "--no-decode-check: it finds and leaves out such images."
        ) from error
    if pixels.shape[1:] != (image.height, image.width):
        raise RayDetrError(
            f"image {image.image_id} ({image.file_name}) has {pixels.shape[2]} x {pixels.shape[1]} pixels (width x "
            f"height), but its boxes were drawn for {image.width} x {image.height}. Write the shards again."
        )
    return pixels


def _training_image(row: Json) -> TrainingImage:
    return TrainingImage(
        image_id=row["image_id"],
        file_name=row["file_name"],
        height=row["height"],
        width=row["width"],
        data=row["image"],
        upright=row["upright"],
        annotations=tuple(
            _training_annotation(one)
            for one in row["annotations"]
            if one["category_id"] is not None and one["bbox"] is not None
        ),
    )


def _training_annotation(one: Json) -> Mapping[str, Any]:
    return {
        "id": one["id"],
        "category_id": one["category_id"],
        "bbox": one["bbox"],
        "iscrowd": int(one["iscrowd"] or 0),
    }


def _check_is_listed(footer: pq.FileMetaData, listed: ShardFile, name: str) -> None:
    found = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if found != listed.row_groups or SIZES_KEY.encode() not in (footer.metadata or {}):
        raise RayDetrError(
            f"{name} does not match {INDEX_KEY}: it has {footer.num_rows:,} rows in {len(found):,} row groups, "
            f"expected {listed.rows:,} in {len(listed.row_groups):,}, or was not written by this job. "
            "Write the shards again."
        )
