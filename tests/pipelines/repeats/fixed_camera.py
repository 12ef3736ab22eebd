"""Tables of fixed cameras whose truth is known: stones that stay where they are, animals that walk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from pipelines.store import StoreOptions, open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SIZE = (640, 480)
STONES = ((100.0, 300.0, 160.0, 350.0), (400.0, 320.0, 480.0, 420.0))
Box = Sequence[float]


def detected(boxes: Sequence[tuple[str, float, Box]]) -> Detected:
    """Return detections of (class, score, sides), best first."""
    ordered = sorted(boxes, key=lambda one: -one[1])
    sides = [list(box) for _, _, box in ordered]
    return Detected(
        [1] * len(ordered), tuple(label for label, _, _ in ordered), [score for _, score, _ in ordered], sides
    )


def picture_rows(
    folder: str, count: int, *, seed: int = 0, stones: Sequence[Box] = STONES, first: int = 0, label: str = "animal"
) -> list[Row]:
    """Return rows of a camera: in each picture the stones, a pixel or two off, and an animal of another place."""
    random = np.random.default_rng([seed, *folder.encode()])
    rows = []
    for number in range(first, first + count):
        boxes: list[tuple[str, float, Box]] = [
            (label, float(random.uniform(0.35, 0.8)), [side + float(random.uniform(-1.5, 1.5)) for side in stone])
            for stone in stones
        ]
        low = random.uniform((0, 0), (500, 250))
        boxes.append((label, 0.95, [*low, *(low + random.uniform(60, 130, 2))]))
        rows.append(Row(f"{folder}{number:05d}.jpg", "e", 7, *SIZE, detections=detected(boxes)))
    return rows


def publish(
    table: str, rows: list[Row], run_id: str = "run-1", *, options: StoreOptions | None = None, model: str = "detr@1"
) -> None:
    """Write rows as a file of a run."""
    origin = Origin(model, 0.05, run_id, 0, NOW, "{}")
    open_store(table, options).put(f"data/{run_id}-00000.parquet", encode(rows_to_table(rows, origin=origin)))
