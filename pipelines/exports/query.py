"""SQL over the published rows of a table, by DuckDB, with the credentials that the other commands use."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.current import CURRENT, rows_query
from pipelines.labelling.recorded_settings import RecordedSettings
from pipelines.store import (
    Store,
    StoreEntry,
    StoreError,
    StoreOptions,
    check_no_secret,
    join_uri,
    open_store,
    split_uri,
    without_secrets,
)
from pipelines.store.duckdb_files import TABLE_PROTOCOL, StoreFileSystem
from pipelines.store.uris import LOCAL_ROOT
from pipelines.table.files import DATA, SUFFIX, in_order_of_runs

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

TABLES: Final = ("detections", "images", "rows")
SUFFIXES: Final = (".csv", ".jsonl", ".parquet")
INSTALL: Final = "ray-detr query needs DuckDB: pip install 'ray-detr[query]'."

_NUMBER: Final = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)")


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """What is asked of which table.

    Args:
        table: The detection table.
        sql: One query of DuckDB's SQL. It may name `detections` (one row for each detected object of a current row),
            `images` (the current row of each image, as `exports.current` chooses it) and `rows` (all published rows).
        model: Only rows of this model, as rows name it; None means any.
        settings: Only rows with these settings, as the column `settings` has them; None means any.
        out: A new local file ending in .csv, .jsonl or .parquet; None returns the result.
        most_rows: How many rows are returned at most, without `out`.
        options: How the table is reached.
    """

    table: str
    sql: str
    model: str | None = None
    settings: str | None = None
    out: Path | None = None
    most_rows: int = 1_000
    options: StoreOptions | None = None

    def __post_init__(self) -> None:
        check_no_secret("table", self.table, instead="Leave it out: credentials are found as docs/security.md says.")
        if self.out is not None and self.out.suffix not in SUFFIXES:
            raise ValueError(f"out: {self.out} does not end in one of {', '.join(SUFFIXES)}.")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gave: texts by column, None for NULL.

    Attributes:
        columns: Their names, in order.
        is_number: Which of them hold numbers.
        rows: The first `most_rows`; none where they were written to a file.
        is_cut: Whether there are more.
    """

    columns: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: Sequence[tuple[str | None, ...]]
    is_cut: bool = False


def query_table(config: QueryConfig) -> QueryResult:
    """Run a query on what is published of a table now.

    Files of a folder are read by DuckDB itself, others through our stores, only the parts that the query needs.

    Raises:
        UsageError: DuckDB is not installed or refuses the SQL, the table does not exist, or `out` exists already.
        RayDetrError: the table is damaged or cannot be read, or `out` cannot be written.
    """
    try:
        import duckdb  # here: an extra
    except ImportError as error:
        raise UsageError(INSTALL) from error
    if config.out is not None and config.out.exists():
        raise UsageError(f"{config.out} exists already. Remove it, or name another file.")
    files, is_asked = None, False
    try:
        table = open_store(config.table, config.options)
        files = _published(table)
        with closing(duckdb.connect()) as engine:
            _create_tables(engine, table, files, config)
            is_asked = True
            return _answer(engine.sql(config.sql), config)
    except StoreError as error:
        raise RayDetrError(f"cannot query {without_secrets(config.table)}: {error}") from error
    except OSError as error:
        raise RayDetrError(f"cannot write {config.out}: {error.strerror or error}.") from error
    except duckdb.Error as error:
        if files is not None and files.failure is not None:  # what DuckDB says is a traceback of it
            raise RayDetrError(f"cannot query {without_secrets(config.table)}: {files.failure}") from files.failure
        if not is_asked or isinstance(error, duckdb.OperationalError):  # nothing that another query would mend
            raise RayDetrError(f"cannot query {without_secrets(config.table)}: {_one_line(error)}.") from error
        hint = f" The tables are {', '.join(TABLES)}." if isinstance(error, duckdb.CatalogException) else ""
        raise UsageError(f"the query is refused: {_one_line(error)}{hint}") from error


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


def _answer(found: DuckDBPyRelation | None, config: QueryConfig) -> QueryResult:
    if found is None:
        raise UsageError("the query is empty.")
    if config.out is not None:
        _write(found, config.out)
        return QueryResult(tuple(found.columns), (), ())
    # as text, because times with a zone need pytz as Python objects
    texts = found.project("COLUMNS(*)::VARCHAR").limit(config.most_rows + 1).fetchall()
    is_number = tuple(_NUMBER.fullmatch(str(kind)) is not None for kind in found.types)
    return QueryResult(tuple(found.columns), is_number, texts[: config.most_rows], is_cut=len(texts) > config.most_rows)


def _size(table: Store, entry: StoreEntry) -> int:
    return entry.size if entry.size is not None else len(table.get(entry.key).data)


def _create_tables(engine: DuckDBPyConnection, table: Store, files: StoreFileSystem, config: QueryConfig) -> None:
    engine.execute("SET TimeZone = 'UTC'")
    root, _ = split_uri(config.table)
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
    engine.execute(f"CREATE VIEW rows AS {rows_query(source, config.model, config.settings, known)}")
    engine.execute(f"CREATE VIEW images AS FROM rows {CURRENT}")
    engine.execute(
        "CREATE VIEW detections AS SELECT uri, d.label, d.category_id, d.score, d.box.xmin, d.box.ymin, d.box.xmax, "
        "d.box.ymax, width, height, model, settings, run_id FROM (SELECT *, unnest(detections) AS d FROM images)"
    )


def _as_pattern(path: str) -> str:
    """Return the pattern that matches this path only."""
    return re.sub(r"([\[*?])", r"[\1]", path)


def _write(found: DuckDBPyRelation, out: Path) -> None:
    """Write the result to a new file, which has its name when it is whole."""
    unfinished = out.parent / f".ray-detr-unfinished-{secrets.token_hex(8)}{out.suffix}"
    writers: dict[str, Callable[[str], object]] = {
        ".csv": lambda path: found.write_csv(path, header=True),
        ".jsonl": lambda path: found.query(
            "result", f"COPY result TO '{path.replace(chr(39), 2 * chr(39))}' (FORMAT json)"
        ),
        ".parquet": lambda path: found.write_parquet(path, compression="zstd"),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writers[out.suffix](str(unfinished))
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    """Return what an error says, without the excerpt of the query that DuckDB draws below it."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())
