"""Images inside files: their addresses, and the index of a file's members.

The address of a member is that of its file, `#/`, and its name in it: `s3://lake/a.tar#/cats/1.jpg`,
`s3://lake/b.parquet#/image/000000017/cat.jpg` (column, row, and the file name if the row has one).
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.lake_object import LakeObject
from pipelines.parquet_files import open_bytes, parquet_of
from pipelines.store import StoreEntry
from pipelines.strict_json import Count, read_record

MARK: Final = "#/"
REFUSED: Final = -1
TAR_SUFFIX: Final = ".tar"
PARQUET_SUFFIX: Final = ".parquet"

_BATCH_ROWS = 8_192
_METADATA = b"ray_detr.members"
_SCHEMA: Final = pa.schema(
    [
        pa.field("name", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64()),
    ]
)
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_OTHER_ARCHIVES: Final = (".zip", ".7z", ".rar")
_ADDRESS = re.compile(r"(?P<file>.*?\.(?:tar|parquet))#/(?P<name>.+)", re.DOTALL | re.IGNORECASE)
_FILE = re.compile(r"\.(tar|parquet)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MemberIndex:
    """The images inside one file.

    Attributes:
        rows: `name`, `offset`, `size` (null where unknown) in the byte order of names, each name once.
        skipped: Number of skipped members by reason.
        damaged_at: First byte that cannot be read; None if all can; `REFUSED` if the store refused to read the file or
            the file kept changing.
    """

    rows: pa.Table
    skipped: Mapping[str, int] = field(default_factory=dict)
    damaged_at: int | None = None

    def members(self, uri: str, file: StoreEntry, kept: tuple[object, ...], after: str | None) -> Iterator[LakeObject]:
        """Yield the images after an address in the order of addresses; None yields all.

        Args:
            uri: Address of the file.
            file: The file, in the version of this index.
            kept: Values of each image's kept columns.
            after: The address.
        """
        base = uri + MARK
        rows = self.rows
        if after is not None and after >= base:
            if not after.startswith(base):
                return
            rows = rows.filter(pc.greater(rows["name"], after[len(base) :]))
        for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
            for name, offset, size in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield LakeObject(base + name, file.etag, size, kept, offset, file.modified)

    def find(self, name: str) -> tuple[int, int | None] | None:
        """Return offset and size of a member; None if the archive has no member of this name."""
        names = self.rows["name"]
        # strings of Python and Arrow have the same order
        place = bisect_left(range(len(names)), name, key=lambda row: names[row].as_py())
        if place == len(names) or names[place].as_py() != name:
            return None
        row = self.rows.slice(place, 1)
        return row["offset"][0].as_py(), row["size"][0].as_py()


def member_index(
    names: list[str],
    offsets: list[int],
    sizes: list[int | None],
    *,
    skipped: Mapping[str, int],
    damaged_at: int | None = None,
) -> MemberIndex:
    """Return the index of members, which may be in any order and must have unique names."""
    rows = pa.table([names, offsets, sizes], schema=_SCHEMA)
    return MemberIndex(rows.sort_by("name").combine_chunks(), dict(skipped), damaged_at)


def split_member(uri: str) -> tuple[str, str] | None:
    """Return the address of a file and the name of a member in it; None for an object that is not a member."""
    found = _ADDRESS.fullmatch(uri)
    return None if found is None else (found["file"], found["name"])


def file_of(item: LakeObject) -> str:
    """Return the address of the object that contains an image."""
    found = None if item.offset is None else split_member(item.uri)
    return item.uri if found is None else found[0]


def is_member_file(uri: str) -> bool:
    """Return whether an address has the extension of a file that contains images."""
    return _FILE.search(uri) is not None


def refuse_packed(key: str, name: str) -> None:
    """Refuse archives without random access: compressed ones, and unsupported kinds.

    Raises:
        UsageError: the key of a file, or of a glob, has such an extension.
    """
    found = next((suffix for suffix in (*_COMPRESSED, *_OTHER_ARCHIVES) if key.lower().endswith(suffix)), None)
    if found is None:
        return
    reason = (
        f"a part of a {found} file cannot be read without reading everything before it"
        if found in _COMPRESSED
        else f"{found} files are not supported"
    )
    raise UsageError(
        f"the images in {name} cannot be labelled: {reason}. Unpack it, or pack it again as .tar without compression."
    )


@dataclass(frozen=True, slots=True)
class _Record:
    """The fields of an index besides its rows."""

    skipped: Mapping[str, Count]
    damaged_at: int | None


def encode_index(index: MemberIndex) -> bytes:
    """Encode an index as a Parquet file."""
    record = {"skipped": dict(index.skipped), "damaged_at": index.damaged_at}
    rows = index.rows.replace_schema_metadata({_METADATA: json.dumps(record, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_index(data: bytes, name: str) -> MemberIndex:
    """Return the index that `encode_index` wrote.

    Raises:
        RayDetrError: the bytes are damaged.
    """
    file = open_bytes(data, name)
    with parquet_of(name):
        rows = file.read()
    try:
        record = read_record(_Record, (rows.schema.metadata or {}).get(_METADATA, b""))
        if rows.schema.remove_metadata() != _SCHEMA:
            raise ValueError("other types")  # noqa: TRY301 - reported like all else
    except ValueError as error:
        raise RayDetrError(f"{name} is damaged: it is not an index of members. Remove it.") from error
    return MemberIndex(rows.replace_schema_metadata(None).combine_chunks(), record.skipped, record.damaged_at)
