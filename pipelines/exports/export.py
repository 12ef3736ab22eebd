"""Export all or the current rows of a table to one file or a folder of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.config import SUFFIXES, ExportConfig, Format
from pipelines.exports.current import Mask, current_rows, no_such_rows, of_model, with_settings
from pipelines.exports.documents import DOCUMENTS, LabelStudioTasks
from pipelines.exports.formats import WRITERS, RowsWriter
from pipelines.exports.iceberg import register_files
from pipelines.exports.image_urls import refuse_unused
from pipelines.exports.images import Categories, Names, common_names
from pipelines.exports.places import Folder, OneFile
from pipelines.exports.trees import NUMBERED_ANEW, PAIRED_BY_STEM, TREES, EqualStems, Tree
from pipelines.labelling.recorded_settings import COLUMN, RecordedSettings
from pipelines.marks.marks import read_marks
from pipelines.marks.matching import Matcher
from pipelines.parquet_files import is_number, is_text, open_listed, parquet_of, plain_type
from pipelines.store import (
    Store,
    StoreEntry,
    StoreError,
    join_uri,
    open_store,
    open_unflushed,
    split_uri,
    without_known_secrets,
    without_secrets,
)
from pipelines.table.files import in_order_of_runs
from pipelines.table.schema import FIRST_COLUMNS, ROW_GROUP_ROWS, SCHEMA, check_columns

_PIECE_ROWS: Final = 512
_BATCH_ROWS: Final = 1024
_ROW_GROUP_BYTES: Final = 16_000_000  # boxes in memory, if rows have many
_NAMED: Final = (*TREES, "coco-dataset", "megadetector")  # formats with names of images instead of addresses


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The result of an export: rows, files, rows of the table, and rows by their settings.

    `errors` is the number of rows with an error, `repeats_left_out` the number of detections left out because a mark
    covers them, `marks` the number of marks of the table.
    """

    out: str
    rows: int
    files: int
    rows_total: int
    settings: Mapping[str, int] = field(default_factory=dict)
    repeats_left_out: int = 0
    marks: int = 0
    errors: int = 0


def export(config: ExportConfig, *, show: Callable[[int, int], None] = lambda _rows, _total: None) -> ExportSummary:
    """Write the published rows of a table, in the order of its files; rows published meanwhile are left out.

    A file appears only when it is complete. A folder must be new; `_export.json`, which describes its contents, is
    written last. Memory: two row groups, the bytes of one file of a folder, and for `latest` that of `current_rows`.

    Args:
        config: The options.
        show: Called in this thread with the number of processed rows of the table, and the total.

    Raises:
        RayDetrError: the table is damaged or has no such rows, or `out` exists.
    """
    try:
        return copy_rows(open_store(config.table, config.options), config, show=show)
    except StoreError as error:
        raise RayDetrError(f"cannot export {without_secrets(config.table)}: {error}") from error


