"""Files that hold images, made by tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.store import Store


def tar_of(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of files in this order."""
    pairs = members.items() if isinstance(members, Mapping) else members
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def parquet_of_images(
    images: Sequence[bytes | None], *, paths: Sequence[str | None] | None = None, group_rows: int = 2
) -> bytes:
    """Return a Parquet file with a column `image`, of bytes or with paths as Hugging Face's data sets have it."""
    column: pa.Array = pa.array(images, pa.binary())
    if paths is not None:
        column = pa.StructArray.from_arrays([column, pa.array(paths, pa.string())], ["bytes", "path"])
    sink = io.BytesIO()
    table = pa.table({"image": column, "label": pa.array(range(len(images)))})
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression="none",  # so that tests find an image's bytes
        use_dictionary=False,
        write_statistics=False,
        data_page_size=4096,
        write_batch_size=2,  # pages end behind a batch only
        write_page_checksum=True,
    )
    return sink.getvalue()


class CountingStore:
    """A store that counts requests for ranges and their bytes; and tells them in order."""

    def __init__(self, store: Store) -> None:
        self._store, self.uri = store, store.uri
        self.ranges: list[tuple[int, int]] = []
        self.list, self.head, self.get, self.put = store.list, store.head, store.get, store.put
        self.delete = store.delete

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        self.ranges.append((start, length))
        return self._store.get_range(key, start, length, if_match=if_match)
