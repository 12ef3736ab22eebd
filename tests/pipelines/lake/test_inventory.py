"""S3 Inventories: what a report says of a bucket is what a listing would say, in its order."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.inventory import is_inventory, read_inventory
from pipelines.lake.lake_object import ARCHIVED, LakeObject, Skipped
from pipelines.lake.listing import list_objects
from pipelines.store import Store, StoreEntry
from tests.memory_store import memory_store

MANIFEST = "lake/all/2026-11-26T01-00Z/manifest.json"

SPELLED = {
    "bucket": "Bucket",
    "key": "Key",
    "version_id": "VersionId",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
    "size": "Size",
    "last_modified_date": "LastModifiedDate",
    "e_tag": "ETag",
    "storage_class": "StorageClass",
    "intelligent_tiering_access_tier": "IntelligentTieringAccessTier",
}

Columns = Mapping[str, list[object]]


def as_parquet(columns: Columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    return bytes(sink.getvalue())


def as_csv(columns: Columns) -> bytes:
    def text(name: str, value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        shown = "" if value is None else str(value)
        return f'"{quote_plus(shown, safe="/") if name == "key" else shown}"'

    lines = [",".join(map(text, columns, row)) for row in zip(*columns.values(), strict=True)]
    return gzip.compress("".join(f"{line}\n" for line in lines).encode())


FORMATS = {"CSV": as_csv, "Parquet": as_parquet}


def report(*files: Columns, kind: str = "Parquet", **fields: object) -> Store:
    """A bucket of reports, with one that has these files."""
    store = memory_store("s3://reports")
    named = []
    for number, columns in enumerate(files):
        data = FORMATS[kind](columns)
        key = f"lake/all/data/{number}.{kind.lower()}" + (".gz" if kind == "CSV" else "")
        store.put(key, data)
        named.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})  # noqa: S324
    names = list(files[0]) if files else []
    schema = ", ".join(SPELLED[name] for name in names) if kind == "CSV" else "message s3.inventory { ... }"
    manifest = {
        "sourceBucket": "lake",
        "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30",
        "creationTimestamp": "1764118800000",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": named,
        **fields,
    }
    data = json.dumps(manifest).encode()
    store.put(MANIFEST, data)
    store.put(MANIFEST.replace("json", "checksum"), hashlib.md5(data).hexdigest().encode() + b"\n")  # noqa: S324
    return store


@pytest.fixture(params=list(FORMATS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_objects_come_with_size_etag_and_class_in_the_order_of_their_keys(kind: str) -> None:
    first: Columns = {
        "bucket": ["lake"] * 4,
        "key": ["b/ü +%2B.jpg", "a.jpg", "z.jpg", "c.jpg"],
        "size": [3, 1, None, 4],
        "e_tag": ["abc-2", "d41d", None, "c"],
        "storage_class": ["STANDARD", "GLACIER", "INTELLIGENT_TIERING", "GLACIER_IR"],
        "intelligent_tiering_access_tier": [None, None, "ARCHIVE", None],
    }
    second: Columns = {**{name: values[:1] for name, values in first.items()}, "key": ["a/1.jpg"]}

    inventory = read_inventory(report(first, second, kind=kind), MANIFEST)

    assert inventory.bucket == "s3://lake"
    assert list(inventory.list()) == [
        StoreEntry("a.jpg", 1, "d41d", is_archived=True),
        StoreEntry("a/1.jpg", 3, "abc-2"),
        StoreEntry("b/ü +%2B.jpg", 3, "abc-2"),
        StoreEntry("c.jpg", 4, "c"),
        StoreEntry("z.jpg", None, None, is_archived=True),
    ]
    assert [entry.key for entry in inventory.list(after="b/ü +%2B.jpg")] == ["c.jpg", "z.jpg"]
    assert [entry.key for entry in inventory.list("a")] == ["a.jpg", "a/1.jpg"]


def test_old_versions_delete_markers_and_folder_markers_are_not_objects(kind: str) -> None:
    columns: Columns = {
        "key": ["a.jpg", "a.jpg", "b.jpg", "c/", "d/"],
        "version_id": ["2", "1", "1", "1", "1"],
        "is_latest": [True, False, True, True, True],
        "is_delete_marker": [False, False, True, False, False],
        "size": [2, 1, None, 0, 5],
    }

    inventory = read_inventory(report(columns, kind=kind), MANIFEST)

    assert list(inventory.list()) == [StoreEntry("a.jpg", 2, None), StoreEntry("d/", 5, None)]


def test_a_report_of_keys_alone_is_enough(kind: str) -> None:
    inventory = read_inventory(report({"key": ["b.jpg", "a.jpg"]}, kind=kind), MANIFEST)

    assert list(inventory.list()) == [StoreEntry("a.jpg", None, None), StoreEntry("b.jpg", None, None)]


def test_a_large_report_is_sorted_piece_by_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.lake.inventory._RUN_BYTES", 20_000)
    monkeypatch.setattr("pipelines.lake.inventory._CSV_BLOCK_BYTES", 10_000)
    monkeypatch.setattr("pipelines.lake.inventory._FETCH_BYTES", 1_000)
    keys = [f"{number:05d}/ä.jpg" for number in range(5_000)]
    shuffled = random.Random(1).sample(keys, len(keys))  # noqa: S311
    files = [{"key": shuffled[first : first + 1_000], "size": [1] * 1_000} for first in range(0, 5_000, 1_000)]

    inventory = read_inventory(report(*files, kind=kind), MANIFEST)

    assert len(inventory.runs) > 3
    assert [entry.key for entry in inventory.list()] == keys
    assert [entry.key for entry in inventory.list(after=keys[2_500])] == keys[2_501:]


def test_the_sorted_runs_are_removed_with_the_inventory() -> None:
    inventory = read_inventory(report({"key": ["a"]}), MANIFEST)
    folder = inventory.runs[0].parent
    assert [path.name for path in folder.iterdir()] == ["00000.run"]

    del inventory
    gc.collect()

    assert not folder.exists()


def test_a_report_tells_when_objects_were_modified_if_it_has_the_column(kind: str) -> None:
    written = [datetime(2026, 11, 27, 23, 59, 59, 999_000, UTC), datetime(2026, 11, 28, tzinfo=UTC), None]
    texts = ["2026-11-27T23:59:59.999Z", "2026-11-28T00:00:00.000Z", None]
    columns: Columns = {
        "key": ["a.jpg", "b.jpg", "c.jpg"],
        "last_modified_date": texts if kind == "CSV" else written,  # type: ignore[dict-item]
    }

    inventory = read_inventory(report(columns, kind=kind), MANIFEST)
    assert [entry.modified for entry in inventory.list()] == [1795823999.999, 1795824000.0, None]

    store = report({name: values[:2] for name, values in columns.items()}, kind=kind)
    source = f"s3://reports/{MANIFEST}"
    listing = list_objects([source], open_root=lambda _: store, modified_since=written[1])
    assert list(listing) == [Skipped("s3://lake/a.jpg", "not modified since"), LakeObject("s3://lake/b.jpg")]

    store = report({"key": ["a.jpg"]}, kind=kind)
    with pytest.raises(UsageError, match=r"manifest\.json does not have times .* LastModifiedDate"):
        list_objects([source], open_root=lambda _: store, modified_since=written[1])


@pytest.mark.parametrize("times", [["01 Jan 2026", "2 Jan 2026"], [7, 8]])
def test_times_of_another_form_are_unknown_and_stop_no_listing(kind: str, times: list[object]) -> None:
    store = report({"key": ["a.jpg", "b.jpg"], "last_modified_date": times}, kind=kind)

    assert [(entry.key, entry.modified) for entry in read_inventory(store, MANIFEST).list()] == [
        ("a.jpg", None),
        ("b.jpg", None),
    ]


def test_times_of_microseconds_are_read() -> None:
    written = pa.array([datetime(2026, 11, 28, 0, 0, 0, 123_456, UTC)], pa.timestamp("us", "UTC"))
    store = report({"key": ["a.jpg"], "last_modified_date": written})  # type: ignore[dict-item]

    (entry,) = read_inventory(store, MANIFEST).list()

    assert entry.modified == 1795824000.123


def test_a_run_takes_an_inventory_for_the_bucket_that_it_reports_on(kind: str) -> None:
    columns: Columns = {
        "key": ["2026/b.jpg", "table/data/x.jpg", "2026/a.jpg", ".hidden/a.jpg", "2026/a.txt"],
        "size": [1, 2, 3, 4, 5],
        "e_tag": ["1", "2", "3", "4", "5"],
        "storage_class": ["DEEP_ARCHIVE", "STANDARD", "STANDARD", "STANDARD", "STANDARD"],
    }
    store = report(columns, kind=kind)

    listing = list_objects([f"s3://reports/{MANIFEST}"], table="s3://lake/table", open_root=lambda _: store)

    assert list(listing) == [
        Skipped("s3://lake/.hidden/a.jpg", "hidden"),
        LakeObject("s3://lake/2026/a.jpg", "3", 3),
        Skipped("s3://lake/2026/a.txt", ".txt"),
        Skipped("s3://lake/2026/b.jpg", ARCHIVED),
        Skipped("s3://lake/table/data/x.jpg", "the table itself"),
    ]
    assert [item.uri for item in listing.after("s3://lake/2026/b.jpg")] == ["s3://lake/table/data/x.jpg"]


def removed(store: Store) -> None:
    store.delete("lake/all/data/0.parquet")


def cut_short(store: Store) -> None:
    store.put("lake/all/data/0.parquet", store.get("lake/all/data/0.parquet").data[:-1])


def altered(store: Store) -> None:
    store.put(MANIFEST, store.get(MANIFEST).data + b" ")


def not_a_manifest(store: Store) -> None:
    store.put(MANIFEST, b'{"name": "webapp"}')
    store.delete(MANIFEST.replace("json", "checksum"))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (removed, r"manifest\.json names s3://reports/lake/all/data/0\.parquet, which does not exist"),
        (cut_short, r"0\.parquet does not match s3://reports/.*manifest\.json: its MD5 is \w+, expected \w+"),
        (altered, r"manifest\.json does not match manifest\.checksum beside it"),
        (not_a_manifest, r"manifest\.json is not the manifest of an S3 Inventory: it has no sourceBucket"),
    ],
)
def test_what_is_missing_or_damaged_is_reported_in_a_sentence(harm: Callable[[Store], None], sentence: str) -> None:
    store = report({"key": ["a"]})
    harm(store)

    with pytest.raises(RayDetrError, match=sentence):
        read_inventory(store, MANIFEST)


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        (
            report({"key": ["a"]}, fileFormat="ORC"),
            "is a report in ORC, which is not supported. Configure .* Parquet or CSV",
        ),
        (report({"size": [1]}, kind="CSV"), "without the column Key"),
        (report({"size": [1]}), "without the column Key"),
        (
            report({"key": ["a"], "version_id": ["1"]}),
            "all versions, but does not say which are the latest. Add IsLatest",
        ),
        (report({"key": [None, "a"]}), "rows without a key"),
        (report({"key": ["a"], "size": ["large"]}, kind="CSV"), r"0\.csv\.gz cannot be read as CSV: .*large"),
        (report({"key": ["a"]}, files="x"), "is not the manifest of an S3 Inventory"),
    ],
)
def test_a_report_that_cannot_be_used_is_refused(store: Store, sentence: str) -> None:
    with pytest.raises(RayDetrError, match=sentence):
        read_inventory(store, MANIFEST)


def test_a_full_disk_is_reported_and_nothing_is_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.lake.inventory._write_run", full)

    with pytest.raises(RayDetrError, match=r"cannot be sorted in .* \(No space left on device\). Free some space"):
        read_inventory(report({"key": ["a"]}), MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_an_inventory_is_known_by_the_name_of_its_manifest() -> None:
    assert is_inventory(f"s3://reports/{MANIFEST}")
    assert not is_inventory("s3://reports/manifest.json.jpg")
    assert not is_inventory("s3://reports/my-manifest.json")
