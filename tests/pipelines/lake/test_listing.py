"""What a run is pointed at becomes one ordered stream, each image once."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.lake_object import (
    ARCHIVED,
    DUPLICATE,
    NOT_MODIFIED,
    NOT_UTF8,
    OWN_TABLE,
    WITHOUT_URI,
    LakeObject,
    Listed,
    Skipped,
)
from pipelines.lake.listing import Listing, list_objects
from pipelines.lake.skipping import skip_reason
from pipelines.store import Misconfigured, Store, StoreDown, StoreEntry
from pipelines.table.schema import NO_COLUMNS, Origin, Row, rows_to_table
from tests.memory_store import memory_store


def lake(*keys: str, root: str = "s3://lake", **files: bytes) -> dict[str, Store]:
    store = memory_store(root)
    for key in keys:
        store.put(key, b"12345")
    for name, data in files.items():
        store.put(name.replace("_", "."), data)
    return {root: store}


def listed(
    stores: dict[str, Store],
    *sources: str,
    keep: Sequence[str] = (),
    stored: pa.Schema = NO_COLUMNS,
    table: str | None = None,
) -> Listing:
    return list_objects(sources, keep=keep, stored=stored, table=table, open_root=stores.__getitem__)


def uris(stream: Listing) -> list[str]:
    return [item.uri for item in stream if isinstance(item, LakeObject)]


def skipped(stream: Listing) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in stream:
        if isinstance(item, Skipped):
            found[item.reason] = found.get(item.reason, 0) + item.count
    return found


def test_a_folder_is_listed_with_or_without_its_slash() -> None:
    stores = lake("a/1.jpg", "a/b/2.jpg", "ab/3.jpg", "a.jpg")

    assert uris(listed(stores, "s3://lake/a")) == ["s3://lake/a/1.jpg", "s3://lake/a/b/2.jpg"]
    assert uris(listed(stores, "s3://lake/a/")) == ["s3://lake/a/1.jpg", "s3://lake/a/b/2.jpg"]
    assert len(uris(listed(stores, "s3://lake"))) == 4
    assert len(uris(listed(stores, "s3://lake/"))) == 4


def test_an_object_has_the_size_and_etag_of_the_listing() -> None:
    stores = lake("a/1.jpg")

    assert list(listed(stores, "s3://lake/a")) == [LakeObject("s3://lake/a/1.jpg", "1", 5)]
    assert list(listed(stores, "s3://lake/a/1.jpg")) == [LakeObject("s3://lake/a/1.jpg", "1", 5)]


def written(folder: Path, **times: float) -> Path:
    """A folder of images that were modified at these times."""
    for name, time in times.items():
        path = folder / f"{name}.jpg"
        path.write_bytes(b"12345")
        os.utime(path, (time, time))
    return folder


SINCE = datetime(2026, 11, 28, tzinfo=UTC)
AT = SINCE.timestamp()


def test_images_that_were_modified_before_a_time_are_skipped(tmp_path: Path) -> None:
    folder = written(tmp_path, a=AT - 0.5, b=AT, c=AT + 100)
    sources = [str(folder), f"{folder}/a.jpg", f"{folder}/c.jpg"]

    listing = list_objects(sources, modified_since=SINCE)

    assert uris(listing) == [f"file://{folder}/b.jpg", f"file://{folder}/c.jpg"]
    assert skipped(listing) == {NOT_MODIFIED: 1, "duplicate": 2}
    assert uris(replace(listing, modified_since=AT + 1)) == [f"file://{folder}/c.jpg"]
    assert [item.uri for item in listing.after(f"file://{folder}/b.jpg") if isinstance(item, LakeObject)] == [
        f"file://{folder}/c.jpg"
    ]


def test_an_image_whose_time_is_not_known_is_labelled(tmp_path: Path) -> None:
    folder = written(tmp_path, a=AT, z=AT)
    (folder / "m.jpg").symlink_to("/nowhere/m.jpg")

    listing = list_objects([str(folder)], modified_since=SINCE)

    assert uris(listing) == [f"file://{folder}/{name}.jpg" for name in "amz"]


def test_a_folder_without_modified_images_is_not_an_error(tmp_path: Path) -> None:
    listing = list_objects([str(written(tmp_path, a=1, b=2))], modified_since=SINCE)

    assert list(listing) == [Skipped(f"file://{tmp_path}/{name}.jpg", NOT_MODIFIED) for name in "ab"]


def test_the_time_of_images_inside_a_file_is_that_of_the_file(tmp_path: Path) -> None:
    for name, time in (("old", AT - 1), ("new", AT)):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("1.jpg"))  # its own time is 1970
        os.utime(tmp_path / f"{name}.tar", (time, time))

    listing = list_objects([f"{tmp_path}/*.tar"], modified_since=SINCE)

    assert uris(listing) == [f"file://{tmp_path}/new.tar#/1.jpg"]
    assert skipped(listing) == {NOT_MODIFIED: 1}


def test_what_does_not_tell_when_images_were_modified_is_refused_with_a_time(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    written(photos, a=AT)
    (tmp_path / "lists").mkdir()
    for name in ("list.csv", "lists/part-0.csv"):
        (tmp_path / name).write_text(f"uri\n{photos}/a.jpg\n")

    for source in (f"{tmp_path}/list.csv", f"{tmp_path}/lists", "https://example.org/a.jpg"):
        with pytest.raises(UsageError, match=f"--modified-since: {source} does not have times of modification"):
            list_objects([str(photos), source], modified_since=SINCE)


def test_what_the_listing_says_is_archived_is_left_out_unless_a_list_names_it() -> None:
    store = lake("a/1.jpg", "a/2.jpg", "b.jpg", list_csv=b"uri\ns3://lake/a/1.jpg\n")["s3://lake"]

    class Archive:
        uri, head, get = store.uri, store.head, store.get

        def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
            return (replace(entry, is_archived=entry.key.startswith("a/")) for entry in store.list(prefix, after))

    archive: dict[str, Store] = {"s3://lake": Archive()}  # type: ignore[dict-item]

    assert list(listed(archive, "s3://lake/list.csv", "s3://lake/"))[:3] == [
        LakeObject("s3://lake/a/1.jpg"),
        Skipped("s3://lake/a/2.jpg", ARCHIVED),
        LakeObject("s3://lake/b.jpg", "3", 5),
    ]
    with pytest.raises(RayDetrError, match=r"no image at s3://lake/a/ \(left out: 2 archived\)"):
        listed(archive, "s3://lake/a/")


def test_a_glob_takes_what_matches() -> None:
    stores = lake("2026/1/a.jpg", "2026/a.jpg", "2026/a.png", "2027/a.jpg")

    assert uris(listed(stores, "s3://lake/2026/**/*.jpg")) == ["s3://lake/2026/1/a.jpg", "s3://lake/2026/a.jpg"]
    assert uris(listed(stores, "s3://lake/202?/a.{jpg,png}")) == [
        "s3://lake/2026/a.jpg",
        "s3://lake/2026/a.png",
        "s3://lake/2027/a.jpg",
    ]


def test_a_name_with_brackets_that_exists_is_that_image() -> None:
    assert uris(listed(lake("IMG [1].jpg", "IMG 1.jpg"), "s3://lake/IMG [1].jpg")) == ["s3://lake/IMG [1].jpg"]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_with_brackets_in_its_name_that_exists_is_that_folder(end: str) -> None:
    stores = lake("photos [2024]/1.jpg", "photos 2/1.jpg", "photos {1}/1.jpg")

    assert uris(listed(stores, f"s3://lake/photos [2024]{end}")) == ["s3://lake/photos [2024]/1.jpg"]
    assert uris(listed(stores, f"s3://lake/photos {{1}}{end}")) == ["s3://lake/photos {1}/1.jpg"]
    assert uris(listed(stores, "s3://lake/photos [0-9]/1.jpg")) == ["s3://lake/photos 2/1.jpg"]


def test_a_list_of_uris_is_read_and_not_listed() -> None:
    stores = lake(list_csv=b"uri,size,station\ns3://b/2.jpg,2,north\nhttps://h/1.jpg?x=1,,south\n,,\n")

    stream = listed(stores, "s3://lake/list.csv", keep=["station"])

    assert list(stream) == [
        Skipped("", WITHOUT_URI),
        LakeObject("https://h/1.jpg?x=1", None, None, ("south",)),
        LakeObject("s3://b/2.jpg", None, 2, ("north",)),
    ]
    assert stream.kept_schema == pa.schema([("station", pa.string())])
    assert list(stream.after("https://h/1.jpg?x=1")) == list(stream)[2:]


def test_a_glob_may_name_several_lists() -> None:
    stores = lake(lists_1_csv=b"uri\ns3://b/2.jpg\n", lists_2_csv=b"uri\ns3://b/1.jpg\n")

    assert uris(listed(stores, "s3://lake/lists.*.csv")) == ["s3://b/1.jpg", "s3://b/2.jpg"]


def test_mixed_sources_are_merged_in_the_order_of_uris() -> None:
    stores = lake("a/2.jpg", "c/1.jpg", "b.jpg", list_jsonl=b'{"url": "s3://lake/a/1.jpg"}\n{"url": "gs://x/1.jpg"}\n')

    stream = listed(stores, "s3://lake/c/", "https://h/b.jpg", "s3://lake/list.jsonl", "s3://lake/b.jpg", "s3://lake/a")

    assert uris(stream) == [
        "gs://x/1.jpg",
        "https://h/b.jpg",
        "s3://lake/a/1.jpg",
        "s3://lake/a/2.jpg",
        "s3://lake/b.jpg",
        "s3://lake/c/1.jpg",
    ]


def test_an_image_that_several_sources_name_comes_once_as_the_first_has_it() -> None:
    stores = lake("a/1.jpg", "a/2.jpg", list_csv=b"uri,station\ns3://lake/a/1.jpg,north\ns3://lake/a/1.jpg,south\n")

    first = list(
        listed(stores, "s3://lake/list.csv", "s3://lake/a/", "s3://lake/a/2.jpg", "s3://lake/a/", keep=["station"])
    )
    second = list(listed(stores, "s3://lake/a/", "s3://lake/list.csv", keep=["station"]))

    assert first == [
        Skipped("s3://lake/a/1.jpg", DUPLICATE, 2),
        LakeObject("s3://lake/a/1.jpg", None, None, ("north",)),
        Skipped("s3://lake/a/2.jpg", DUPLICATE),
        LakeObject("s3://lake/a/2.jpg", "2", 5, (None,)),
    ]
    assert second[1] == LakeObject("s3://lake/a/1.jpg", "1", 5, (None,))


def test_what_a_folder_leaves_out_may_be_named_one_by_one() -> None:
    stores = lake("a/1.jpg", a_mp4=b"\0\0\0\x18ftyp")
    stores["s3://lake"].put("a/.hidden.jpg", b"12345")

    assert uris(listed(stores, "s3://lake/", "s3://lake/a.mp4", "s3://lake/a/.hidden.jpg")) == [
        "s3://lake/a.mp4",
        "s3://lake/a/.hidden.jpg",
        "s3://lake/a/1.jpg",
    ]
    assert skipped(listed(stores, "s3://lake/", "s3://lake/a.mp4", "s3://lake/a/.hidden.jpg")) == {}
    assert skipped(listed(stores, "s3://lake/a/", "s3://lake/")) == {DUPLICATE: 1, ".mp4": 1, "hidden": 1}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/IMG_1.JPG", None),
        ("a/_MG_0412.JPG", None),  # as cameras name the pictures of one colour space
        ("_selected/a.tif", None),
        ("a/scan", None),
        ("a/raw.cr2", None),
        ("a/document.pdf", None),
        ("a/photo.jpg.part", None),
        ("a/.jpg", "hidden"),
        (".thumbnails/a.jpg", "hidden"),
        ("a/._IMG_1.JPG", "hidden"),
        ("_SUCCESS", "internal"),
        ("tables/_runs/x/00001.part", "internal"),
        ("a/labels.JSON", ".json"),
        ("a/film.mp4", ".mp4"),
        ("all.tar", ".tar"),
        ("SHA256SUMS", "sha256sums"),
        ("a/json", None),
        ("a/@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg", "@eaDir"),
        ("#recycle/a.jpg", "#recycle"),
        ("$RECYCLE.BIN/S-1-5-21/$R1.jpg", "$RECYCLE.BIN"),
        ("a/$Recycle.Bin/x.jpg", "$Recycle.Bin"),
        ("__MACOSX/a/b.jpg", "__MACOSX"),
        (".Trashes/501/a.jpg", ".Trashes"),
        (".Trash-1000/files/a.jpg", ".Trash-1000"),
        ("lost+found/#123.jpg", "lost+found"),
        ("@Recycle/a.jpg", "@Recycle"),
        ("lost+found.jpg", None),
        ("recycle/a.jpg", None),
        ("a/data.arrow", ".arrow"),
        ("a/todo.csv.xz", ".xz"),
        ("a/todo.jsonl.LZ4", ".lz4"),
        ("a/all.tbz2", ".tbz2"),
        ("a/xz", None),
    ],
)
def test_a_folder_leaves_out_only_what_is_certainly_no_image(path: str, reason: str | None) -> None:
    assert skip_reason(path) == reason


def test_names_that_are_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in (b"a/1.jpg", b"a/\xfc.jpg", b"a/\xff.jpg", b"b/2.jpg", b"\xe4/3.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - names that are not text
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(path)).write_bytes(b"12345")
    stream = list_objects([str(tmp_path)])

    assert uris(stream) == [f"file://{tmp_path}/a/1.jpg", f"file://{tmp_path}/b/2.jpg"]
    assert skipped(stream) == {NOT_UTF8: 3}
    assert [item.uri for item in stream.after(f"file://{tmp_path}/a/1.jpg")] == [f"file://{tmp_path}/b/2.jpg"]


def test_a_folder_whose_own_name_is_not_utf8_is_refused_before_anything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (folder / "day").mkdir(parents=True)
    (folder / "day/a.jpg").write_bytes(b"1")

    for source in (f"{folder}/", f"{folder}/day", f"{folder}/day/a.jpg", f"{folder}/**/*.jpg"):
        with pytest.raises(RayDetrError, match=r"images: the path '.*caf\\udce9.* is not UTF-8"):
            list_objects([source])
    monkeypatch.chdir(folder)
    with pytest.raises(RayDetrError, match=r"images: the path 'day' is not UTF-8"):
        list_objects(["day"])


@pytest.mark.parametrize("name", ["photos", "photos.v1", "photos [2024]"])
def test_an_empty_object_beside_a_folder_of_its_name_does_not_hide_the_folder(name: str) -> None:
    stores = lake(f"{name}/a.jpg")
    stores["s3://lake"].put(name, b"")

    assert uris(listed(stores, f"s3://lake/{name}")) == [f"s3://lake/{name}/a.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "beside"),
    [("a.jpg", b"", "a.jpg/b.jpg"), ("scan", b"\xff\xd8", "scan/b.jpg"), ("scan", b"", "scans/b.jpg")],
)
def test_an_object_that_may_be_an_image_is_labelled_beside_a_folder(name: str, data: bytes, beside: str) -> None:
    stores = lake(beside)
    stores["s3://lake"].put(name, data)

    assert uris(listed(stores, f"s3://lake/{name}")) == [f"s3://lake/{name}"]


def test_names_above_the_given_folder_do_not_count_as_hidden() -> None:
    assert len(uris(listed(lake("_data/.cache/a.jpg", "_data/.cache/b"), "s3://lake/_data/.cache/"))) == 2
    assert len(uris(listed(lake(".cache/a.jpg", ".cache/.b.jpg"), "s3://lake/.cache/*.jpg"))) == 1


def test_a_table_in_the_same_prefix_is_not_labelled() -> None:
    stores = lake("a/1.jpg", "a/table/data/x/00000.parquet", "a/table/odd", "a/table2/2.jpg")

    stream = listed(stores, "s3://lake/a", table="s3://lake/a/table/")

    assert uris(stream) == ["s3://lake/a/1.jpg", "s3://lake/a/table2/2.jpg"]
    assert skipped(stream) == {OWN_TABLE: 2}


KEYS = st.sets(st.text("abc/._", min_size=1, max_size=6).map(lambda text: f"{text}.jpg"), min_size=1, max_size=12)


@given(keys=KEYS, extra=KEYS, cut=st.integers(0, 30))
def test_a_listing_can_be_taken_up_behind_any_uri(keys: set[str], extra: set[str], cut: int) -> None:
    stores = lake("x.jpg", *keys, list_jsonl="".join(f'{{"uri": "s3://lake/{key}"}}\n' for key in extra).encode())
    stream = (
        listed(stores, "s3://lake/", "s3://lake/*c*", "s3://lake/list.jsonl", "s3://lake/x.jpg")
        if any("c" in key and "/" not in key and not key.startswith(".") for key in keys)
        else listed(stores, "s3://lake/", "s3://lake/list.jsonl", "s3://lake/x.jpg")
    )
    whole = list(stream)

    position = cut % len(whole)
    uri = whole[position].uri
    rest: list[Listed] = [item for item in whole if item.uri > uri]

    assert list(stream.after(uri)) == rest
    names = [item.uri for item in whole if isinstance(item, LakeObject)]
    assert names == sorted(set(names))
    visible = {f"s3://lake/{key}" for key in keys if skip_reason(key) is None}
    assert set(names) == visible | {f"s3://lake/{key}" for key in extra} | {"s3://lake/x.jpg"}


@pytest.mark.parametrize("after", ["a", "file:///zzz", "s3://lakf/", "t"])
def test_a_listing_can_be_taken_up_in_another_store(after: str) -> None:
    stream = listed(lake("1.jpg"), "s3://lake/")

    assert bool(list(stream.after(after))) == (after < "s3://lake/")


@pytest.mark.parametrize(
    "source",
    ["https://user:opensesame@host/a.jpg", "https://host/a.jpg?X-Amz-Signature=opensesame", "ftp://u:opensesame@host/"],
)
def test_an_address_that_holds_a_secret_is_refused_since_plan_and_table_would_hold_it(source: str) -> None:
    with pytest.raises(RayDetrError, match="would be stored with it") as refused:
        list_objects([source])

    assert "opensesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("s3://lake/2025", r"there is nothing at s3://lake/2025\. .* begin with it, use s3://lake/2025\*"),
        ("s3://lake/2025/", r"there is nothing at s3://lake/2025/\. Check the address\.$"),
        ("s3://lake/*.png", r"there is nothing at s3://lake/\*\.png"),
        ("s3://lake/notes/", r"there is no image at s3://lake/notes/ \(left out: 2 \.txt, 1 \.json\)"),
        ("s3://lake/none.csv", r"there is nothing at s3://lake/none\.csv"),
        ("s3://lake/none*.csv", r"there is no table of URIs at s3://lake/none\*\.csv"),
        ("https://host/folder/", r"cannot list https://host/folder/: web servers have no listings"),
        ("https://host/*.jpg", r"cannot list https://host/\*\.jpg: web servers"),
    ],
)
def test_what_is_not_there_is_said_before_any_work(source: str, sentence: str) -> None:
    stores = lake("2026/a.jpg", "notes/a.txt", "notes/b.txt", "notes/c.json")

    with pytest.raises(RayDetrError, match=sentence):
        listed(stores, "s3://lake/2026/", source)


class Failing:
    """A store that lists two objects and then fails."""

    uri = "s3://lake"

    def __init__(self, error: Exception, after: int) -> None:
        self._error, self._after, self._inner = error, after, memory_store()
        for number in range(3):
            self._inner.put(f"{number}.jpg", b"")
        self.head, self.get, self.get_range = self._inner.head, self._inner.get, self._inner.get_range
        self.put, self.delete = self._inner.put, self._inner.delete

    def list(self, prefix: str = "", after: str | None = None) -> object:
        for number, entry in enumerate(self._inner.list(prefix, after)):
            if number == self._after:
                raise self._error
            yield entry


def test_a_store_that_cannot_be_listed_is_named_with_its_reason() -> None:
    refused = Failing(Misconfigured("no such bucket"), after=0)

    with pytest.raises(RayDetrError, match=r"^cannot list s3://lake/: no such bucket$"):
        list_objects(["s3://lake/"], open_root=lambda _: refused)  # type: ignore[arg-type, return-value]


def test_a_listing_that_breaks_stops_the_run_with_its_reason() -> None:
    stream = list_objects(["s3://lake/"], open_root=lambda _: Failing(StoreDown("no answer"), after=2))  # type: ignore[arg-type, return-value]

    with pytest.raises(RayDetrError, match=r"^cannot list s3://lake/: no answer$"):
        list(stream)


def test_a_store_that_cannot_be_opened_is_named_with_its_reason() -> None:
    def refuse(root: str) -> Store:
        raise Misconfigured("no credentials")

    with pytest.raises(RayDetrError, match=r"^cannot list s3://lake/a: no credentials$"):
        list_objects(["s3://lake/a"], open_root=refuse)


@pytest.mark.parametrize(
    ("keep", "lists", "sentence"),
    [
        (
            ["staton"],
            [b"uri,station\ns3://b/1,n\n"],
            r"no column 'staton' in s3://lake/0\.csv\. Did you mean 'station'\?",
        ),
        (["station"], [], r"no column 'station' in the images: no table of URIs is among them"),
        (
            ["n"],
            [b"uri,n\ns3://b/1,2026-11-30\n", b"uri,n\ns3://b/2,x\n"],
            r"column 'n' has several types: date32\[day\] in s3://lake/0\.csv, string in s3://lake/1\.csv",
        ),
        (
            ["n"],
            [b"uri,n\ns3://b/1,9007199254740993\n", b"uri,n\ns3://b/2,1.5\n"],
            r"column 'n' has several types: int64 in s3://lake/0\.csv, double in s3://lake/1\.csv",
        ),
    ],
)
def test_kept_columns_must_be_there_and_of_one_type(keep: list[str], lists: list[bytes], sentence: str) -> None:
    stores = lake("a.jpg")
    for number, data in enumerate(lists):
        stores["s3://lake"].put(f"{number}.csv", data)

    with pytest.raises(RayDetrError, match=sentence):
        listed(stores, "s3://lake/a.jpg", *(f"s3://lake/{number}.csv" for number in range(len(lists))), keep=keep)


def parquet_list(name: str, values: pa.Array) -> tuple[str, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": [f"s3://b/{name}.jpg"], "n": values}), sink)
    return f"{name}.parquet", sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([pa.nulls(1)], pa.string(), [None]),
        ([pa.nulls(1), pa.array([7], pa.int16())], pa.int16(), [None, 7]),
        ([pa.array(["x"]), pa.nulls(1)], pa.string(), ["x", None]),
        ([pa.array([7]), pa.array([0.5])], pa.float64(), [7, 0.5]),
        ([pa.array(["x"]), pa.array(["y"], pa.large_string())], pa.string(), ["x", "y"]),
        ([pa.array(["x"]).dictionary_encode(), pa.array(["y"]), pa.nulls(1)], pa.string(), ["x", "y", None]),
        ([pa.array(["x"], pa.large_string())], pa.large_string(), ["x"]),
        ([pa.array(["x"]).dictionary_encode()], pa.string(), ["x"]),  # pandas' and Polars' categories
        ([pa.array([7]).dictionary_encode()], pa.int64(), [7]),
        ([pa.array([7]).dictionary_encode(), pa.array([0.5])], pa.float64(), [7, 0.5]),
        ([pa.array([7]).dictionary_encode(), pa.array(["x"])], pa.string(), ["7", "x"]),
    ],
)
def test_kept_columns_get_one_type_that_holds_the_values_of_all_lists(
    values: list[pa.Array], kind: pa.DataType, kept: list[object]
) -> None:
    stores = lake()
    named = [parquet_list(str(number), value) for number, value in enumerate(values)]
    for name, data in named:
        stores["s3://lake"].put(name, data)

    stream = listed(stores, *(f"s3://lake/{name}" for name, _ in named), keep=["n"])
    rows = [Row(uri=item.uri, error_kind="missing", error="x", kept=item.kept) for item in stream
            if isinstance(item, LakeObject)]  # fmt: skip
    table = rows_to_table(rows, stream.kept_schema, origin=Origin("m@1", 0.1, "run", 0, datetime.now(UTC)))

    assert stream.kept_schema == pa.schema([("n", kind)])
    assert table["n"].to_pylist() == kept


def test_a_kept_column_of_a_csv_list_without_any_value_is_text() -> None:
    stores = lake(a_csv=b"uri,n\ns3://b/1,\n", b_csv=b"uri,n\ns3://b/2,x\n")

    for sources in (["s3://lake/a.csv"], ["s3://lake/a.csv", "s3://lake/b.csv"]):
        assert listed(stores, *sources, keep=["n"]).kept_schema == pa.schema([("n", pa.string())])


def test_kept_columns_have_the_types_in_which_they_are_stored() -> None:
    stores = lake()
    stores["s3://lake"].put("list.csv", b"uri,seen\ns3://b/1,2026-11-22 18:15:03\n")

    assert listed(stores, "s3://lake/list.csv", keep=["seen"]).kept_schema == pa.schema([("seen", pa.timestamp("ms"))])


def test_a_kept_column_that_one_list_lacks_is_null_there() -> None:
    stores = lake(a_csv=b"uri,n,m\ns3://b/1,1,x\n", b_csv=b"uri,m\ns3://b/2,y\n")

    stream = listed(stores, "s3://lake/a.csv", "s3://lake/b.csv", keep=["m", "n"])

    assert [item.kept for item in stream if isinstance(item, LakeObject)] == [("x", 1), ("y", None)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    for name in ("b.jpg", "a/ü #1?.jpg", "a/x.json", "a.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")
    return folder


@pytest.mark.parametrize(
    "named",
    [str, lambda path: f"{path}/", lambda path: f"file://{path}", lambda path: f"{path}/**/*.{{jpg,png}}"],
    ids=["path", "slash", "uri", "glob"],
)
def test_local_folders_give_absolute_file_uris(photos: Path, named: Callable[[Path], str]) -> None:
    stream = list_objects([named(photos)])

    base = f"file://{photos}"
    assert uris(stream) == [f"{base}/a.png", f"{base}/a/ü #1?.jpg", f"{base}/b.jpg"]


def test_relative_folders_and_single_files_are_made_absolute(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)

    assert uris(list_objects(["a", "b.jpg"])) == [f"file://{photos}/a/ü #1?.jpg", f"file://{photos}/b.jpg"]


@pytest.mark.parametrize("name", ["run [2024]", "run {a}", "run {a,b}", "what?", "a*", "**", "{a[}]"])
def test_a_name_of_the_working_directory_is_not_a_pattern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("1.jpg", "a.jpg", "deep/2.jpg", "list.txt")
    for folder in (name, "run 2", "run a", "what1", "ab", "a"):
        (tmp_path / folder / "photos" / "deep").mkdir(parents=True)
        for file in files:
            (tmp_path / folder / "photos" / file).write_text("s3://lake/1.jpg" if file == "list.txt" else "x")
    monkeypatch.chdir(tmp_path / name)
    base = f"file://{tmp_path}/{name}/photos"

    assert uris(list_objects(["photos/[0-9].jpg"])) == [f"{base}/1.jpg"]
    assert uris(list_objects(["photos/{1,a}.jpg"])) == [f"{base}/1.jpg", f"{base}/a.jpg"]
    assert uris(list_objects(["file:photos/**"])) == [f"{base}/1.jpg", f"{base}/a.jpg", f"{base}/deep/2.jpg"]
    assert uris(list_objects(["photos/1.jpg"])) == [f"{base}/1.jpg"]
    assert uris(list_objects(["photos/deep"])) == [f"{base}/deep/2.jpg"]
    assert uris(list_objects(["photos/l*.txt"])) == ["s3://lake/1.jpg"]
    monkeypatch.chdir(tmp_path / name / "photos" / "deep")
    assert uris(list_objects(["*.jpg"])) == [f"{base}/deep/2.jpg"]
    assert uris(list_objects(["../?.jpg"])) == [f"{base}/1.jpg", f"{base}/a.jpg"]
    assert uris(list_objects(["."])) == [f"{base}/deep/2.jpg"]
    assert uris(list_objects(["../../../what[1]/photos/1.*"])) == [f"file://{tmp_path}/what1/photos/1.jpg"]
    monkeypatch.setenv("HOME", f"{tmp_path}/{name}")
    monkeypatch.chdir("/")
    assert uris(list_objects(["~/photos/?.jpg"])) == [f"{base}/1.jpg", f"{base}/a.jpg"]


def test_a_local_table_among_the_photographs_is_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    (photos / "table").mkdir()
    (photos / "table" / "odd").write_bytes(b"1")

    assert skipped(list_objects([str(photos)], table="table")) == {".json": 1, OWN_TABLE: 1}


def test_a_local_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RayDetrError, match=rf"^there is nothing at {tmp_path}/photos\. .* use {tmp_path}/photos\*\.$"):
        list_objects([f"{tmp_path}/photos"])


def test_an_empty_folder_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^the folder {tmp_path} is empty\. Check the address\.$"):
        list_objects([str(tmp_path)])


def test_numbers_of_one_csv_list_are_text_beside_codes_of_another() -> None:
    stores = lake(a_csv=b"uri,n\ns3://b/1,100\n", b_csv=b"uri,n\ns3://b/2,007\n")

    stream = listed(stores, "s3://lake/a.csv", "s3://lake/b.csv", keep=["n"])

    assert stream.kept_schema.field("n").type == pa.string()
    assert [item.kept for item in stream if isinstance(item, LakeObject)] == [("100",), ("007",)]


@pytest.mark.parametrize(
    ("stored", "values", "kind", "kept"),
    [
        (pa.float64(), b"", pa.float64(), None),  # a night without values does not make the column text
        (pa.string(), b"101", pa.string(), "101"),
        (pa.dictionary(pa.int32(), pa.string()), b"1.5", pa.string(), "1.5"),
        (pa.float64(), b"101", pa.float64(), 101),
        (pa.float64(), b"9007199254740993", pa.int64(), 9007199254740993),
        (pa.int64(), b"007", pa.string(), "007"),  # no digit is lost: readers join the column as text
        (pa.null(), b"", pa.string(), None),
    ],
)
def test_a_kept_column_has_the_type_of_the_table_where_nothing_is_lost(
    stored: pa.DataType, values: bytes, kind: pa.DataType, kept: object
) -> None:
    stores = lake(a_csv=b"uri,n\ns3://b/1," + values + b"\n")

    stream = listed(stores, "s3://lake/a.csv", keep=["n"], stored=pa.schema([("n", stored)]))

    assert stream.kept_schema.field("n").type == kind
    assert [item.kept for item in stream if isinstance(item, LakeObject)] == [(kept,)]
