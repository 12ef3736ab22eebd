"""Commits the parts of shards, publishes segments as table files, and counts published rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.concurrently import map_concurrently
from pipelines.errors import RayDetrError
from pipelines.labelling.duplicates import reject_republished_versions
from pipelines.labelling.manifest import PlannedSegment, read_planned
from pipelines.labelling.run import Run, run_key, sealed_sentence
from pipelines.parquet_files import open_bytes, open_listed, parquet_of, plain_type
from pipelines.store import NotFound, Store, StoreEntry, join_uri, put_if_absent
from pipelines.strict_json import read_record
from pipelines.table.files import Layout, parse_table_file_key, table_file_key, table_files_prefix
from pipelines.table.schema import Totals, decode, encode, read_metadata, table_schema, total, with_settings

THREADS: Final = 8

_PART = ".part"


class Commit(Enum):
    """The process that wrote the part."""

    WON = "ours"
    LOST = "another attempt's"


@dataclass(frozen=True, slots=True)
class Done:
    """Progress of a run in the store: numbers of the shards with a part, and of the published segments."""

    parts: frozenset[int]
    published: frozenset[int]

    def missing_shards(self, segment: PlannedSegment) -> tuple[int, ...]:
        """Return the shards of a segment that have no part yet; none if it is published."""
        if segment.index in self.published:
            return ()
        return tuple(shard for shard in segment.shards if shard not in self.parts)

    def count_images(self, segments: Iterable[PlannedSegment]) -> int:
        """Return how many images of some segments have committed rows, published or not."""
        return sum(
            images
            for segment in segments
            for shard, images in zip(segment.shards, segment.shard_images, strict=True)
            if segment.index in self.published or shard in self.parts
        )


def part_key(run_id: str, shard: int) -> str:
    """Return the key of a shard's part. It depends on the plan only, so that two attempts write the same key."""
    return run_key(run_id, f"parts/{shard:07d}{_PART}")


def commit_part(table: Store, run_id: str, shard: int, rows: pa.Table, *, token: str) -> Commit:
    """Write the rows of one shard, unless another process has written them.

    `token` identifies the attempt. If the response to a write is lost, the repeated write finds its own object: the
    same token in it means that this attempt wrote it.

    Raises:
        StoreError: the store refused or did not answer; the part may exist or not.
        RayDetrError: the existing part is damaged.
    """
    key = part_key(run_id, shard)
    data = encode(rows, {"token": token})
    written = put_if_absent(table, key, data)
    if written == data:
        return Commit.WON
    found = read_metadata(open_bytes(written, join_uri(table.uri, key)))
    return Commit.WON if found.get("token") == token else Commit.LOST


def read_done(table: Store, run_id: str, layout: Layout) -> Done:
    """Return the progress of a run, from two listings. Memory: 100 bytes for each shard that is not published."""
    keys = (entry.key for entry in table.list(table_files_prefix(run_id, layout)))
    # the names of other runs may begin with this run's name
    published = frozenset(found[1] for found in map(parse_table_file_key, keys) if found and found[0] == run_id)
    return Done(frozenset(shard for shard, _ in list_parts(table, run_id)), published)


def list_parts(table: Store, run_id: str) -> Iterator[tuple[int, StoreEntry]]:
    """Yield the committed parts of a run with the numbers of their shards; other names are skipped."""
    folder = run_key(run_id, "parts/")
    for entry in table.list(folder):
        number = entry.key[len(folder) :].removesuffix(_PART)
        if entry.key.endswith(_PART) and number.isascii() and number.isdigit():
            yield int(number), entry


def publish_group(table: Store, run: Run, segment: PlannedSegment, *, threads: int = THREADS) -> Totals:
    """Create the table file of a segment from its parts, unless it exists, and return the totals of its rows.

    Readers see the whole file or no file. Call it when all parts are committed. Memory: the rows of the segment.

    Args:
        table: The table.
        run: The run, whose configuration goes into the file.
        segment: The planned segment.
        threads: Parts to read concurrently.

    Raises:
        RayDetrError: the parts do not have exactly one row for each planned image; or the run was sealed.
        StoreError: the store refused; the file may exist or not.
    """
    key = table_file_key(run.run_id, segment.index, run.layout)
    published = read_totals(table, run.run_id, run.layout, segment)
    if published is not None:
        return published
    try:
        rows = _read_parts(table, run, segment, threads)
    except NotFound:
        # parts are removed after the run has ended: another process has published them
        published = read_totals(table, run.run_id, run.layout, segment)
        if published is None:
            raise
        return published
    totals = total(rows)
    data = encode(rows, {**_run_metadata(run, segment.index), "totals": json.dumps(asdict(totals))})
    written = put_if_absent(table, key, data)
    if written != data:
        # perhaps the same parts, written by another release; otherwise a file of another run
        name = join_uri(table.uri, key)
        _check_not_sealed(table, run.run_id, open_bytes(written, name))
        if not _plain(with_settings(decode(written, name=name), run.settings)).equals(_plain(rows)):
            raise RayDetrError(
                f"{name} exists with other rows than the parts of its shards. Move it away, or start with --new-run."
            )
    return totals


