"""Counts errors of a run that are not new: the image had the same error before, and was only tried again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.concurrently import map_in_chunks
from pipelines.labelling.publish import THREADS
from pipelines.parquet_files import open_for_rows, parquet_of, text_bounds
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.table.files import DATA, SUFFIX, in_order_of_runs, parse_table_file_key
from pipelines.table.schema import check_columns

MOST_AT_ONCE: Final = 500_000  # errors whose earlier rows are looked for together: some 100 MB

Errors = Mapping[str, str | None]
"""Error kinds of images by URI; None: the image has no error."""


def count_repeated_errors(table: Store, run_id: str, model: str, *, threads: int = THREADS) -> int:
    """Return how many error rows of a run have the kind of the latest earlier row of their image and model.

    Reads the error rows of the run, and of files of earlier runs, newest first by name, the row groups that may hold
    one of their images, until a row of each is found.

    Raises:
        RayDetrError: a file of the table is damaged.
        StoreError: the table's store refused.
    """
    entries = [entry for entry in table.list(DATA) if entry.key.endswith(SUFFIX)]
    entries.sort(key=lambda entry: in_order_of_runs(entry.key), reverse=True)
    own = [entry for entry in entries if _run_of(entry) == run_id]
    earlier = [entry for entry in entries if _run_of(entry) != run_id]
    if not earlier:
        return 0
    return sum(_count(table, errors, model, earlier, threads) for errors in _errors(table, own, model))


def _count(table: Store, errors: Errors, model: str, earlier: Sequence[StoreEntry], threads: int) -> int:
    """Return how many of some images had the same error in their latest row of a model in earlier files."""
    left = dict(errors)
    repeated = 0
    uris = sorted(left)

    def find(entry: StoreEntry) -> Errors:
        return _rows(table, entry, model, uris)

    for found in map_in_chunks(find, earlier, threads=threads):
        for uri, kind in found.items():
            if uri in left:
                repeated += left.pop(uri) == kind
        if not left:
            break
    return repeated


def _errors(table: Store, own: Sequence[StoreEntry], model: str) -> Iterator[Errors]:
    """Yield the errors of a run, `MOST_AT_ONCE` together, or those of one file if it has more."""
    held: dict[str, str | None] = {}
    for entry in own:
        found = {uri: kind for uri, kind in _rows(table, entry, model, None).items() if kind is not None}
        if held and len(held) + len(found) > MOST_AT_ONCE:
            yield held
            held = {}
        held.update(found)
    if held:
        yield held


def _rows(table: Store, entry: StoreEntry, model: str, uris: Sequence[str] | None) -> Errors:
    """Return the error kinds of rows of a model in a file: of some sorted URIs, or None: of its error rows."""
    name = join_uri(table.uri, entry.key)
    file = open_for_rows(table, entry)
    columns = ["uri", "error_kind", "model"]
    check_columns(file, columns, name=name)
    found: dict[str, str | None] = {}
    with parquet_of(name):
        for group in range(file.num_row_groups):
            if not (_has_errors(file, group) if uris is None else _may_hold(file, group, uris)):
                continue
            rows = file.read_row_group(group, columns=columns, use_threads=False)
            is_wanted = pc.is_valid(rows["error_kind"]) if uris is None else pc.is_in(rows["uri"], pa.array(uris))
            rows = rows.filter(pc.and_(is_wanted, pc.equal(rows["model"].cast(pa.string()), model)))
            kinds = rows["error_kind"].cast(pa.string()).to_pylist()
            found.update(zip(rows["uri"].to_pylist(), kinds, strict=True))
    return found


def _has_errors(file: pq.ParquetFile, group: int) -> bool:
    bounds = text_bounds(file, group, "status")
    return bounds is None or bounds[0] != "ok"  # error comes before ok


def _may_hold(file: pq.ParquetFile, group: int, uris: Sequence[str]) -> bool:
    """Return whether a row group may hold one of some sorted URIs, by its statistics."""
    bounds = text_bounds(file, group, "uri")
    if bounds is None:
        return True
    place = bisect_left(uris, bounds[0])
    return place < len(uris) and uris[place] <= bounds[1]


def _run_of(entry: StoreEntry) -> str:
    return (parse_table_file_key(entry.key) or ("", 0))[0]
