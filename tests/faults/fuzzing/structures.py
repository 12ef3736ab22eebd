"""Damage to what JSON and Parquet files say, in files that are whole as such: no checksum guards against these."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_DEEP = "\0deep\0"
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -5, 3, 7, 2**31, 2**31 - 1, 2**63 - 1, 2**63, 2**64, 10**30,
    1e308, float("nan"), float("inf"), float("-inf"), "", " ", "x", "1", "x" * 100_000, "\ud800", "\0", "\u202e",
    "../../x", "/etc/passwd", "..", "a/b", "s3://elsewhere/x", "sealed", "complete", "finished",
    [], {}, [[]], [None], [1, 2, 3, 4], {"x": 1}, {"": None}, _DEEP,
)  # fmt: skip


def damage_json(random: Random, data: bytes) -> bytes:
    """Return a JSON document in which one to three values are others, or are missing, doubled or named otherwise."""
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _damage_value(random, document)
    depth = random.choice((100, 1_500, 200_000))
    text = json.dumps(document, indent=random.choice((None, 2)))
    return text.replace(json.dumps(_DEEP), "[" * depth + "]" * depth).encode()


def damage_parquet(random: Random, data: bytes) -> bytes:
    """Return a Parquet file with other columns, types, rows, row groups or metadata, and the checksums of these."""
    table = pq.read_table(pa.BufferReader(data))
    for _ in range(random.choice((1, 1, 2))):
        table = random.choice((_other_column, _other_column, _other_rows, _other_metadata, _other_metadata))(
            random, table
        )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=random.choice((1, 1, 2, 1000)),
        write_page_checksum=random.random() < 0.8,
        compression=random.choice(("zstd", "none")),
    )
    result: bytes = sink.getvalue().to_pybytes()
    return result


def _damage_value(random: Random, document: Any) -> Any:
    """Walk down to a place drawn by chance and put something else there."""
    if not isinstance(document, (dict, list)) or not document or random.random() < 0.15:
        return deepcopy(random.choice(_VALUES))
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = random.choice(keys)
    way = random.random()
    if way < 0.15:
        del document[key]
    elif way < 0.2 and isinstance(document, dict):
        document[random.choice((f"{key}x", "x", "", "../x", key.upper()))] = deepcopy(document[key])
    elif way < 0.25 and isinstance(document, list):
        document.append(deepcopy(document[key]))
    elif way < 0.6 and isinstance(document[key], (dict, list)):
        document[key] = _damage_value(random, document[key])
    else:
        document[key] = deepcopy(random.choice((*_VALUES, *_near(document[key]))))  # damage must not change _VALUES
    return document


def _near(value: object) -> list[Any]:
    """Return values of the same type, which look right."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, -value, 10 * value, float(value), str(value)]
    if isinstance(value, float):
        return [value / 2, -value, str(value)]
    if isinstance(value, str):
        return [value + "x", value[:-1], value.upper(), f"../{value}", f"{value}\ud800"]
    return []


def _other_column(random: Random, table: pa.Table) -> pa.Table:
    if not table.num_columns:
        return table
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    way = random.randrange(7)
    if way == 0:
        return table.remove_column(place)
    if way == 1:
        return table.rename_columns(
            [f"{one}x" if index == place else one for index, one in enumerate(table.column_names)]
        )
    if way == 2:
        return table.append_column(random.choice((name, "more")), column)
    if way == 3:
        return table.set_column(place, name, pa.nulls(table.num_rows, column.type))
    if way == 4:
        return table.set_column(place, name, pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()))
    if way == 5:
        order = list(range(table.num_columns))
        random.shuffle(order)
        return table.select(order)
    return table.set_column(place, name, pa.array(range(table.num_rows), random.choice((pa.int64(), pa.float64()))))


def _other_rows(random: Random, table: pa.Table) -> pa.Table:
    order = list(range(table.num_rows))
    way = random.randrange(4)
    if way == 0:
        random.shuffle(order)
    elif way == 1 and order:
        order.append(random.choice(order))
    elif way == 2 and order:
        order.remove(random.choice(order))
    elif way == 3:
        order = []
    return table.take(order) if order else table.slice(0, 0)


def _other_metadata(random: Random, table: pa.Table) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    ours = [name for name in metadata if not name.startswith(b"ARROW")]
    if not ours:
        return table
    name = random.choice(ours)
    if random.random() < 0.2:
        del metadata[name]
    elif metadata[name].startswith((b"{", b"[")) and random.random() < 0.8:
        metadata[name] = damage_json(random, metadata[name])
    else:
        metadata[name] = random.choice((b"", b"\xff\xfe", b"x", b"null", b"{}", b"[]", b"NaN", b"-1", b"../../x"))
    return table.replace_schema_metadata(metadata)
