"""Lists of images as people write them: every address is read as it was meant, or the list is refused by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RayDetrError
from pipelines.lake import list_formats
from pipelines.lake.lake_object import COMMENT, WITHOUT_URI, LakeObject, Skipped
from pipelines.lake.list_formats import is_comment, looks_like_address
from pipelines.lake.listing import list_objects
from pipelines.store import Store
from tests.memory_store import memory_store

A, B, C = "s3://lake/images/a.jpg", "s3://lake/images/b.jpg", "s3://lake/images/c.jpg"


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read(name: str, data: bytes, *more: tuple[str, bytes], source: str | None = None) -> list[str]:
    """The addresses that a list in `s3://lake` names, in order."""
    return [item.uri for item in listed(name, data, *more, source=source) if isinstance(item, LakeObject)]


def listed(name: str, data: bytes, *more: tuple[str, bytes], source: str | None = None) -> list[LakeObject | Skipped]:
    lake: Store = memory_store("s3://lake")
    for key, content in ((name, data), *more):
        lake.put(key, content)
    return list(list_objects([source or f"s3://lake/{name}"], open_root=lambda _: lake))


@pytest.mark.parametrize(
    "data",
    [
        b"images/a.jpg\nimages/b.jpg\nimages/c.jpg\n",
        b"images/a.jpg,1\nimages/b.jpg,2\nimages/c.jpg,3\n",
        b"1,images/a.jpg,fox\n2,images/b.jpg,fox\n3,images/c.jpg,owl\n",
        b"# photos of the north station\n# 2026\nimages/a.jpg\nimages/b.jpg\nimages/c.jpg\n",
        b"\r\n\r\nimages/a.jpg\r\nimages/b.jpg\r\nimages/c.jpg\r\n",
        b'"images/a.jpg";"fox, red"\n"images/b.jpg";"fox"\n"images/c.jpg";"owl"\n',
        b"s3://lake/images/a.jpg\ns3://lake/images/b.jpg\ns3://lake/images/c.jpg",
        b"./images/a.jpg,x\n./images/b.jpg,x\n./images/c.jpg,x\n",
        b"\xef\xbb\xbfimages/a.jpg\nimages/b.jpg\nimages/c.jpg\n",
    ],
    ids=["plain", "number", "between", "comment", "blank", "quoted", "uris", "dot", "mark"],
)
def test_a_csv_without_a_header_keeps_its_first_image(data: bytes) -> None:
    assert read("list.csv", data) == [A, B, C]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.csv", b"id, uri\n0, images/a.jpg\n1, images/b.jpg \n2,images/c.jpg\n"),
        ("list.csv", b'id, "uri", site\n0, "images/a.jpg", x\n1, "images/b.jpg", y\n2, "images/c.jpg", z\n'),
        ("list.csv", b"id;uri\n0;images/a.jpg\n1;images/b.jpg\n2;images/c.jpg\n"),
        ("list.csv", b"sep=;\r\nid;uri\r\n0;images/a.jpg\r\n1;images/b.jpg\r\n2;images/c.jpg\r\n"),
        ("list.csv", b"uri\tsite\nimages/a.jpg\tx\nimages/b.jpg\tx\nimages/c.jpg\tx\n"),
        ("list.csv", b"uri|site\nimages/a.jpg|x\nimages/b.jpg|x\nimages/c.jpg|x\n"),
        ("list.csv", b",uri\n0,images/a.jpg\n1,images/b.jpg\n2,images/c.jpg\n"),  # the index of pandas
        ("list.csv", b"uri;site;;\nimages/a.jpg;x;;\nimages/b.jpg;x;;\nimages/c.jpg;;;\n"),
        ("list.csv", b"file_name,label\nimages/a.jpg,fox\nimages/b.jpg,fox\nimages/c.jpg,owl\n"),
        ("list.csv", b"# made by hand\nuri,site\nimages/a.jpg,x\nimages/b.jpg,x\nimages/c.jpg,x\n"),
        ("list.csv", "uri,site\nimages/a.jpg,ä\nimages/b.jpg,x\nimages/c.jpg,x\n".encode("utf-16")),
        ("list.csv", b"URL,note\nimages/a.jpg,\"1;2\n3;4\"\nimages/b.jpg,\nimages/c.jpg,5;6\n"),
        ("list.tsv", b"uri\tsite\nimages/a.jpg\tx, y\nimages/b.jpg\tx\nimages/c.jpg\tx\n"),
        ("list.tsv", b"images/a.jpg\nimages/b.jpg\nimages/c.jpg\n"),
        ("list.tsv.gz", gzip.compress(b"uri\tn\nimages/a.jpg\t1\nimages/b.jpg\t2\nimages/c.jpg\t3\n", mtime=0)),
        ("list.txt", b"images/a.jpg\nimages/b.jpg\n\nimages/c.jpg"),
        ("list.txt", b"images/a.jpg\r\nimages/b.jpg\r\nimages/c.jpg\r\n"),
        ("list.txt", "images/a.jpg\r\nimages/b.jpg\r\nimages/c.jpg\r\n".encode("utf-16")),  # PowerShell's `>`
        ("list.txt", b"uri\nimages/a.jpg\nimages/b.jpg\nimages/c.jpg\n"),
        ("list.txt", b"uri,size\nimages/a.jpg,3\nimages/b.jpg,3\nimages/c.jpg,3\n"),
        # unpacked by a web server's client, and packed by an upload that kept the name
        ("list.csv.gz", b"uri,n\nimages/a.jpg,1\nimages/b.jpg,2\nimages/c.jpg,3\n"),
        ("list.csv", gzip.compress(b"uri,n\nimages/a.jpg,1\nimages/b.jpg,2\nimages/c.jpg,3\n", mtime=0)),
        ("list.txt.gz", gzip.compress(b"images/a.jpg\nimages/b.jpg\nimages/c.jpg\n", mtime=0)),
        ("list.json", json.dumps(["images/a.jpg", "images/b.jpg", "images/c.jpg"]).encode()),
        ("list.json", json.dumps([{"uri": f"images/{one}.jpg", "n": 1} for one in "abc"], indent=1).encode()),
        ("list.json", b"".join(json.dumps({"uri": f"images/{one}.jpg"}).encode() + b"\n" for one in "abc")),
        ("list.json.gz", gzip.compress(json.dumps(["images/a.jpg", "images/b.jpg", "images/c.jpg"]).encode(), mtime=0)),
        ("list.jsonl", b'"images/a.jpg"\n"images/b.jpg"\n"images/c.jpg"\n'),
        ("list.jsonl", json.dumps([{"image": f"images/{one}.jpg"} for one in "abc"]).encode()),
    ],
)  # fmt: skip
def test_lists_as_tools_and_people_write_them_are_read(name: str, data: bytes) -> None:
    assert read(name, data) == [A, B, C]


def test_names_with_spaces_commas_and_signs_inside_stay_as_they_are() -> None:
    assert read("list.txt", b"my photos/a, b;c.jpg\n#1.jpg\n'x'.jpg\n") == [
        "s3://lake/#1.jpg",
        "s3://lake/'x'.jpg",
        "s3://lake/my photos/a, b;c.jpg",
    ]


def test_comments_and_rows_without_address_are_counted() -> None:
    assert [item for item in listed("list.txt", b"# north\nimages/a.jpg\n# s3://lake/b.jpg\n") if item.uri == ""] == [
        Skipped("", COMMENT, 2)
    ]
    assert listed("list.csv", b"# north\nuri,n\nimages/a.jpg,1\n# images,2\n#images\n,3\n") == [
        Skipped("", WITHOUT_URI, 1),
        Skipped("", COMMENT, 2),
        LakeObject(A),
    ]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("list.csv", b"photos/0001\nphotos/0002\n", r"list\.csv does not say .* photos/0001 \(text\)\. .* a header"),
        ("list.csv", b"0001x\n0002x\n", r"list\.csv does not say .* If its first line is an image and not the header"),
        ("list.csv", b"a.jpg,b.jpg\nc.jpg,d.jpg\n", r"columns column 1 \(text\), column 2 \(text\)"),
        ("list.csv", b"uri,size\n", r"list\.csv is empty: it has the columns uri, size, but no rows"),
        ("list.csv", b"\n\n", r"list\.csv is empty"),
        ("list.csv", b"uri\n\n", r"list\.csv is empty: it has the columns uri, but no rows"),
        ("list.csv", b"\xfcber.jpg\n", r"list\.csv is damaged, or not in UTF-8: see line 1\. Save it in UTF-8"),
        ("list.txt", b"a.jpg\n\xfc.jpg\n", r"list\.txt is damaged, or not in UTF-8: see line 2"),
        ("list.txt", b"", r"list\.txt is empty"),
        ("list.txt", b"a/1.jpg 0\na/2.jpg 17\n", r"list\.txt has a number after every address, as in 'a/1\.jpg 0'"),
        ("list.json", b"[]", r"list\.json is empty"),
        ("list.json", b"[1, 2]", r"list\.json is not a list of images: its array must contain only addresses"),
        ("list.json", b'{"images": [], "annotations": []}', r"not a list of images but an object with the fields 'im"),
        ("list.json", b'{"a": {"uri": "x.jpg"}}', r"list\.json is not a list of images but an object"),
        ("list.json", b'[{"id": 1, "data": {"image": "/data/a.jpg"}}]', r"columns id \(int64\), data \(a struct of im"),
        ("list.json", b'["a.jpg"', r"list\.json cannot be read as JSON"),
        ("list.jsonl", b'null\n{"uri": "a.jpg"}\n', r"list\.jsonl cannot be read as JSONL: it begins with neither"),
        ("list.jsonl", b'{"uri": 5}\n', r"its column uri is int64, but addresses must be text"),
        ("list.csv.gz", gzip.compress(b"uri\na.jpg\n", mtime=0)[:-9], r"list\.csv\.gz cannot be read as CSV"),
    ],
)  # fmt: skip
def test_a_list_that_is_not_one_is_refused_by_name(name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(RayDetrError, match=sentence):
        listed(name, data)


PICTURES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"images/a.jpg", b"images/b.jpg"], pa.binary()),
        pa.array([b"images/a.jpg", b"images/b.jpg"], pa.large_binary()),
        pa.array(["images/a.jpg", "images/b.jpg"]).dictionary_encode(),
        pa.array([{"bytes": None, "path": "images/a.jpg"}, {"bytes": None, "path": "images/b.jpg"}], PICTURES),
        pa.array([{"bytes": b"\xff", "path": A}, {"bytes": b"\xff", "path": B}], PICTURES),
    ],
    ids=["bytes", "large", "dictionary", "paths", "absolute"],
)
def test_addresses_in_parquet_may_be_bytes_or_paths_of_pictures(column: pa.Array) -> None:
    for name in ("uri", "image"):
        table = pa.table({name: column, "label": ["fox", "owl"]})
        if pa.types.is_struct(column.type):
            table = table.drop_columns("label")

        assert read("list.parquet", parquet(table)) == [A, B]


def test_addresses_beside_pictures_are_preferred_to_the_pictures() -> None:
    pictures = pa.array([{"bytes": b"\xff\xd8", "path": "a.jpg"}], PICTURES)
    table = pa.table({"image": pictures, "image_url": [A], "caption": ["a fox"]})

    assert read("list.parquet", parquet(table)) == [A]


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([b"\xff\xd8\xff\xe0"]), r"the column image holds bytes that are not addresses \(they are not text\)"),
        (pa.array([b"GIF89a\x01\x00"]), r"the column image holds bytes that are not addresses \(they are too long, or"),
        (
            pa.array([{"bytes": b"\xff\xd8", "path": "a.jpg"}], PICTURES),
            r"the column image holds the images themselves, in bytes. To label these, give --image-column image",
        ),
        (
            pa.array([{"bytes": b"\xff\xd8", "path": None}], PICTURES),
            r"the column image holds the images themselves, in bytes. To label these, give --image-column image",
        ),
        (pa.array([7]), r"its column image is int64, but addresses must be text"),
        (pa.array([{"id": 1}]), r"its column image is a struct of id, but addresses must be text"),
        (pa.array([["a.jpg"]]), r"its column image is list<.*: string>, but addresses must be text"),
    ],
)
def test_a_column_of_something_else_is_refused_with_what_it_holds(column: pa.Array, sentence: str) -> None:
    with pytest.raises(RayDetrError, match=rf"s3://lake/list\.parquet.*{sentence}"):
        listed("list.parquet", parquet(pa.table({"image": column})))


def test_a_folder_of_parquet_files_is_one_list() -> None:
    parts = [(f"todo/part-{number}.snappy.parquet", parquet(pa.table({"uri": [uri]}))) for number, uri in
             enumerate([C, A])]  # fmt: skip
    beside = [("todo/_SUCCESS", b""), ("todo/.part-0.crc", b"1"), ("todo/README.md", b"lists")]

    assert read(*parts[0], *parts[1:], *beside, source="s3://lake/todo") == [A, C]
    assert read(*parts[0], *parts[1:], *beside, source="s3://lake/todo/") == [A, C]
    assert read("todo.csv/part-0.csv", b"uri\nimages/a.jpg\n", source="s3://lake/todo.csv") == [
        "s3://lake/todo.csv/images/a.jpg"
    ]


def test_a_folder_of_photographs_and_lists_is_one_of_photographs() -> None:
    assert read("a/list.parquet", parquet(pa.table({"uri": [A]})), ("a/1.jpg", b"x"), source="s3://lake/a/") == [
        "s3://lake/a/1.jpg"
    ]


def test_a_folder_of_different_lists_is_refused() -> None:
    with pytest.raises(RayDetrError, match=r"there is no image at s3://lake/a/ \(left out: 1 \.csv, 1 \.parquet\)"):
        read("a/x.csv", b"uri\na.jpg\n", ("a/y.parquet", parquet(pa.table({"uri": [A]}))), source="s3://lake/a/")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("list.xlsx", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
        ("list.feather", b"ARROW1\0\0", "an Arrow file"),
        ("list.arrow", b"\xff\xff\xff\xff\x10\0", r"a \.arrow file"),
        ("list.lst", b"0\t1\ta.jpg\n", r"a \.lst file"),
        ("list.yaml", b"- a.jpg\n", r"a \.yaml file"),
        ("list.dat", b"a.jpg\nb.jpg\n", "text"),
        ("list", b"s3://lake/images/a.jpg\n", "text"),
        ("part-00000", b"PAR1\x15\x04", "a Parquet file"),
        ("list.parq", b"PAR1\x15\x04", "a Parquet file"),
        ("list.csv.bak", "uri\nä.jpg\n".encode("utf-16"), "text in UTF-16"),
        ("list.csv.zst", bytes.fromhex("28b52ffd0458810000"), "packed with zstd"),
        ("list.csv.bz2", bz2.compress(b"uri\na.jpg\n"), "packed with bzip2"),
        ("list.jsonl.xz", lzma.compress(b'{"uri": "a.jpg"}\n'), "packed with xz"),
        ("list.csv.lz4", bytes.fromhex("04224d186440a7"), "packed with lz4"),
        ("part-00000", b"\xff\x06\x00\x00sNaPpY", "packed with snappy"),
        ("part-00001", bytes.fromhex("28b52ffd0458810000"), "packed with zstd"),
        ("list.parquet.zst", b"\x00\xff\x00", r"a \.zst file"),
        ("list.csv.lzma", lzma.compress(b"uri\na.jpg\n", lzma.FORMAT_ALONE), r"a \.lzma file"),
        ("list.csv.snappy", b"\x00\x00\x00\x10\xff", r"a \.snappy file"),
    ],
)
def test_a_list_of_another_kind_is_never_taken_for_a_photograph(name: str, data: bytes, kind: str) -> None:
    with pytest.raises(
        RayDetrError, match=rf"s3://lake/{name} is not an image but {kind}, and .* Lists are \.parquet, "
    ):
        listed(name, data)


@pytest.mark.parametrize(
    "name",
    [
        "https://host/list.xlsx",
        "https://host/lists/photos.arrow?x=1.jpg",
        "https://h/l.csv.zst",
        "https://h/l.parquet.gz",
    ],
)
def test_a_list_of_another_kind_on_a_web_server_is_refused_by_its_ending(name: str) -> None:
    with pytest.raises(RayDetrError, match=r"is not an image but a \.(xlsx|arrow|zst|gz) file"):
        list_objects([name])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scan", b"\xff\xd8\xff\xe0 JFIF"),
        ("a.jpg", b"<html>"),
        ("a.cr2", b"II*\0"),
        ("empty", b""),
        ("a.JPEG", b"PAR1"),
    ],
)
def test_whatever_may_be_an_image_is_labelled(name: str, data: bytes) -> None:
    assert read(name, data) == [f"s3://lake/{name}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/x", True), ("/data/x", True), ("../x", True), ("a.JPG", True), ("a.jpg?x=1", True), (r"C:\a\b", True),
        (" 'a.png' ", True), ("uri", False), ("file path", False), ("lat/lon", False), (".jpg", False), ("1.5", False),
        ("image.url", False), ("", False), ("width:height", False),
    ],
)  # fmt: skip
def test_an_address_is_distinguished_from_a_name_of_a_column(text: str, expected: bool) -> None:
    assert looks_like_address(text) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("# a.jpg", True), ("#", True), ("#s3://b/a.jpg", True), ("#/a.jpg", True), ("#uri", True), ("#1.jpg", False),
     ("a #1.jpg", False)],
)  # fmt: skip
def test_a_comment_is_distinguished_from_a_file_name(line: str, expected: bool) -> None:
    assert is_comment(line) is expected


def test_a_first_line_longer_than_the_head_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,note\na.jpg," + "x" * 2_000_000 + "\nb.jpg,y\n")

    assert len([item for item in list_objects([str(tmp_path / "list.csv")]) if isinstance(item, LakeObject)]) == 2


def kept(values: list[str]) -> tuple[str, list[object]]:
    """The type and the values of a kept column of a CSV list that has these cells."""
    lake: Store = memory_store("s3://lake")
    lines = "".join(f"s3://lake/{number:02}.jpg,{value}\n" for number, value in enumerate(values))
    lake.put("list.csv", f"uri,n\n{lines}".encode())
    listing = list_objects(["s3://lake/list.csv"], keep=["n"], open_root=lambda _: lake)
    return str(listing.kept_schema.field("n").type), [item.kept[0] for item in listing if isinstance(item, LakeObject)]


@pytest.mark.parametrize(
    "values",
    [
        ["007", "12"],
        ["12E3", "1E07"],
        ["1e5", "2"],
        ["NA", "NA"],
        ["null", ""],
        ["+49", "7"],
        ["0x1F", "0x20"],
        ["-0", "1"],
        ["007.5", "1.5"],
        ["12345678901234567890", "1"],
        ["true", "1"],
        ["fox", "007"],
    ],
)
def test_a_kept_value_that_a_number_would_change_is_text_as_in_the_list(values: list[str]) -> None:
    assert kept(values) == ("string", values)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["7", "-12", ""], "int64", [7, -12, None]),
        (["7", "NA", " 12 "], "int64", [7, None, 12]),
        (["1.50", "2", "-.5", "3."], "double", [1.5, 2.0, -0.5, 3.0]),
        (["1e-05", "1.5E10", "2e+16", "inf"], "double", [1e-05, 1.5e10, 2e16, float("inf")]),
        (["52.520008123456789012", "0.1"], "double", [52.520008123456789012, 0.1]),
        (["true", "False", "NA"], "bool", [True, False, None]),
        (["", ""], "string", [None, None]),
    ],
)
def test_kept_numbers_stay_numbers(values: list[str], kind: str, expected: list[object]) -> None:
    assert kept(values) == (kind, expected)


def test_quotes_inside_kept_values_stay_and_those_after_a_space_do_not() -> None:
    assert kept(['"""a"" and ""b"""', ' "fox"', '"owl"']) == ("string", ['"a" and "b"', "fox", "owl"])


def test_a_cell_longer_than_the_limit_of_pythons_reader_is_read() -> None:
    assert read("list.csv", b'uri,outline\nimages/a.jpg,"' + b"1 " * 80_000 + b'"\n') == [A]


def test_a_packed_list_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_formats, "_UNCHECKED_BYTES", 4 << 20)
    bomb = gzip.compress(b"s3://lake/" + b" " * (5 << 20) + b"1.jpg\n", mtime=0)

    with pytest.raises(RayDetrError, match=r"list\.txt\.gz has [\d,]+ bytes, and more than 4,194,304 when it is unpac"):
        listed("list.txt.gz", bomb)


def test_a_packed_list_of_several_members_is_read_whole() -> None:
    assert read("list.txt.gz", gzip.compress(b"images/a.jpg\n") + gzip.compress(b"images/b.jpg\n")) == [A, B]
