"""Addresses in lists: each means one image, and what no run could read is refused with the list."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.lake.lake_object import DUPLICATE, LakeObject, Skipped
from pipelines.lake.list_addresses import whole_uris
from pipelines.lake.listing import list_objects
from pipelines.lake.uri_tables import read_uri_table
from pipelines.store import open_store
from tests.memory_store import memory_store


def addresses(data: bytes | pa.Table, key: str = "a/lists/x.txt", root: str = "s3://lake") -> list[str]:
    """The addresses of a list, in order."""
    store = memory_store(root)
    if isinstance(data, pa.Table):
        sink = pa.BufferOutputStream()
        pq.write_table(data, sink)
        data = sink.getvalue().to_pybytes()
    store.put(key, data)
    return [uri for uri, *_ in read_uri_table(store, key).after(None)]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("../img/a.jpg", "s3://lake/a/img/a.jpg"),
        ("img/./a.jpg", "s3://lake/a/lists/img/a.jpg"),
        ("././a.jpg", "s3://lake/a/lists/a.jpg"),
        ("../../../../a.jpg", "s3://lake/a.jpg"),
        ("img//a.jpg", "s3://lake/a/lists/img//a.jpg"),
        ("b/../c/a..jpg", "s3://lake/a/lists/c/a..jpg"),
        ("crawl/http://x.org/a.jpg", "s3://lake/a/lists/crawl/http://x.org/a.jpg"),
        ("thumb.php?u=http://x.org/a.jpg", "s3://lake/a/lists/thumb.php?u=http://x.org/a.jpg"),
        ("../b.tar#/./c/../1.jpg", "s3://lake/a/b.tar#/./c/../1.jpg"),  # names of members stay as they are
        ("S3://Lake/A.jpg", "s3://Lake/A.jpg"),
        ("HTTPS://Host/A.jpg", "https://Host/A.jpg"),
        ("s3://lake/x/../b.jpg", "s3://lake/x/../b.jpg"),  # a whole address is a key as it stands
        ("file:///data/a.jpg", "file:///data/a.jpg"),
        ("file:///data//a.jpg", "file:///data/a.jpg"),
        ("file:///data/x/../a.jpg", "file:///data/a.jpg"),
        ("file:///data/./a.jpg", "file:///data/a.jpg"),
        ("file:////data/a.jpg", "file:///data/a.jpg"),
        ("file:///../data/a.jpg", "file:///data/a.jpg"),
        ("file://localhost/data/a.jpg", "file:///data/a.jpg"),
        ("FILE:///data//a.jpg", "file:///data/a.jpg"),
        ("file:/data/a.jpg", "file:///data/a.jpg"),
        ("/data/x/..//a.jpg", "file:///data/a.jpg"),
        ("file:///data/a%20b..jpg?x=1#2", "file:///data/a%20b..jpg?x=1#2"),  # nothing is decoded
        ("file:///data/.a/..b/c./...d.jpg", "file:///data/.a/..b/c./...d.jpg"),
        ("file:///data/x/../b.tar#/c//../1.jpg", "file:///data/b.tar#/c//../1.jpg"),
    ],
)
def test_an_address_in_a_list_means_one_object(written: str, meant: str) -> None:
    assert addresses(f"{written}\n".encode()) == [meant]
    assert addresses(f"{written}\ns3://lake/z.jpg\n".encode()) == sorted([meant, "s3://lake/z.jpg"])


def test_a_list_of_several_chunks_keeps_its_order_whichever_chunks_have_to_be_rewritten() -> None:
    chunks = [["s3://lake/1.jpg", "2.jpg"], [], ["s3://lake/3.jpg"], ["file:///data//4.jpg", "5.jpg", "/data/./6.jpg"]]
    written = pa.chunked_array([pa.array(chunk, pa.large_string()) for chunk in chunks])

    whole = whole_uris(written, "s3://lake/a", "s3://lake/a/x.parquet")

    assert whole.to_pylist() == [
        "s3://lake/1.jpg", "s3://lake/a/2.jpg", "s3://lake/3.jpg",
        "file:///data/4.jpg", "s3://lake/a/5.jpg", "file:///data/6.jpg",
    ]  # fmt: skip
    assert whole.type == pa.large_string()


def test_three_ways_to_write_one_file_are_one_image() -> None:
    store = memory_store("s3://lake")
    store.put("x.txt", b"file:///data/x/../a.jpg\nfile:///data/a.jpg\nfile:///data//a.jpg\n")

    found = list(list_objects(["s3://lake/x.txt"], open_root=lambda root: store))

    assert found == [Skipped("file:///data/a.jpg", DUPLICATE, 2), LakeObject("file:///data/a.jpg")]


def test_files_of_another_machine_are_refused() -> None:
    sentence = "file://nas/a/b.jpg cannot be read: it is a file of another machine.* write file:///a/b.jpg$"

    for written in ("file://nas/a//b.jpg", "file://me:s3cret@nas/a/b.jpg"):
        with pytest.raises(RayDetrError, match=f"^s3://lake/a/lists/x.txt: the image {sentence}"):
            addresses(f"file:///a.jpg\n{written}\n".encode())
        with pytest.raises(RayDetrError, match=f"^images: {sentence}"):
            list_objects([written])
    with pytest.raises(RayDetrError, match=r"^images: file://nas/list\.csv cannot be read"):
        list_objects(["FILE://nas/list.csv"])


def test_a_symbolic_link_is_an_image_of_its_own_as_in_plain_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    for start in ("", "file://"):
        assert addresses(f"{start}{tmp_path}/link/./a.jpg\n".encode()) == [f"file://{tmp_path}/link/a.jpg"]


def test_relative_addresses_of_a_list_at_the_top_of_a_bucket_are_at_the_top() -> None:
    assert addresses(b"a.jpg\n../b.jpg\n", "x.txt") == ["s3://lake/a.jpg", "s3://lake/b.jpg"]


@pytest.mark.parametrize("written", [" s3://lake/a.jpg", "s3://lake/a.jpg \n", "\ts3://lake/a.jpg\r\n"])
def test_blanks_and_line_ends_around_addresses_do_not_count(written: str) -> None:
    assert addresses(json.dumps([written, "s3://lake/b.jpg"]).encode(), "x.json") == [
        "s3://lake/a.jpg",
        "s3://lake/b.jpg",
    ]
    assert addresses(pa.table({"uri": [written, " ", None]}), "x.parquet") == ["s3://lake/a.jpg"]


@pytest.mark.parametrize(
    "written",
    ["https://h/x.jpg;token=s3cret", "https://h/x.jpg;a=1;sig=s3cret", "https://h/x&token=s3cret"],
)
def test_a_secret_behind_any_separator_is_refused_and_not_shown(written: str) -> None:
    with pytest.raises(RayDetrError, match="contains a password, token or signature") as raised:
        addresses(f"{written}\n".encode())

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("foo://x/a.jpg", r"foo:// is not a known kind of store"),
        ("ftp:///a.jpg", r"ftp:/// is not a complete address of a ftp:// store"),
        ("github://a.jpg", r"github://a.jpg/ is not a complete address of a github:// store"),
        ("s3:///a.jpg", r"s3://: .*bucket is missing"),
        ("s3://my bucket/a.jpg", r"'s3://my bucket' is not a bucket"),
        ("gs:///a.jpg", r"gs:// cannot be opened"),
        ("abfss://a.dfs.core.windows.net/b.jpg", r"abfss://a.dfs.core.windows.net cannot be opened"),
    ],
)
def test_an_address_of_a_store_that_cannot_be_opened_is_refused_with_the_list(
    written: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(RayDetrError) as raised:
        addresses(f"s3://lake/b.jpg\n{written}\n".encode())

    assert str(raised.value).startswith(f"s3://lake/a/lists/x.txt: the image {written} cannot be read. ")
    raised.match(sentence)


def test_addresses_of_stores_that_need_credentials_are_accepted_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    uris = [
        "az://container/a.jpg",
        "ftp://host/a.jpg",
        "gs://b/a.jpg",
        "http:///a.jpg",
        "memory://a.jpg",
        "s3://b/a.jpg",
    ]

    assert addresses("\n".join(uris).encode()) == uris


def test_a_size_above_all_integers_is_refused_in_a_sentence() -> None:
    table = pa.table({"uri": ["s3://b/1", "s3://b/2"], "size": pa.array([2**63 + 1, 5], pa.uint64())})

    with pytest.raises(RayDetrError, match=r"x\.parquet says that an image has 9,223,372,036,854,775,809 bytes"):
        addresses(table, "x.parquet")


def test_relative_addresses_in_a_folder_whose_name_is_not_utf8_are_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "x.txt").write_text("a.jpg\n")
    (folder / "whole.txt").write_text("s3://lake/a.jpg\n")
    store = open_store("file:///")

    with pytest.raises(RayDetrError, match=r"caf\\udce9/x.txt.*the name of its folder is not UTF-8"):
        read_uri_table(store, f"{str(folder)[1:]}/x.txt")
    assert read_uri_table(store, f"{str(folder)[1:]}/whole.txt").rows["uri"].to_pylist() == ["s3://lake/a.jpg"]
