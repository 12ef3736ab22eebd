"""S3 Inventory: a report of a bucket's objects, used instead of a listing."""

from __future__ import annotations

import hashlib
import heapq
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from tempfile import mkdtemp
from typing import Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError
from pipelines.parquet_files import parquet_of
from pipelines.store import NotFound, Store, StoreEntry, join_uri, without_secrets
from pipelines.strict_json import Count, parse_object, record_of

ARCHIVE_CLASSES: Final = ("GLACIER", "DEEP_ARCHIVE")
ARCHIVE_TIERS: Final = ("ARCHIVE", "ARCHIVE_ACCESS", "DEEP_ARCHIVE", "DEEP_ARCHIVE_ACCESS")  # of Intelligent-Tiering

_FETCH_BYTES = 64 << 20  # of a file in one request
_RUN_BYTES = 128 << 20  # sorted in memory; 10^8 objects are about a hundred such runs
_BATCH_ROWS = 2_048  # of every run, while they are merged
_CSV_BLOCK_BYTES = 8 << 20

_ROWS: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("is_archived", pa.bool_(), nullable=False),
        pa.field("modified", pa.float64()),
    ]
)

# The columns that are read, by their names in Parquet reports; CSV reports write `IsLatest`.
_COLUMNS: Final[Mapping[str, pa.DataType]] = {
    "key": pa.string(),
    "size": pa.int64(),
    "e_tag": pa.string(),
    "last_modified_date": pa.string(),
    "storage_class": pa.string(),
    "intelligent_tiering_access_tier": pa.string(),
    "version_id": pa.string(),
    "is_latest": pa.bool_(),
    "is_delete_marker": pa.bool_(),
}


