"""The detection table: columns, error kinds, and encoding as Parquet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError
from pipelines.parquet_files import open_bytes, parquet_of
from pipelines.strict_json import Count

SCHEMA_VERSION: Final = 2  # files of version 1 have no column `settings`

# Permanent: caused by the bytes of the image. Retried only on request.
PERMANENT_KINDS: Final = frozenset(
    {
        "empty",
        "not_an_image",
        "unsupported",
        "truncated",
        "unreadable",
        "too_large",
        "too_extreme",
        "crashed",
        "decode_timeout",
        "out_of_memory",
    }
)
# Transient: caused by the environment. Retried by the next run.
TRANSIENT_KINDS: Final = frozenset({"missing", "denied", "archived", "fetch_failed"})
ERROR_KINDS: Final = PERMANENT_KINDS | TRANSIENT_KINDS

ROW_GROUP_ROWS: Final = 32_768  # four in a file of a GPU run, so that engines without page indexes can skip some, too

# Columns with few different values.
_WORD = pa.dictionary(pa.int32(), pa.string())

_BOX = pa.struct([pa.field(side, pa.float32(), nullable=False) for side in ("xmin", "ymin", "xmax", "ymax")])

_DETECTION = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),  # the data set's own
        # Parquet stores the words of this column once, as for any string column. The Arrow type is not a dictionary,
        # because pyarrow 26 refuses to read a nested dictionary that spans row groups (`ParquetFile.read`: "Nested data
        # conversions not implemented for chunked array outputs"), which would affect users' scripts.
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("box", _BOX, nullable=False),  # pixels of the upright image
    ]
)

SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # as listed
        pa.field("etag", pa.string()),  # of the object as it was read; null if the source has none
        pa.field("size", pa.int64()),
        pa.field("status", _WORD, nullable=False),  # ok or error
        pa.field("error_kind", _WORD),  # null when ok
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),  # pixels of the upright image, null when unknown
        pa.field("height", pa.int32()),
        # the camera's own clock, to the second, no zone; milliseconds are Parquet's coarsest unit
        pa.field("taken_at", pa.timestamp("ms")),
        pa.field("detections", pa.list_(pa.field("element", _DETECTION, nullable=False))),  # best first; null = error
        pa.field("model", _WORD, nullable=False),  # name@sha256[:12]
        pa.field("threshold", pa.float32(), nullable=False),  # detections below it were dropped
        pa.field("settings", _WORD),  # `labelling.settings.settings_text`; null: as in the record of the run
        pa.field("run_id", _WORD, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

NO_COLUMNS: Final = pa.schema([])
LATER_COLUMNS: Final = ("settings",)  # missing in files of earlier releases
FIRST_COLUMNS: Final = tuple(name for name in SCHEMA.names if name not in LATER_COLUMNS)  # in all files
_METADATA_PREFIX = "ray_detr."


@dataclass(frozen=True, slots=True)
class Detected:
    """The N detections of an image, best first.

    Attributes:
        category_ids: `(N,)` integers, the ids of the data set.
        labels: the N class names.
        scores: `(N,)` float32 in 0..1.
        boxes_xyxy: `(N, 4)` float32, pixels of the upright image.
    """

    category_ids: npt.ArrayLike
    labels: Sequence[str]
    scores: npt.ArrayLike
    boxes_xyxy: npt.ArrayLike


@dataclass(frozen=True, slots=True)
class Row:
    """The row of an image: either `detections` (status ok, possibly none) or an `error_kind`."""

    uri: str
    etag: str | None = None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    taken_at: datetime | None = None
    detections: Detected | None = None
    error_kind: str | None = None
    error: str | None = None
    kept: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        if (self.detections is None) == (self.error_kind is None):
            raise ValueError(f"the row of {self.uri} must have detections or an error kind, one of the two")
        if self.error_kind is not None and self.error_kind not in ERROR_KINDS:
            raise ValueError(f"the row of {self.uri} has the unknown error kind {self.error_kind!r}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The run and shard of a part's rows. `settings` is None if only the run's record has them."""

    model: str
    threshold: float
    run_id: str
    shard: int
    labelled_at: datetime
    settings: str | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of rows."""

    rows: Count = 0
    detections: Count = 0
    errors: Mapping[str, Count] = field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        kinds = sorted({*self.errors, *other.errors})
        errors = {kind: self.errors.get(kind, 0) + other.errors.get(kind, 0) for kind in kinds}
        return Totals(self.rows + other.rows, self.detections + other.detections, errors)


def check_kept(names: Iterable[str]) -> None:
    """Check the names of kept columns.

    Raises:
        ValueError: a name is a column of the table, or given twice.
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in SCHEMA.names:  # engines compare names without case
            raise ValueError(
                f"keep: {name!r} is a column of the detection table itself. Rename it in the list of URIs."
            )
        if name.lower() in seen:
            raise ValueError(f"keep: {name!r} is named twice.")
        seen.add(name.lower())


