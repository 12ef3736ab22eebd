"""The rows of a table, all or the current one of each image, in one file or in a folder of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.exports.current import current_rows, of_model, with_settings
from pipelines.exports.formats import FORMATS, Format
from pipelines.exports.places import Folder, OneFile
from pipelines.labelling.recorded_settings import COLUMN, RecordedSettings
from pipelines.labelling.table_files import in_order_of_runs
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.stopped import RunStopped, WrongUse
from pipelines.store import Entry, Store, StoreError, StoreOptions, join_uri, open_store, split_uri, without_secrets
from pipelines.store.uris import LOCAL_ROOT
from pipelines.table import FIRST_COLUMNS, ROW_GROUP_ROWS, SCHEMA, check_columns

_FILE_SUFFIX: Final = re.compile(r"\.[a-zA-Z][a-zA-Z0-9]{0,7}$")  # not that of a version, such as v1.2


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What is exported where.

    Args:
        table: The detection table.
        out: A file of this machine that ends in .parquet or .jsonl, or a folder at any URI.
        latest: Only the current row of each image (`exports.current`).
        model: Only rows of this model, as rows name it; None means any.
        settings: Only rows with these settings, as the column `settings` has them; None means any.
        format: Of a folder's files; None is Parquet. A file's suffix says its own.
        options: How the table is reached, and a folder in a store.
    """

    table: str
    out: str
    latest: bool = False
    model: str | None = None
    settings: str | None = None
    format: Format | None = None
    options: StoreOptions | None = None

    def __post_init__(self) -> None:
        out, table = (join_uri(*split_uri(uri)).rstrip("/") + "/" for uri in (self.out, self.table))
        if out.startswith(table):
            raise ValueError(f"out: {without_secrets(self.out)} is inside the table. Name a place beside it.")
        if self.file_format is None:
            suffix = _FILE_SUFFIX.search(self.out)
            if suffix is not None:
                raise ValueError(
                    f"out: {without_secrets(self.out)} would be a folder, but ends as a file does, and files end in "
                    f"{' or '.join(f'.{one}' for one in FORMATS)}. Change {suffix[0]}, or end a folder's name with a "
                    "slash."
                )
            return
        if split_uri(self.out)[0] != LOCAL_ROOT:
            raise ValueError(
                f"out: {without_secrets(self.out)} is one file in an object store, which cannot be written piece by "
                "piece. Name a folder there, or a file of this machine."
            )
        if self.format not in (None, self.file_format):
            raise ValueError(f"out: {self.out} does not end in .{self.format}. Change the suffix, or leave the format.")

    @property
    def file_format(self) -> Format | None:
        """The format of the one file that is written, None where it is a folder."""
        return next((one for one in FORMATS if self.out.endswith(f".{one}")), None)


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written: rows, into how many files, of how many rows of the table; and rows by their settings."""

    out: str
    rows: int
    files: int
    rows_total: int
    settings: Mapping[str, int] = field(default_factory=dict)


def export(config: ExportConfig, *, show: Callable[[int, int], None] = lambda _rows, _total: None) -> ExportSummary:
    """Write the published rows of a table, in the order of its files; what is published meanwhile is left out.

    A file appears whole or not at all. A folder must be new; `_export.json` in it is written last, and says what it
    holds. Memory: two row groups, the bytes of one file of a folder, and of `latest` what `current_rows` needs.

    Args:
        config: What to write where.
        show: Called in this thread with how many rows of the table were looked at, and how many there are.

    Raises:
        RunStopped: the table is damaged or has no such rows, or there is something at `out` already.
    """
    try:
        return copy_rows(open_store(config.table, config.options), config, show=show)
    except StoreError as error:
        raise RunStopped(f"cannot export {without_secrets(config.table)}: {error}") from error


def copy_rows(
    table: Store, config: ExportConfig, *, show: Callable[[int, int], None] = lambda _rows, _total: None
) -> ExportSummary:
    """Do what `export` does with a table that is open already.

    Raises:
        RunStopped: as `export`.
        StoreError: a store refused.
    """
    files = _look(table)
    written = 0
    settings: Counter[str] = Counter()
    try:
        with _place(config, files.schema) as out:
            for rows in _row_groups(_chosen(table, files, config, show)):
                out.add(rows)
                written += len(rows)
                counts = rows[COLUMN].cast(pa.string()).drop_null().value_counts().to_pylist()
                settings.update({one["values"]: one["counts"] for one in counts})
            if not written and (config.model, config.settings) != (None, None):
                raise WrongUse(
                    f"table {table.uri} has no rows{_of(config)}. `python -m jobs.runs` tells its models and settings."
                )
            chosen = {"latest": config.latest, "model": config.model, "settings": config.settings}
            out.finish({"table": table.uri, "rows": written, **chosen})
    except OSError as error:  # of a file of this machine: reading the table's files has its own sentences
        raise RunStopped(f"cannot write {config.out}: {error.strerror or error}.") from error
    return ExportSummary(without_secrets(config.out), written, out.files, files.rows, dict(settings))


def _of(config: ExportConfig) -> str:
    model = "" if config.model is None else f" of model {config.model}"
    return model if config.settings is None else f"{model} with the settings {config.settings}"


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a table, in the order of runs and shards, the columns of all of them, and how many rows."""

    entries: Sequence[Entry]
    schema: pa.Schema
    rows: int


