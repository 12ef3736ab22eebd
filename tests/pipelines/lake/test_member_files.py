"""Archives in a listing: one ordered stream that can be begun anywhere, and indexes that are read once."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.lake_object import DUPLICATE, IN_MEMBER_FILE, LakeObject, Skipped
from pipelines.lake.listing import Listing, list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.members import REFUSED
from pipelines.parquet_files import parquet_of
from pipelines.store import Archived, Denied, NotFound, Store, StoreEntry, StoreError
from tests.memory_store import memory_store
from tests.pipelines.lake.archives import CountingStore, parquet_of_images, tar_of

TWO = tar_of({"1.jpg": b"one", "2.jpg": b"two", "2.json": b"{}"})


def lake(**files: bytes) -> Store:
    store = memory_store("s3://lake")
    for name, data in files.items():
        store.put(name.replace("_", "."), data)
    return store


def listed(store: Store, *sources: str, column: str | None = None, indexes: MemberIndexes | None = None) -> Listing:
    return list_objects(sources, image_column=column, indexes=indexes, open_root=lambda _: store)


def uris(stream: Listing) -> list[str]:
    return [item.uri for item in stream if isinstance(item, LakeObject)]


def skipped(items: Sequence[object]) -> dict[str, int]:
    return {item.reason: item.count for item in items if isinstance(item, Skipped)}


def test_the_images_of_an_archive_are_named_by_file_and_member() -> None:
    found = list(listed(lake(a_tar=TWO), "s3://lake/a.tar"))

    assert found == [
        Skipped("s3://lake/a.tar#\x01.json", ".json"),
        LakeObject("s3://lake/a.tar#/1.jpg", "1", 3, (), 512),
        LakeObject("s3://lake/a.tar#/2.jpg", "1", 3, (), 1536),
    ]


def test_a_glob_opens_archives_and_a_folder_does_not() -> None:
    store = lake(a_tar=TWO, b_tar=TWO, c_jpg=b"c")

    assert uris(listed(store, "s3://lake/*.tar")) == [
        "s3://lake/a.tar#/1.jpg",
        "s3://lake/a.tar#/2.jpg",
        "s3://lake/b.tar#/1.jpg",
        "s3://lake/b.tar#/2.jpg",
    ]
    assert uris(listed(store, "s3://lake/")) == ["s3://lake/c.jpg"]


def test_a_folder_of_archives_says_how_to_open_them() -> None:
    with pytest.raises(UsageError, match=r"left out: 1 \.tar\)\. To label the images inside archives, give .*\*\.tar"):
        listed(lake(a_tar=TWO), "s3://lake/")


def test_archives_and_loose_images_are_one_stream_and_each_image_comes_once() -> None:
    store = lake(a_tar=TWO, b_jpg=b"b")

    found = list(listed(store, "s3://lake/b.jpg", "s3://lake/a.tar", "s3://lake/*.tar"))

    assert [item.uri for item in found if isinstance(item, LakeObject)] == [
        "s3://lake/a.tar#/1.jpg",
        "s3://lake/a.tar#/2.jpg",
        "s3://lake/b.jpg",
    ]
    assert [item.reason for item in found if isinstance(item, Skipped)] == [".json", DUPLICATE, DUPLICATE]


def test_a_damaged_archive_is_an_image_that_cannot_be_read_beside_those_that_can() -> None:
    found = list(listed(lake(a_tar=TWO[:2000], b_tar=b"no tar"), "s3://lake/*.tar"))

    assert [(item.uri, item.offset) for item in found if isinstance(item, LakeObject)] == [
        ("s3://lake/a.tar", 2000),
        ("s3://lake/a.tar#/1.jpg", 512),
        ("s3://lake/a.tar#/2.jpg", 1536),
        ("s3://lake/b.tar", 0),
    ]


NAMES = st.text(alphabet="a/#! .é", min_size=1, max_size=4)


@settings(max_examples=40)
@given(files=st.dictionaries(NAMES, st.sets(NAMES, max_size=4), max_size=5))
def test_the_order_is_that_of_addresses_wherever_the_listing_is_begun(files: dict[str, set[str]]) -> None:
    store = lake(z_tar=TWO)
    for name, members in files.items():
        # names whose addresses interleave: "a.tar" and "a.tar !.tar"
        key = f"x{name}.tar"
        store.put(key, tar_of([(f"m{member}.jpg", b"x") for member in sorted(members)]))
        store.put(f"{key} {name}.tar", tar_of([("m.jpg", b"x"), ("n.txt", b"x")]))
    stream = listed(store, "s3://lake/**/*.tar")

    whole = list(stream)

    addresses = [item.uri for item in whole]
    assert addresses == sorted(addresses)
    assert len(set(addresses)) == len(addresses)
    for place, item in enumerate(whole):
        assert list(stream.after(item.uri)) == whole[place + 1 :]


def test_a_hash_in_keys_is_a_letter_like_any_other() -> None:
    store = memory_store("s3://lake")
    store.put("a#1/b#2.tar", tar_of({"c#3.jpg": b"c"}))
    store.put("a#1/d#.jpg", b"d")

    assert uris(listed(store, "s3://lake/a#1/", "s3://lake/a#1/*.tar")) == [
        "s3://lake/a#1/b#2.tar#/c#3.jpg",
        "s3://lake/a#1/d#.jpg",
    ]


def test_an_archive_in_a_folder_that_is_named_like_an_archive_is_left_out() -> None:
    store = memory_store("s3://lake")
    store.put("a.tar#/b.tar", TWO)
    store.put("c.tar", TWO)

    found = list(listed(store, "s3://lake/**/*.tar"))

    assert skipped(found)[IN_MEMBER_FILE] == 1
    assert [item.uri for item in found if isinstance(item, LakeObject)] == [
        "s3://lake/c.tar#/1.jpg",
        "s3://lake/c.tar#/2.jpg",
    ]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "*.tar.zst"])
def test_a_packed_archive_is_refused_before_anything_begins(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"cannot be labelled: a part of a \.\S+ file cannot be read .* as \.tar without"
    ):
        listed(lake(a_tar_gz=b"packed", a_tgz=b"packed"), f"s3://lake/{name}")


@pytest.mark.parametrize("name", ["a.zip", "**/*.7z"])
def test_an_archive_of_another_kind_is_refused_and_a_folder_with_such_a_name_is_not(name: str) -> None:
    store = lake(a_zip=b"PK")
    store.put("photos.zip/1.jpg", b"one")

    with pytest.raises(UsageError, match=r"cannot be labelled: \.\w+ files are not supported\. Unpack it"):
        listed(store, f"s3://lake/{name}")

    assert uris(listed(store, "s3://lake/photos.zip")) == ["s3://lake/photos.zip/1.jpg"]


@pytest.mark.parametrize("source", ["s3://lake/a.tar", "s3://lake/*.tar"])
def test_an_archive_without_images_is_refused_by_name(source: str) -> None:
    with pytest.raises(UsageError, match=r"there is no image inside s3://lake/.\.tar\. Check the address\.$"):
        listed(lake(a_tar=tar_of({})), source)


def test_a_column_without_parquet_files_or_rows_is_refused() -> None:
    store = lake(a_parquet=parquet_of_images([]))
    store.put("loose/1.jpg", b"one")

    with pytest.raises(UsageError, match=r"there is no image inside s3://lake/\. Check the address\.$"):
        listed(store, "s3://lake/", column="image")
    with pytest.raises(UsageError, match=r"there is no Parquet file at s3://lake/loose/\. .* omit --image-column"):
        listed(store, "s3://lake/loose/", column="image")


def test_a_glob_that_matches_archives_but_does_not_end_as_they_do_says_which_glob_opens_them() -> None:
    with pytest.raises(UsageError, match=r"\(left out: 1 \.tar\)\. To label .*, give a glob that ends in \.tar\.$"):
        listed(lake(a_tar=TWO), "s3://lake/*.{tar,TAR}")


# -- archives that are named one by one


def test_archives_that_are_named_one_by_one_are_the_same_stream_as_by_a_glob() -> None:
    store = lake(a_tar=TWO, b_tar=tar_of({}), c_tar=TWO, d_tar=TWO[:2000])
    store.put("a.tar !.tar", TWO)
    named = listed(store, *(f"s3://lake/{name}.tar" for name in ("d", "a", "c", "a.tar !", "b")))

    whole = list(named)

    assert whole == list(listed(store, "s3://lake/*.tar"))
    assert len(whole) == 12
    for place, item in enumerate(whole):
        assert list(named.after(item.uri)) == whole[place + 1 :]


def test_archives_that_are_named_one_by_one_are_neither_listed_nor_read_twice() -> None:
    store = CountingStore(lake(**{f"{number:03d}_tar": TWO for number in range(100)}))
    listings: list[str] = []
    store.list = lambda prefix="", after=None: iter(listings.append(prefix) or ())  # type: ignore[assignment,func-returns-value]

    named = listed(store, *(f"s3://lake/{number:03d}.tar" for number in range(100)))

    assert len(store.ranges) <= 10  # of one archive, and of some read ahead: not of all
    assert len(uris(named)) == 200
    assert len(store.ranges) == 100
    assert listings == []


def test_an_archive_that_is_named_may_have_a_name_that_folders_leave_out() -> None:
    store = lake()
    store.put("_old/.a.tar", TWO)

    assert uris(listed(store, "s3://lake/_old/.a.tar")) == [
        "s3://lake/_old/.a.tar#/1.jpg",
        "s3://lake/_old/.a.tar#/2.jpg",
    ]


def test_a_named_archive_that_is_not_there_or_refused_stops_before_anything_begins() -> None:
    class Refusing(CountingStore):
        def __init__(self, store: Store) -> None:
            super().__init__(store)
            self.head = self.refuse

        def refuse(self, key: str) -> StoreEntry:
            if key == "c.tar":
                raise Denied("s3://lake/c.tar is refused.")
            return self._store.head(key)

    store = Refusing(lake(a_tar=TWO, b_tar=TWO, c_tar=TWO))

    with pytest.raises(RayDetrError, match=r"cannot list s3://lake/c\.tar: s3://lake/c\.tar is refused\."):
        listed(store, "s3://lake/a.tar", "s3://lake/b.tar", "s3://lake/c.tar")
    with pytest.raises(UsageError, match=r"there is nothing at s3://lake/d\.tar"):
        listed(store, "s3://lake/a.tar", "s3://lake/b.tar", "s3://lake/d.tar")


def test_archives_on_web_servers_are_refused() -> None:
    with pytest.raises(UsageError, match="it is on a web server"):
        listed(lake(), "https://example.com/a.tar")


def test_rows_of_a_parquet_file_are_named_by_column_row_and_path() -> None:
    store = lake(
        a_parquet=parquet_of_images([b"one", b"two", b"three"]),
        b_parquet=parquet_of_images([b"four"], paths=["train/cat 4.jpg"]),
    )

    found = uris(listed(store, "s3://lake/", column="image"))

    assert found == [
        "s3://lake/a.parquet#/image/000000000",
        "s3://lake/a.parquet#/image/000000001",
        "s3://lake/a.parquet#/image/000000002",
        "s3://lake/b.parquet#/image/000000000/cat 4.jpg",
    ]
    assert uris(listed(store, "s3://lake/*.parquet", column="image")) == found
    assert uris(listed(store, "s3://lake/b.parquet", column="image")) == found[3:]


def test_images_of_a_row_group_have_one_offset_and_large_row_groups_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.lake.parquet_members._WHOLE_GROUP_BYTES", 2 << 20)
    monkeypatch.setattr("pipelines.lake.parquet_members._warned", threading.Lock())
    large = parquet_of_images([bytes(1 << 20)] * 5, group_rows=3)
    store = lake(a_parquet=parquet_of_images([b"one"] * 3), b_parquet=large, c_parquet=large)

    found = listed(store, "s3://lake/", column="image")

    offsets = [item.offset for item in found if isinstance(item, LakeObject)]
    assert offsets == [0, 0, 2, *(0, 0, 0, 3, 3), *(0, 0, 0, 3, 3)]
    (warning,) = caplog.messages
    assert re.match(r"s3://lake/[bc]\.parquet has a row group of 3 MiB", warning)
    assert warning.endswith("at most 2 MiB: in PyArrow write_table(..., row_group_size=1).")


def test_a_damaged_parquet_file_is_an_image_that_cannot_be_read() -> None:
    data = parquet_of_images([b"one"])

    found = list(listed(lake(a_parquet=data[:-20], b_parquet=data), "s3://lake/", column="image"))

    assert [(item.uri, item.offset) for item in found if isinstance(item, LakeObject)] == [
        ("s3://lake/a.parquet", 0),
        ("s3://lake/b.parquet#/image/000000000", 0),
    ]


def test_too_little_memory_for_a_parquet_file_is_a_row_that_the_next_run_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> list[str | None]:
        with parquet_of("a.parquet"):
            raise MemoryError

    monkeypatch.setattr("pipelines.lake.parquet_members._paths", fail)
    store, table = lake(a_parquet=parquet_of_images([b"one"], paths=["1.jpg"])), memory_store("s3://table")
    indexes = MemberIndexes(table, keep=True)

    found = list(listed(store, "s3://lake/a.parquet", column="image", indexes=indexes))

    assert [(item.uri, item.offset) for item in found if isinstance(item, LakeObject)] == [
        ("s3://lake/a.parquet", REFUSED)
    ]


@pytest.mark.parametrize("count", [b"\x78", b"\x80\xa0\x94\xa5\x8d\x1d"], ids=["60", "a hundred billion"])
def test_a_footer_that_claims_other_rows_than_there_are_is_damage(count: bytes) -> None:
    whole = parquet_of_images([b"1", b"2", b"3", b"4"], paths=["1.jpg", None, "3.jpg", None])
    data = bytearray(whole[:-8].replace(b"\x16\x08\x19", b"\x16" + count + b"\x19"))  # of the file's four rows
    data += (len(data) - len(whole) + 8 + int.from_bytes(whole[-8:-4], "little")).to_bytes(4, "little") + b"PAR1"

    found = list(listed(lake(a_parquet=bytes(data)), "s3://lake/a.parquet", column="image"))

    assert bytes(data) != whole
    assert [(item.uri, item.offset) for item in found if isinstance(item, LakeObject)] == [("s3://lake/a.parquet", 0)]


@pytest.mark.parametrize(("column", "reason"), [("picture", "does not have one column"), ("label", "is int64, not")])
def test_a_column_that_holds_no_images_is_refused(column: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{reason}.*Check --image-column"):
        listed(lake(a_parquet=parquet_of_images([b"one"])), "s3://lake/a.parquet", column=column)


def test_a_column_is_refused_where_there_are_no_parquet_files() -> None:
    with pytest.raises(UsageError, match="--image-column: none of the images are in Parquet files"):
        listed(lake(a_jpg=b"a"), "s3://lake/a.jpg", column="image")


# -- indexes


def test_an_index_is_kept_and_the_archive_not_read_again_until_it_changes() -> None:
    store, table = CountingStore(lake(a_tar=TWO)), memory_store("s3://table")

    first = list(listed(store, "s3://lake/a.tar", indexes=MemberIndexes(table, keep=True)))
    read = len(store.ranges)
    second = list(listed(store, "s3://lake/a.tar", indexes=MemberIndexes(table)))

    assert second == first
    assert read > 0
    assert len(store.ranges) == read
    assert [entry.key.rpartition("/")[0] for entry in table.list()] == ["_members"]

    store.put("a.tar", tar_of({"3.jpg": b"three"}))

    third = uris(listed(store, "s3://lake/a.tar", indexes=MemberIndexes(table, keep=True)))
    assert third == ["s3://lake/a.tar#/3.jpg"]


def test_planning_alone_writes_no_index() -> None:
    table = memory_store("s3://table")

    assert uris(listed(lake(a_tar=TWO), "s3://lake/a.tar", indexes=MemberIndexes(table)))

    assert list(table.list()) == []


def test_a_damaged_index_is_written_again() -> None:
    store, table = lake(a_tar=TWO), memory_store("s3://table")
    found = uris(listed(store, "s3://lake/a.tar", indexes=MemberIndexes(table, keep=True)))
    (kept,) = table.list()
    whole = table.get(kept.key).data
    table.put(kept.key, b"damaged")

    assert uris(listed(store, "s3://lake/a.tar", indexes=MemberIndexes(table, keep=True))) == found

    assert table.get(kept.key).data == whole


@pytest.mark.parametrize("refused", ["get", "put"])
def test_a_table_that_refuses_indexes_is_warned_of_once_and_archives_are_read(
    refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(key: str, *_: object, **__: object) -> NoReturn:
        raise Denied(f"s3://table/{key} is refused.")

    table = CountingStore(memory_store("s3://table"))
    setattr(table, refused, refuse)

    found = uris(listed(lake(a_tar=TWO, b_tar=TWO), "s3://lake/*.tar", indexes=MemberIndexes(table, keep=True)))

    assert len(found) == 4
    (warning,) = caplog.records
    assert "Indexes of archives are not kept" in warning.getMessage()
    assert "s3://table/_members/" in warning.getMessage()


def test_indexes_that_were_read_before_are_kept_when_it_is_said() -> None:
    table = memory_store("s3://table")
    indexes = MemberIndexes(table)
    files = CountingStore(lake(a_tar=TWO, b_tar=TWO, c_tar=TWO, d_tar=TWO))
    stream = listed(files, "s3://lake/*.tar", indexes=indexes)
    assert files.ranges  # the first archive was read to see that there is an image
    assert list(table.list()) == []

    indexes.keep()
    assert list(table.list())

    assert len(uris(stream)) == 8
    assert len(list(table.list())) == 4


@pytest.mark.parametrize("name", ["a_tar", "a_parquet"])
def test_no_index_is_kept_of_a_file_that_could_not_be_read_from_its_beginning(name: str) -> None:
    table = memory_store("s3://table")
    store = lake(**{name: b"damaged"})

    found = uris(
        listed(store, f"s3://lake/{name.replace('_', '.')}", column="image", indexes=MemberIndexes(table, keep=True))
    )

    assert found == [f"s3://lake/{name.replace('_', '.')}"]
    assert list(table.list()) == []


@pytest.mark.parametrize("error", [NotFound, Denied, Archived])
def test_an_archive_that_is_removed_or_refused_after_it_was_listed_is_an_image_that_cannot_be_read(
    error: type[StoreError],
) -> None:
    class Refusing(CountingStore):
        def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
            if key == "b.tar":
                raise error("s3://lake/b.tar: no")
            return super().get_range(key, start, length, if_match=if_match)

    table = memory_store("s3://table")
    store = Refusing(lake(a_tar=TWO, b_tar=TWO))

    found = listed(store, "s3://lake/*.tar", indexes=MemberIndexes(table, keep=True))

    assert uris(found) == ["s3://lake/a.tar#/1.jpg", "s3://lake/a.tar#/2.jpg", "s3://lake/b.tar"]
    assert len(list(table.list())) == 1


def test_an_archive_that_is_replaced_while_it_is_listed_is_listed_as_it_is_then() -> None:
    store = lake(a_tar=TWO)
    (old,) = store.list()
    store.put("a.tar", tar_of({"3.jpg": b"three"}))

    entry, index = MemberIndexes().open(store, old)

    assert index.rows["name"].to_pylist() == ["3.jpg"]
    assert (old.etag, entry) == ("1", StoreEntry("a.tar", 10_240, "2"))


def test_an_archive_that_is_being_written_is_one_row_and_the_others_are_listed() -> None:
    class Growing(CountingStore):
        def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
            if key == "b.tar":
                self.put("b.tar", self.get("b.tar").data + bytes(512))
            return super().get_range(key, start, length, if_match=if_match)

    table = memory_store("s3://table")
    store = Growing(lake(a_tar=TWO, b_tar=TWO, c_tar=TWO))

    found = listed(store, "s3://lake/*.tar", indexes=MemberIndexes(table, keep=True))

    assert uris(found) == [
        *("s3://lake/a.tar#/1.jpg", "s3://lake/a.tar#/2.jpg", "s3://lake/b.tar"),
        *("s3://lake/c.tar#/1.jpg", "s3://lake/c.tar#/2.jpg"),
    ]
    assert [item.offset for item in found if item.uri == "s3://lake/b.tar" and isinstance(item, LakeObject)] == [
        REFUSED
    ]
    assert len(list(table.list())) == 2  # its index is not kept


def test_local_archives_are_listed_by_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(TWO)
    os.utime(tmp_path / "in" / "a.tar", ns=(0, 0))

    found = [item for item in list_objects([str(tmp_path / "**" / "*.tar")]) if isinstance(item, LakeObject)]

    assert [(item.uri, item.etag) for item in found] == [
        (f"file://{tmp_path}/in/a.tar#/1.jpg", "0-2800"),
        (f"file://{tmp_path}/in/a.tar#/2.jpg", "0-2800"),
    ]
