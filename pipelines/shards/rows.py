"""Converts images and annotations of a COCO json to rows of shards, and back without loss."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.coco.values import MOST_INT32, area, box, id_key, is_crowd, whole
from pipelines.parquet_files import open_object, parquet_of
from pipelines.shards.reader import (
    METADATA_PREFIX,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Json,
    ShardFile,
    ShardIndex,
    read_index,
)
from pipelines.store import Store, join_uri

LEFT_OUT_KEY: Final = "left-out.parquet"

LEFT_OUT_SCHEMA: Final = pa.schema(
    [
        # an undeclared image has no position, and no id if its annotations have none; images have no bytes here
        *(column.with_nullable(True) for column in SHARD_SCHEMA),
        pa.field("problem", pa.string(), nullable=False),  # why it cannot be trained on
    ]
)

_ABSENT: Final = "ray_detr.absent"  # in `other`: fields whose columns were read from the picture, not the json


def image_row(
    position: int | None,
    image: Json,
    annotations: Iterable[tuple[int, Json]],
    *,
    data: bytes | None,
    image_id: int | None = None,
    size: tuple[int, int] | None = None,
    upright: bool = False,
    problem: str | None = None,
) -> Json:
    """Return the row of an image. Values that a column cannot store exactly are kept as JSON in the column `other`.

    Args:
        position: position in the json's list of images; None for an image that the json does not declare.
        image: the image's object in the json.
        annotations: positions and objects of its annotations in the json.
        data: the encoded file; None in rows of left-out images.
        image_id: a number for the image's id; None uses the id itself.
        size: height and width of the picture in pixels; None uses those of the json.
        upright: whether readers apply the EXIF orientation.
        problem: why the image is left out, or None.
    """
    told, other = _typed(image, _IMAGE_COLUMNS)
    columns = dict(told)
    if image_id is not None:
        columns["id"] = image_id
        if told["id"] != image_id:
            other["id"] = image["id"]
    if size is not None:
        columns["height"], columns["width"] = size
        absent = [name for name in ("height", "width") if name not in image]
        if absent:
            other[_ABSENT] = absent
        other.update(
            {name: image[name] for name in ("height", "width") if name in image and told[name] != columns[name]}
        )
    row = {
        "position": position,
        "image_id": columns["id"],
        **{name: columns[name] for name in ("file_name", "width", "height")},
        "image": data,
        "upright": upright,
        "annotations": [_annotation_row(*one, image=image) for one in annotations],
        "other": _to_json(other) if other else None,
    }
    return row if problem is None else {**row, "problem": problem}


def coco_image(row: Mapping[str, Any]) -> Json:
    """Return the image's object in the json from its row."""
    names = {"id": "image_id", "file_name": "file_name", "width": "width", "height": "height"}
    return _untyped({field: row[column] for field, column in names.items()}, row["other"])


def coco_annotations(row: Mapping[str, Any]) -> Iterator[tuple[int, Json]]:
    """Yield positions and objects of the annotations in the json from their row."""
    image_id = coco_image(row).get("id")
    for one in row["annotations"]:
        columns = {name: one[name] for name in ("id", "category_id", "bbox", "area", "iscrowd")}
        if columns["iscrowd"] is not None:
            columns["iscrowd"] = int(columns["iscrowd"])
        annotation = _untyped({**columns, "image_id": image_id}, one["other"])
        if one["segmentation"] is not None:
            annotation["segmentation"] = json.loads(one["segmentation"])
        yield one["position"], annotation


class RowsFile:
    """A Parquet file in memory, written row group by row group. Equal rows give equal bytes.

    Memory: the file, and the row group that is added.
    """

    def __init__(self, schema: pa.Schema) -> None:
        """Begin a file of rows of `schema`."""
        self._schema, self._sink = schema, io.BytesIO()
        self._row_groups: list[int] = []
        leaves = _leaves(schema)
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            # photographs are compressed already
            compression={leaf: "NONE" if leaf == "image" else "zstd" for leaf in leaves},
            use_dictionary=False,
            write_statistics=["position", "image_id"],
            write_page_checksum=True,
        )

    def add(self, rows: Sequence[Json]) -> None:
        """Add a row group."""
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema), row_group_size=len(rows))
        self._row_groups.append(len(rows))

    def finish(self, metadata: Mapping[str, str]) -> tuple[bytes, tuple[int, ...]]:
        """Return the bytes of the file and the number of rows of each row group."""
        words = {"schema_version": str(SCHEMA_VERSION), **metadata}
        self._writer.add_key_value_metadata({f"{METADATA_PREFIX}{name}": word for name, word in words.items()})
        self._writer.close()
        return self._sink.getvalue(), tuple(self._row_groups)


