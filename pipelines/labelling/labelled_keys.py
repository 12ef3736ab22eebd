"""The labelled images of a table, as keys of 16 bytes: 1.6 GB for a hundred million."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.concurrently import map_concurrently
from pipelines.labelling.config import RetryErrors
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.lake.lake_object import LakeObject
from pipelines.parquet_files import is_small, open_for_rows, parquet_of
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.table.schema import PERMANENT_KINDS, check_columns

# For 10^8 objects and 10^8 rows, the probability that one object counts as labelled by mistake is 10^-8 (its URI has
# the hash of another) or, if all objects have changed, 4 x 10^-7 (its etag has the hash of the old one).
URI_BYTES: Final = 10
ETAG_BYTES: Final = 6
KEY_BYTES: Final = URI_BYTES + ETAG_BYTES

_BATCH_ROWS = 8_192
_NO_ETAG = bytes(ETAG_BYTES)  # the smallest: looking it up finds the first key of a URI with any etag

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class LabelledKeys:
    """A set of images as sorted keys of 16 bytes: a hash of the URI and a hash of the etag."""

    keys: Keys

    def contains(self, objects: Sequence[LakeObject]) -> npt.NDArray[np.bool_]:
        """Return for each object whether it is labelled, with its etag, or with any if its etag is unknown."""
        if not len(self.keys) or not objects:
            return np.zeros(len(objects), np.bool_)
        wanted = _to_array(
            _join_keys(
                [item.uri.encode() for item in objects],
                [None if item.etag is None else item.etag.encode() for item in objects],
            )
        )
        has_etag = np.fromiter((item.etag is not None for item in objects), np.bool_, len(objects))
        # sorted lookups read the array from front to back: 8 times faster than random ones (1 million in 2 million
        # keys)
        order = np.argsort(wanted)
        places = np.searchsorted(self.keys, wanted[order])
        places[places == len(self.keys)] = 0
        is_equal = _to_bytes(self.keys[places]) == _to_bytes(wanted[order])
        found = np.empty(len(objects), np.bool_)
        found[order] = is_equal[:, :URI_BYTES].all(1) & (is_equal[:, URI_BYTES:].all(1) | ~has_etag[order])
        return found


def labelled_keys(rows: Iterable[tuple[str, str | None]]) -> LabelledKeys:
    """Return the set of images with these URIs and etags."""
    pairs = [(uri.encode(), None if etag is None else etag.encode()) for uri, etag in rows]
    return _sorted(bytearray(_join_keys([uri for uri, _ in pairs], [etag for _, etag in pairs])))


def read_labelled(
    table: Store,
    model: str | None,
    *,
    settings: str | None = None,
    retry_errors: RetryErrors = "transient",
    threads: int = 4,
) -> LabelledKeys:
    """Return the images that a model has labelled with some settings, from the published rows of a table.

    Images with `ok` rows count as labelled, and images with permanent errors unless all errors are retried. Fetches
    the key columns only, and files up to `SMALL_BYTES` as a whole. Memory: 16 bytes for each row, and in each thread
    these columns of one file and some thousand rows.

    Args:
        table: The table, which may not exist yet.
        model: Name of the model in rows; None means any.
        settings: Settings in rows; None means any. Rows with unknown settings count as labelled.
        retry_errors: Which errors do not count as labelled.
        threads: Files to read concurrently.

    Raises:
        RayDetrError: a file below `data/` is damaged or does not belong to a detection table.
        StoreError: the store refused.
    """
    files = (entry for entry in table.list("data/") if entry.key.endswith(".parquet"))
    joined = bytearray()  # grows in place: large blocks are remapped, not copied
    lock = Lock()
    recorded = RecordedSettings(table)

    def add_file(entry: StoreEntry) -> None:
        for keys in _file_keys(table, entry, model, settings, recorded, retry_errors):
            with lock:
                joined.extend(keys)

    for _ in map_concurrently(add_file, files, threads=threads):
        pass
    return _sorted(joined)


def _file_keys(
    table: Store,
    entry: StoreEntry,
    model: str | None,
    settings: str | None,
    recorded: RecordedSettings,
    retry_errors: str,
) -> Iterator[bytes]:
    """Yield the keys of labelled rows of a file, some thousand rows at a time."""
    name = join_uri(table.uri, entry.key)
    file = open_for_rows(table, entry)
    use_threads = not is_small(entry)  # starting them takes longer than a small file's columns
    of_settings = () if settings is None else columns_of(file)
    check_columns(file, ("uri", "etag", "status", "error_kind", "model", *of_settings), name=name)
    with parquet_of(name):
        states = file.read(columns=["status", "error_kind", "model", *of_settings], use_threads=use_threads)
        counts = pc.equal(states["status"].cast(pa.string()), "ok")
        if retry_errors != "all":
            kinds = pa.array(sorted(PERMANENT_KINDS))
            counts = pc.or_(counts, pc.is_in(states["error_kind"].cast(pa.string()), value_set=kinds))
        if model is not None:
            counts = pc.and_(counts, pc.equal(states["model"].cast(pa.string()), model))
        if settings is not None:
            counts = pc.and_(counts, pc.fill_null(pc.equal(recorded.of_rows(states), settings), fill_value=True))
        if not pc.any(counts).as_py():
            return
        first = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=["uri", "etag"], use_threads=use_threads):
            rows = batch.filter(counts.slice(first, len(batch)).combine_chunks())
            first += len(batch)
            uris, etags = (rows[name].cast(pa.binary()).to_pylist() for name in ("uri", "etag"))
            if rows["uri"].null_count:
                raise ValueError("its column uri has nulls")
            yield _join_keys(uris, etags)


def _join_keys(uris: Sequence[bytes], etags: Sequence[bytes | None]) -> bytes:
    return b"".join(
        [
            blake2b(uri, digest_size=URI_BYTES).digest()
            + (_NO_ETAG if etag is None else blake2b(etag, digest_size=ETAG_BYTES).digest())
            for uri, etag in zip(uris, etags, strict=True)
        ]
    )


def _to_array(joined: bytes | bytearray) -> Keys:
    # comparing fixed-size bytes compares all 16: numpy ignores zeros at the end, but on both sides
    return np.frombuffer(joined, dtype=f"S{KEY_BYTES}")


def _to_bytes(keys: Keys) -> npt.NDArray[np.uint8]:
    return keys.view(np.uint8).reshape(-1, KEY_BYTES)


def _sorted(joined: bytearray) -> LabelledKeys:
    keys = _to_array(joined)
    keys.sort()  # in place: 10^8 keys take 15 s and no additional memory
    return LabelledKeys(keys)
