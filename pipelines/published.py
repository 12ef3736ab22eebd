"""The published files of a table, one after the other."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.parquet_files import open_listed, parquet_of
from pipelines.store import Store, StoreOptions, join_uri, open_store


def published_files(table: Store) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Yield the name and the open file of everything below `data/`; columns are fetched when they are read.

    Raises:
        RunStopped: a file's footer is damaged.
        StoreError: the store refused.
    """
    for entry in table.list("data/"):
        if entry.key.endswith(".parquet"):
            yield join_uri(table.uri, entry.key), open_listed(table, entry)


def count_labels(table_uri: str, *, options: StoreOptions | None = None, least_score: float = 0.0) -> Counter[str]:
    """Return how many detections of each label the published rows hold, one file in memory at a time.

    Raises:
        RunStopped: a file is damaged.
        StoreError: the store refused.
    """
    counted: Counter[str] = Counter()
    least = pa.scalar(least_score, pa.float32())
    for name, file in published_files(open_store(table_uri, options)):
        with parquet_of(name):
            found = pc.list_flatten(file.read(columns=["detections"])["detections"].combine_chunks())
            labels = found.field("label").filter(pc.greater_equal(found.field("score"), least))
            counted.update({pair["values"]: pair["counts"] for pair in labels.value_counts().to_pylist()})
    return counted
