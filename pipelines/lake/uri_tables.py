"""Tables of URIs: Parquet, CSV or JSONL files that name images instead of a listing."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from pipelines.parquet_files import open_bytes, open_object, parquet_of
from pipelines.stopped import RunStopped
from pipelines.store import GIVES_ACCESS, Store, has_secret, join_uri, split_uri, without_secrets

URI_COLUMNS: Final = ("uri", "url", "image", "path")
ETAG_COLUMNS: Final = ("etag", "e_tag")
SUFFIXES: Final = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

WITHOUT_SECRETS_INSTEAD: Final = (
    "Give the store's own address (s3://, gs://, az://) and the credentials as docs/security.md says, or fetch the "
    "images first."
)

_LARGEST_OBJECT = 1 << 48  # bytes: some times what any store takes, and thousands of them can be added
_ROWS_AT_ONCE = 8_192
_LARGEST_BLOCK = (
    1 << 30
)  # types are inferred from the first block of a CSV or JSONL file: take it whole where Arrow can


@dataclass(frozen=True, slots=True)
class UriTable:
    """The images that a file names, in the order of their URIs.

    Attributes:
        name: the file's URI as it may be shown.
        rows: columns `uri`, `etag`, `size`, then the kept ones that the file has.
        columns: the names of all columns of the file.
        without_uri: how many rows were left out because they name nothing.
    """

    name: str
    rows: pa.Table
    columns: tuple[str, ...]
    without_uri: int

    def after(self, uri: str | None) -> Iterator[tuple[str, str | None, int | None, tuple[object, ...]]]:
        """Yield uri, etag, size and kept values of the images whose URI is greater."""
        rows = self.rows if uri is None else self.rows.filter(pc.greater(self.rows["uri"], uri))
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            uris, etags, sizes, *kept = (column.to_pylist() for column in batch.columns)
            values = zip(*kept, strict=True) if kept else ((),) * len(uris)
            yield from zip(uris, etags, sizes, values, strict=True)


def is_uri_table(uri: str) -> bool:
    """Return whether a URI names a table of URIs: by its ending, before the query of a web address."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    return path.lower().endswith(SUFFIXES)


def read_uri_table(store: Store, key: str, *, keep: Sequence[str] = ()) -> UriTable:
    """Read the images that a file names, with the columns `keep` as far as it has them.

    The URIs are in the column `uri`, `url`, `image` or `path`, else in the only column of text. A relative path is
    taken from the folder of the file. Columns `etag` and `size` are used where there are such. Holds all rows: about
    150 bytes each.

    Raises:
        RunStopped: the file cannot be read, or it does not say which column holds the URIs.
        StoreError: the store refused.
    """
    is_web = store.uri.startswith(("http://", "https://"))
    name = without_secrets(join_uri(store.uri, key))
    table, names = _read_columns(store, key, name, keep)
    _check_whole(table, name)
    uri_column = _uri_column(table.schema, name)
    etag_column = _first(table.schema, ETAG_COLUMNS, _is_text)
    size_column = _first(table.schema, ("size",), pa.types.is_integer)
    count = table.num_rows
    columns = {
        # large: 100 million URIs pass the 2 GiB that plain offsets reach
        "uri": table[uri_column].cast(pa.large_string()),
        "etag": table[etag_column].cast(pa.large_string()) if etag_column else pa.nulls(count, pa.large_string()),
        "size": table[size_column].cast(pa.int64()) if size_column else pa.nulls(count, pa.int64()),
        **{column: _microseconds(table[column], column, name) for column in keep if column in table.column_names},
    }
    rows = pa.table(columns)
    rows = rows.filter(pc.not_equal(pc.utf8_trim_whitespace(rows["uri"]), ""))  # a null is not kept either
    folder = join_uri(store.uri, key.partition("?")[0] if is_web else key).rpartition("/")[0]
    rows = rows.set_column(0, "uri", _whole_uris(rows["uri"], folder))
    _check_no_secrets(rows["uri"], name)
    _check_sizes(rows, name)
    etags = pc.replace_substring_regex(rows["etag"], '^(W/)?"(.*)"$', r"\2")
    rows = rows.set_column(1, "etag", pc.if_else(pc.equal(etags, ""), None, etags))
    return UriTable(name, rows.sort_by("uri"), names, count - rows.num_rows)