def table_schema(kept: pa.Schema = NO_COLUMNS) -> pa.Schema:
    """Return the table's columns followed by kept columns, which are nullable."""
    check_kept(kept.names)
    return pa.schema([*SCHEMA, *(pa.field(column.name, column.type) for column in kept)])


def with_settings(rows: pa.Table, settings: str) -> pa.Table:
    """Return the rows of a run with the column `settings`, which parts and files of earlier releases do not have.

    Args:
        rows: Rows of one run, with or without the column.
        settings: The settings of the run, for rows that have none.
    """
    field, place = SCHEMA.field("settings"), SCHEMA.get_field_index("settings")
    if rows.column_names[:place] != SCHEMA.names[:place] or rows.column_names.count("settings") > 1:
        return rows  # not of a detection table, which its reader reports
    value = pa.scalar(settings, pa.string())
    if rows.column_names[place : place + 1] != ["settings"]:
        return rows.add_column(place, field, pa.repeat(value, len(rows)).dictionary_encode())
    if rows.schema.field(place).type != field.type or not rows["settings"].null_count:
        return rows
    return rows.set_column(place, field, pc.fill_null(rows["settings"].cast(pa.string()), value).dictionary_encode())


def is_of_table(columns: pa.Schema, kept: pa.Schema) -> bool:
    """Return whether these are the columns of files of this or an earlier release."""
    known = table_schema(kept)
    return columns in (known, pa.schema([field for field in known if field.name not in LATER_COLUMNS]))


