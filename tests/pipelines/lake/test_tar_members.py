"""The images inside a tar archive: which, where, and what becomes of damaged ones."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.members import MemberIndex, decode_index, encode_index, member_index
from pipelines.lake.tar_members import read_tar_index
from pipelines.store import Changed, Store, StoreDown, open_store
from tests.memory_store import memory_store
from tests.pipelines.lake.archives import CountingStore, tar_of

LONG = "very/" * 60 + "long.jpg"  # longer than a plain header holds


def index_of(data: bytes) -> MemberIndex:
    store = memory_store("s3://lake")
    store.put("a.tar", data)
    return read_tar_index(store, "a.tar", len(data))


def contents(index: MemberIndex, data: bytes) -> dict[str, bytes]:
    """Return what lies where the index says."""
    return {row["name"]: data[row["offset"] : row["offset"] + row["size"]] for row in index.rows.to_pylist()}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_in_the_order_of_names_whatever_the_format(kind: int) -> None:
    members = {"b/ü 1.jpg": b"second", "b/a.png": b"first" * 400, "c.JPEG": b""}
    if kind != tarfile.USTAR_FORMAT:
        members[LONG] = b"last"
    data = tar_of(members, kind)

    index = index_of(data)

    assert index.rows["name"].to_pylist() == sorted(members)
    assert contents(index, data) == members
    assert (index.skipped, index.damaged_at) == ({}, None)


def test_an_archive_of_gnu_tar_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in (("1.jpg", b"one"), ("2.jpg", b"two" * 1000), ("2.json", b"{}")):
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "3.jpg").symlink_to("1.jpg")
    subprocess.run(["tar", "--sort=name", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "."], check=True)  # noqa: S607
    data = (tmp_path / "a.tar").read_bytes()

    index = index_of(data)

    assert contents(index, data) == {"1.jpg": b"one", "2.jpg": b"two" * 1000}
    assert index.skipped == {".json": 1, "link": 1}
    assert index.damaged_at is None


def test_what_is_not_an_image_by_its_name_is_counted() -> None:
    names = ["0.jpg", "0.json", "0.cls", "0.seg.png", "__MACOSX/._0.jpg", ".hidden.jpg", "LICENSE"]

    index = index_of(tar_of([(name, b"x") for name in names]))

    assert index.rows["name"].to_pylist() == ["0.jpg", "0.seg.png"]
    assert index.skipped == {
        ".json": 1,
        "member without an image's name": 1,
        "__MACOSX": 1,
        "hidden": 1,
        "license": 1,
    }


def test_of_members_with_one_name_the_last_counts_as_when_unpacked() -> None:
    data = tar_of([("a.jpg", b"old"), ("b.jpg", b"b"), ("./a.jpg", b"newest")])

    index = index_of(data)

    assert contents(index, data) == {"a.jpg": b"newest", "b.jpg": b"b"}
    assert index.skipped == {"duplicate": 1}


@pytest.mark.parametrize("name", ["dir/./a.jpg", "./dir//a.jpg", "/dir/a.jpg", "../dir/a.jpg", "other/../dir/a.jpg"])
def test_names_are_those_of_the_unpacked_files(name: str) -> None:
    index = index_of(tar_of([("dir/a.jpg", b"old"), (name, b"new")]))

    assert [(row["name"], row["size"], row["offset"]) for row in index.rows.to_pylist()] == [("dir/a.jpg", 3, 1536)]
    assert index.skipped == {"duplicate": 1}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_replaces_an_earlier_file_with_its_name(kind: bytes) -> None:
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = kind, "b.jpg"
    file = tar_of([("a.jpg", b"a")])[:1024]

    index = index_of(file + link.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

    assert (index.rows.num_rows, index.skipped) == (0, {"duplicate": 1, "link": 1})


def test_a_file_that_tar_packed_twice_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    subprocess.run(["tar", "-cf", "a.tar", "a.jpg", "./a.jpg", "a.jpg"], cwd=tmp_path, check=True)  # noqa: S607
    data = (tmp_path / "a.tar").read_bytes()

    index = index_of(data)

    assert contents(index, data) == {"a.jpg": b"one"}  # the last one is a hard link to itself
    assert sum(index.skipped.values()) == 2


def test_archives_behind_an_end_mark_are_read_on() -> None:
    data = tar_of({"a.jpg": b"a"}) + tar_of({"b.jpg": b"b"}) + tar_of({"c.jpg": b"c", "a.jpg": b"newer"})

    index = index_of(data)

    assert contents(index, data) == {"a.jpg": b"newer", "b.jpg": b"b", "c.jpg": b"c"}
    assert (index.skipped, index.damaged_at) == ({"duplicate": 1}, None)
    assert index_of(data[:-9000]).damaged_at == 20480 + 1024  # the third one's second header


def test_other_data_behind_an_end_mark_is_counted() -> None:
    index = index_of(tar_of({"a.jpg": b"a"}) + b"no archive" * 100)

    assert index.rows["name"].to_pylist() == ["a.jpg"]
    assert (index.skipped, index.damaged_at) == ({"data behind an archive's end mark": 1}, None)


def test_a_sparse_member_is_left_out_and_one_that_is_cut_off_is_damage() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))

    index = index_of(bytes(header) + bytes(1024))

    assert (index.rows.num_rows, index.skipped, index.damaged_at) == (0, {"sparse file": 1}, None)

    header[482] = 1  # the list of its pieces goes on in the next block
    header[148:156] = b"%06o\0 " % sum([*header[:148], *b" " * 8, *header[156:]])
    assert index_of(bytes(header) + bytes(7)).damaged_at == 0


def test_an_archive_that_is_cut_off_gives_what_lies_before() -> None:
    data = tar_of({"a.jpg": b"a" * 600, "b.jpg": b"b" * 600})  # headers at 0 and 1536

    within_content = index_of(data[:2100])
    within_header = index_of(data[:1600])
    between = index_of(data[:1536])
    without_end = index_of(data[: 1536 * 2])

    assert within_content.rows["name"].to_pylist() == ["a.jpg", "b.jpg"]  # b has a row that says it is cut off
    assert within_content.damaged_at == 2100
    assert (within_header.rows["name"].to_pylist(), within_header.damaged_at) == (["a.jpg"], 1536)
    assert (between.rows["name"].to_pylist(), between.damaged_at) == (["a.jpg"], 1536)
    assert (without_end.rows.num_rows, without_end.damaged_at) == (2, 3072)


def test_a_damaged_header_ends_the_archive_there() -> None:
    data = bytearray(tar_of({"a.jpg": b"a" * 600, "b.jpg": b"b" * 600}))
    data[1536 + 10] ^= 0xFF  # in the second name

    index = index_of(bytes(data))

    assert (index.rows["name"].to_pylist(), index.damaged_at) == (["a.jpg"], 1536)


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f\x8b" + bytes(2000), b"not a tar archive " * 100])
def test_a_file_that_is_not_an_archive_is_damaged_from_its_beginning(data: bytes) -> None:
    index = index_of(data)

    assert (index.rows.num_rows, index.damaged_at) == (0, 0)


@given(place=st.integers(0, 4000), value=st.integers(0, 255), cut=st.integers(0, 5000))
def test_no_damage_raises_or_runs_forever(place: int, value: int, cut: int) -> None:
    data = bytearray(tar_of({"a.jpg": b"a" * 600, LONG: b"b" * 10, "c.jpg": b"c"}))
    data[place] = value

    index = index_of(bytes(data[:cut]))

    assert index.rows.num_rows <= 3


def test_a_header_that_claims_gigabytes_is_not_read() -> None:
    info = tarfile.TarInfo("long name")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    store = CountingStore(memory_store("s3://lake"))
    store.put("a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))

    index = read_tar_index(store, "a.tar", 9 << 30)

    assert index.damaged_at == 0
    assert max(length for _, length in store.ranges) <= 64 << 10


def test_a_member_of_negative_size_does_not_lead_back() -> None:
    first, second = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("b.jpg")
    second.size = -1024

    index = index_of(first.tobuf(tarfile.GNU_FORMAT) + second.tobuf(tarfile.GNU_FORMAT) + bytes(2048))

    assert index.damaged_at == 512


@pytest.mark.parametrize("size", ["9223372036854775808", "99999999999999999999999", "-5"])
def test_a_size_that_no_file_has_is_damage(size: str) -> None:
    info = tarfile.TarInfo("b.jpg")
    info.pax_headers = {"size": size}
    data = tar_of({"a.jpg": b"a"})[:1024] + info.tobuf(tarfile.PAX_FORMAT) + bytes(2048)

    index = index_of(data)

    assert (index.rows["name"].to_pylist(), index.damaged_at) == (["a.jpg"], 1024)


def test_a_header_of_2_to_the_63_bytes_is_damage() -> None:
    info = tarfile.TarInfo("b.jpg")
    info.size = 1 << 63

    assert index_of(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)).damaged_at == 0


def test_thousands_of_headers_that_extend_each_other_are_damage() -> None:
    info = tarfile.TarInfo("long name")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    header = info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")

    assert index_of(header * 2_000 + bytes(1024)).damaged_at == 0


def test_a_short_response_is_not_damage() -> None:
    class Short(CountingStore):
        def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
            return super().get_range(key, start, length, if_match=if_match)[:700]

    store = Short(memory_store("s3://lake"))
    data = tar_of({"a.jpg": b"a", "b.jpg": b"b"})
    store.put("a.tar", data)

    with pytest.raises(StoreDown, match=r"s3://lake/a\.tar was cut off: 700 of 10,240 bytes arrived"):
        read_tar_index(store, "a.tar", len(data))


def test_of_large_images_only_headers_are_read(tmp_path: Path) -> None:
    store = CountingStore(open_store(str(tmp_path)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 3 << 20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    size = (tmp_path / "a.tar").stat().st_size

    index = read_tar_index(store, "a.tar", size)

    assert index.rows.num_rows == 20
    assert len(store.ranges) <= 22
    assert sum(length for _, length in store.ranges) < 256 << 10  # of 60 MB


def test_small_images_of_a_bucket_are_read_through_in_large_pieces() -> None:
    store = CountingStore(memory_store("s3://lake"))
    data = tar_of([(f"{number:04d}.jpg", bytes(20_000)) for number in range(1_000)])
    store.put("a.tar", data)

    index = read_tar_index(store, "a.tar", len(data))

    assert index.rows.num_rows == 1_000
    assert len(store.ranges) <= 12  # of 20 MB: a request for each header would be a thousand


def test_an_archive_of_another_version_is_refused() -> None:
    store: Store = memory_store("s3://lake")
    store.put("a.tar", tar_of({"a.jpg": b"a"}))

    with pytest.raises(Changed, match=r"s3://lake/a\.tar has changed"):
        read_tar_index(store, "a.tar", 10_240, etag="older")


NAMES = st.sets(st.text("a/é\uffff\U0001f600", min_size=1, max_size=4), max_size=8)


@given(names=NAMES, others=NAMES)
def test_a_member_is_found_by_its_name_and_no_other_is(names: set[str], others: set[str]) -> None:
    places = {name: place for place, name in enumerate(names)}
    index = member_index(list(places), list(places.values()), [7] * len(places), skipped={})

    for one in (index, decode_index(encode_index(index), "s3://table/_members/1.index")):
        assert {name: one.find(name) for name in names} == {name: (place, 7) for name, place in places.items()}
        assert {one.find(name) for name in others - names} <= {None}


class Counted(str):
    """A text that counts its comparisons."""

    compared = 0

    def __gt__(self, other: str) -> bool:
        self.compared += 1
        return super().__gt__(other)


def test_a_member_of_a_large_archive_is_found_without_reading_all_names() -> None:
    names = [f"{number:05d}.jpg" for number in range(10_000)]
    index = member_index(names, list(range(10_000)), [1] * 10_000, skipped={})
    name = Counted("09999.jpg")

    assert index.find(name) == (9_999, 1)
    assert 0 < name.compared <= 14  # by halves; each image that is read by its address looks for its name


def test_an_index_is_read_as_it_was_written() -> None:
    index = index_of(tar_of([("b.jpg", b"b"), ("a.jpg", b"a"), ("a.json", b"{}")])[:-10_000])

    again = decode_index(encode_index(index), "s3://table/_members/1.index")

    assert again.rows.equals(index.rows)
    assert (again.skipped, again.damaged_at) == (index.skipped, index.damaged_at)
