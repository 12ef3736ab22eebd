"""From the rows of shards to files of the table: commit a part, publish a group of parts, count what is published."""

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
from pipelines.parquet_files import open_bytes, open_listed, parquet_of
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import count_field, counts_field, parse_object
from pipelines.table.files import Layout, parse_table_file_key, table_file_key, table_files_prefix
from pipelines.table.schema import Totals, decode, encode, read_metadata, table_schema, total, with_settings

THREADS: Final = 8

_PART = ".part"


class Commit(Enum):
    """Whose rows a part has now."""

    WON = "ours"
    LOST = "another attempt's"


@dataclass(frozen=True, slots=True)
class Done:
    """What exists of a run: numbers of shards that have a part, and of segments whose table file is published."""

    parts: frozenset[int]
    published: frozenset[int]

    def missing_shards(self, segment: PlannedSegment) -> tuple[int, ...]:
        """Return the shards of a segment that are still to be labelled."""
        if segment.index in self.published:
            return ()
        return tuple(shard for shard in segment.shards if shard not in self.parts)

    def count_images(self, segments: Iterable[PlannedSegment]) -> int:
        """Return how many images of some segments have their rows, published or not."""
        return sum(
            images
            for segment in segments
            for shard, images in zip(segment.shards, segment.shard_images, strict=True)
            if segment.index in self.published or shard in self.parts
        )


def part_key(run_id: str, shard: int) -> str:
    """Return the key of a shard's part: a function of the plan alone, so that two attempts meet in one key."""
    return run_key(run_id, f"parts/{shard:07d}{_PART}")


def commit_part(table: Store, run_id: str, shard: int, rows: pa.Table, *, token: str) -> Commit:
    """Write the rows of one shard, once, whoever else tries.

    `token` tells attempts apart. A write whose answer was lost is repeated and then meets its own object: the same
    token means that we won.

    Raises:
        StoreError: the store refused, or gave no answer; nothing is known about the part.
        RayDetrError: the part that is there is damaged.
    """
    key = part_key(run_id, shard)
    data = encode(rows, {"token": token})
    written = put_if_absent(table, key, data)
    if written == data:
        return Commit.WON
    found = read_metadata(open_bytes(written, join_uri(table.uri, key)))
    return Commit.WON if found.get("token") == token else Commit.LOST


def read_done(table: Store, run_id: str, layout: Layout) -> Done:
    """Return what exists of a run: two listings. Memory: 100 bytes a shard that is not published yet."""
    keys = (entry.key for entry in table.list(table_files_prefix(run_id, layout)))
    # the names of other runs may begin with this one's
    published = frozenset(found[1] for found in map(parse_table_file_key, keys) if found and found[0] == run_id)
    return Done(frozenset(_numbers(table, run_key(run_id, "parts/"), _PART)), published)


def publish_group(table: Store, run: Run, segment: PlannedSegment, *, threads: int = THREADS) -> Totals:
    """Make the table file of a segment of its parts, once, and return what its rows add up to.

    Readers see the file whole or not at all. To be called when all parts are there; that it exists already is fine.
    Holds the segment's rows.

    Args:
        table: The table.
        run: The run, whose configuration goes into the file.
        segment: The segment, as planned.
        threads: How many parts are read at once.

    Raises:
        RayDetrError: the parts are not the planned images, each in one row; or the run was sealed.
        StoreError: the store refused; nothing is known about the file.
    """
    key = table_file_key(run.run_id, segment.index, run.layout)
    published = read_totals(table, run.run_id, run.layout, segment)
    if published is not None:
        return published
    try:
        rows = _read_parts(table, run, segment, threads)
    except NotFound:
        # parts go when the run has ended: somebody else has published them
        published = read_totals(table, run.run_id, run.layout, segment)
        if published is None:
            raise
        return published
    totals = total(rows)
    data = encode(rows, {**_run_metadata(run, segment.index), "totals": json.dumps(asdict(totals))})
    written = put_if_absent(table, key, data)
    if written != data:
        # the same parts by another release of pyarrow or of ours, perhaps; else another run's hand in our folder
        name = join_uri(table.uri, key)
        _check_not_sealed(table, run.run_id, open_bytes(written, name))
        if not _plain(with_settings(decode(written, name=name), run.settings)).equals(_plain(rows)):
            raise RayDetrError(
                f"{name} exists with other rows than the parts of its shards. Move it away, or start with --new-run."
            )
    return totals