def copy_rows(
    table: Store, config: ExportConfig, *, show: Callable[[int, int], None] = lambda _rows, _total: None
) -> ExportSummary:
    """Export from a table that is already open; see `export`.

    Raises:
        RayDetrError: as `export`.
        StoreError: a store refused.
    """
    files = _look(table, config.kind)
    matcher = Matcher([] if config.keep_repeats else read_marks(table))
    if config.kind == "iceberg":
        uris = [join_uri(table.uri, entry.key) for entry in files.entries]
        added = register_files(config.catalog, config.out, uris, files.schema)
        return ExportSummary(config.out, files.rows, added, files.rows, marks=len(matcher.marks))
    written = 0
    errors = 0
    left_out: Counter[str] = Counter()
    settings: Counter[str] = Counter()
    try:
        selection = _Selection(table, files, config)
        with _place(config, selection) as out:
            chosen_rows = selection.rows(show)
            if matcher:
                chosen_rows = _without_repeats(chosen_rows, matcher, left_out)
            for rows in _pieces(chosen_rows, config):
                out.add(rows)
                written += len(rows)
                errors += len(rows) - rows["error_kind"].null_count
                counts = rows[COLUMN].cast(pa.string()).drop_null().value_counts().to_pylist()
                settings.update({one["values"]: one["counts"] for one in counts})
            if not written and (config.model, config.settings) != (None, None):
                raise no_such_rows(table.uri, config.model, config.settings)
            chosen: dict[str, object] = {
                "latest": config.latest or config.is_of_images,
                "model": config.model,
                "settings": config.settings,
            }
            if matcher:
                chosen["repeats_left_out"] = left_out.total()
            out.finish({"table": table.uri, "rows": written, **chosen})
    except OSError as error:  # of a local file: errors of the table's files have their own messages
        raise RayDetrError(f"cannot write {config.out}: {error.strerror or error}.") from error
    return ExportSummary(
        without_secrets(config.out),
        written,
        out.files,
        files.rows,
        dict(settings),
        left_out.total(),
        len(matcher.marks),
        errors,
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a table, in the order of runs and shards, their common columns, and the number of rows."""

    entries: Sequence[StoreEntry]
    schema: pa.Schema
    rows: int


def _look(table: Store, kind: Format) -> _Files:
    """Read the schemas of all files: with kept columns if the format has them, in types for the values of all files."""
    entries = [entry for entry in table.list("data/") if entry.key.endswith(".parquet")]
    entries.sort(key=lambda entry: in_order_of_runs(entry.key))
    columns = {column.name: column for column in SCHEMA}
    rows = 0
    for name, file in _opened(table, entries):
        with parquet_of(name):
            schema = file.schema_arrow
            rows += file.metadata.num_rows
        check_columns(file, FIRST_COLUMNS, name=name)
        for column in schema:
            if column.name in SCHEMA.names or kind in WRITERS or kind == "iceberg":
                known = columns.setdefault(column.name, column)
                columns[column.name] = known if known.type == column.type else _joined(known, column, name, kind)
    if not entries:
        raise UsageError(f"table {table.uri} has no published rows. Check the address, or label images into it.")
    return _Files(entries, pa.schema(list(columns.values())), rows)


def _joined(known: pa.Field, column: pa.Field, name: str, kind: Format) -> pa.Field:
    """Return a type for the values of both columns: text for numbers beside text, which a list of images may have."""
    if column.name not in SCHEMA.names and plain_type(known.type) == plain_type(column.type):
        return known.with_type(plain_type(known.type))  # runs of earlier releases kept categories as such
    if column.name not in SCHEMA.names and kind != "iceberg":  # which registers the files unchanged
        if any(is_text(one.type) and is_number(other.type) for one, other in ((known, column), (column, known))):
            return pa.field(column.name, pa.string())
        with suppress(pa.ArrowTypeError):
            return pa.unify_schemas([pa.schema([known]), pa.schema([column])], promote_options="permissive").field(0)
    raise RayDetrError(
        f"{name} has the column {column.name} as {column.type}, but earlier files have it as {known.type}: one export "
        "cannot contain both types. Query the files themselves."
    )


def _place(config: ExportConfig, selection: _Selection) -> OneFile | Folder | Tree:
    kind = config.kind
    names = Names()
    if kind in PAIRED_BY_STEM:
        stems = EqualStems()
        names = common_names(stems.watch(selection.uris(errors=False)))
        stems.refuse(selection.uris(errors=False), names)
    elif kind in _NAMED:
        names = common_names(selection.uris(errors=kind == "megadetector"))
    if config.image_urls:
        columns = selection.uris(errors=False)
        refuse_unused((without_known_secrets(uri) for one in columns for uri in one.to_pylist()), config.image_urls)
    if kind in TREES:
        classes = selection.classes() if kind in NUMBERED_ANEW else {}
        return TREES[kind](open_unflushed(config.out, config.options), names, classes)

    def writer(sink: IO[bytes]) -> RowsWriter:
        if kind == "labelstudio":
            return LabelStudioTasks(sink, names, config.image_urls)
        return DOCUMENTS[kind](sink, names) if kind in DOCUMENTS else WRITERS[kind](sink, selection.schema)

    if config.is_file:
        root, key = split_uri(config.out)
        return OneFile(Path(join_uri(root, key).removeprefix("file://")), writer)
    return Folder(open_store(config.out, config.options), SUFFIXES[kind], writer, config.most_images)


class _Selection:
    """The rows of a table to export. Which of them are current is computed at the first use, and once."""

    def __init__(self, table: Store, files: _Files, config: ExportConfig) -> None:
        self.schema = files.schema
        self._table, self._files, self._config = table, files, config
        self._recorded = RecordedSettings(table)

    def rows(self, show: Callable[[int, int], None]) -> Iterator[pa.Table]:
        """Yield the rows to write from each row group, with all columns."""
        seen = 0
        for name, file, group, mask in self._groups():
            seen += file.metadata.row_group(group).num_rows
            for start, rows in _batches(file, name, group) if mask is None or pc.any(mask).as_py() else ():
                with parquet_of(name):
                    kept = self._is_chosen(rows) if mask is None else mask.slice(start, len(rows))
                    chosen = _with_columns(rows.filter(kept), self.schema, self._recorded)
                if len(chosen):
                    yield chosen
            show(seen, self._files.rows)

    def uris(self, *, errors: bool) -> Iterator[pa.ChunkedArray]:
        """Yield the addresses of the current rows, with or without those of errors."""
        for name, file, group, mask in self._groups():
            assert mask is not None, "formats of images have current rows only"
            if pc.any(mask).as_py():
                with parquet_of(name):
                    rows = file.read_row_group(group, columns=["uri", "error_kind"]).filter(mask)
                yield (rows if errors else rows.filter(pc.is_null(rows["error_kind"])))["uri"]

    def classes(self) -> dict[int, str]:
        """Return the classes in the current rows: id -> name. Includes marked repeats: a mark does not renumber.

        Raises:
            RayDetrError: an id has two names.
        """
        found = Categories()
        for name, file, group, mask in self._groups():
            assert mask is not None, "formats of images have current rows only"
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            wanted = [leaf for leaf in leaves if re.fullmatch(r"detections\..*\.(category_id|label)", leaf)]
            for start, rows in _batches(file, name, group, wanted) if pc.any(mask).as_py() else ():
                boxes = rows["detections"].filter(mask.slice(start, len(rows))).combine_chunks().flatten()
                ids, labels = boxes.field("category_id"), boxes.field("label").cast(pa.string())
                pairs = pa.table({"id": ids, "label": labels}).group_by(["id", "label"]).aggregate([])
                for number, label in zip(pairs["id"].to_pylist(), pairs["label"].to_pylist(), strict=True):
                    found.add_class(number, label, f"those of {name}")
        return found.names

    def _groups(self) -> Iterator[tuple[str, pq.ParquetFile, int, pa.Array | None]]:
        """Yield each row group: name of its file, file, number, and which of its rows are current if only these are."""
        current = self._current if self._config.latest or self._config.is_of_images else None
        for number, (name, file) in enumerate(_opened(self._table, self._files.entries)):
            first = 0
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                yield name, file, group, None if current is None else pa.array(current[number][first:stop])
                first = stop

    def _is_chosen(self, rows: pa.Table) -> pa.Array:
        chosen = of_model(rows, self._config.model)
        if self._config.settings is not None:
            chosen = chosen & with_settings(rows, self._config.settings, self._recorded)
        return pa.array(chosen)

    @cached_property
    def _current(self) -> Sequence[Mask]:
        opened = _opened(self._table, self._files.entries)
        return current_rows(opened, self._config.model, settings=self._config.settings, recorded=self._recorded)


def _batches(
    file: pq.ParquetFile, name: str, group: int, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a row group, 1,024 at a time, because it may have millions of boxes; each with its start."""
    start = 0
    batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
    while True:
        with parquet_of(name):
            batch = next(batches, None)
            if batch is None:
                return
            rows = pa.Table.from_batches([batch])
        yield start, rows
        start += len(rows)


def _without_repeats(parts: Iterator[pa.Table], matcher: Matcher, left_out: Counter[str]) -> Iterator[pa.Table]:
    """Yield the rows without the detections that a mark covers, and count these."""
    for part in parts:
        rows, lost = matcher.without_repeats(part)
        left_out["detections"] += int(lost.sum())
        yield rows


def _pieces(parts: Iterator[pa.Table], config: ExportConfig) -> Iterator[pa.Table]:
    """Yield the rows in the units in which they are written: row groups of Parquet, else some hundred rows."""
    if config.kind == "parquet":
        yield from _row_groups(parts)
        return
    most = min(_PIECE_ROWS, config.most_images or _PIECE_ROWS)
    for rows in parts:
        yield from (rows.slice(first, most) for first in range(0, len(rows), most))


def _row_groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in pieces large enough for a row group; the last may be smaller."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= ROW_GROUP_ROWS or sum(part.nbytes for part in held) >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _with_columns(rows: pa.Table, schema: pa.Schema, recorded: RecordedSettings) -> pa.Table:
    """Return the rows with the columns of all files, null if their file has none, and with their run's settings."""
    settings = recorded.of_rows(rows).dictionary_encode()
    if COLUMN in rows.column_names:
        rows = rows.set_column(rows.schema.get_field_index(COLUMN), COLUMN, settings)
    else:
        rows = rows.append_column(COLUMN, settings)
    columns = [
        rows[column.name].cast(column.type) if column.name in rows.column_names else pa.nulls(len(rows), column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _opened(table: Store, entries: Sequence[StoreEntry]) -> Iterator[tuple[str, pq.ParquetFile]]:
    for entry in entries:
        yield join_uri(table.uri, entry.key), open_listed(table, entry)
