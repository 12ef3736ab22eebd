"""Images inside files: read with few requests, and what becomes of files that changed or are damaged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.labelling.fetching import Fetched, Fetcher, LakeUnreadable
from pipelines.labelling.member_reading import GAP_BYTES, SPAN_BYTES, member_spans, reading_order
from pipelines.lake.images import ImageStores
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.lake.parquet_members import ImageColumn
from pipelines.parquet_files import parquet_of
from pipelines.store import Blob, Denied, NotFound, ObjectTooLarge, StoreDown
from tests.memory_store import memory_store
from tests.pipelines.labelling.failing_lake import Clock, Lake
from tests.pipelines.lake.archives import parquet_of_images, tar_of


@pytest.fixture
def lake() -> Lake:
    return Lake(memory_store("s3://lake"))


@pytest.fixture
def fetcher(lake: Lake) -> Fetcher:
    return Fetcher(lake, Clock())


def listed(lake: Lake, *sources: str, column: str | None = None) -> list[LakeObject]:
    stream = list_objects(sources, image_column=column, open_root=lambda _: lake.store)
    return [item for item in stream if isinstance(item, LakeObject)]


def fetch_all(fetcher: Fetcher, objects: Sequence[LakeObject]) -> dict[str, Fetched]:
    window = [objects[index] for index in reading_order(objects)]
    return {one.item.uri: one for span in member_spans(window) for one in fetcher.fetch(span)}


def data_of(found: dict[str, Fetched]) -> dict[str, bytes | str | None]:
    """Return the bytes of each image, or its error kind."""
    return {uri: one.error_kind if one.blob is None else one.blob.data for uri, one in found.items()}


def noise(seed: int, length: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


# -- spans


def test_neighbours_are_one_span_in_the_order_of_the_file_whatever_their_names() -> None:
    names = [f"s3://lake/a.tar#/{number}.jpg" for number in range(4)]
    members = [
        LakeObject(name, "1", 100, (), offset) for name, offset in zip(names, (3072, 512, 4096, 1536), strict=True)
    ]
    window = [LakeObject("s3://lake/0.jpg", "1", 9), *members, LakeObject("s3://lake/b.jpg", "1", 9)]

    ordered = [window[index] for index in reading_order(window)]

    assert [[item.uri for item in span] for span in member_spans(ordered)] == [
        ["s3://lake/0.jpg"],
        [names[1], names[3], names[0], names[2]],
        ["s3://lake/b.jpg"],
    ]


def test_far_members_other_files_other_versions_and_long_spans_are_read_apart() -> None:
    first = LakeObject("s3://lake/a.tar#/1.jpg", "1", 100, (), 512)
    far = LakeObject("s3://lake/a.tar#/2.jpg", "1", 100, (), 612 + GAP_BYTES + 1)
    near = LakeObject("s3://lake/a.tar#/2.jpg", "1", 100, (), 612 + GAP_BYTES)
    other_file = LakeObject("s3://lake/b.tar#/1.jpg", "1", 100, (), 612)
    other_version = LakeObject("s3://lake/a.tar#/2.jpg", "2", 100, (), 612)
    long = LakeObject("s3://lake/a.tar#/2.jpg", "1", SPAN_BYTES, (), 1024)

    assert [len(list(member_spans([first, one]))) for one in (far, near, other_file, other_version, long)] == [
        *(2, 1, 2, 2, 2)
    ]


def test_loose_images_are_read_in_the_planned_order() -> None:
    objects = [LakeObject(f"s3://lake/{name}.jpg") for name in "bac"]

    assert reading_order(objects) == [0, 1, 2]


# -- tar


def test_a_window_of_an_archive_is_one_request(lake: Lake, fetcher: Fetcher) -> None:
    members = {f"{number:03d}.jpg": noise(number, number * 40) for number in range(200)}
    by_content = sorted(members.items(), key=lambda member: member[1])
    lake.store.put("a.tar", tar_of(by_content))

    found = fetch_all(fetcher, listed(lake, "s3://lake/a.tar"))

    assert data_of(found) == {f"s3://lake/a.tar#/{name}": data for name, data in members.items()}
    assert {one.blob.etag for one in found.values() if one.blob is not None} == {"1"}
    assert len(lake.ranges) == fetcher.take_requests() == 1
    assert not any(one.is_changed for one in found.values())


def test_a_changed_archive_gives_rows_that_the_next_run_replaces(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b"one", "2.jpg": b"two"}))
    objects = listed(lake, "s3://lake/a.tar")
    lake.store.put("a.tar", tar_of({"0.jpg": b"new", "1.jpg": b"one", "2.jpg": b"two"}))

    found = fetch_all(fetcher, objects)

    assert {(one.blob, one.error_kind) for one in found.values()} == {(None, "fetch_failed")}
    assert "s3://lake/a.tar has changed: its etag is 2, not 1" in str(found["s3://lake/a.tar#/1.jpg"].error)


def test_damage_of_an_archive_is_told_in_rows(lake: Lake, fetcher: Fetcher) -> None:
    data = tar_of({"1.jpg": b"a" * 600, "2.jpg": b"b" * 600})
    broken = bytearray(data)
    broken[1536] ^= 0xFF
    lake.store.put("cut.tar", data[:2100])
    lake.store.put("broken.tar", bytes(broken))
    lake.store.put("none.tar", b"\x1f\x8b" + bytes(2_000))

    found = fetch_all(fetcher, listed(lake, "s3://lake/*.tar"))

    assert data_of(found) == {
        "s3://lake/broken.tar": "unreadable",
        "s3://lake/broken.tar#/1.jpg": b"a" * 600,
        "s3://lake/cut.tar": "truncated",
        "s3://lake/cut.tar#/1.jpg": b"a" * 600,
        "s3://lake/cut.tar#/2.jpg": "truncated",
        "s3://lake/none.tar": "unreadable",
    }
    assert found["s3://lake/cut.tar#/2.jpg"].error == "the archive ends after 52 of 600 bytes of this image"
    assert "it ends at byte 2,100 without an end mark" in str(found["s3://lake/cut.tar"].error)
    assert "damaged at byte 1,536, where a header should be" in str(found["s3://lake/broken.tar"].error)
    assert "not a tar archive, or a compressed one" in str(found["s3://lake/none.tar"].error)


def test_an_answer_that_is_cut_off_is_asked_for_again(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b"a" * 600}))
    objects = listed(lake, "s3://lake/a.tar")
    whole, answers = lake.store.get_range, [100, 600]
    lake.store.get_range = lambda key, start, length, if_match=None: whole(key, start, length)[: answers.pop(0)]  # type: ignore[method-assign]

    assert data_of(fetch_all(fetcher, objects)) == {"s3://lake/a.tar#/1.jpg": b"a" * 600}


def test_a_vanished_archive_is_missing_images_and_a_dead_store_stops_the_run(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b"one", "2.jpg": b"two"}))
    objects = listed(lake, "s3://lake/a.tar")
    lake.failures = {"a.tar": NotFound("a.tar is not there")}

    assert set(data_of(fetch_all(fetcher, objects)).values()) == {"missing"}

    lake.failures = {"a.tar": [Denied("a.tar is refused")] * 3}
    assert set(data_of(fetch_all(fetcher, objects)).values()) == {b"one", b"two"}

    lake.is_down = True
    with pytest.raises(LakeUnreadable, match="the lake does not answer"):
        fetch_all(fetcher, objects)


@pytest.mark.parametrize(
    ("name", "data"), [("a.tar", tar_of({"1.jpg": b"1"})), ("a.parquet", parquet_of_images([b"1"]))]
)
def test_a_file_that_is_refused_when_it_is_listed_is_a_row_that_the_next_run_replaces(
    lake: Lake, fetcher: Fetcher, name: str, data: bytes
) -> None:
    lake.store.put(name, data)
    lake.store.put("b.tar", tar_of({"2.jpg": b"two"}))
    lake.store.put("c.parquet", parquet_of_images([b"three"]))
    whole = lake.store.get_range

    def refuse(key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if key == name:
            raise Denied(f"{name} is refused")
        return whole(key, start, length, if_match=if_match)

    lake.store.get_range = refuse  # type: ignore[method-assign]
    objects = listed(lake, f"s3://lake/{name}", "s3://lake/b.tar", "s3://lake/c.parquet", column="image")
    fetch_all(fetcher, objects[1:])

    assert data_of(fetch_all(fetcher, objects[:1])) == {f"s3://lake/{name}": "denied"}

    lake.store.get_range = whole  # type: ignore[method-assign]
    assert data_of(fetch_all(fetcher, objects[:1])) == {f"s3://lake/{name}": "fetch_failed"}


def test_an_image_of_gigabytes_in_an_archive_is_not_read(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b"one", "2.jpg": b"two"}))
    small, large = listed(lake, "s3://lake/a.tar")
    large = LakeObject(large.uri, large.etag, 2 << 30, (), large.offset)

    assert data_of(fetch_all(fetcher, [small, large])) == {small.uri: b"one", large.uri: "too_large"}


def test_an_empty_image_costs_no_request(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b""}))

    assert data_of(fetch_all(fetcher, listed(lake, "s3://lake/a.tar"))) == {"s3://lake/a.tar#/1.jpg": b""}
    assert lake.ranges == []


# -- Parquet


@pytest.mark.parametrize("paths", [None, ["1.jpg", None, "3.jpg", "4.jpg", "5.jpg"]])
def test_rows_of_a_parquet_file_are_read(lake: Lake, fetcher: Fetcher, paths: list[str | None] | None) -> None:
    lake.store.put("a.parquet", parquet_of_images([b"1" * 9, b"2", None, b"4", b"5"], paths=paths))
    objects = listed(lake, "s3://lake/a.parquet", column="image")

    found = data_of(fetch_all(fetcher, objects))

    assert list(found.values()) == [b"1" * 9, b"2", "empty", b"4", b"5"]
    assert list(data_of(fetch_all(fetcher, objects[3:4])).values()) == [b"4"]


def test_a_row_group_is_one_request_and_the_footer_is_read_once(lake: Lake, fetcher: Fetcher) -> None:
    images = [noise(number, 1_000) for number in range(100)]
    lake.store.put("a.parquet", parquet_of_images(images, group_rows=50))
    objects = listed(lake, "s3://lake/a.parquet", column="image")
    fetch_all(fetcher, objects[:1])
    assert fetcher.take_requests() == 3
    lake.ranges.clear()

    assert list(data_of(fetch_all(fetcher, objects)).values()) == images
    assert len(lake.ranges) == fetcher.take_requests() == 2


def test_a_large_row_group_is_read_in_pieces(lake: Lake, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.lake.parquet_members._WHOLE_GROUP_BYTES", 10_000)
    monkeypatch.setattr("pipelines.lake.parquet_members._PIECE_BYTES", 8_192)
    images = [noise(number, 1_000) for number in range(100)]
    lake.store.put("a.parquet", parquet_of_images(images, group_rows=100))

    assert list(data_of(fetch_all(fetcher, listed(lake, "s3://lake/a.parquet", column="image"))).values()) == images
    assert max(length for _, length in lake.ranges[1:]) < 40_000  # of 100 kB


def test_row_groups_are_read_at_once_up_to_a_number_of_bytes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.labelling.member_reading.GROUPS_BYTES", 10_000)
    lake.store.put("a.parquet", parquet_of_images([noise(number, 4_000) for number in range(8)], group_rows=1))
    objects, fetcher = listed(lake, "s3://lake/a.parquet", column="image"), Fetcher(lake, Clock())
    fetch_all(fetcher, objects[:1])
    reading, most = 0, 0
    overlaps = threading.Event()
    lock, whole = threading.Lock(), lake.store.get_range

    def read(key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
            if reading > 1:
                overlaps.set()
        assert overlaps.wait(20)
        time.sleep(0.02)  # for a third
        with lock:
            reading -= 1
        return whole(key, start, length, if_match=if_match)

    lake.store.get_range = read  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(fetcher.fetch, member_spans(objects)))

    assert [one.blob is not None for span in found for one in span] == [True] * 8
    assert most == 2


def test_a_damaged_row_group_is_rows_and_others_are_read(lake: Lake, fetcher: Fetcher) -> None:
    images = [bytes([number]) * 500 for number in range(6)]
    data = bytearray(parquet_of_images(images, group_rows=2))
    data[data.index(bytes([3]) * 100) + 50] ^= 0xFF  # in the second row group
    lake.store.put("a.parquet", bytes(data))

    found = fetch_all(fetcher, listed(lake, "s3://lake/a.parquet", column="image"))

    assert list(data_of(found).values()) == [images[0], images[1], "unreadable", "unreadable", images[4], images[5]]
    assert "s3://lake/a.parquet is damaged" in str(found["s3://lake/a.parquet#/image/000000003"].error)


def test_a_damaged_row_group_is_read_twice_and_images_before_the_damage_are_read(lake: Lake, fetcher: Fetcher) -> None:
    images = [noise(number, 500) for number in range(256)]
    data = bytearray(parquet_of_images(images, group_rows=128))
    data[data.index(images[100]) + 50] ^= 0xFF
    lake.store.put("a.parquet", bytes(data))
    objects = listed(lake, "s3://lake/a.parquet", column="image")
    lake.ranges.clear()

    found = list(data_of(fetch_all(fetcher, objects)).values())

    assert found[:96] == images[:96]  # 16 are decoded at once
    assert found[96:128] == ["unreadable"] * 32
    assert found[128:] == images[128:]
    assert len(lake.ranges) == 4  # the footer, the damaged row group twice, the other one


def test_an_answer_that_is_cut_off_and_too_little_memory_condemn_no_image(
    lake: Lake, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.store.put("a.parquet", parquet_of_images([b"1" * 9_000]))
    objects = listed(lake, "s3://lake/a.parquet", column="image")
    whole, cuts = lake.store.get_range, [0, 100, 0, 7, 0]
    lake.store.get_range = lambda key, start, length, if_match=None: whole(  # type: ignore[method-assign]
        key, start, cuts.pop() if cuts else length
    )

    assert data_of(fetch_all(fetcher, objects)) == {objects[0].uri: b"1" * 9_000}
    assert cuts == []

    def fail(*_: object) -> Iterator[tuple[int, bytes]]:
        with parquet_of("a.parquet"):
            raise MemoryError

    monkeypatch.setattr(ImageColumn, "read_group", fail)
    assert data_of(fetch_all(fetcher, objects)) == {objects[0].uri: "fetch_failed"}


def test_a_changed_parquet_file_gives_rows_that_the_next_run_replaces(lake: Lake, fetcher: Fetcher) -> None:
    lake.store.put("a.parquet", parquet_of_images([b"1", b"2"]))
    objects = listed(lake, "s3://lake/a.parquet", column="image")
    lake.store.put("a.parquet", parquet_of_images([b"0", b"1", b"2"]))

    assert set(data_of(fetch_all(fetcher, objects)).values()) == {"fetch_failed"}


# -- by address alone


def test_an_image_inside_a_file_is_found_by_its_address(lake: Lake) -> None:
    lake.store.put("a.tar", tar_of({"c/1.jpg": b"one"}))
    lake.store.put("b.parquet", parquet_of_images([b"two", None], paths=["x.jpg", None]))
    lake.store.put("c.tar#/1.jpg", b"an object of its own")
    images = ImageStores()
    images.find = lambda uri: (lake.store, uri.removeprefix("s3://lake/"))  # type: ignore[method-assign]

    assert images.get("s3://lake/a.tar#/c/1.jpg").data == b"one"
    assert images.get("s3://lake/b.parquet#/image/000000000/x.jpg").data == b"two"
    assert images.get("s3://lake/c.tar#/1.jpg").data == b"an object of its own"
    assert (images.get("s3://lake/a.tar#/c/1.jpg").etag, images.get("s3://lake/b.parquet#/image/0/x").etag) == (
        "1",
        "2",
    )
    for uri in ("a.tar#/c/2.jpg", "b.parquet#/image/000000001", "b.parquet#/image/7", "d.tar#/1.jpg", "d.parquet#/i/1"):
        with pytest.raises(NotFound):
            images.get(f"s3://lake/{uri}")
    with pytest.raises(ObjectTooLarge):
        images.get("s3://lake/a.tar#/c/1.jpg", most_bytes=2)
    with pytest.raises(StoreDown, match="does not have one column"):
        images.get("s3://lake/b.parquet#/picture/0")


def test_rows_by_address_share_footer_and_row_group_until_the_file_changes(lake: Lake) -> None:
    data = bytearray(parquet_of_images([noise(number, 500) for number in range(80)], group_rows=40))
    data[data.index(noise(79, 500)) + 50] ^= 0xFF
    lake.store.put("a.parquet", bytes(data))
    images = ImageStores()
    images.find = lambda uri: (lake, uri.removeprefix("s3://lake/"))  # type: ignore[method-assign, assignment, return-value]

    found = [images.get(f"s3://lake/a.parquet#/image/{row}").data for row in range(56)]

    assert found == [noise(number, 500) for number in range(56)]
    assert len(lake.ranges) == 3  # the footer and two row groups
    with pytest.raises(StoreDown, match=r"a\.parquet is damaged"):
        images.get("s3://lake/a.parquet#/image/79")

    lake.store.put("a.parquet", parquet_of_images([b"new"]))
    assert images.get("s3://lake/a.parquet#/image/0") == Blob(b"new", "2")


def test_a_list_of_members_knows_what_is_refused_and_what_is_missing(lake: Lake) -> None:
    lake.store.put("a.tar", tar_of({"1.jpg": b"one"}))
    lake.store.put("b.jpg", b"b")
    lake.store.put("c.tar#/1.jpg", b"an object of its own")
    for uri in ("s3://lake/a.tar#/1.jpg", "s3://lake/c.tar#/1.jpg"):
        images = ImageStores()
        images.find = lambda uri: (lake, uri.removeprefix("s3://lake/"))  # type: ignore[method-assign, assignment, return-value]
        fetcher = Fetcher(images, Clock())
        # without the right to list, what does not exist is refused
        lake.failures = {"a.tar#/1.jpg": Denied("refused"), "c.tar": Denied("refused")}
        if "c.tar" in uri:
            images.get = lambda uri, most_bytes=None: Blob(b"an object of its own", "1")  # type: ignore[method-assign]

        item = LakeObject(uri, size=999 if "a.tar" in uri else None)  # a size that the list has wrong
        assert fetcher.fetch([item])[0].blob is not None

        lake.failures["b.jpg"] = Denied("b.jpg is refused.")
        images.get = lambda uri, most_bytes=None: lake.get(uri)  # type: ignore[method-assign]
        assert fetcher.fetch([LakeObject("s3://lake/b.jpg")])[0].error_kind == "denied"

        lake.failures |= {"a.tar": Denied("refused"), "c.tar#/1.jpg": Denied("refused")}
        with pytest.raises(LakeUnreadable, match="which was read before, is now refused, too"):
            fetcher.fetch([LakeObject("s3://lake/b.jpg")])


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.binary_view(), pa.binary(3), pa.dictionary(pa.int32(), pa.binary())],
    ids=["large", "view", "fixed", "dictionary"],
)
def test_bytes_may_have_any_arrow_type(lake: Lake, fetcher: Fetcher, kind: pa.DataType, *, is_struct: bool) -> None:
    images = [b"one", b"two", None, b"one"]
    column = (
        pa.array(images, pa.binary()).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(images, kind)
    )
    if is_struct:
        column = pa.StructArray.from_arrays([column, pa.array(["1.jpg"] * 4)], ["bytes", "path"])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": column}), sink)
    lake.store.put("a.parquet", sink.getvalue().to_pybytes())
    assert pq.read_schema(pa.BufferReader(sink.getvalue())).field("image").type == column.type

    found = data_of(fetch_all(fetcher, listed(lake, "s3://lake/a.parquet", column="image")))

    assert list(found.values()) == [b"one", b"two", "empty", b"one"]


def test_a_column_may_have_any_name(lake: Lake, fetcher: Fetcher) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"my/image #1%": pa.array([b"one"])}), sink)
    lake.store.put("a.parquet", sink.getvalue().to_pybytes())

    (item,) = listed(lake, "s3://lake/a.parquet", column="my/image #1%")

    assert item.uri == "s3://lake/a.parquet#/my%2Fimage%20%231%25/000000000"
    assert data_of(fetch_all(fetcher, [item])) == {item.uri: b"one"}
