"""An image that changed back to a version that is labelled gets no duplicate row; other rows are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.labelling.duplicates import reject_republished_versions
from pipelines.labelling.mask_column import MASKS
from pipelines.store import Blob, StoreEntry
from pipelines.table.files import table_file_key
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table
from tests.memory_store import MemoryStore, memory_store

NOW = datetime(2026, 11, 27, tzinfo=UTC)
FOUND = Detected([1], ("cat",), [0.5], [[0.0, 0.0, 1.0, 1.0]])


def rows_of(
    run_id: str, *versions: tuple[str, str | None], model: str = "detr@1", error: str | None = None
) -> pa.Table:
    rows = [
        Row(uri, etag, detections=None if error else FOUND, error_kind=error, error=error and "why")
        for uri, etag in versions
    ]
    return rows_to_table(rows, origin=Origin(model, 0.5, run_id, 0, NOW))


class Counted(MemoryStore):
    """Counts the bytes that are read of each object."""

    def __init__(self) -> None:
        super().__init__("memory://table")
        self.read: dict[str, int] = {}

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        self.read[key] = self.read.get(key, 0) + length
        return super().get(key).data[start : start + length]

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        raise AssertionError(f"{key} is read whole")


def publish(table: MemoryStore, run_id: str, segment: int, rows: pa.Table) -> None:
    table.put(table_file_key(run_id, segment, "flat"), encode(rows))


def settle(table: MemoryStore, rows: pa.Table, planned: Sequence[str | None], *, threads: int = 1) -> list[str]:
    settled = reject_republished_versions(table, "now", rows, pa.chunked_array([planned], pa.string()), threads=threads)
    assert settled.schema == rows.schema
    kept = [name for name in rows.column_names if name not in ("status", "error_kind", "error", "detections")]
    assert settled.select(kept).equals(rows.select(kept))
    return [row["error_kind"] or row["status"] for row in settled.to_pylist()]


@pytest.fixture
def table() -> Counted:
    """Of an earlier run: b, c and d at version 1 as `ok` rows."""
    table = Counted()
    publish(table, "before", 0, rows_of("before", ("b", "1"), ("c", "1"), ("d", "1")))
    return table


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_the_last_and_one_between_of_a_file_are_found(table: Counted, threads: int) -> None:
    rows = rows_of("now", ("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"))

    assert settle(table, rows, ["2"] * 5, threads=threads) == [
        "ok",
        "fetch_failed",
        "fetch_failed",
        "fetch_failed",
        "ok",
    ]
    for name in "bcd":
        assert settle(table, rows_of("now", (name, "1")), ["2"], threads=threads) == ["fetch_failed"]


@pytest.mark.parametrize(
    ("recorded", "settings", "status"),
    [("A", "A", "fetch_failed"), ("A", "B", "ok"), ("A", None, "fetch_failed"), (None, "A", "fetch_failed")],
)
def test_only_rows_of_the_same_settings_count_where_settings_are_given(
    recorded: str | None, settings: str | None, status: str
) -> None:
    """Rows whose settings nobody has recorded count for all."""
    table, rows = memory_store(), rows_of("now", ("b", "1"))
    with_settings = replace(Origin("detr@1", 0.5, "before", 0, NOW), settings=recorded)
    earlier = rows_to_table([Row("b", "1", detections=FOUND)], origin=with_settings)
    table.put(table_file_key("before", 0, "flat"), encode(earlier))

    settled = reject_republished_versions(
        table, "now", rows, pa.chunked_array([["2"]], pa.string()), settings=settings, threads=1
    )

    assert [row["error_kind"] or row["status"] for row in settled.to_pylist()] == [status]


def test_the_row_says_what_happened(table: Counted) -> None:
    settled = reject_republished_versions(
        table, "now", rows_of("now", ("b", "1"), ("c", "2")), pa.chunked_array([["2", "2"]]), threads=1
    )

    second, other = settled.to_pylist()
    assert second["error"] == (
        "the object changed during the run, back to a version that already has a row in the table"
    )
    assert (second["status"], second["detections"], second["etag"]) == ("error", None, "1")
    assert (other["status"], other["error"], len(other["detections"])) == ("ok", None, 1)


def test_the_row_has_no_masks_but_other_columns_of_that_name_stay(table: Counted) -> None:
    rows = rows_of("now", ("b", "1"), ("c", "2"))
    masks = pa.array([["of b"], ["of c"]], MASKS.type)
    planned = pa.chunked_array([["2", "2"]])

    settled = reject_republished_versions(table, "now", rows.append_column(MASKS, masks), planned, threads=1)
    kept = rows.append_column("masks", pa.array(["yes", "no"]))

    assert settled["masks"].to_pylist() == [None, ["of c"]]
    assert settled.schema == rows.append_column(MASKS, masks).schema
    assert reject_republished_versions(table, "now", kept, planned, threads=1)["masks"].to_pylist() == ["yes", "no"]


@pytest.mark.parametrize(
    ("etag", "planned"),
    [("1", "1"), ("2", "1"), (None, "1"), ("1", None)],
    ids=["as planned", "a new version", "nobody tells", "not listed"],
)
def test_other_rows_stay(table: Counted, etag: str | None, planned: str | None) -> None:
    assert settle(table, rows_of("now", ("b", etag)), [planned]) == ["ok"]


def test_errors_stay(table: Counted) -> None:
    assert settle(table, rows_of("now", ("b", "1"), error="truncated"), ["2"]) == ["truncated"]
    assert table.read == {}


def test_nothing_is_read_where_nothing_changed_and_of_files_that_cannot_hold_it_the_footer(table: Counted) -> None:
    far = rows_of("before", *((f"x{number}", "1") for number in range(10_000)))
    publish(table, "before", 1, far)

    settle(table, rows_of("now", ("b", "1"), ("c", "1")), ["1", "1"])
    assert table.read == {}
    settle(table, rows_of("now", ("b", "1"), ("c", "1")), ["2", "1"])
    assert table.read[table_file_key("before", 0, "flat")] > 1_000
    settle(table, rows_of("now", ("x5", "1"), ("c", "1")), ["2", "1"])
    footer = table.read[table_file_key("before", 1, "flat")]
    table.read.clear()
    settle(table, rows_of("now", ("a", "1"), ("y", "1")), ["2", "2"])
    assert table.read[table_file_key("before", 1, "flat")] < footer / 2


@pytest.mark.parametrize(
    ("other", "model", "error"),
    [(("b", "1"), "detr@2", None), (("b", "1"), "detr@1", "truncated"), (("b", "2"), "detr@1", None)],
    ids=["another model's", "an error", "another version"],
)
def test_other_rows_of_that_image_are_no_reason(other: tuple[str, str], model: str, error: str | None) -> None:
    table = memory_store("memory://table")
    publish(table, "before", 0, rows_of("before", other, model=model, error=error))

    assert settle(table, rows_of("now", ("b", "1")), ["2"]) == ["ok"]


def test_files_of_this_run_and_other_files_are_not_read() -> None:
    table = memory_store("memory://table")
    publish(table, "now", 0, rows_of("now", ("b", "1")))
    table.put("data/notes.txt", b"of somebody")

    assert settle(table, rows_of("now", ("b", "1")), ["2"]) == ["ok"]


def test_files_without_statistics_or_sizes_are_looked_at_all_the_same() -> None:
    class NoSizes(MemoryStore):
        def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
            for entry in super().list(prefix, after):
                yield StoreEntry(entry.key, None, entry.etag)

    table = NoSizes("memory://table")
    sink = pa.BufferOutputStream()
    pq.write_table(rows_of("before", ("b", "1")), sink, write_statistics=False)
    table.put(table_file_key("before", 0, "flat"), sink.getvalue().to_pybytes())

    assert settle(table, rows_of("now", ("b", "1")), ["2"]) == ["fetch_failed"]


@pytest.mark.parametrize("place", ["footer", "page"])
def test_a_damaged_file_is_named(table: Counted, place: str) -> None:
    data = bytearray(encode(rows_of("earlier", *((f"b{number}", "1") for number in range(100)))))
    data[-8 if place == "footer" else 40] ^= 0xFF
    table.put(table_file_key("earlier", 3, "flat"), bytes(data))

    with pytest.raises(RayDetrError, match=r"memory://table/data/earlier-00003\.parquet is damaged"):
        settle(table, rows_of("now", ("b5", "1")), ["2"])


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (None, r"memory://table/data/before/x\.parquet has no column uri: it does not belong to a detection table"),
        (
            pa.array([b"b"], pa.binary()),
            r"memory://table/data/before/x\.parquet is damaged: its column uri is not text",
        ),
    ],
)
def test_a_file_that_does_not_name_its_images_by_text_is_refused(column: pa.Array | None, sentence: str) -> None:
    table = memory_store("memory://table")
    rows = rows_of("before", ("b", "1"))
    rows = rows.drop_columns("uri") if column is None else rows.set_column(0, "uri", column)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    table.put("data/before/x.parquet", bytes(sink.getvalue()))

    with pytest.raises(RayDetrError, match=sentence):
        settle(table, rows_of("now", ("b", "1")), ["2"])