def _read_columns(store: Store, key: str, name: str, keep: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the columns that are needed, perhaps others, and the names of all."""
    lowered = key.partition("?")[0].lower()
    if lowered.endswith(".parquet"):
        size = store.head(key).size
        file = open_bytes(store.get(key).data, name) if size is None else open_object(store, key, size)
        schema = file.schema_arrow
        wanted = {
            _uri_column(schema, name),
            _first(schema, ETAG_COLUMNS, _is_text),
            _first(schema, ("size",), pa.types.is_integer),
            *keep,
        }
        with parquet_of(name):
            return file.read(columns=[column for column in schema.names if column in wanted]), tuple(schema.names)
    data = store.get(key).data
    kind = "CSV" if ".csv" in lowered else "JSONL"
    try:
        data = gzip.decompress(data) if lowered.endswith(".gz") else data
        table = _read_csv(data) if kind == "CSV" else _read_jsonl(data)
        names = tuple(table.column_names)  # names that are no text show here
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        raise RunStopped(f"{name} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error
    return table, names


def _check_whole(table: pa.Table, name: str) -> None:
    """Refuse what cannot be carried into a plan.

    Raises:
        RunStopped: a column is there twice, or holds text that is not UTF-8.
    """
    twice = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
    if twice:
        raise RunStopped(f"{name} has two columns {twice[0]!r}, and only one can be meant. Rename one.")
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())[:200]
        raise RunStopped(f"{name} is damaged, or not in UTF-8: {reason}. Write it anew.") from error


def _check_sizes(rows: pa.Table, name: str) -> None:
    """Refuse sizes that no object can have: a plan adds them up.

    Raises:
        RunStopped: with the first one.
    """
    wrong = rows.filter(pc.or_(pc.less(rows["size"], 0), pc.greater(rows["size"], _LARGEST_OBJECT)))
    if len(wrong):
        size, uri = wrong["size"][0].as_py(), wrong["uri"][0].as_py()
        raise RunStopped(
            f"{name} says that {uri} has {size:,} bytes, which no object can have. "
            "Leave the column empty where sizes are not known."
        )


def _check_no_secrets(uris: pa.ChunkedArray, name: str) -> None:
    """Refuse addresses that hold a secret: plan and table would hold it too.

    Raises:
        RunStopped: with the first one.
    """
    suspects = uris.filter(pc.match_substring_regex(uris, "[@?]"))
    for batch in suspects.chunks:
        found = next((uri for uri in batch.to_pylist() if has_secret(uri)), None)
        if found is not None:
            raise RunStopped(f"{name}: the address {without_secrets(found)} {GIVES_ACCESS} {WITHOUT_SECRETS_INSTEAD}")


def _read_csv(data: bytes) -> pa.Table:
    return pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(block_size=_block_size(data)),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        # etags may look like numbers
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys((*URI_COLUMNS, *ETAG_COLUMNS), pa.string())),
    )


def _read_jsonl(data: bytes) -> pa.Table:
    return pa.json.read_json(io.BytesIO(data), read_options=pa.json.ReadOptions(block_size=_block_size(data)))


def _block_size(data: bytes) -> int:
    return min(len(data) + 1, _LARGEST_BLOCK)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _first(schema: pa.Schema, names: Sequence[str], is_fitting: Callable[[pa.DataType], bool]) -> str | None:
    by_name = {column.name.lower(): column for column in reversed(list(schema)) if is_fitting(column.type)}
    return next((by_name[name].name for name in names if name in by_name), None)


def _uri_column(schema: pa.Schema, name: str) -> str:
    found = _first(schema, URI_COLUMNS, _is_text)
    if found:
        return found
    texts = [column.name for column in schema if _is_text(column.type)]
    if len(texts) == 1:
        return str(texts[0])
    raise RunStopped(
        f"{name} does not say where the images are: it has the columns {', '.join(schema.names) or '(none)'}. "
        f"Name the column of their addresses uri, url, image or path."
    )


def _whole_uris(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Return URIs that stand for themselves: relative ones get the folder of the file, paths of this machine `file://`."""
    if pc.all(pc.match_substring_regex(uris, "^[a-zA-Z][a-zA-Z0-9+.-]+://")).as_py() is not False:
        return uris
    whole = [_whole_uri(uri, folder) for uri in uris.to_pylist()]
    return pa.chunked_array([pa.array(whole, pa.large_string())])


def _whole_uri(uri: str, folder: str) -> str:
    if "://" in uri:
        return uri
    return join_uri(*split_uri(uri if uri.startswith(("/", "file:")) else f"{folder}/{uri}"))


def _microseconds(column: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Return times in the unit that Python's own have: nanoseconds do not survive the way through a plan."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        wanted = pa.timestamp("us", kind.tz)
    elif pa.types.is_duration(kind) and kind.unit == "ns":
        wanted = pa.duration("us")
    elif pa.types.is_time64(kind) and kind.unit == "ns":
        wanted = pa.time64("us")
    else:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        raise RunStopped(
            f"keep: column {name!r} of {table} has fractions of a microsecond. Store it as text or rounded."
        ) from error
