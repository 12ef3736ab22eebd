"""The manifest of a run: the plan's segments, 64 shards each, in files that are created once and in order.

`_runs/<run_id>/plan/<segment>.plan` is a Parquet file with a row group for each shard. The file after the last segment
has no rows and ends the manifest. All processes that plan a run create the same names in the same order, so that later
ones find the decisions of the first, including the end. Sealing a run ends its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError
from pipelines.labelling.run import run_key
from pipelines.lake.lake_object import LakeObject
from pipelines.parquet_files import open_bytes, open_listed, parquet_of
from pipelines.store import NotFound, Store, StoreEntry, join_uri, put_if_absent
from pipelines.strict_json import Count, parse_object, record_of
from pipelines.table.schema import check_kept

SEGMENT_SHARDS: Final = 64
MANIFEST_VERSION: Final = (
    2  # only segments with images inside files need version 2; others have version 1, which earlier releases read
)

Ending = Literal["complete", "sealed"]

_OBJECT_COLUMNS: Final = (
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string()),
    pa.field("size", pa.int64()),
)
_OFFSET_COLUMN: Final = pa.field("offset", pa.int64())  # the fourth in version 2
_METADATA = b"ray_detr.segment"


class UnknownVersion(RayDetrError):
    """A later release wrote this file of a plan."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of listed images: `images` to label, with bytes and shards, and the others by why they are skipped."""

    images: Count = 0
    size_bytes: Count = 0  # of those whose size is known
    unknown_sizes: Count = 0
    shards: Count = 0
    labelled: Count = 0
    duplicates: Count = 0
    skipped: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListingPosition:
    """A position in a listing: after the image `last_uri` (None: at the start), with the counts up to there."""

    last_uri: str | None = None
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Segment:
    """Up to 64 shards, and the position of the listing after them. `is_last`: the listing has ended."""

    index: int
    shards: tuple[tuple[LakeObject, ...], ...]
    position: ListingPosition
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A segment in the manifest, without its images. Its shard `i` has the number `index * 64 + i` in the run.

    `ending` says why the manifest ends here; such a segment has no shards.
    """

    index: int
    shard_images: tuple[int, ...]
    position: ListingPosition
    ending: Ending | None = None

    @property
    def shards(self) -> range:
        """The numbers of the segment's shards."""
        return range(self.index * SEGMENT_SHARDS, self.index * SEGMENT_SHARDS + len(self.shard_images))

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.shard_images)


def segment_key(run_id: str, index: int) -> str:
    """Return the key of a segment's file."""
    return run_key(run_id, f"plan/{index:05d}.plan")


def write_segment(
    table: Store, run_id: str, segment: Segment, kept_schema: pa.Schema, *, ending: Ending | None = None
) -> tuple[PlannedSegment, bool]:
    """Create the file of a segment unless it exists; return the segment in the file, and whether it is this one.

    Raises:
        StoreError: the store refused; the file may exist or not.
    """
    assert (ending is None) == bool(segment.shards), "only the file that ends a manifest is empty"
    key = segment_key(run_id, segment.index)
    data = _encode(segment, kept_schema, ending)
    written = put_if_absent(table, key, data)
    name = join_uri(table.uri, key)
    return _planned(open_bytes(written, name), segment.index, name), written == data


def read_manifest(table: Store, run_id: str) -> Iterator[PlannedSegment]:
    """Yield the segments of a run's manifest in order, including the ending. Does not fetch the images' names.

    Raises:
        RayDetrError: a file is missing or damaged.
    """
    before, kept = Counts(), None
    for expected, (index, entry) in enumerate(list_segments(table, run_id)):
        if index != expected:
            raise RayDetrError(
                f"{join_uri(table.uri, segment_key(run_id, expected))} is missing. Restore it, or start with --new-run."
            )
        planned, columns = read_segment(table, entry, index)
        if planned.ending is None:
            kept = columns if kept is None else kept
            counts = planned.position.counts
            added = (counts.images - before.images, counts.shards - before.shards)
            if added != (planned.images, len(planned.shard_images)) or columns != kept:
                raise RayDetrError(
                    f"{join_uri(table.uri, entry.key)} is damaged: it does not continue the segment before it. Restore "
                    "it, or start with --new-run."
                )
            before = counts
        yield planned


