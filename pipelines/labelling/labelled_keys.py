"""What is labelled already: the keys of a table's rows, small enough to hold a hundred million."""

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
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.store import Store, StoreEntry, join_uri
from pipelines.table.schema import PERMANENT_KINDS, check_columns

# Of 10^8 objects that are asked for in 10^8 rows one is taken for labelled by mistake with a probability of 10^-8 (its
# URI has the hash of another) or, if all of them have changed, of 4 x 10^-7 (its etag has the hash of its old one).
URI_BYTES: Final = 10
ETAG_BYTES: Final = 6
KEY_BYTES: Final = URI_BYTES + ETAG_BYTES

_BATCH_ROWS = 8_192
_NO_ETAG = bytes(ETAG_BYTES)  # the least: looking it up finds the first key of a URI, whatever its etag

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class LabelledKeys:
    """A set of images as sorted keys of 16 bytes: a hash of the URI, then one of the etag."""

    keys: Keys

    def contains(self, objects: Sequence[LakeObject]) -> npt.NDArray[np.bool_]:
        """Return for each object whether it is labelled: with this etag where one is known, else with any."""
        if not len(self.keys) or not objects:
            return np.zeros(len(objects), np.bool_)
        wanted = _to_array(
            _join_keys(
                [item.uri.encode() for item in objects],
                [None if item.etag is None else item.etag.encode() for item in objects],
            )
        )
        has_etag = np.fromiter((item.etag is not None for item in objects), np.bool_, len(objects))
        # looking up in order reads the array from front to back: 8 times faster than at random (1 million in 2
        # million keys)
        order = np.argsort(wanted)
        places = np.searchsorted(self.keys, wanted[order])
        places[places == len(self.keys)] = 0
        is_equal = _to_bytes(self.keys[places]) == _to_bytes(wanted[order])
        found = np.empty(len(objects), np.bool_)
        found[order] = is_equal[:, :URI_BYTES].all(1) & (is_equal[:, URI_BYTES:].all(1) | ~has_etag[order])
        return found


def labelled_keys(rows: Iterable[tuple[str, str | None]]) -> LabelledKeys:
    """Return the set of the images with these URIs and etags."""
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
    """Return the images that a model has labelled with some settings, as the published rows of a table say.

    Labelled are `ok` rows, and errors of permanent kinds unless all errors are to be tried again. Fetches the columns
    of keys only. Needs 16 bytes a row, and of one file in every thread these columns as they are stored and some
    thousand rows.

    Args:
        table: The table, which may not exist yet.
        model: As rows name it; None means any.
        settings: As rows have them; None means any. Rows whose settings nothing tells count as labelled.
        retry_errors: Which errors do not count as labelled.
        threads: How many files are read at once.

    Raises:
        RayDetrError: a file below `data/` is damaged or not of a detection table.
        StoreError: the store refused.
    """
    files = (entry for entry in table.list("data/") if entry.key.endswith(".parquet"))
    joined = bytearray()  # grows where it is: large blocks are not copied but mapped anew
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
    """Yield the keys of a file's rows that count, of some thousand rows at once."""
    name = join_uri(table.uri, entry.key)
    file = open_listed(table, entry)
    of_settings = () if settings is None else columns_of(file)
    check_columns(file, ("uri", "etag", "status", "error_kind", "model", *of_settings), name=name)
    with parquet_of(name):
        states = file.read(columns=["status", "error_kind", "model", *of_settings])
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
        for batch in file.iter_batches(_BATCH_ROWS, columns=["uri", "etag"]):
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
    # Fixed-size bytes compare like the whole 16 bytes: what numpy ignores at their end, zeros, it ignores on both
    # sides.
    return np.frombuffer(joined, dtype=f"S{KEY_BYTES}")


def _to_bytes(keys: Keys) -> npt.NDArray[np.uint8]:
    return keys.view(np.uint8).reshape(-1, KEY_BYTES)


def _sorted(joined: bytearray) -> LabelledKeys:
    keys = _to_array(joined)
    keys.sort()  # in place: 10^8 keys take 15 s and nothing beside them
    return LabelledKeys(keys)
