"""File formats of image lists: CSV, TSV, text, JSON and JSON lines, each read as an Arrow table."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.skipping import IMAGE_SUFFIXES, PACKED_SUFFIXES, TABLE_SUFFIXES
from pipelines.strict_json import parse_json

URI_COLUMNS: Final = ("uri", "url", "image", "path")
ETAG_COLUMNS: Final = ("etag", "e_tag")
PARQUET_SUFFIX: Final = ".parquet"
TEXT_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
LIST_SUFFIXES: Final = (PARQUET_SUFFIX, *TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
READABLE: Final = (
    "Lists are .parquet, .csv, .tsv, .txt (one address a line), .json (an array) or .jsonl files; all but Parquet may "
    "be packed with gzip (.csv.gz)."
)

# of cameras' raw files and documents: not supported, but certainly not names of columns
_FILE_SUFFIXES: Final = IMAGE_SUFFIXES | {"arw", "cr2", "cr3", "dng", "nef", "orf", "pdf", "raf", "rw2", "svg"}
GZIP: Final = b"\x1f\x8b"
_DELIMITERS: Final = ",;\t|"
_UNNAMED: Final = "column "  # prefix of the names of unnamed columns
# first bytes of tables and archives that are not supported as lists
_BEGINNINGS: Final = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a document of an office program",
    GZIP: "packed with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\x00": "packed with xz",
    b"\x04\x22\x4d\x18": "packed with lz4",
    b"\xff\x06\x00\x00sNaPpY": "packed with snappy",
    b"SQLite format 3": "a database",
    b"\x80\x04\x95": "a pickle",
    b"\x93NUMPY": "an array of numpy",
    codecs.BOM_UTF16_LE: "text in UTF-16",
    codecs.BOM_UTF16_BE: "text in UTF-16",
}
_HEAD_CHARACTERS: Final = 1 << 20  # in which the delimiter and the header of a CSV file are looked for
_HEAD_ROWS: Final = 50
# for the whole process; Python's limit of 131,072 refuses long texts and outlines
csv.field_size_limit(_HEAD_CHARACTERS)
# types are inferred from the first block of a CSV or JSONL file: use the whole file if Arrow can
_LARGEST_BLOCK: Final = 1 << 30

# Lists of addresses are packed 5 to 50 to 1; files that a few bytes fill the memory with, a thousand to 1.
_UNCHECKED_BYTES: Final = 64 << 20
_LARGEST_RATIO: Final = 200
_PIECE_BYTES: Final = 1 << 20

# Numbers as programs write them, which mean the same as numbers; others may be codes: 007, +5, 12E3, 0x1
_INTEGER: Final = r"0|-?[1-9][0-9]*"
_NUMBER: Final = (
    r"-?(0|[1-9][0-9]{0,14})(e[+-][0-9]+)?|[+-]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?"
)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_LABELLED_LINE: Final = re.compile(rf".*\.(?:{'|'.join(sorted(IMAGE_SUFFIXES))})[ \t]+-?\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedList:
    """The contents of a list in a text format.

    Attributes:
        table: its columns, text without the spaces around it.
        has_header: False if the file has no header, so that columns are named `column 1` and so on.
        is_header_certain: False if the first line counts as a header only because it has no address.
        comments: number of comment lines.
    """

    table: pa.Table
    has_header: bool = True
    is_header_certain: bool = True
    comments: int = 0


def read_list(data: bytes, file_name: str, name: str, keep: Sequence[str] = ()) -> ParsedList:
    """Read the list of a text format.

    CSV may be separated by commas, semicolons, tabs or bars, may begin with comments, and may have no header if its
    first line has an address. A `.txt` file has one address a line. JSON is an array of addresses or of objects.

    Args:
        data: the file's bytes, in UTF-8, or in UTF-16 with a byte order mark.
        file_name: the file's name; its extension determines the format.
        name: the file's address in messages.
        keep: columns whose values are used: in CSV they are numbers only if no digit or letter would be lost.

    Raises:
        RayDetrError: the file is empty, damaged, in another encoding, or not a list.
    """
    lowered = file_name.lower()
    suffix = next(one for one in TEXT_SUFFIXES if lowered.removesuffix(".gz").endswith(one))
    kind = {".txt": "text", ".ndjson": "JSONL"}.get(suffix, suffix[1:].upper())
    try:
        text = _in_utf8(_unpacked(data, name) if data.startswith(GZIP) else data, name)
        if not text.strip():
            raise UsageError(f"{name} is empty: it names no images.")
        if suffix in (".csv", ".tsv"):
            return _read_csv(text, "\t" if suffix == ".tsv" else None, keep)
        if suffix == ".txt":
            return _read_text(text, name, keep)
        return ParsedList(_read_json(text, name, is_lines=suffix != ".json"))
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise RayDetrError(f"{name} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error


def unreadable_kind(file_name: str, beginning: bytes) -> str | None:
    """Return the kind of a file that is certainly text, a table or an archive; None if it may be an image.

    Args:
        file_name: its name.
        beginning: its first bytes, empty if unknown.
    """
    suffix = file_name.rpartition(".")[2].lower() if "." in file_name else ""
    if suffix in IMAGE_SUFFIXES:
        return None  # its name is that of an image, so it gets a row with an error
    found = next((kind for start, kind in _BEGINNINGS.items() if beginning.startswith(start)), None)
    if found is not None or suffix in TABLE_SUFFIXES | PACKED_SUFFIXES:
        return found or f"a .{suffix} file"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return None
    is_text = beginning.strip() and not re.search(rb"[\x00-\x08\x0e-\x1f]", beginning)
    return "text" if is_text and not beginning.lstrip().startswith(b"%PDF") else None


def looks_like_address(text: str) -> bool:
    """Return whether a text is certainly an address: with a scheme, an absolute path, or a file name of an image."""
    text = text.strip().strip("\"'").strip()
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://.|/.|\.{1,2}[/\\]|[a-zA-Z]:\\", text):
        return True
    stem, dot, suffix = text.partition("?")[0].rpartition(".")
    return bool(dot and stem and suffix.lower() in _FILE_SUFFIXES)


def _unpacked(data: bytes, name: str) -> bytes:
    """Return the contents of a gzip file.

    Raises:
        RayDetrError: it has far more bytes than a list of its size.
    """
    text = bytearray()
    most = max(_UNCHECKED_BYTES, _LARGEST_RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while piece := file.read(_PIECE_BYTES):
            text += piece
            if len(text) > most:
                raise RayDetrError(
                    f"{name} has {len(data):,} bytes, and more than {most:,} when it is unpacked, which no list of "
                    "images should have. Check it; if it is one, unpack it first."
                )
    return bytes(text)


def _in_utf8(data: bytes, name: str) -> bytes:
    """Return the text in UTF-8 without a byte order mark."""
    for mark, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                           (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):  # fmt: skip
        if data.startswith(mark):
            return data.decode(encoding).encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        pa.array([data], pa.large_binary()).cast(pa.large_string())  # checks without copying the text
    except pa.ArrowInvalid:
        line = _broken_line(data)
        raise RayDetrError(f"{name} is damaged, or not in UTF-8: see line {line:,}. Save it in UTF-8.") from None
    return data


def _broken_line(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].count(b"\n") + 1
    return 0  # Arrow and Python agree on UTF-8, but messages do not rely on it


def _read_csv(data: bytes, delimiter: str | None, keep: Sequence[str]) -> ParsedList:
    lines = _head_lines(data)
    before = list(takewhile(_is_before_the_table, lines))
    lines = lines[len(before) : len(before) + _HEAD_ROWS]
    told = next((line[4:].strip("\r\n") for line in before if _tells_delimiter(line)), "")
    delimiter = told if len(told) == 1 else delimiter or _delimiter(lines)
    reader = csv.reader(lines, delimiter=delimiter)
    cells = [_unquoted(cell) for cell in next(reader, [])]
    is_named = any(cell.casefold() in URI_COLUMNS for cell in cells)
    has_header = is_named or not any(map(looks_like_address, cells))
    places = [f"{_UNNAMED}{place}" for place in range(1, len(cells) + 1)]
    # pandas writes an empty name for its index, the first column
    names = (
        [cell or ("" if place == 0 else places[place]) for place, cell in enumerate(cells)] if has_header else places
    )
    # etags may look like numbers, and so may the names of photographs
    texts = {name for name in names if name.casefold() in (*URI_COLUMNS, *ETAG_COLUMNS)}
    texts |= {name for name, cell in zip(names, cells, strict=True) if looks_like_address(cell)}
    header = lines[: reader.line_num] if has_header else []
    body = memoryview(data)[len("".join([*before, *header]).encode()) :]
    if len(body) <= _HEAD_CHARACTERS and not bytes(body).strip():
        table = pa.table({name: pa.nulls(0, pa.string()) for name in names})
    else:
        parse = partial(_parse_csv, body, names, delimiter)
        table = parse(texts)
        inferred = [name for name in keep if names.count(name) == 1 and _may_lose(table[name].type)]
        if inferred:
            table = _with_lost_as_text(table, parse({*texts, *inferred}, inferred))
    table = table.select([place for place in range(table.num_columns) if not _is_unnamed_and_empty(table, place)])
    return ParsedList(_trimmed(table, keep), has_header, is_named or not has_header, sum(map(is_comment, before)))


def _head_lines(data: bytes) -> list[str]:
    """Return the first lines with their line ends, to detect the delimiter and the header of a CSV file."""
    text = data[:_HEAD_CHARACTERS].decode(errors="ignore")
    lines = io.StringIO(text, newline="").readlines()  # str.splitlines would also split within names
    return lines[:-1] if len(data) > _HEAD_CHARACTERS and len(lines) > 1 else lines


def _is_before_the_table(line: str) -> bool:
    return not line.strip() or is_comment(line) or _tells_delimiter(line)


def _tells_delimiter(line: str) -> bool:
    """Return whether a line is `sep=;`, as spreadsheet programs write and read it."""
    return line.lower().startswith("sep=")


def _parse_csv(
    body: memoryview, names: Sequence[str], delimiter: str, texts: set[str], columns: Sequence[str] = ()
) -> pa.Table:
    """Parse rows: columns in `texts` as text, others as what their values look like; all of them, or only `columns`."""
    return pa.csv.read_csv(
        pa.BufferReader(pa.py_buffer(body)),
        read_options=pa.csv.ReadOptions(block_size=_block_size(len(body)), column_names=list(names)),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=lambda row: "skip" if is_comment(row.text or "") else "error",
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()), include_columns=list(columns) or None
        ),
    )


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter that gives all lines the same number of cells, preferably with a column of addresses."""
    best = ","
    best_rank = (False, False)
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row and not is_comment(row[0])]
        if not rows or len(rows[0]) < 2:
            continue
        is_named = any(_unquoted(cell).casefold() in URI_COLUMNS for cell in rows[0])
        rank = (is_named, all(len(row) == len(rows[0]) for row in rows))
        if rank > best_rank:
            best, best_rank = delimiter, rank
    return best