def coco_json(store: Store) -> Json:
    """Restore the json of the shards in `store`: equal to the result of `json.loads` for the original.

    If only the first images were sharded, it has those and their annotations. Memory: the whole json.

    Raises:
        RayDetrError: the index is missing, or a file is damaged.
        StoreError: the store refused or did not answer.
    """
    return restore_json(store, read_index(store))[0]


def restore_json(store: Store, index: ShardIndex) -> tuple[Json, dict[int | str, int]]:
    """Return the result of `coco_json`, and the `image_id` of each image's row, by `id_key` of its id in the json."""
    images: list[tuple[int, Json]] = []
    annotations: list[tuple[int, Json]] = []
    numbers: dict[int, int] = {}
    for file in [*index.files, *([] if index.left_out is None else [index.left_out])]:
        for row in _read_rows(store, file):
            if row["position"] is not None:
                images.append((row["position"], coco_image(row)))
                numbers[row["position"]] = row["image_id"]
            annotations += coco_annotations(row)
    by_id: dict[int | str, int] = {}
    for position, image in sorted(images, key=lambda entry: entry[0]):
        key = id_key(image["id"])
        assert key is not None  # read_coco refuses these
        by_id.setdefault(key, numbers[position])
    return {**index.other, "images": _in_order(images), "annotations": _in_order(annotations)}, by_id


def _in_order(entries: list[tuple[int, Json]]) -> list[Json]:
    return [entry for _, entry in sorted(entries, key=lambda entry: entry[0])]


def _read_rows(store: Store, file: ShardFile) -> Iterator[Json]:
    """Yield the rows without photographs. Memory: one row group."""
    opened = open_object(store, file.key, file.size_bytes)
    columns = [name for name in opened.schema_arrow.names if name != "image"]
    for group in range(opened.num_row_groups):
        with parquet_of(join_uri(store.uri, file.key)):
            rows = opened.read_row_group(group, columns=columns).to_pylist()
        yield from rows


def _annotation_row(position: int, annotation: Json, *, image: Json) -> Json:
    rest = dict(annotation)
    segmentation = _to_json(rest.pop("segmentation")) if "segmentation" in rest else None
    if "id" in image and _is_same(rest.get("image_id"), image["id"]):
        del rest["image_id"]  # its row says it
    columns, other = _typed(rest, _ANNOTATION_COLUMNS)
    return {
        "position": position,
        **columns,
        "segmentation": segmentation,
        "other": _to_json(other) if other else None,
    }


def _typed(fields: Json, columns: _Columns) -> tuple[Json, Json]:
    """Return the values of the columns (null if the type differs), and the fields that no column can restore."""
    values = {name: convert(fields[name]) if name in fields else None for name, convert in columns.items()}
    other = {name: value for name, value in fields.items() if not _is_same(values.get(name), value)}
    return values, other


def _is_same(column: object, value: object) -> bool:
    """Return whether a column restores a value of the json: 1 and 1.0 are equal, 1 and "1" are not."""
    return column is not None and bool(column == value)


def _untyped(columns: Json, other: str | None) -> Json:
    rest = {} if other is None else json.loads(other)
    absent = rest.pop(_ABSENT, ())
    fields = {**{name: value for name, value in columns.items() if value is not None}, **rest}
    return {name: value for name, value in fields.items() if name not in absent}


def _small(value: object) -> int | None:
    return whole(value, MOST_INT32)


def _text(value: object) -> str | None:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        return None  # half of a surrogate pair, which JSON can express and UTF-8 cannot
    return value


def _flag(value: object) -> bool | None:
    return None if value is None else is_crowd({"iscrowd": value})


def _area(value: object) -> float | None:
    return area({"area": value})


_Columns = Mapping[str, Callable[[Any], Any]]
_IMAGE_COLUMNS: Final[_Columns] = {"id": whole, "file_name": _text, "width": _small, "height": _small}
_ANNOTATION_COLUMNS: Final[_Columns] = {
    "id": whole,
    "category_id": _small,
    "bbox": box,
    "area": _area,
    "iscrowd": _flag,
}


def _to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the names that Parquet gives to the columns of a schema, `annotations.list.element.id` and the like."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.read_metadata(sink).schema
    return [columns.column(index).path for index in range(len(columns))]
