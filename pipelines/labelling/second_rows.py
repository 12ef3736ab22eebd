"""Whether any version of an image has two `ok` rows of one model and settings, over all files of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.labelling.labelled import KEY_BYTES, Keys
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.stopped import RunStopped
from pipelines.store import Entry, Store, join_uri

Version = tuple[str, str | None, str, str | None]
"""The URI, etag, model and settings of a row. An unknown etag is a value like any other: it is labelled once, too."""


def find_second_rows(table: Store, files: Sequence[Entry]) -> Iterator[str]:
    """Yield a sentence for each file that has `ok` rows of versions which it or a file before it has already.

    What cannot be read is told in a sentence, too. Fetches the columns of names only, again if there are second rows.
    Needs 16 bytes an `ok` row of the table, twice that for a moment, 20 for each version that has a second row, and the
    names of one file.

    Raises:
        StoreError: the store refused.
    """
    readable: list[Entry] = []
    parts: list[Keys] = []
    recorded = RecordedSettings(table)
    for entry in files:
        try:
            parts.append(_hashes(_ok_versions(table, entry, recorded)))
        except RunStopped as damaged:
            yield str(damaged)
        else:
            readable.append(entry)
    keys = np.concatenate([*parts, np.empty(0, f"S{KEY_BYTES}")])
    parts.clear()
    keys.sort()
    repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    if len(repeated):
        yield from _second_rows(table, readable, repeated, recorded)


def _second_rows(table: Store, files: Sequence[Entry], repeated: Keys, recorded: RecordedSettings) -> Iterator[str]:
    """Yield the sentences, of which each names one file and one row of it; `repeated` is sorted."""
    first_file = np.full(len(repeated), -1, np.int32)
    for number, entry in enumerate(files):
        versions = _ok_versions(table, entry, recorded)
        hashes = _hashes(versions)
        places = np.searchsorted(repeated, hashes)
        places[places == len(repeated)] = 0
        second: list[tuple[Version, int]] = []
        for row in np.flatnonzero(repeated[places] == hashes):
            place = places[row]
            if first_file[place] < 0:
                first_file[place] = number
            else:
                second.append((versions[row], first_file[place]))
        if second:
            (uri, etag, model, settings), before = second[0]
            rows = "a second row" if len(second) == 1 else f"{len(second):,} second rows"
            version = f"{uri} ({'no etag' if etag is None else f'etag {etag}'})"
            labeller = model if settings is None else f"{model} with the settings {settings}"
            yield (
                f"{join_uri(table.uri, entry.key)} has {rows} of what {labeller} has labelled already, such as "
                f"{version}, which is in {join_uri(table.uri, files[before].key)}."
            )


def _ok_versions(table: Store, entry: Entry, recorded: RecordedSettings) -> list[Version]:
    name = join_uri(table.uri, entry.key)
    file = open_listed(table, entry)
    with parquet_of(name):
        rows = file.read(columns=["uri", "etag", "status", "model", *columns_of(file)])
        rows = rows.filter(pc.equal(rows["status"].cast(pa.string()), "ok"))
        columns = [rows[column].cast(pa.string()).to_pylist() for column in ("uri", "etag", "model")]
        columns.append(recorded.of_rows(rows).to_pylist())
    return list(zip(*columns, strict=True))


def _hashes(versions: Iterable[Version]) -> Keys:
    # no name of an object holds a NUL: the four cannot run into each other, and a missing etag is no empty one
    texts = (
        f"{uri}\0{model}\0{settings or ''}" + ("" if etag is None else f"\0{etag}")
        for uri, etag, model, settings in versions
    )
    hashes = b"".join(blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts)
    return np.frombuffer(hashes, dtype=f"S{KEY_BYTES}")
