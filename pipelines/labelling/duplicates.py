"""One row per image version: versions that an earlier run has labelled are rejected, and duplicate rows are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.concurrently import map_concurrently, map_small
from pipelines.errors import RayDetrError
from pipelines.labelling.labelled_keys import KEY_BYTES, Keys
from pipelines.labelling.mask_column import MASKS
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.parquet_files import is_small, open_for_rows, open_listed, parquet_of, text_bounds
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.table.files import parse_table_file_key
from pipelines.table.schema import check_columns

KIND: Final = "fetch_failed"  # transient: the plan of the next run lists the current version of the object

Version = tuple[str, str]
"""The URI and etag of an object."""

LabelledVersion = tuple[str, str | None, str, str | None]
"""The URI, etag, model and settings of a row. A missing etag is a value, too: the image is labelled once."""


def reject_republished_versions(
    table: Store,
    run_id: str,
    rows: pa.Table,
    planned_etags: pa.ChunkedArray,
    *,
    settings: str | None = None,
    threads: int,
) -> pa.Table:
    """Return the rows of a run; rows of image versions that an earlier run has labelled become errors.

    A plan omits labelled versions by the etag of the listing. An object that was overwritten after the listing is
    labelled in the version that was read. If that equals an earlier version, its row would be a duplicate of (uri,
    etag, model, settings).

    The rows of earlier runs are final, so every caller gets the same result. Reads the names in those row groups of
    earlier files that may contain such an image; reads nothing if no object changed.

    Args:
        table: The table.
        run_id: The run of the rows.
        rows: The rows of one segment.
        planned_etags: As listed, one for each row.
        settings: The settings of the rows; None: rows of all settings are compared.
        threads: Number of files to read concurrently.

    Raises:
        RayDetrError: a file of the table is damaged.
        StoreError: the store refused.
    """
    is_ok = pc.equal(rows["status"].cast(pa.string()), "ok")
    changed = rows.filter(pc.and_(is_ok, pc.fill_null(pc.not_equal(rows["etag"], planned_etags), fill_value=False)))
    if not len(changed):
        return rows
    wanted = set(_versions(changed))
    found = _labelled_before(table, run_id, changed["model"][0].as_py(), settings, wanted, threads)
    if not found:
        return rows
    second = pc.and_(pa.chunked_array([[version in found for version in _versions(rows)]]), is_ok)
    said = {
        "status": "error",
        "error_kind": KIND,
        "error": "the object changed during the run, back to a version that already has a row in the table",
        "detections": None,
    }
    if MASKS.name in rows.column_names and pa.types.is_list(rows.schema.field(MASKS.name).type):
        said[MASKS.name] = None
    for name, value in said.items():
        column = rows.schema.field(name)
        plain = rows[name].cast(column.type.value_type) if pa.types.is_dictionary(column.type) else rows[name]
        settled = pc.if_else(second, pa.scalar(value, plain.type), plain)
        rows = rows.set_column(rows.schema.get_field_index(name), column, settled.cast(column.type))
    return rows


def _labelled_before(
    table: Store, run_id: str, model: str, settings: str | None, wanted: Collection[Version], threads: int
) -> frozenset[Version]:
    """Return which versions have an `ok` row of a model and settings in the table's files of other runs."""
    uris = sorted(uri for uri, _ in wanted)
    recorded = RecordedSettings(table)

    def in_file(entry: StoreEntry) -> set[Version]:
        with parquet_of(join_uri(table.uri, entry.key)):
            file = open_listed(table, entry)
            columns = ["uri", "etag", "status", "model", *columns_of(file)]
            check_columns(file, columns, name=join_uri(table.uri, entry.key))
            groups = [group for group in range(file.num_row_groups) if _may_hold(file, group, uris)]
            if not groups:
                return set()
            rows = file.read_row_groups(groups, columns=columns)
            is_ok = pc.equal(rows["status"].cast(pa.string()), "ok")
            rows = rows.filter(pc.and_(is_ok, pc.equal(rows["model"].cast(pa.string()), model)))
            if settings is not None:
                is_same = pc.fill_null(pc.equal(recorded.of_rows(rows), settings), fill_value=True)
                rows = rows.filter(is_same)
            rows = rows.filter(pc.is_in(rows["uri"], value_set=pa.array(uris)))
            return set(_versions(rows)) & set(wanted)

    entries = [
        entry
        for entry in table.list("data/")
        if entry.key.endswith(".parquet") and ((found := parse_table_file_key(entry.key)) is None or found[0] != run_id)
    ]
    return frozenset().union(*map_concurrently(in_file, entries, threads=threads))


