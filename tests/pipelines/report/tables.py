"""A small table over pictures that were really written, for the tests of the report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from pipelines.store import open_store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOSTILE_URI = "s3://lake/<script>alert(2)</script>.jpg"
HOSTILE = "</script><img src=x onerror=alert(1)>&.png"


def row(uri: str, found: Detected, size: tuple[int, int] = (80, 60)) -> Row:
    path = Path(uri)
    return Row(uri, size=path.stat().st_size if path.exists() else 7, width=size[0], height=size[1], detections=found)


def publish(
    table: str,
    rows: list[Row],
    run_id: str = "run-1",
    *,
    model: str = "detr@1",
    now: datetime = NOW,
    settings: str | None = None,
) -> None:
    origin = Origin(model, 0.05, run_id, 0, now, settings)
    open_store(table).put(f"data/{run_id}/00000.parquet", encode(rows_to_table(rows, origin=origin)))


def picture(folder: Path, name: str, size: tuple[int, int] = (80, 60)) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path, "PNG")
    return str(path)


def dog_and_cat(dog: float, cat: float) -> Detected:
    return Detected([18, 17], ("dog", "cat"), [dog, cat], [[4, 4, 40, 30], [50, 20, 70, 50]])


def write_table(folder: Path) -> str:
    """Three pictures with boxes, one of which has a hostile name; one without a box; one gone; two errors."""
    images = folder / "images"
    table = str(folder / "table")
    publish(
        table,
        [
            row(picture(images, "a.png"), dog_and_cat(0.9, 0.6)),
            row(picture(images, "b.png", (40, 90)), dog_and_cat(0.5, 0.3), (40, 90)),
            row(picture(images, "z").removesuffix("z") + "gone.png", dog_and_cat(0.8, 0.8)),
            row(picture(images, HOSTILE.replace("/", "_")), Detected([18], ("dog",), [0.7], [[1, 1, 9, 9]])),
            row(picture(images, "empty.png"), Detected([], (), [], [])),
            Row("s3://lake/c.jpg", error_kind="truncated", error="the JPEG is truncated: its picture is incomplete"),
            Row(HOSTILE_URI, error_kind="missing", error="no such object"),
        ],
    )
    return table
