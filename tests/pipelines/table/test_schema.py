"""The detection table: what a row may be, and that every engine reads back what was written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RayDetrError
from pipelines.table.schema import (
    ERROR_KINDS,
    NO_COLUMNS,
    PERMANENT_KINDS,
    SCHEMA,
    TRANSIENT_KINDS,
    Detected,
    Origin,
    Row,
    Totals,
    check_kept,
    decode,
    encode,
    read_metadata,
    rows_to_table,
    table_schema,
    total,
)

ORIGIN = Origin("detr@0123456789ab", 0.5, "run-1", 3, datetime(2026, 11, 22, 18, 15, 3, 250, tzinfo=UTC))

CAT_AND_DOG = Detected(
    np.array([17, 18]), ("cat", "dog"), np.array([0.75, 0.5], "f4"), np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "f4")
)
NOTHING: Detected = Detected([], (), [], [])

ROWS = [
    Row("s3://b/a.jpg", "e1", 10, 640, 480, datetime(2020, 2, 29, 12), CAT_AND_DOG),  # noqa: DTZ001 - a camera's clock
    Row("s3://b/b.jpg", None, None, 1, 1, detections=NOTHING),
    Row("s3://b/c.jpg", "e3", 3, error_kind="truncated", error="cut after 3 bytes"),
]


def test_the_columns_are_those_that_are_documented() -> None:
    assert SCHEMA.names == [
        *("uri", "etag", "size", "status", "error_kind", "error", "width", "height", "taken_at", "detections"),
        *("model", "threshold", "settings", "run_id", "shard", "labelled_at"),
    ]
    detection = SCHEMA.field("detections").type.value_type
    assert [(child.name, str(child.type)) for child in detection][:3] == [
        ("category_id", "int32"),
        ("label", "string"),
        ("score", "float"),
    ]
    assert [side.name for side in detection.field("box").type] == ["xmin", "ymin", "xmax", "ymax"]


def test_a_row_comes_back_with_every_value() -> None:
    rows = decode(encode(rows_to_table(ROWS, origin=ORIGIN))).to_pylist()

    assert rows[0] == {
        "uri": "s3://b/a.jpg",
        "etag": "e1",
        "size": 10,
        "status": "ok",
        "error_kind": None,
        "error": None,
        "width": 640,
        "height": 480,
        "taken_at": datetime(2020, 2, 29, 12),  # noqa: DTZ001
        "detections": [
            {"category_id": 17, "label": "cat", "score": 0.75, "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}},
            {"category_id": 18, "label": "dog", "score": 0.5, "box": {"xmin": 5, "ymin": 6, "xmax": 7, "ymax": 8}},
        ],
        "model": "detr@0123456789ab",
        "threshold": 0.5,
        "settings": None,
        "run_id": "run-1",
        "shard": 3,
        "labelled_at": datetime(2026, 11, 22, 18, 15, 3, 250, tzinfo=UTC),
    }


def test_nothing_found_is_an_empty_list_and_an_error_is_null() -> None:
    table = rows_to_table(ROWS, origin=ORIGIN)

    assert [row if row is None else len(row) for row in table["detections"].to_pylist()] == [2, 0, None]
    assert table["status"].to_pylist() == ["ok", "ok", "error"]
    assert table["error_kind"].to_pylist() == [None, None, "truncated"]
    assert table["error"].to_pylist() == [None, None, "cut after 3 bytes"]


def test_no_rows_make_an_empty_table_of_the_same_columns() -> None:
    assert rows_to_table([], origin=ORIGIN).schema == SCHEMA
    assert decode(encode(rows_to_table([], origin=ORIGIN))).num_rows == 0


@given(
    counts=st.lists(st.none() | st.integers(0, 5), max_size=12),
    seed=st.integers(0, 9),
)
def test_detections_stay_with_their_image(counts: list[int | None], seed: int) -> None:
    random = np.random.default_rng(seed)
    found = [
        None
        if count is None
        else Detected(
            random.integers(0, 90, count),
            tuple(f"label {number}" for number in random.integers(0, 9, count)),
            random.random(count, "f4"),
            random.random((count, 4), "f4"),
        )
        for count in counts
    ]
    rows = [
        Row(f"s3://b/{index}", detections=item, error_kind=None if item else "empty")
        for index, item in enumerate(found)
    ]

    written = rows_to_table(rows, origin=ORIGIN)["detections"].to_pylist()

    assert [
        None if row is None else [(d["category_id"], d["label"], d["score"], *d["box"].values()) for d in row]
        for row in written
    ] == [
        None
        if item is None
        else [
            (int(identity), label, float(score), *map(float, box))
            for identity, label, score, box in zip(
                np.asarray(item.category_ids),
                item.labels,
                np.asarray(item.scores),
                np.asarray(item.boxes_xyxy),
                strict=True,
            )
        ]
        for item in found
    ]


def test_a_row_is_either_labelled_or_an_error() -> None:
    with pytest.raises(ValueError, match="detections or an error kind"):
        Row("s3://b/a")
    with pytest.raises(ValueError, match="detections or an error kind"):
        Row("s3://b/a", detections=NOTHING, error_kind="empty")
    with pytest.raises(ValueError, match="unknown error kind 'broken'"):
        Row("s3://b/a", error_kind="broken")


def test_error_kinds_are_permanent_or_transient() -> None:
    assert {"missing", "denied", "archived", "fetch_failed"} == TRANSIENT_KINDS
    assert not TRANSIENT_KINDS & PERMANENT_KINDS
    assert TRANSIENT_KINDS | PERMANENT_KINDS == ERROR_KINDS


@pytest.mark.parametrize(
    "detected",
    [
        Detected([1, 2], ("cat",), [0.5], [[1, 2, 3, 4]]),
        Detected([1], ("cat",), [0.5, 0.4], [[1, 2, 3, 4]]),
        Detected([1], ("cat",), [0.5], [[1, 2, 3, 4]] * 2),
        Detected([1], ("cat",), [0.5], [[1, 2, 3]]),
    ],
)
def test_detections_that_do_not_fit_together_are_refused(detected: Detected) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        rows_to_table([Row("s3://b/a", detections=detected)], origin=ORIGIN)


def test_a_message_with_a_foreign_byte_is_stored_readably() -> None:
    row = Row("s3://b/a", error_kind="unreadable", error="cannot read f\udcfcr.jpg")

    assert rows_to_table([row], origin=ORIGIN)["error"].to_pylist() == ["cannot read f\\udcfcr.jpg"]


def test_kept_columns_follow_the_tables_own_with_their_types() -> None:
    kept = pa.schema([pa.field("station", pa.int16(), nullable=False), pa.field("tags", pa.list_(pa.string()))])
    rows = [
        Row("s3://b/a", detections=NOTHING, kept=(7, ["x"])),
        Row("s3://b/b", detections=NOTHING, kept=(None, None)),
    ]

    table = rows_to_table(rows, kept, origin=ORIGIN)

    assert table.column_names[-2:] == ["station", "tags"]
    assert decode(encode(table))["station"].to_pylist() == [7, None]
    assert table.schema.field("station").type == pa.int16()


def test_kept_values_are_counted() -> None:
    with pytest.raises(ValueError, match="has 0 kept values for 1 columns"):
        rows_to_table([ROWS[0]], pa.schema([("station", pa.int16())]), origin=ORIGIN)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["camera", "model"], "'model' is a column of the detection table itself"),
        (["Status"], "'Status' is a column of the detection table itself"),
        (["camera", "Camera"], "'Camera' is named twice"),
    ],
)
def test_kept_columns_that_collide_are_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_kept(names)
    with pytest.raises(ValueError, match=sentence):
        table_schema(pa.schema([(name, pa.string()) for name in names]))


def test_totals_add_up() -> None:
    first = total(rows_to_table(ROWS, origin=ORIGIN))

    assert first == Totals(3, 2, {"truncated": 1})
    assert first + Totals(1, 0, {"empty": 1}) + first == Totals(7, 4, {"empty": 1, "truncated": 2})
    assert total(rows_to_table([], origin=ORIGIN)) == Totals()


def test_a_file_says_its_schema_version_and_what_it_was_given() -> None:
    data = encode(rows_to_table(ROWS, origin=ORIGIN), {"configuration": '{"threshold": 0.5}'})

    file = pq.ParquetFile(pa.BufferReader(data))

    assert read_metadata(file) == {"schema_version": "2", "configuration": '{"threshold": 0.5}'}


def test_a_file_has_statistics_a_page_index_checksums_and_zstd() -> None:
    file = pq.ParquetFile(pa.BufferReader(encode(rows_to_table(ROWS, origin=ORIGIN))))

    uris = file.metadata.row_group(0).column(0)

    assert (uris.statistics.min, uris.statistics.max) == ("s3://b/a.jpg", "s3://b/c.jpg")
    assert uris.has_offset_index
    assert uris.has_column_index
    assert uris.compression == "ZSTD"


def test_equal_tables_give_equal_bytes() -> None:
    assert encode(rows_to_table(ROWS, origin=ORIGIN)) == encode(rows_to_table(ROWS, origin=ORIGIN))


def test_one_flipped_bit_is_noticed() -> None:
    rows = [Row(f"s3://b/{index * 7919 % 1000:03d}.jpg", detections=NOTHING) for index in range(1000)]
    data = bytearray(encode(rows_to_table(rows, origin=ORIGIN)))
    data[len(data) // 8] ^= 1

    with pytest.raises(RayDetrError, match="part 7 is damaged: it cannot be read as Parquet"):
        decode(bytes(data), name="part 7")


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"nothing of the kind", encode(rows_to_table(ROWS, origin=ORIGIN))[:-9]]
)
def test_a_file_that_is_not_parquet_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(RayDetrError, match="this Parquet file is damaged"):
        decode(data)


def test_dictionaries_survive_concatenation_in_pyarrow_pandas_and_duckdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.table.schema.ROW_GROUP_ROWS", 5)
    import duckdb
    import pandas as pd

    emu = Detected([1], ("emu",), [0.25], [[0, 0, 1, 1]])
    parts = [
        decode(encode(rows_to_table(ROWS, origin=ORIGIN))),
        decode(
            encode(
                rows_to_table(
                    [Row("s3://b/d.jpg", detections=emu)], origin=Origin("other@1", 0.1, "run-2", 4, ORIGIN.labelled_at)
                )
            )
        ),
    ]
    more = [Row(f"s3://b/e{index:06d}.jpg", detections=emu) for index in range(5)]
    joined = pa.concat_tables([*parts, rows_to_table(more, origin=ORIGIN)])
    path = tmp_path / "data" / "run-1" / "00000.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(joined))

    labels = ["cat", "dog", "emu"]
    models = ["detr@0123456789ab"] * 3 + ["other@1"]
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 2
    for table in (file.read(), pq.read_table(path), pq.read_table(tmp_path)):
        assert table["model"].to_pylist()[:4] == models
        assert [d["label"] for row in table["detections"].to_pylist()[:4] if row for d in row] == labels
    frame = pd.read_parquet(tmp_path)
    assert list(frame["model"][:4]) == models
    assert [d["label"] for row in frame["detections"][:4] if row is not None for d in row] == labels
    with duckdb.connect() as engine:
        found = engine.sql(
            "SELECT model, list_transform(detections, lambda d: d.label) FROM read_parquet($files) LIMIT 4",
            params={"files": f"{tmp_path}/**/*.parquet"},
        ).fetchall()
    assert [row[0] for row in found] == models
    assert [row[1] for row in found] == [["cat", "dog"], [], None, ["emu"]]


def test_the_words_of_many_parts_are_stored_once() -> None:
    def stored_bytes(models: list[str]) -> int:
        parts = [
            rows_to_table(
                [Row("s3://b/a", detections=NOTHING)] * 100, origin=Origin(model, 0.5, "run-1", 0, ORIGIN.labelled_at)
            )
            for model in models
        ]
        file = pq.ParquetFile(pa.BufferReader(encode(pa.concat_tables(parts))))
        size: int = file.metadata.row_group(0).column(file.schema.names.index("model")).total_uncompressed_size
        return size

    assert stored_bytes([f"a long name of a model {number % 2}" for number in range(64)]) < 3000  # 6,400 rows


def test_no_columns_is_what_nothing_kept_looks_like() -> None:
    assert table_schema(NO_COLUMNS) == SCHEMA
