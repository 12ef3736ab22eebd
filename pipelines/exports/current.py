"""Selects the current row of each image, for images that several runs or models have labelled.

The current row is the newest one with status `ok` or a permanent error; otherwise the newest transient error.
Newest is by `labelled_at`, then by `run_id` and `shard`. Rows of one model with several settings compete with each
other, unless one settings value is given. `CURRENT` is the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UsageError
from pipelines.labelling.labelled_keys import KEY_BYTES, Keys
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.parquet_files import parquet_of
from pipelines.table.schema import TRANSIENT_KINDS

_KINDS = ", ".join(f"'{kind}'" for kind in sorted(TRANSIENT_KINDS))
CURRENT: Final = (
    "QUALIFY row_number() OVER (PARTITION BY uri ORDER BY "
    f"coalesce(error_kind IN ({_KINDS}), false), labelled_at DESC, run_id DESC, shard DESC) = 1"
)
"""The end of a DuckDB query that selects the current rows."""

_SAYS_SOMETHING: Final = 2**62  # larger than all times, which are microseconds since 1970

Mask = npt.NDArray[np.bool_]


def current_rows(
    files: Iterable[tuple[str, pq.ParquetFile]],
    model: str | None = None,
    *,
    settings: str | None = None,
    recorded: RecordedSettings | None = None,
) -> list[Mask]:
    """Return which rows of each file are current.

    Fetches the columns of names and times. Memory: about 70 bytes per row of the table temporarily, one byte
    afterwards.

    Args:
        files: Names and open files, in the order of runs and shards.
        model: Use rows of this model only; None: an image labelled by several models has one current row.
        settings: Use rows with these settings only; None: an image labelled with several has one current row.
        recorded: Returns the settings of rows without the column; required with `settings`.

    Raises:
        RayDetrError: a file is damaged.
        StoreError: the store refused.
    """
    masks: list[Mask] = []
    keys: list[Keys] = []
    ranks: list[npt.NDArray[np.int64]] = []
    for name, file in files:
        with parquet_of(name):
            rows = file.read(columns=["uri", "error_kind", "model", "labelled_at", *columns_of(file)])
            mask = of_model(rows, model)
            if settings is not None:
                assert recorded is not None, "whoever names settings knows the table"
                mask = mask & with_settings(rows, settings, recorded)
            rows = rows.filter(pa.array(mask))
            is_transient = pc.is_in(rows["error_kind"].cast(pa.string()), value_set=pa.array(sorted(TRANSIENT_KINDS)))
            times = rows["labelled_at"].cast(pa.int64()).to_numpy()
            uris = rows["uri"].to_pylist()
        masks.append(mask)
        keys.append(np.frombuffer(b"".join(map(_hash, uris)), f"S{KEY_BYTES}"))
        ranks.append(times + np.where(is_transient.to_numpy(), 0, _SAYS_SOMETHING))
    if keys:
        is_current = _is_current(np.concatenate(keys), np.concatenate(ranks))
        for mask, part in zip(masks, _cut(is_current, [len(one) for one in keys]), strict=True):
            mask[mask] = part
    return masks


def rows_query(
    files: str, model: str | None = None, settings: str | None = None, recorded: Mapping[str, str] | None = None
) -> str:
    """Return SQL for DuckDB that selects all rows of some files, each with its settings.

    Args:
        files: The data source, such as a call of read_parquet.
        model: As for `current_rows`.
        settings: As for `current_rows`.
        recorded: The settings of runs whose rows have no such column; without it, these rows have none.
    """
    cases = " ".join(f"WHEN {_quoted(run_id)} THEN {_quoted(text)}" for run_id, text in (recorded or {}).items())
    own = f"coalesce(settings, CASE run_id {cases} END)" if cases else "settings"
    wanted = {"model": model, "settings": settings}
    chosen = [f"{name} = {_quoted(value)}" for name, value in wanted.items() if value is not None]
    # files of earlier releases have no column `settings`, and a table may have no other files
    with_column = f"(FROM {files} UNION ALL BY NAME SELECT NULL::VARCHAR AS settings WHERE false)"
    only = f" WHERE {' AND '.join(chosen)}" if chosen else ""
    return f"FROM (SELECT * REPLACE ({own} AS settings) FROM {with_column}){only}"  # noqa: S608 - names are quoted


def no_such_rows(table: str, model: str | None, settings: str | None) -> UsageError:
    """Return the error that a table has no rows of a model or with some settings."""
    which = "" if model is None else f" of model {model}"
    which += "" if settings is None else f" with the settings {settings}"
    names = "" if model is None or "@" in model else " Rows have the name of a model with its fingerprint: NAME@e6f6..."
    return UsageError(f"table {table} has no rows{which}. `ray-detr runs` lists its models and settings.{names}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_current(keys: Keys, ranks: npt.NDArray[np.int64]) -> Mask:
    """Return which rows are the highest of their key; the last of equal ones."""
    order = np.lexsort((ranks, keys))
    ordered = keys[order]
    is_last = np.ones(len(keys), np.bool_)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    is_current = np.zeros(len(keys), np.bool_)
    is_current[order[is_last]] = True
    return is_current


def of_model(rows: pa.Table, model: str | None) -> Mask:
    """Return which rows are of a model; all for None."""
    if model is None:
        return np.ones(len(rows), np.bool_)
    mask: Mask = pc.equal(rows["model"].cast(pa.string()), model).to_numpy().copy()
    return mask


def with_settings(rows: pa.Table, settings: str, recorded: RecordedSettings) -> Mask:
    """Return which rows have these settings, by their column or by the record of their run."""
    mask: Mask = pc.fill_null(pc.equal(recorded.of_rows(rows), settings), fill_value=False).to_numpy()
    return mask


def _cut(values: Mask, lengths: Sequence[int]) -> Iterator[Mask]:
    first = 0
    for length in lengths:
        yield values[first : first + length]
        first += length


def _hash(uri: str) -> bytes:
    return blake2b(uri.encode(), digest_size=KEY_BYTES).digest()
