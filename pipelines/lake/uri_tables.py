"""Lists of images: files with the URIs of images, read instead of a listing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.kept_types import plannable
from pipelines.lake.lake_object import COMMENT, WITHOUT_URI, LakeObject, Listed, Skipped
from pipelines.lake.list_addresses import check_no_secrets, check_sizes, check_stores, sizes, whole_uris
from pipelines.lake.list_formats import (
    ETAG_COLUMNS,
    LIST_SUFFIXES,
    PARQUET_SUFFIX,
    URI_COLUMNS,
    ParsedList,
    is_comment,
    looks_like_address,
    read_list,
)
from pipelines.parquet_files import is_text, open_bytes, open_object, parquet_of
from pipelines.store import Store, join_uri, without_secrets

_ROWS_AT_ONCE = 8_192
_LONGEST_ADDRESS = 4_096  # bytes, for a value that counts as an address although the list does not declare text
_LONGEST_SHOWN = 800  # characters of columns in a message
_PICTURES_AT_ONCE = 16
_SAMPLE_ROWS = 1_000  # rows that decide which of several text columns has addresses


@dataclass(frozen=True, slots=True)
class UriTable:
    """The images listed in a file, in the order of their URIs.

    Attributes:
        name: the file's URI without secrets.
        rows: columns `uri`, `etag`, `size`, then the kept ones that the file has.
        columns: the names of all columns of the file.
        without_uri: number of rows that were skipped because they have no URI.
        comments: number of comment lines.
    """

    name: str
    rows: pa.Table
    columns: tuple[str, ...]
    without_uri: int
    comments: int = 0

    def after(self, uri: str | None) -> Iterator[tuple[str, str | None, int | None, tuple[object, ...]]]:
        """Yield uri, etag, size and kept values of the images whose URI is greater."""
        rows = self.rows if uri is None else self.rows.filter(pc.greater(self.rows["uri"], uri))
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            uris, etags, sizes, *kept = (column.to_pylist() for column in batch.columns)
            values = zip(*kept, strict=True) if kept else ((),) * len(uris)
            yield from zip(uris, etags, sizes, values, strict=True)


def list_table(table: UriTable, names: Sequence[str], after: str | None) -> Iterator[Listed]:
    """Yield the rows of a list of URIs, with the kept values in the order of `names`, null for missing columns."""
    if after is None and table.without_uri:
        yield Skipped("", WITHOUT_URI, table.without_uri)
    if after is None and table.comments:
        yield Skipped("", COMMENT, table.comments)
    have = table.rows.column_names[3:]
    places = [have.index(name) if name in have else None for name in names]
    is_plain = places == list(range(len(have)))
    for uri, etag, size, kept in table.after(after):
        values = kept if is_plain else tuple(None if place is None else kept[place] for place in places)
        yield LakeObject(uri, etag, size, values)


def is_uri_table(uri: str) -> bool:
    """Return whether a URI names a list of images, by its extension before the query of a web address."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    return path.lower().endswith(LIST_SUFFIXES)


def read_uri_table(store: Store, key: str, *, keep: Sequence[str] = ()) -> UriTable:
    """Read a list of images, with those columns of `keep` that it has.

    The URIs are in the column `uri`, `url`, `image` or `path`, else in the only column of text, else in the only one
    whose values are addresses. Of a column of pictures in Hugging Face's format, `{bytes, path}`, the paths are read.
    Relative paths are resolved against the folder of the file. Columns `etag` and `size` are used if present. Memory:
    all rows, about 150 bytes each.

    Raises:
        RayDetrError: the file cannot be read, is empty, or the column of URIs is not clear.
        StoreError: the store refused.
    """
    is_web = store.uri.startswith(("http://", "https://"))
    name = without_secrets(join_uri(store.uri, key))
    file_name = key.lower() if key.lower().endswith(LIST_SUFFIXES) else key.partition("?")[0].lower()
    if file_name.endswith(PARQUET_SUFFIX):
        parsed, uri_column, names = _read_parquet(store, key, name, keep)
    else:
        parsed = read_list(store.get(key).data, file_name, name, keep)
        names = tuple(_column_names(parsed.table, name))
        uri_column = _uri_column(parsed.table, name, is_header_certain=parsed.is_header_certain)
    table = parsed.table
    _check_whole(table, name)
    if not table.num_rows:
        raise UsageError(f"{name} is empty: it has the columns {_shown(names)}, but no rows.")
    etag_column = _first(table.schema, ETAG_COLUMNS, is_text)
    size_column = _first(table.schema, ("size",), pa.types.is_integer)
    count = table.num_rows
    uris = pc.utf8_trim_whitespace(_texts(table[uri_column], uri_column, name))
    columns = {
        # large: 100 million URIs exceed the 2 GiB limit of 32-bit offsets
        "uri": uris,
        "etag": table[etag_column].cast(pa.large_string()) if etag_column else pa.nulls(count, pa.large_string()),
        "size": sizes(table[size_column], name) if size_column else pa.nulls(count, pa.int64()),
        **{column: plannable(table[column], column, name) for column in keep if column in table.column_names},
    }
    rows = pa.table(columns)
    rows = rows.filter(pc.not_equal(rows["uri"], ""))  # nulls are not kept either
    without_uri = count - rows.num_rows
    if not file_name.endswith(PARQUET_SUFFIX):
        rows, comments = _without_comments(rows)
        parsed = replace(parsed, comments=parsed.comments + comments)
    folder = join_uri(store.uri, key.partition("?")[0] if is_web else key).rpartition("/")[0]
    rows = rows.set_column(0, "uri", whole_uris(rows["uri"], folder, name))
    check_no_secrets(rows["uri"], name)
    check_stores(rows["uri"], name)
    check_sizes(rows, name)
    etags = pc.replace_substring_regex(rows["etag"], '^(W/)?"(.*)"$', r"\2")
    rows = rows.set_column(1, "etag", pc.if_else(pc.equal(etags, ""), None, etags))
    return UriTable(name, rows.sort_by("uri"), names, without_uri, parsed.comments)