def rows_to_table(rows: Sequence[Row], kept_schema: pa.Schema = NO_COLUMNS, *, origin: Origin) -> pa.Table:
    """Return the rows as an Arrow table, in their order, without creating a Python object for each detection.

    Raises:
        ValueError: the values of a row are inconsistent or do not fit into their columns.
    """
    for row in rows:
        if len(row.kept) != len(kept_schema):
            raise ValueError(f"the row of {row.uri} has {len(row.kept)} kept values for {len(kept_schema)} columns")
    count = len(rows)
    columns = {
        "uri": pa.array([row.uri for row in rows], pa.string()),
        "etag": pa.array([row.etag for row in rows], pa.string()),
        "size": pa.array([row.size for row in rows], pa.int64()),
        "status": pa.array(["ok" if row.error_kind is None else "error" for row in rows], pa.string()),
        "error_kind": pa.array([row.error_kind for row in rows], pa.string()),
        "error": pa.array([None if row.error is None else storable(row.error) for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "taken_at": pa.array([row.taken_at for row in rows], pa.timestamp("ms")),
        "detections": _detections_column([row.detections for row in rows]),
        "model": pa.repeat(pa.scalar(origin.model), count),
        "threshold": pa.repeat(pa.scalar(origin.threshold, pa.float32()), count),
        "settings": pa.repeat(pa.scalar(origin.settings, pa.string()), count),
        "run_id": pa.repeat(pa.scalar(origin.run_id), count),
        "shard": pa.repeat(pa.scalar(origin.shard, pa.int32()), count),
        "labelled_at": pa.repeat(pa.scalar(origin.labelled_at, SCHEMA.field("labelled_at").type), count),
    }
    for name in ("status", "error_kind", "model", "settings", "run_id"):
        columns[name] = columns[name].dictionary_encode()
    kept = [pa.array([row.kept[index] for row in rows], column.type) for index, column in enumerate(kept_schema)]
    return pa.Table.from_arrays([*columns.values(), *kept], schema=table_schema(kept_schema))


def total(table: pa.Table) -> Totals:
    """Return the totals of a table's rows."""
    kinds = table["error_kind"].cast(pa.string()).drop_null().value_counts().to_pylist()
    errors = {kind["values"]: kind["counts"] for kind in sorted(kinds, key=lambda kind: str(kind["values"]))}
    return Totals(table.num_rows, pc.sum(pc.list_value_length(table["detections"])).as_py() or 0, errors)


def encode(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode a table as a Parquet file with zstd, statistics, page indexes and checksums; dictionaries are unified.

    Equal tables and metadata give equal bytes. The metadata goes into the file's key-value metadata, beside the version
    of the schema; `read_metadata` returns it.
    """
    entries = {"schema_version": str(SCHEMA_VERSION), **(metadata or {})}
    named = {f"{_METADATA_PREFIX}{name}": value for name, value in entries.items()}
    sink = pa.BufferOutputStream()
    # pyarrow 26 stops using a dictionary if the next chunk has another one: 20 times the bytes for 64 parts
    pq.write_table(
        table.unify_dictionaries().replace_schema_metadata(named),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode(data: bytes, *, name: str = "this Parquet file") -> pa.Table:
    """Decode a file of `encode` and verify its checksums.

    Raises:
        RayDetrError: the bytes are damaged; `name` is the file's name in the message.
    """
    with parquet_of(name):
        return open_bytes(data, name).read()


def check_columns(file: pq.ParquetFile, wanted: Collection[str], *, name: str) -> None:
    """Check that a file has the columns of a detection table, and that `uri` and `etag` are text.

    Raises:
        RayDetrError: a column is missing or has another type.
    """
    schema = file.schema_arrow
    missing = sorted(set(wanted) - set(schema.names))
    if missing:
        raise RayDetrError(
            f"{name} has no column {', '.join(missing)}: it does not belong to a detection table. Move it out of data/."
        )
    for column in ("uri", "etag"):  # other types cannot be cast to a valid value
        if column in wanted and schema.field(column).type != pa.string():
            raise RayDetrError(
                f"{name} is damaged: its column {column} is not text. Restore it or move it out of data/."
            )


def read_metadata(file: pq.ParquetFile) -> dict[str, str]:
    """Return the metadata of a file that `encode` wrote."""
    entries = file.metadata.metadata or {}
    prefix = _METADATA_PREFIX.encode()
    return {
        # invalid UTF-8 is damage, and differs from all written values
        key.removeprefix(prefix).decode(errors="replace"): value.decode(errors="replace")
        for key, value in entries.items()
        if key.startswith(prefix)
    }


def storable(text: str) -> str:
    """Return a text with escapes in place of lone surrogates (invalid bytes in a file's name), as UTF-8 requires."""
    return text.encode(errors="backslashreplace").decode()


def _detections_column(rows: Sequence[Detected | None]) -> pa.ListArray:
    found = [row for row in rows if row is not None]
    labels = list(chain.from_iterable(row.labels for row in found))
    category_ids = _joined([row.category_ids for row in found], (0,), np.int64)
    scores = _joined([row.scores for row in found], (0,), np.float32)
    boxes = _joined([row.boxes_xyxy for row in found], (0, 4), np.float32)
    lengths = np.fromiter((0 if row is None else len(row.labels) for row in rows), np.int32, len(rows))
    if not len(labels) == len(category_ids) == len(scores) == len(boxes) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"detections do not fit together: {len(labels)} labels, {len(category_ids)} ids, {len(scores)} "
            f"scores, boxes {boxes.shape}"
        )
    sides = [pa.array(np.ascontiguousarray(boxes[:, side])) for side in range(4)]
    detections = pa.StructArray.from_arrays(
        [
            pa.array(category_ids).cast(pa.int32()),
            pa.array(labels, pa.string()),
            pa.array(scores),
            pa.StructArray.from_arrays(sides, fields=list(_BOX)),
        ],
        fields=list(_DETECTION),
    )
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    missing = np.fromiter((row is None for row in rows), np.bool_, len(rows))
    return pa.ListArray.from_arrays(
        pa.array(offsets), detections, type=SCHEMA.field("detections").type, mask=pa.array(missing)
    )


def _joined(
    arrays: Sequence[npt.ArrayLike], empty_shape: tuple[int, ...], kind: type[np.generic]
) -> npt.NDArray[np.generic]:
    # an empty list of boxes has the shape (0,), which cannot be joined with (N, 4)
    filled = [array for array in map(np.asarray, arrays) if len(array)]
    return np.concatenate(filled).astype(kind, copy=False) if filled else np.empty(empty_shape, kind)
