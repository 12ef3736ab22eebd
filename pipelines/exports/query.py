"""Run SQL over the published rows of a table in DuckDB, with the credentials of the other commands."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.errors import RayDetrError, UsageError
from pipelines.exports.config import QueryConfig
from pipelines.exports.views import TABLES, one_line, opened_views

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

_NUMBER: Final = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The result of a query: values as text, None for NULL.

    Attributes:
        columns: Their names, in order.
        is_number: Which of them are numeric.
        rows: The first `most_rows`; empty if the result was written to a file.
        is_cut: Whether there are more.
    """

    columns: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: Sequence[tuple[str | None, ...]]
    is_cut: bool = False


def query_table(config: QueryConfig) -> QueryResult:
    """Run a query on the currently published rows of a table.

    DuckDB reads local files itself, others through our stores; only the required parts are read.

    Raises:
        UsageError: DuckDB is not installed or refuses the SQL, the table does not exist, or `out` exists already.
        RayDetrError: the table is damaged or cannot be read, or `out` cannot be written.
    """
    try:
        if config.out is not None and config.out.exists():
            raise UsageError(f"{config.out} exists already. Remove it, or name another file.")
    except OSError as error:
        raise RayDetrError(f"cannot write {config.out}: {error.strerror or error}.") from error
    with opened_views(config.table, config.options, model=config.model, settings=config.settings) as views:
        import duckdb  # here: an extra

        try:
            if len(duckdb.extract_statements(config.sql)) > 1:
                raise UsageError("the query has several statements, of which only one can be answered. Give one.")
            return _answer(views.engine.sql(config.sql), config)
        except OSError as error:
            raise RayDetrError(f"cannot write {config.out}: {error.strerror or error}.") from error
        except duckdb.OperationalError:  # errors that another query would not fix
            raise
        except duckdb.Error as error:
            if views.files.failure is not None:
                raise
            hint = f" The tables are {', '.join(TABLES)}." if isinstance(error, duckdb.CatalogException) else ""
            raise UsageError(f"the query is refused: {one_line(error)}{hint}") from error


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


def _write(found: DuckDBPyRelation, out: Path) -> None:
    """Write the result to a new file, which gets its name when it is complete."""
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
        writers[out.suffix](str(unfinished.absolute()))  # DuckDB gives `~` and `name://` a meaning of its own
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)