def _read_parquet(store: Store, key: str, name: str, keep: Sequence[str]) -> tuple[ParsedList, str, tuple[str, ...]]:
    """Return the required columns, the name of the column of URIs, and the names of all columns."""
    size = store.head(key).size
    file = open_bytes(store.get(key).data, name) if size is None else open_object(store, key, size)
    schema = file.schema_arrow
    with parquet_of(name):
        sample = next(file.iter_batches(_SAMPLE_ROWS, columns=_readable_columns(schema)), None)
    uri_column = _uri_column(schema.empty_table() if sample is None else pa.Table.from_batches([sample]), name, schema)
    _check_once(schema.names, [uri_column], name)
    wanted = {
        uri_column,
        _first(schema, ETAG_COLUMNS, is_text),
        _first(schema, ("size",), pa.types.is_integer),
        *keep,
    }
    columns = [column for column in schema.names if column in wanted]
    if _is_pictures(schema.field(uri_column).type):
        _check_pictures_have_files(file, uri_column, name)
        columns = [f"{uri_column}.path" if column == uri_column else column for column in columns]
    with parquet_of(name):
        return ParsedList(file.read(columns=columns)), uri_column, tuple(schema.names)


def _column_names(table: pa.Table, name: str) -> list[str]:
    try:
        return list(table.column_names)
    except ValueError as error:  # names that are not text are detected here
        raise RayDetrError(f"{name} cannot be read: the name of a column is not UTF-8.") from error


def _check_whole(table: pa.Table, name: str) -> None:
    """Refuse columns that a plan cannot store.

    Raises:
        RayDetrError: a column is duplicated, or has text that is not UTF-8.
    """
    _check_once(table.column_names, table.column_names, name)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())[:200]
        raise RayDetrError(f"{name} is damaged, or not in UTF-8: {reason}. Write it again.") from error