def read_totals(table: Store, run_id: str, layout: Layout, segment: PlannedSegment) -> Totals | None:
    """Return what the rows of a segment's table file add up to, None where it is not published. Fetches its footer.

    Raises:
        RayDetrError: the file has not one row for each planned image, or the run was sealed.
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
    """Return what the rows of a published table file add up to, as its footer says.

    Raises:
        RayDetrError: it does not; the sentence calls the file `name`.
    """
    try:
        record = parse_object(read_metadata(file).get("totals", ""))
        return Totals(count_field(record, "rows"), count_field(record, "detections"), counts_field(record, "errors"))
    except ValueError as error:
        raise RayDetrError(f"{name} is damaged: its totals cannot be read.") from error


def is_sealed_file(file: pq.ParquetFile) -> bool:
    """Return whether a table file is one of no rows, made so that its sealed run cannot publish it."""
    return "sealed" in read_metadata(file)


def verify_run(table: Store, run_id: str, layout: Layout, segments: Iterable[PlannedSegment]) -> Totals:
    """Return what a run has published, after counting that each planned image has its row in each segment's file.

    Raises:
        RayDetrError: a file is missing or has not as many rows as planned.
    """
    totals = Totals()
    for segment in segments:
        found = None if segment.ending else read_totals(table, run_id, layout, segment)
        if found is not None:
            totals += found
        elif segment.ending is None:
            raise RayDetrError(
                f"{join_uri(table.uri, table_file_key(run_id, segment.index, layout))} is missing. The same command "
                "publishes it."
            )
    return totals


def remove_parts(table: Store, run_id: str, *, threads: int = THREADS) -> int:
    """Delete the parts of a run that has ended, whose rows are in the table, and return how many there were."""
    keys = (entry.key for entry in table.list(run_key(run_id, "parts/")) if entry.key.endswith(_PART))
    removed = 0
    for _ in map_concurrently(table.delete, keys, threads=threads):
        removed += 1
    return removed


def write_sealed_file(table: Store, run: Run, segment: int, kept_schema: pa.Schema) -> None:
    """Create the table file of a segment without rows, unless it is published: nobody can publish it after this."""
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
        # not the labels of columns alone: a file of other columns could be read by nobody beside the table's others
        if part.schema.remove_metadata() != schema or not part["uri"].equals(planned["uri"].slice(first, images)):
            raise RayDetrError(
                f"{join_uri(table.uri, part_key(run_id, shard))} does not hold its {images:,} planned images, "
                "each in one row "
                f"({part.num_rows:,} rows). Delete it and run the same command: the shard is labelled again."
            )
        first += images
    with parquet_of(f"the parts of segment {segment.index} of {table.uri}"):
        rows = pa.concat_tables(parts)
    return reject_republished_versions(table, run_id, rows, planned["etag"], settings=run.settings, threads=threads)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with words for numbers of words: only so are columns with other dictionaries equal."""
    kinds = [column.type.value_type if pa.types.is_dictionary(column.type) else column.type for column in table.schema]
    return pa.table(dict(zip(table.column_names, map(pa.ChunkedArray.cast, table.columns, kinds), strict=True)))


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


def _numbers(table: Store, folder: str, suffix: str) -> Iterator[int]:
    """Yield the numbers of a folder's names, foreign names left out."""
    for entry in table.list(folder):
        number = entry.key[len(folder) :].removesuffix(suffix)
        if entry.key.endswith(suffix) and number.isascii() and number.isdigit():
            yield int(number)