@dataclass(frozen=True)
class Inventory:
    """The objects of a bucket in a report: latest versions only, in the order of a listing.

    Attributes:
        bucket: URI of the bucket.
        runs: files of sorted rows, in a temporary folder that is removed with this object.
    """

    bucket: str
    runs: tuple[Path, ...]

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in byte order of UTF-8 keys.

        Memory: some thousand rows of every run.
        """
        yield from heapq.merge(*(_read_run(run, prefix, after) for run in self.runs), key=attrgetter("key"))


def is_inventory(uri: str) -> bool:
    """Return whether a URI names the manifest of an S3 Inventory: `s3://reports/lake/all/2026-11-26T01-00Z/manifest.json`."""
    return uri.rpartition("/")[2] == "manifest.json"


def read_inventory(store: Store, key: str) -> Inventory:
    """Read the report of a manifest and sort it.

    The files are downloaded one after the other, checked against the manifest, and sorted in pieces. Memory is about
    half a gigabyte for any size of the bucket; the temporary folder (`TMPDIR`) needs about 30 bytes for each object and
    space for one file of the report.

    Args:
        store: The bucket with the reports.
        key: The manifest's key in it.

    Raises:
        RayDetrError: the manifest is invalid or of an unsupported format, or a file is missing or damaged.
        StoreError: the store refused.
    """
    name = without_secrets(join_uri(store.uri, key))
    manifest = _read_manifest(store, key, name)
    folder = Path(mkdtemp(prefix="ray-detr-inventory-"))
    try:
        pieces = (piece for file in manifest.files for piece in _read_file(store, file, manifest, name, folder))
        inventory = Inventory(
            f"s3://{manifest.bucket.removeprefix('arn:aws:s3:::')}", tuple(_write_runs(pieces, folder))
        )
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise RayDetrError(
                f"{name} cannot be sorted in {folder} ({error.strerror or error}). Free some space there, or set "
                "TMPDIR."
            ) from error
        raise
    weakref.finalize(inventory, shutil.rmtree, folder, ignore_errors=True)
    return inventory


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a report, as in the manifest."""

    key: str
    size: Count
    md5: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The fields of a manifest. `kind` is the files' format, `schema` their columns; CSV files have no header."""

    bucket: str
    kind: str
    schema: str
    files: tuple[_File, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of CSV files, in Parquet's spelling."""
        return tuple(_spelled(column.strip()) for column in self.schema.split(","))


def _read_manifest(store: Store, key: str, name: str) -> _Manifest:
    data = store.get(key).data
    try:
        expected = store.get(key.removesuffix("json") + "checksum").data.decode(errors="replace").strip()
    except NotFound:  # a copy may lack it: the checksums of the files are what matters
        expected = None
    if expected is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != expected:
        raise RayDetrError(
            f"{name} does not match manifest.checksum beside it. Copy both again, or use a newer report."
        )
    try:
        record = parse_object(data)
        files = [{"key": one["key"], "size": one["size"], "md5": one["MD5checksum"]} for one in record["files"]]
        manifest = record_of(
            _Manifest,
            {"bucket": record["sourceBucket"], "kind": record["fileFormat"], "schema": record["fileSchema"]}
            | {"files": files},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RayDetrError(
            f"{name} is not the manifest of an S3 Inventory: it has no sourceBucket, fileFormat, fileSchema and files "
            "with key, size and MD5checksum. Give such a manifest, a folder, or a list of URIs."
        ) from error
    if manifest.kind not in ("CSV", "Parquet"):
        raise RayDetrError(
            f"{name} is a report in {manifest.kind[:20]}, which is not supported. Configure the inventory as Parquet "
            "or CSV, or give a folder to list."
        )
    return manifest


def _spelled(column: str) -> str:
    """Return a CSV report's name of a column as Parquet reports spell it."""
    by_letters = {known.replace("_", ""): known for known in _COLUMNS}
    return by_letters.get(column.lower(), column)


def _read_file(store: Store, file: _File, manifest: _Manifest, name: str, folder: Path) -> Iterator[pa.Table]:
    uri = without_secrets(join_uri(store.uri, file.key))
    path = folder / "report"
    try:
        found = _fetch(store, file, path)
    except NotFound as error:
        raise RayDetrError(f"{name} names {uri}, which does not exist. Restore it, or use a newer report.") from error
    if found != file.md5.lower():
        raise RayDetrError(
            f"{uri} does not match {name}: its MD5 is {found}, expected {file.md5}. Copy it again, or use a newer "
            "report."
        )
    if manifest.kind == "CSV":
        try:
            for batch in _open_csv(path, file.key, manifest.columns, name):
                yield _rows(pa.table(batch), name, is_encoded=True)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RayDetrError(f"{uri} cannot be read as CSV: {reason}. Use a newer report.") from error
    else:
        with parquet_of(uri), pq.ParquetFile(path) as opened:
            columns = [column for column in opened.schema_arrow.names if column in _COLUMNS]
            _check_columns(columns, name)
            for batch in opened.iter_batches(columns=columns):
                yield _rows(pa.table(batch), name, is_encoded=False)
    path.unlink()


def _fetch(store: Store, file: _File, path: Path) -> str:
    """Download a file of a report and return its MD5, which is compared with the manifest."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as target:
        for start in range(0, file.size, _FETCH_BYTES):
            data = store.get_range(file.key, start, min(_FETCH_BYTES, file.size - start))
            if not data:
                break  # shorter than in the manifest; the checksum will differ
            md5.update(data)
            target.write(data)
    return md5.hexdigest()


def _open_csv(path: Path, key: str, columns: Sequence[str], name: str) -> Iterator[pa.RecordBatch]:
    _check_columns(columns, name)
    wanted = [column for column in columns if column in _COLUMNS]
    compression = "gzip" if key.endswith(".gz") else None
    with pa.input_stream(str(path), compression=compression) as stream:
        yield from pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(column_names=list(columns), block_size=_CSV_BLOCK_BYTES),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted,
                column_types={column: _COLUMNS[column] for column in wanted},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )


def _check_columns(columns: Sequence[str], name: str) -> None:
    if "key" not in columns:
        raise RayDetrError(f"{name} is a report without the column Key. Use a report that has it.")
    if "version_id" in columns and "is_latest" not in columns:
        raise RayDetrError(
            f"{name} lists all versions, but does not say which are the latest. Add IsLatest to the report."
        )


def _rows(report: pa.Table, name: str, *, is_encoded: bool) -> pa.Table:
    """Return the rows of a listing for a piece of a report, without old versions and folder markers."""

    def column(wanted: str) -> pa.ChunkedArray:
        kind = _COLUMNS[wanted]
        if wanted in report.column_names:
            return report[wanted].cast(kind)
        return pa.chunked_array([pa.nulls(report.num_rows, kind)])

    is_there = pc.and_(
        pc.fill_null(column("is_latest"), fill_value=True),
        pc.invert(pc.fill_null(column("is_delete_marker"), fill_value=False)),
    )
    keys = _decoded(column("key")) if is_encoded else column("key")
    if keys.null_count:
        raise RayDetrError(f"{name} is a report that has rows without a key. Use a newer one.")
    is_marker = pc.and_(pc.ends_with(keys, "/"), pc.equal(pc.fill_null(column("size"), -1), 0))
    etags = pc.replace_substring_regex(column("e_tag"), '^(W/)?"(.*)"$', r"\2")
    is_archived = pc.or_(
        pc.is_in(column("storage_class"), pa.array(ARCHIVE_CLASSES)),
        pc.is_in(column("intelligent_tiering_access_tier"), pa.array(ARCHIVE_TIERS)),
    )
    modified = _seconds(report, "last_modified_date")
    rows = pa.table(
        [keys, column("size"), pc.if_else(pc.equal(etags, ""), None, etags), is_archived, modified], schema=_ROWS
    )
    return rows.filter(pc.and_not(is_there, is_marker))


def _seconds(report: pa.Table, column: str) -> pa.ChunkedArray:
    """Return a column of times in seconds since 1970 (UTC); nulls if it has neither timestamps nor ISO 8601."""
    unknown = pa.chunked_array([pa.nulls(report.num_rows, pa.float64())])
    if column not in report.column_names or pa.types.is_integer(report[column].type):
        return unknown
    try:
        stamps = report[column].cast(pa.timestamp("ms", "UTC"), safe=False)  # others than AWS write reports
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return unknown
    return pc.divide(stamps.cast(pa.int64()).cast(pa.float64()), 1_000)


def _decoded(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode the keys of a CSV report, which are URL-encoded with a plus for blanks."""
    if not pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        return keys
    return pa.chunked_array([pa.array([key and unquote_plus(key) for key in keys.to_pylist()], pa.string())])


def _write_runs(pieces: Iterable[pa.Table], folder: Path) -> Iterator[Path]:
    """Yield files of sorted rows, of about `_RUN_BYTES` each."""
    gathered: list[pa.Table] = []
    number = size = 0
    for piece in pieces:
        gathered.append(piece)
        size += piece.nbytes
        if size >= _RUN_BYTES:
            yield _write_run(gathered, folder / f"{number:05d}.run")
            number, size, gathered = number + 1, 0, []
    if gathered:
        yield _write_run(gathered, folder / f"{number:05d}.run")


def _write_run(pieces: Sequence[pa.Table], path: Path) -> Path:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as target, pa.ipc.new_stream(target, _ROWS, options=options) as writer:
        writer.write_table(pa.concat_tables(pieces).sort_by("key").combine_chunks(), max_chunksize=_BATCH_ROWS)
    return path


def _read_run(run: Path, prefix: str, after: str | None) -> Iterator[StoreEntry]:
    with pa.OSFile(str(run), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            rows = batch if after is None else batch.filter(pc.greater(batch["key"], after))
            rows = rows.filter(pc.starts_with(rows["key"], prefix)) if prefix else rows
            yield from map(_entry, *(column.to_pylist() for column in rows.columns))


def _entry(key: str, size: int | None, etag: str | None, is_archived: bool, modified: float | None) -> StoreEntry:
    return StoreEntry(key, size, etag, is_archived, modified=modified)