def _versions(rows: pa.Table) -> list[Version]:
    """Return the address and etag of each row."""
    return [(row["uri"], row["etag"]) for row in rows.select(["uri", "etag"]).to_pylist()]


def _may_hold(file: pq.ParquetFile, group: int, uris: list[str]) -> bool:
    """Return whether a row group may hold one of some sorted URIs, by its statistics."""
    bounds = text_bounds(file, group, "uri")
    return bounds is None or any(bounds[0] <= uri <= bounds[1] for uri in uris)


def find_duplicate_rows(table: Store, files: Sequence[StoreEntry], *, threads: int = 1) -> Iterator[str]:
    """Yield a sentence for each file with `ok` rows of versions that it or an earlier file contains already.

    A file that cannot be read yields a sentence as well. Reads the name columns only, and files up to `SMALL_BYTES` as
    a whole; twice if there are duplicates. Memory: 16 bytes for each `ok` row of the table (32 while sorting), 20 for
    each duplicate version, and the names of one file, or of `threads` small ones, which are read concurrently.

    Raises:
        StoreError: the store refused.
    """
    readable: list[StoreEntry] = []
    parts: list[Keys] = []
    recorded = RecordedSettings(table)

    def read(entry: StoreEntry) -> Keys | str:
        try:
            return _hashes(_ok_versions(table, entry, recorded))
        except RayDetrError as damaged:
            return str(damaged)

    for entry, found in zip(files, map_small(read, files, is_small=is_small, threads=threads), strict=True):
        if isinstance(found, str):
            yield found
        else:
            parts.append(found)
            readable.append(entry)
    keys = np.concatenate([*parts, np.empty(0, f"S{KEY_BYTES}")])
    parts.clear()
    keys.sort()
    repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    if len(repeated):
        yield from _duplicate_sentences(table, readable, repeated, recorded)


def _duplicate_sentences(
    table: Store, files: Sequence[StoreEntry], repeated: Keys, recorded: RecordedSettings
) -> Iterator[str]:
    """Yield the sentences, of which each names one file and one row of it; `repeated` is sorted."""
    first_file = np.full(len(repeated), -1, np.int32)
    for number, entry in enumerate(files):
        versions = _ok_versions(table, entry, recorded)
        hashes = _hashes(versions)
        places = np.searchsorted(repeated, hashes)
        places[places == len(repeated)] = 0
        second: list[tuple[LabelledVersion, int]] = []
        for row in np.flatnonzero(repeated[places] == hashes):
            place = places[row]
            if first_file[place] < 0:
                first_file[place] = number
            else:
                second.append((versions[row], first_file[place]))
        if second:
            (uri, etag, model, settings), before = second[0]
            rows = "a duplicate row" if len(second) == 1 else f"{len(second):,} duplicate rows"
            version = f"{uri} ({'no etag' if etag is None else f'etag {etag}'})"
            labeller = model if settings is None else f"{model} with the settings {settings}"
            yield (
                f"{join_uri(table.uri, entry.key)} has {rows} for images that {labeller} has labelled already, such as "
                f"{version}, which is in {join_uri(table.uri, files[before].key)}."
            )


def _ok_versions(table: Store, entry: StoreEntry, recorded: RecordedSettings) -> list[LabelledVersion]:
    name = join_uri(table.uri, entry.key)
    file = open_for_rows(table, entry)
    with parquet_of(name):
        rows = file.read(columns=["uri", "etag", "status", "model", *columns_of(file)])
        rows = rows.filter(pc.equal(rows["status"].cast(pa.string()), "ok"))
        columns = [rows[column].cast(pa.string()).to_pylist() for column in ("uri", "etag", "model")]
        columns.append(recorded.of_rows(rows).to_pylist())
    return list(zip(*columns, strict=True))


def _hashes(versions: Iterable[LabelledVersion]) -> Keys:
    # object names have no NUL: the four values stay separate, and a missing etag differs from an empty one
    texts = (
        f"{uri}\0{model}\0{settings or ''}" + ("" if etag is None else f"\0{etag}")
        for uri, etag, model, settings in versions
    )
    hashes = b"".join(blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts)
    return np.frombuffer(hashes, dtype=f"S{KEY_BYTES}")