def segment_of(shard: int) -> int:
    """Return the number of a shard's segment."""
    return shard // SEGMENT_SHARDS


def list_segments(table: Store, run_id: str) -> list[tuple[int, StoreEntry]]:
    """Return the files of a run's manifest with their numbers, in order; other names are skipped.

    In the order of names, 100000 would come before 10001.
    """
    folder = run_key(run_id, "plan/")
    found = []
    for entry in table.list(folder):
        number = entry.key[len(folder) :].removesuffix(".plan")
        if number.isascii() and number.isdigit() and entry.key == segment_key(run_id, int(number)):
            found.append((int(number), entry))
    return sorted(found, key=itemgetter(0))


def read_segment(table: Store, entry: StoreEntry, index: int) -> tuple[PlannedSegment, pa.Schema]:
    """Return the segment in a listed file, without its images, and the names and types of its kept columns.

    Raises:
        UnknownVersion: a later release wrote the file.
        RayDetrError: the file is damaged.
        StoreError: the store refused.
    """
    file = open_listed(table, entry)
    return _planned(file, index, join_uri(table.uri, entry.key)), _kept(file)


def read_shard(table: Store, run_id: str, shard: int) -> tuple[LakeObject, ...]:
    """Return the images of one shard, in the plan's order.

    Fetches the segment's file in one request (a few MB for 64 GPU shards, where head, footer and columns would be
    three) and decodes the shard's row group.

    Raises:
        RayDetrError: the file is damaged or has no such shard.
        StoreError: the store refused.
    """
    index, place = divmod(shard, SEGMENT_SHARDS)
    file, name = _open(table, run_id, index)
    with parquet_of(name):
        if place >= file.metadata.num_row_groups:
            raise RayDetrError(f"{name} has no shard {shard}: it does not belong to this plan.")
        uris, etags, sizes, *kept = (column.to_pylist() for column in file.read_row_group(place).columns)
    offsets = kept.pop(0) if _has_offsets(file) else [None] * len(uris)
    values = zip(*kept, strict=True) if kept else ((),) * len(uris)
    return tuple(map(LakeObject, uris, etags, sizes, values, offsets))


def read_planned(table: Store, run_id: str, index: int) -> tuple[pa.Table, pa.Schema]:
    """Return the columns `uri` and `etag` of a segment in the order of the plan, and the schema of its kept columns."""
    file, name = _open(table, run_id, index)
    with parquet_of(name):
        return file.read(columns=["uri", "etag"]), _kept(file)


def read_kept_schema(table: Store, run_id: str) -> pa.Schema:
    """Return the names and types of the kept columns, from the first file of a run's manifest."""
    file, _ = _open(table, run_id, 0)
    return _kept(file)


def planned_columns(table: Store, run_id: str) -> pa.Schema | None:
    """Return the names and types of a run's kept columns; None if nothing is planned yet."""
    return read_kept_schema(table, run_id) if list_segments(table, run_id) else None


def write_complete(table: Store, run_id: str, segments: int, counts: Counts) -> None:
    """Write the totals of a manifest that has ended, for people and dashboards."""
    record = {"segments": segments, **asdict(counts), "skipped": dict(counts.skipped)}
    put_if_absent(table, run_key(run_id, "plan/complete.json"), (json.dumps(record, indent=2) + "\n").encode())


def read_complete(table: Store, run_id: str) -> Counts:
    """Return the totals that `write_complete` wrote.

    Raises:
        RayDetrError: the file is damaged.
        NotFound: planning has not ended.
    """
    key = run_key(run_id, "plan/complete.json")
    try:
        record = parse_object(table.get(key).data)
        record.pop("segments", None)
        return record_of(Counts, record)
    except ValueError as error:
        raise RayDetrError(f"{join_uri(table.uri, key)} is damaged: it cannot be read as a plan.") from error


