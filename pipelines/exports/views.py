"""The tables for SQL: DuckDB views over the published rows and the marks of a detection table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.current import CURRENT, no_such_rows, rows_query
from pipelines.labelling.recorded_settings import RecordedSettings
from pipelines.marks.marks import Mark, read_marks
from pipelines.marks.matching import Boxes, Matcher, folders_of
from pipelines.store import (
    Store,
    StoreEntry,
    StoreError,
    StoreOptions,
    join_uri,
    open_store,
    split_uri,
    without_secrets,
)
from pipelines.store.duckdb_files import TABLE_PROTOCOL, StoreFileSystem
from pipelines.store.uris import LOCAL_ROOT
from pipelines.table.files import DATA, SUFFIX, in_order_of_runs

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TABLES: Final = ("detections", "images", "repeats", "rows")
BOX_COLUMNS: Final = "uri, label, width, height, xmin, ymin, xmax, ymax"
"""Arguments of a function of `add_matcher`: columns of `detections`."""


@dataclass(frozen=True, slots=True)
class TableEngine:
    """A DuckDB connection with the views of one table.

    Attributes:
        engine: the connection.
        table: the table.
        files: its files.
    """

    engine: DuckDBPyConnection
    table: Store
    files: StoreFileSystem


@contextmanager
def opened_views(
    uri: str,
    options: StoreOptions | None,
    *,
    model: str | None = None,
    settings: str | None = None,
    place: str = ":memory:",
    what: str = "query",
) -> Iterator[TableEngine]:
    """Open a table for SQL: `rows`, `images` (current rows), `detections` (a row for each box) and `repeats` (marks).

    DuckDB reads local files itself, others through our stores; only the required parts are read.

    Args:
        uri: the detection table.
        options: access to the table.
        model: only rows of this model, by its name in rows; None means any.
        settings: only rows with these settings, as in the column `settings`; None means any.
        place: a file for tables that queries create; in memory by default.
        what: the command, for messages.

    Raises:
        UsageError: DuckDB is not installed, or the table has no published rows, or none of the model or settings.
        RayDetrError: the table is damaged or cannot be read.
    """
    try:
        import duckdb  # here: an extra
    except ImportError as error:
        raise UsageError(f"ray-detr {what} needs DuckDB: pip install 'ray-detr[query]'.") from error
    files = None
    shown = without_secrets(uri)
    try:
        table = open_store(uri, options)
        files = _published(table)
        with closing(duckdb.connect(place)) as engine:
            _create_views(engine, table, files, model, settings)
            yield TableEngine(engine, table, files)
    except StoreError as error:
        raise RayDetrError(f"cannot query {shown}: {error}") from error
    except duckdb.Error as error:
        if files is not None and files.failure is not None:  # DuckDB's message is a traceback of it
            raise RayDetrError(f"cannot query {shown}: {files.failure}") from files.failure
        raise RayDetrError(f"cannot query {shown}: {one_line(error)}") from error


def add_matcher(engine: DuckDBPyConnection, name: str, matcher: Matcher) -> None:
    """Add an SQL function that returns the id of the mark that covers a detection, or NULL: `name(BOX_COLUMNS)`."""

    def covering(  # DuckDB counts the parameters, so each needs a name
        uris: Any, labels: Any, width: Any, height: Any, xmin: Any, ymin: Any, xmax: Any, ymax: Any
    ) -> Any:  # fmt: skip
        boxes = Boxes(
            uris=_array(uris),
            sizes=np.stack([_floats(width), _floats(height)], axis=1),
            owners=np.arange(len(uris)),
            labels=_array(labels),
            sides=np.stack([_floats(side) for side in (xmin, ymin, xmax, ymax)], axis=1),
        )
        found = matcher.match(boxes)
        return matcher.ids.take(pa.array(found, mask=found < 0))

    kinds = ["VARCHAR", "VARCHAR", "INTEGER", "INTEGER", "FLOAT", "FLOAT", "FLOAT", "FLOAT"]
    _add_function(engine, name, covering, kinds)


def add_folders(engine: DuckDBPyConnection, name: str, levels: int) -> None:
    """Add an SQL function that returns the folder of an address, or NULL (`matching.folders_of`): `name(uri)`."""

    def folder(uris: Any) -> Any:
        return folders_of(_array(uris), levels)

    _add_function(engine, name, folder, ["VARCHAR"])


def _add_function(engine: DuckDBPyConnection, name: str, function: Callable[..., Any], kinds: Sequence[str]) -> None:
    """Add a function of Arrow columns that returns text."""
    from duckdb.func import ARROW, SPECIAL

    engine.create_function(name, function, list(kinds), "VARCHAR", type=ARROW, null_handling=SPECIAL)


def one_line(error: Exception) -> str:
    """Return an error's message as one sentence, without DuckDB's excerpt of the query."""
    text = " ".join(str(error).partition("\n\nLINE ")[0].split())
    return text if text.endswith(("!", "?")) else f"{text.rstrip('.')}."


def _published(table: Store) -> StoreFileSystem:
    """Return the files of a table, in the order of runs.

    Raises:
        UsageError: the table does not exist.
    """
    entries = [entry for entry in table.list(DATA) if entry.key.endswith(SUFFIX)]
    if not entries:
        raise UsageError(f"table {table.uri} has no published rows. Check the address, or label images into it.")
    entries.sort(key=lambda entry: in_order_of_runs(entry.key))
    return StoreFileSystem(table, {entry.key: _size(table, entry) for entry in entries})


def _size(table: Store, entry: StoreEntry) -> int:
    return entry.size if entry.size is not None else len(table.get(entry.key).data)


def _create_views(
    engine: DuckDBPyConnection, table: Store, files: StoreFileSystem, model: str | None, settings: str | None
) -> None:
    engine.execute("SET TimeZone = 'UTC'")
    root, _ = split_uri(table.uri)
    if root == LOCAL_ROOT:
        paths = [_as_pattern(join_uri(table.uri, key).removeprefix("file://")) for key in files.sizes]
    else:
        engine.register_filesystem(files)
        engine.execute("SET parquet_metadata_cache = true")
        paths = [f"{TABLE_PROTOCOL}://{key}" for key in files.sizes]
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    silent = engine.sql(
        f"SELECT DISTINCT run_id FROM ({rows_query(source)}) WHERE settings IS NULL"  # noqa: S608 - names are quoted
    ).fetchall()
    recorded = RecordedSettings(table)
    known = {run_id: text for (run_id,) in silent if (text := recorded.of_run(run_id)) is not None}
    engine.execute(f"CREATE VIEW rows AS {rows_query(source, model, settings, known)}")
    if (model, settings) != (None, None) and engine.execute("SELECT 1 FROM rows LIMIT 1").fetchone() is None:
        raise no_such_rows(table.uri, model, settings)
    engine.execute(f"CREATE VIEW images AS FROM rows {CURRENT}")
    matcher = Matcher(read_marks(table))
    repeat = "NULL::VARCHAR"
    if matcher:
        add_matcher(engine, "repeat_of", matcher)
        repeat = f"repeat_of({BOX_COLUMNS})"
    boxes = (
        "SELECT uri, d.label, d.category_id, d.score, d.box.xmin, d.box.ymin, d.box.xmax, d.box.ymax, width, height, "
        "model, settings, run_id FROM "
        "(SELECT uri, width, height, model, settings, run_id, unnest(detections) AS d FROM images)"
    )
    engine.execute(f"CREATE VIEW detections AS SELECT *, {repeat} AS repeat FROM ({boxes})")  # noqa: S608 - our texts
    engine.register("repeats", marks_table(matcher.marks))


def marks_table(marks: Sequence[Mark]) -> pa.Table:
    """Return marks as the table `repeats` has them: sides are shares of width and height."""
    fields = [mark.as_json() for mark in marks]
    columns = {
        "id": pa.array([one["id"] for one in fields], pa.string()),
        "folder": pa.array([one["folder"] for one in fields], pa.string()),
        "label": pa.array([one["label"] for one in fields], pa.string()),
        "images": pa.array([one["images"] for one in fields], pa.int64()),
        "iou": pa.array([one["iou"] for one in fields], pa.float64()),
    }
    for place, side in enumerate(("xmin", "ymin", "xmax", "ymax")):
        columns[side] = pa.array([one["box"][place] for one in fields], pa.float64())
    return pa.table(columns)


def _array(column: Any) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _floats(column: Any) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = _array(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _as_pattern(path: str) -> str:
    """Return a pattern that matches only this path."""
    return re.sub(r"([\[*?])", r"[\1]", path)
