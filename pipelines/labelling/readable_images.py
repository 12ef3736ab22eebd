"""Finds images of buckets that an earlier attempt or run has read, by the `ok` rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.concurrently import map_in_chunks
from pipelines.labelling.publish import THREADS, list_parts
from pipelines.parquet_files import open_for_rows, parquet_of, text_bounds
from pipelines.store import Store, StoreEntry, join_uri, split_uri
from pipelines.table.files import DATA, SUFFIX, in_order_of_runs
from pipelines.table.schema import check_columns

MOST_PARTS: Final = 64
MOST_FILES: Final = 4_096  # a file a night is ten years; 8 threads read the footers in half a minute


def readable_images(table: Store, run_id: str, shard: int, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yield URIs of images of some buckets that have `ok` rows: up to three of each part or file.

    First those in committed parts of the run, which are near the shard in the order of URIs, then those of the newest
    and the oldest file, the second newest and the second oldest, and so on: the newest images most probably still
    exist, and the first nights had the most. Reads the footers, and two columns of row groups that may have such rows.

    Args:
        table: The table.
        run_id: The run whose parts are read.
        shard: The parts of the shards nearest to this one are read.
        is_wanted: Whether images below the root of a bucket, disk or server, as in `split_uri`, are yielded.

    Raises:
        RayDetrError: a file is damaged.
        StoreError: the table's store refused.
    """
    parts = sorted(list_parts(table, run_id), key=lambda part: abs(part[0] - shard))
    nearest = [entry for _, entry in parts[:MOST_PARTS]]
    files = [entry for entry in table.list(DATA) if entry.key.endswith(SUFFIX)]
    files.sort(key=lambda entry: in_order_of_runs(entry.key))
    both_ends = list(chain.from_iterable(zip(reversed(files), files, strict=True)))[: len(files)]
    for found in map_in_chunks(
        lambda entry: _ok_images(table, entry, is_wanted), [*nearest, *both_ends[:MOST_FILES]], threads=THREADS
    ):
        yield from found


def _ok_images(table: Store, entry: StoreEntry, is_wanted: Callable[[str], bool]) -> list[str]:
    """Return the first, a middle and the last image of some buckets that has an `ok` row in a row group of a file."""
    name = join_uri(table.uri, entry.key)
    file = open_for_rows(table, entry)
    check_columns(file, ("uri", "status"), name=name)
    with parquet_of(name):
        for group in range(file.num_row_groups):
            if not _may_have(file, group, is_wanted):
                continue
            rows = file.read_row_group(group, columns=["uri", "status"], use_threads=False)
            uris = rows.filter(pc.equal(rows["status"].cast(pa.string()), "ok"))["uri"].to_pylist()
            found = [uri for uri in uris if is_wanted(split_uri(uri)[0])]
            if found:
                return sorted({found[0], found[len(found) // 2], found[-1]})
    return []


def _may_have(file: pq.ParquetFile, group: int, is_wanted: Callable[[str], bool]) -> bool:
    """Return whether a row group may have `ok` rows of images of some buckets, by its statistics."""
    status, uri = text_bounds(file, group, "status"), text_bounds(file, group, "uri")
    if status is not None and status[1] < "ok":  # error comes before ok
        return False
    # URIs between two URIs of a bucket are of the same bucket
    return uri is None or split_uri(uri[0])[0] != split_uri(uri[1])[0] or is_wanted(split_uri(uri[0])[0])