def _open(table: Store, run_id: str, index: int) -> tuple[pq.ParquetFile, str]:
    key = segment_key(run_id, index)
    name = join_uri(table.uri, key)
    try:
        data = table.get(key).data
    except NotFound as error:
        raise RayDetrError(f"{name} is missing. Restore it, or start with --new-run.") from error
    file = open_bytes(data, name)
    _check_columns(file, name)
    return file, name


def _check_columns(file: pq.ParquetFile, name: str) -> None:
    """Reject a file that does not have a plan's columns.

    Raises:
        RayDetrError: it does not.
    """
    expected = [*_OBJECT_COLUMNS, _OFFSET_COLUMN] if _has_offsets(file) else _OBJECT_COLUMNS
    columns = list(file.schema_arrow)
    try:
        check_kept([column.name for column in columns[len(expected) :]])
        is_plan = pa.schema(columns[: len(expected)]) == pa.schema(expected)
    except ValueError:
        is_plan = False
    if not is_plan:
        raise RayDetrError(
            f"{name} is damaged: it does not have the columns of a plan. Restore it, or start with --new-run."
        )


def _kept(file: pq.ParquetFile) -> pa.Schema:
    return pa.schema(list(file.schema_arrow)[len(_OBJECT_COLUMNS) + _has_offsets(file) :])


def _has_offsets(file: pq.ParquetFile) -> bool:
    return bool(_record(file).get("version") == MANIFEST_VERSION)


def _record(file: pq.ParquetFile) -> Mapping[str, Any]:
    """Return the record of a segment; an empty one if it is damaged, which `_planned` reports."""
    try:
        return parse_object((file.metadata.metadata or {}).get(_METADATA, b""))
    except ValueError:
        return {}


def _encode(segment: Segment, kept_schema: pa.Schema, ending: Ending | None) -> bytes:
    position = segment.position
    counts = {**asdict(position.counts), "skipped": dict(position.counts.skipped)}
    has_offsets = any(item.offset is not None for shard in segment.shards for item in shard)
    version = MANIFEST_VERSION if has_offsets else 1
    record = {"version": version, "ending": ending, "last_uri": position.last_uri, "counts": counts}
    columns = [*_OBJECT_COLUMNS, *([_OFFSET_COLUMN] if has_offsets else []), *kept_schema]
    schema = pa.schema(columns, metadata={_METADATA: json.dumps(record, sort_keys=True)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for shard in segment.shards:
            writer.write_table(_shard_table(shard, schema, has_offsets=has_offsets), row_group_size=len(shard))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _shard_table(shard: Sequence[LakeObject], schema: pa.Schema, *, has_offsets: bool) -> pa.Table:
    kept = len(schema) - len(_OBJECT_COLUMNS) - has_offsets
    values = [
        [item.uri for item in shard],
        [item.etag for item in shard],
        [item.size for item in shard],
        *([[item.offset for item in shard]] if has_offsets else []),
        *([item.kept[place] for item in shard] for place in range(kept)),
    ]
    return pa.Table.from_arrays(
        [pa.array(value, column.type) for value, column in zip(values, schema, strict=True)], schema=schema
    )


def _planned(file: pq.ParquetFile, index: int, name: str) -> PlannedSegment:
    metadata = file.metadata
    try:
        record = parse_object((metadata.metadata or {}).get(_METADATA, b""))
        version, ending = record.pop("version", None), record.pop("ending", None)
        if version not in (1, MANIFEST_VERSION):
            raise UnknownVersion(
                f"{name} is a plan of version {str(version)[:20]}, and this release reads version {MANIFEST_VERSION}. "
                "Use the release that began the run."
            )
        position = record_of(ListingPosition, record)
    except ValueError as error:
        raise RayDetrError(
            f"{name} is damaged: it cannot be read as a plan. Restore it, or start with --new-run."
        ) from error
    shard_images = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    _check_columns(file, name)
    is_segment = 0 < len(shard_images) <= SEGMENT_SHARDS and all(shard_images)
    if ending not in ("complete", "sealed", None) or (ending is None) != is_segment or (ending and any(shard_images)):
        raise RayDetrError(
            f"{name} is damaged: it is neither a segment nor an end. Restore it, or start with --new-run."
        )
    return PlannedSegment(index, () if ending else shard_images, position, ending)