def read_totals(table: Store, run_id: str, layout: Layout, segment: PlannedSegment) -> Totals | None:
    """Return the totals of a segment's table file, or None if it is not published. Fetches the file's footer.

    Raises:
        RayDetrError: the file does not have one row for each planned image, or the run was sealed.
    """
    key = table_file_key(run_id, segment.index, layout)
    try:
        entry = table.head(key)
    except NotFound:
        return None
    name = join_uri(table.uri, key)
    file = open_listed(table, entry)
    _check_not_sealed(table, run_id, file)
    if file.metadata.num_rows != segment.images:
        raise RayDetrError(
            f"{name} has {file.metadata.num_rows:,} rows for {segment.images:,} planned images. Move it away, "
            "or start with --new-run."
        )
    return footer_totals(file, name)


def footer_totals(file: pq.ParquetFile, name: str) -> Totals:
    """Return the totals of a published table file from its footer.

    Raises:
        RayDetrError: the footer has no totals; `name` is the file's name in the message.
    """
    try:
        return read_record(Totals, read_metadata(file).get("totals", ""))
    except ValueError as error:
        raise RayDetrError(f"{name} is damaged: its totals cannot be read.") from error


def is_sealed_file(file: pq.ParquetFile) -> bool:
    """Return whether this is the empty table file that prevents a sealed run from publishing the segment."""
    return "sealed" in read_metadata(file)


def verify_run(table: Store, run_id: str, layout: Layout, segments: Iterable[PlannedSegment]) -> Totals:
    """Return the totals of a run, after checking that each segment's file has as many rows as planned.

    Raises:
        RayDetrError: a file is missing or has another number of rows.
    """
    totals = Totals()
    for segment in segments:
        found = None if segment.ending else read_totals(table, run_id, layout, segment)
        if found is not None:
            totals += found
        elif segment.ending is None:
            raise RayDetrError(
                f"{join_uri(table.uri, table_file_key(run_id, segment.index, layout))} is missing. Run the same "
                "command again to publish it."
            )
    return totals


def remove_parts(table: Store, run_id: str, *, threads: int = THREADS) -> int:
    """Delete the parts of a run that has ended, and return their number."""
    keys = (entry.key for entry in table.list(run_key(run_id, "parts/")) if entry.key.endswith(_PART))
    removed = 0
    for _ in map_concurrently(table.delete, keys, threads=threads):
        removed += 1
    return removed


def write_sealed_file(table: Store, run: Run, segment: int, kept_schema: pa.Schema) -> None:
    """Create an empty table file for a segment that is not published, so that it cannot be published any more."""
    empty = table_schema(kept_schema).empty_table()
    data = encode(empty, {**_run_metadata(run, segment), "sealed": "true"})
    put_if_absent(table, table_file_key(run.run_id, segment, run.layout), data)


def _read_parts(table: Store, run: Run, segment: PlannedSegment, threads: int) -> pa.Table:
    run_id = run.run_id

    def read(shard: int) -> pa.Table:
        key = part_key(run_id, shard)
        # an earlier release may have begun the run
        return with_settings(decode(table.get(key).data, name=join_uri(table.uri, key)), run.settings)

    parts = list(map_concurrently(read, segment.shards, threads=threads))
    planned, kept = read_planned(table, run_id, segment.index)
    schema = table_schema(kept)
    first = 0
    for shard, images, part in zip(segment.shards, segment.shard_images, parts, strict=True):
        # types as well as names: engines cannot read files with different columns as one table
        if part.schema.remove_metadata() != schema or not part["uri"].equals(planned["uri"].slice(first, images)):
            raise RayDetrError(
                f"{join_uri(table.uri, part_key(run_id, shard))} does not contain its {images:,} planned images with "
                f"one row each ({part.num_rows:,} rows). Delete it and run the same command: the shard is labelled "
                "again."
            )
        first += images
    with parquet_of(f"the parts of segment {segment.index} of {table.uri}"):
        rows = pa.concat_tables(parts)
    return reject_republished_versions(table, run_id, rows, planned["etag"], settings=run.settings, threads=threads)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with dictionaries decoded: only then are columns with different dictionaries comparable."""
    return table.cast(pa.schema([(column.name, plain_type(column.type)) for column in table.schema]))


def _check_not_sealed(table: Store, run_id: str, file: pq.ParquetFile) -> None:
    if is_sealed_file(file):
        raise RayDetrError(sealed_sentence(table, run_id))


def _run_metadata(run: Run, segment: int) -> Mapping[str, str]:
    return {
        "run_id": run.run_id,
        "segment": str(segment),
        "model_sha256": run.model_sha256,
        "configuration": json.dumps(run.configuration, ensure_ascii=False),
    }