def _is_unnamed_and_empty(table: pa.Table, place: int) -> bool:
    """Return whether a column has neither a name nor values, as after a delimiter at the end of each line."""
    name, column = table.column_names[place], table.column(place)
    return name.startswith(_UNNAMED) and bool(pa.types.is_null(column.type))


def _may_lose(kind: pa.DataType) -> bool:
    """Return whether values of an inferred type may have been written in a way that the type does not keep."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )


def _with_lost_as_text(table: pa.Table, texts: pa.Table) -> pa.Table:
    """Return a table in which columns are text if their type loses a part of a value, such as 007, 12E3, or only NA.

    Args:
        table: the columns with inferred types. Missing values among numbers, such as NA, are null.
        texts: the same columns as text.
    """
    for name in texts.column_names:
        column = table[name]
        kind = column.type
        written = pc.utf8_trim_whitespace(texts[name])
        form = "true|false" if pa.types.is_boolean(kind) else _INTEGER if pa.types.is_integer(kind) else _NUMBER
        missing = pc.equal(written, "") if pa.types.is_null(kind) else column.is_null()
        if not pc.all(pc.or_(missing, pc.match_substring_regex(written, f"(?i)^({form})$"))).as_py():
            table = table.set_column(table.column_names.index(name), name, texts[name])
    return table


def _trimmed(table: pa.Table, keep: Sequence[str]) -> pa.Table:
    """Return a table without spaces around texts, and without quotes that the parser missed because of spaces.

    In kept columns, quotes without a space before them are a part of the value.
    """
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if pa.types.is_string(column.type):
            trimmed = pc.utf8_trim_whitespace(column)
            unquoted = pc.replace_substring_regex(trimmed, r'^"(.*)"$', r"\1")
            if name in keep:
                unquoted = pc.if_else(pc.match_substring_regex(column, r"^\s"), unquoted, trimmed)
            table = table.set_column(place, name, unquoted)
    return table


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def is_comment(line: str) -> bool:
    """Return whether a line of a list is a comment: it begins with `#`, and is not the file name of an image."""
    line = line.strip()
    if not line.startswith("#"):
        return False
    is_name = looks_like_address(line) and "://" not in line and not line.startswith(("# ", "#\t", "##", "#/"))
    return not is_name


def _read_text(data: bytes, name: str, keep: Sequence[str]) -> ParsedList:
    """Read one address per line; a file whose first line names columns is read as CSV in spite of its name."""
    lines = [line.strip() for line in _LINE_END.split(data.decode())]
    first = next((line for line in lines if line and not is_comment(line)), "")
    if any(_unquoted(cell).casefold() in URI_COLUMNS for mark in _DELIMITERS for cell in first.split(mark)):
        return _read_csv(data, None, keep)
    named = [line for line in lines if line and not is_comment(line)]
    if named and all(map(_LABELLED_LINE.fullmatch, named)):
        raise RayDetrError(
            f"{name} has a number after every address, as in {named[0]!r:.100}, but a text list contains only "
            "addresses. Remove the numbers, or write a CSV file with the columns uri and label."
        )
    comments = sum(map(is_comment, lines))
    return ParsedList(pa.table({"uri": pa.array([_unquoted(line) for line in named], pa.string())}), comments=comments)


def _read_json(data: bytes, name: str, *, is_lines: bool) -> pa.Table:
    """Read an array of addresses or objects, or lines of either."""
    start = data.lstrip()[:1]
    if start == b"[":
        return _rows_table(parse_json(data), name)
    if start == b'"':  # lines of addresses
        return _rows_table([parse_json(line) for line in data.splitlines() if line.strip()], name)
    if not is_lines:
        try:
            document = parse_json(data)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # lines of objects are called .json, too
                raise
        else:
            if isinstance(document, dict) and not any(key.casefold() in URI_COLUMNS for key in document):
                raise UsageError(
                    f"{name} is not a list of images but an object with the fields {_shown(document)}. A list in JSON "
                    "is an array of addresses, or of objects with a field uri, url, image or path."
                )
            return _rows_table([document], name)
    if start != b"{":  # pyarrow 26 crashes if the first value is null
        raise ValueError("it begins with neither an object nor an array")
    return pa.json.read_json(io.BytesIO(data), read_options=pa.json.ReadOptions(block_size=_block_size(len(data))))


def _shown(document: Mapping[str, object]) -> str:
    return ", ".join(f"{key!r:.60}" for key in list(document)[:6]) or "(none)"


def _rows_table(rows: object, name: str) -> pa.Table:
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{name} is empty: it names no images.")
    if all(isinstance(row, str) for row in rows):
        return pa.table({"uri": pa.array(rows, pa.string())})
    if not all(isinstance(row, dict) for row in rows):
        raise RayDetrError(
            f"{name} is not a list of images: its array must contain only addresses or only objects. Write an array "
            "of addresses, or of objects with a field uri, url, image or path."
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return pa.json.read_json(io.BytesIO(lines), read_options=pa.json.ReadOptions(block_size=_block_size(len(lines))))


def _block_size(size: int) -> int:
    return min(size + 1, _LARGEST_BLOCK)
