"""Draws the detections of a table on their images."""

from pathlib import Path

import torch

from detr.images.decoding import decode
from detr.images.drawing import draw_detections
from detr.postprocess import Detections
from pipelines.parquet_files import parquet_of
from pipelines.published import published_files
from pipelines.store import StoreOptions, Stores, open_store


def draw_found(
    table_uri: str, folder: Path, *, count: int, least_score: float, options: StoreOptions | None = None
) -> list[Path]:
    """Draw the first `count` labelled images of a table into a folder as PNG, and return the files.

    Args:
        table_uri: The detection table.
        folder: Made if missing.
        count: How many images; rows that are errors are passed over.
        least_score: Detections below it are not drawn.
        options: How stores are reached.

    Raises:
        RunStopped: a file of the table is damaged.
        StoreError: the table or an image cannot be read.
    """
    table, images = open_store(table_uri, options), Stores(options)
    folder.mkdir(parents=True, exist_ok=True)
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
            draw_detections(decode(images.get(row["uri"]).data), detections).save(path)
            drawn.append(path)
    return drawn
