"""A preview of a table: the number of detections of each label, and some images with their boxes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from detr.images.decoding import decode
from detr.images.drawing import draw_detections
from detr.postprocess import Detections
from pipelines.errors import RayDetrError
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.store import Store, StoreOptions, join_uri, open_store


def count_labels(table_uri: str, *, options: StoreOptions | None = None, least_score: float = 0.0) -> Counter[str]:
    """Return the number of detections of each label in the published rows, with one file in memory at a time.

    Raises:
        RayDetrError: a file is damaged.
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


def draw_found(
    table_uri: str, folder: Path, *, count: int, least_score: float, options: StoreOptions | None = None
) -> list[Path]:
    """Draw the first `count` labelled images of a table into a folder as PNG, and return the files.

    Args:
        table_uri: The detection table.
        folder: Created if missing.
        count: Number of images; error rows are skipped.
        least_score: Detections below it are not drawn.
        options: Access to stores.

    Raises:
        RayDetrError: a file of the table is damaged, or a picture cannot be written.
        StoreError: the table or an image cannot be read.
    """
    table = open_store(table_uri, options)
    images = ImageStores(options, MemberIndexes(table))
    drawn: list[Path] = []
    for name, file in published_files(table):
        with parquet_of(name):
            rows = file.read(columns=["uri", "status", "detections"]).to_pylist()
        for row in rows:
            if len(drawn) == count:
                return drawn
            if row["status"] != "ok":
                continue
            kept = [found for found in row["detections"] if found["score"] >= least_score]
            detections = Detections(
                category_ids=torch.tensor([found["category_id"] for found in kept], dtype=torch.int64),
                labels=tuple(found["label"] for found in kept),
                scores=torch.tensor([found["score"] for found in kept]),
                boxes_xyxy=torch.tensor([list(found["box"].values()) for found in kept]).reshape(-1, 4),
            )
            path = folder / f"{len(drawn):02d}_{Path(row['uri']).stem}.png"
            picture = draw_detections(decode(images.get(row["uri"]).data), detections)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            except OSError as error:
                raise RayDetrError(f"cannot write the picture {path}: {error.strerror or error}.") from error
            drawn.append(path)
    return drawn


def published_files(table: Store) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Yield name and open file of everything below `data/`; columns are fetched when they are read.

    Raises:
        RayDetrError: a file's footer is damaged.
        StoreError: the store refused.
    """
    for entry in table.list("data/"):
        if entry.key.endswith(".parquet"):
            yield join_uri(table.uri, entry.key), open_listed(table, entry)