def _check_once(names: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Refuse duplicate columns.

    Raises:
        RayDetrError: a required column is duplicated.
    """
    twice = sorted({column for column in wanted if names.count(column) > 1})
    if twice:
        raise RayDetrError(f"{name} has two columns {twice[0]!r}. Rename one.")


def _shown(names: Sequence[str]) -> str:
    """Return the names of columns for a message, truncated if long."""
    text = ", ".join(names) or "(none)"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."


def _first(schema: pa.Schema, names: Sequence[str], is_fitting: Callable[[pa.DataType], bool]) -> str | None:
    by_name = {column.name.lower(): column for column in reversed(list(schema)) if is_fitting(column.type)}
    return next((by_name[name].name for name in names if name in by_name), None)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_pictures(kind: pa.DataType) -> bool:
    """Return whether a column has pictures in the format of Hugging Face's data sets: bytes, path, or both."""
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == {"bytes", "path"}


def _uri_column(sample: pa.Table, name: str, schema: pa.Schema | None = None, *, is_header_certain: bool = True) -> str:
    """Return the name of the column of URIs.

    Args:
        sample: the first rows of the candidate columns.
        name: the file's address in messages.
        schema: all columns; None if `sample` has all.
        is_header_certain: False if the header may be a row.

    Raises:
        RayDetrError: no column, or more than one, is a candidate.
    """
    schema = schema or sample.schema
    found = _first(schema, URI_COLUMNS, is_text) or _first(schema, ("uri", "url", "path"), _is_bytes)
    if found:
        return found
    texts = [str(column.name) for column in schema if is_text(column.type)]
    addresses = [column for column in texts if _holds_addresses(sample, column)]
    if len(addresses) == 1:
        return addresses[0]
    pictures = _first(schema, URI_COLUMNS, lambda kind: _is_bytes(kind) or _is_pictures(kind))
    if pictures:
        return pictures
    named = _first(schema, URI_COLUMNS, lambda _: True)
    if len(texts) == 1 and is_header_certain and not named:
        return texts[0]
    shown = _shown([f"{column.name} ({_kind(column.type)})" for column in schema])
    if named:
        _check_once(schema.names, [named], name)
        raise UsageError(
            f"{name} does not say where the images are: its column {named} is {_kind(schema.field(named).type)}, but "
            f"addresses must be text. It has the columns {shown}."
        )
    header = "" if is_header_certain else " If its first line is an image and not the header, give it a header."
    raise UsageError(
        f"{name} does not say where the images are: it has the columns {shown}. Name the column of their addresses "
        f"uri, url, image or path.{header}"
    )


def _holds_addresses(sample: pa.Table, column: str) -> bool:
    """Return whether the first values of a column are all addresses."""
    if sample.column_names.count(column) != 1:
        return False
    values = sample[column].slice(0, _SAMPLE_ROWS).to_pylist()
    texts = [value for value in values if value and not value.isspace() and not is_comment(value)]
    return bool(texts) and all(map(looks_like_address, texts))


def _kind(kind: pa.DataType) -> str:
    """Return the type of a column for messages."""
    if is_text(kind):
        return "text"
    if _is_bytes(kind):
        return "bytes"
    if pa.types.is_struct(kind):
        return f"a struct of {_shown([field.name for field in kind])}"
    return _shown([str(kind)])


def _readable_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the text columns, of which a few rows are read."""
    return [column.name for column in schema if is_text(column.type)]


def _texts(column: pa.ChunkedArray, uri_column: str, name: str) -> pa.ChunkedArray:
    """Return addresses as text: databases export them as bytes, and Hugging Face's pictures have a path.

    Raises:
        RayDetrError: the bytes are not addresses.
    """
    if pa.types.is_struct(column.type):
        return pc.struct_field(column, "path").cast(pa.large_string())
    if not _is_bytes(column.type):
        return column.cast(pa.large_string())
    reason = "they are not text"
    try:
        texts = column.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = None
    if texts is not None:
        reason = "they are too long, or hold control characters"
        is_wrong = pc.or_(
            pc.greater(pc.binary_length(texts), _LONGEST_ADDRESS), pc.match_substring_regex(texts, r"[\x00-\x1f]")
        )
        if not pc.any(is_wrong).as_py():
            return texts
    raise RayDetrError(
        f"{name}: the column {uri_column} holds bytes that are not addresses ({reason}). If they are the images "
        f"themselves, give --image-column {uri_column}."
    )


def _check_pictures_have_files(file: pq.ParquetFile, column: str, name: str) -> None:
    """Refuse pictures whose bytes are in the list, because their paths are only former file names.

    Raises:
        RayDetrError: there are bytes, and paths that are not full addresses.
    """
    with parquet_of(name):
        paths = pc.struct_field(file.read(columns=[f"{column}.path"])[column], "path")
    if pc.all(pc.match_substring_regex(paths, "^(/|[a-zA-Z][a-zA-Z0-9+.-]+://)")).as_py() and not paths.null_count:
        return
    with parquet_of(name):
        for batch in file.iter_batches(_PICTURES_AT_ONCE, columns=[f"{column}.bytes"]):
            if pc.struct_field(batch.column(0), "bytes").null_count < batch.num_rows:
                raise RayDetrError(
                    f"{name}: the column {column} holds the images themselves, in bytes. To label these, give "
                    f"--image-column {column}."
                )


def _without_comments(rows: pa.Table) -> tuple[pa.Table, int]:
    """Return the rows that are not comment lines, and the number of comment lines."""
    is_suspect = pc.starts_with(rows["uri"], "#")
    if not pc.any(is_suspect).as_py():
        return rows, 0
    kept = pa.array([not is_comment(uri) for uri in rows["uri"].to_pylist()])
    left = rows.filter(kept)
    return left, rows.num_rows - left.num_rows