def _look(table: Store) -> _Files:
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
            known = columns.setdefault(column.name, column)
            if known.type != column.type:
                raise RunStopped(
                    f"{name} has the column {column.name} as {column.type}, and files before it as {known.type}: one "
                    "export cannot hold both. Query the files themselves."
                )
    if not entries:
        raise WrongUse(f"table {table.uri} has no published rows. Check the address, or label images into it.")
    return _Files(entries, pa.schema(list(columns.values())), rows)


def _place(config: ExportConfig, schema: pa.Schema) -> OneFile | Folder:
    if config.file_format is not None:
        root, key = split_uri(config.out)
        return OneFile(Path(join_uri(root, key).removeprefix("file://")), config.file_format, schema)
    return Folder(open_store(config.out, config.options), config.format or "parquet", schema)


def _chosen(table: Store, files: _Files, config: ExportConfig, show: Callable[[int, int], None]) -> Iterator[pa.Table]:
    """Yield what is to be written of each row group, with all columns."""
    recorded = RecordedSettings(table)
    current = None
    if config.latest:
        opened = _opened(table, files.entries)
        current = current_rows(opened, config.model, settings=config.settings, recorded=recorded)
    seen = 0
    for number, (name, file) in enumerate(_opened(table, files.entries)):
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            mask = None if current is None else pa.array(current[number][first : first + count])
            first, seen = first + count, seen + count
            if mask is None or pc.any(mask).as_py():
                with parquet_of(name):
                    rows = file.read_row_group(group)
                    if mask is None:
                        chosen = of_model(rows, config.model)
                        if config.settings is not None:
                            chosen = chosen & with_settings(rows, config.settings, recorded)
                        mask = pa.array(chosen)
                    yield _with_columns(rows.filter(mask), files.schema, recorded)
            show(seen, files.rows)


def _row_groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in pieces that are worth a row group each, the last apart."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= ROW_GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _with_columns(rows: pa.Table, schema: pa.Schema, recorded: RecordedSettings) -> pa.Table:
    """Return the rows with the columns of all files, null where their own file has none; settings of their run."""
    settings = recorded.of_rows(rows).dictionary_encode()
    if COLUMN in rows.column_names:
        rows = rows.set_column(rows.schema.get_field_index(COLUMN), COLUMN, settings)
    else:
        rows = rows.append_column(COLUMN, settings)
    columns = [
        rows[column.name] if column.name in rows.column_names else pa.nulls(len(rows), column.type) for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _opened(table: Store, entries: Sequence[Entry]) -> Iterator[tuple[str, pq.ParquetFile]]:
    for entry in entries:
        yield join_uri(table.uri, entry.key), open_listed(table, entry)
