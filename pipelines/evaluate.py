"""How good a detection table is: its published rows against COCO annotations of the same images."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow.parquet as pq

from detr.average_precision import AveragePrecision, average_precision
from pipelines.file_names import file_name
from pipelines.parquet_files import open_object, parquet_of
from pipelines.run import RunStopped
from pipelines.store import Entry, Store, StoreError, StoreOptions, Stores, join_uri, open_store, without_secrets

_KEYS: Final = ("status", "width", "height", "model", "threshold", "run_id", "labelled_at")

_COCO_FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the rows of a table are worth.

    Attributes:
        average_precision: over all `images`; where the table has no detections of one, all that is there was missed.
        images: how many are annotated, and so measured on.
        missing: file names of those that the table has no row of.
        errors: file names of those whose row is an error.
        other_size: file names of those whose row and annotation disagree about height and width. Where the two are
            exchanged, the annotations were drawn on the picture as stored, while rows are of the upright one.
        unannotated: rows of images that are not annotated; they play no part.
        detections: how many were measured.
        threshold: the highest of the rows; above 0 detections were left out, and AP is lower than the model's.
        models: whose rows these are, as rows name it; none where the table has no row of any of the images.
    """

    average_precision: AveragePrecision
    images: int
    missing: tuple[str, ...]
    errors: tuple[str, ...]
    other_size: tuple[str, ...]
    unannotated: int
    detections: int
    threshold: float
    models: tuple[str, ...]

    @property
    def evaluated(self) -> int:
        """Images that the table has an `ok` row of."""
        return self.images - len(self.missing) - len(self.errors)

    def as_json(self) -> Json:
        """Return what `metrics.json` holds: the twelve numbers by pycocotools' names, then the rest."""
        counts = {name: value for name, value in asdict(self).items() if name != "average_precision"}
        return {
            **self.average_precision.numbers(),
            "class_agnostic_AP": self.average_precision.class_agnostic,
            "classes": [asdict(one) for one in self.average_precision.classes],
            "evaluated": self.evaluated,
            **counts,
        }


@dataclass(frozen=True, slots=True)
class _Row:
    """What matters of one row, and where its detections are: the key of a file, a row group of it, a row of that."""

    uri: str
    is_error: bool
    height: int | None
    width: int | None
    model: str
    threshold: float
    newness: tuple[datetime, str]
    place: tuple[str, int, int]


def evaluate_table(
    table_uri: str,
    annotations: str,
    *,
    options: StoreOptions | None = None,
    run_id: str | None = None,
    picture_size: tuple[int, int] | None = None,
    allow_thresholded: bool = True,
) -> Evaluation:
    """Measure the published rows of a table, the latest of every image, against COCO annotations.

    Images are matched by file name, the last part of their URI. Memory holds the keys of one row group at a time, and
    the detections of annotated images.

    Args:
        table_uri: the detection table.
        annotations: path or URI of a COCO json.
        options: how stores are reached.
        run_id: only the rows of this run; None is all runs.
        picture_size: measure only on annotated images of this (height, width) in pixels; None is all.
        allow_thresholded: whether a table that left out low scores is measured all the same.

    Raises:
        RunStopped: the table or the annotations cannot be read, or one does not fit the other.
        ValueError: no annotated image has that size, or the rows have a threshold and that is not allowed.
    """
    opened = options or StoreOptions()
    truth = _read_annotations(annotations, opened)
    known = _by_file_name(truth, without_secrets(annotations))
    chosen = {name for name, image in known.items() if picture_size in (None, (image["height"], image["width"]))}
    if not chosen:
        raise ValueError(f"picture size: {_no_such_size(truth, picture_size)}")
    try:
        table = open_store(table_uri, opened)
        files = _table_files(table, run_id)
        rows, unannotated = _latest_rows(table, files, known.keys())
        rows = {name: row for name, row in sorted(rows.items()) if name in chosen}
        threshold = _check_rows(rows, allow_thresholded=allow_thresholded)
        ids = {row.place: known[name]["id"] for name, row in rows.items() if not row.is_error}
        results = list(_results(table, files, ids))
    except StoreError as error:
        raise RunStopped(f"cannot read the table {without_secrets(table_uri)}: {error}") from error
    return Evaluation(
        average_precision=average_precision(truth, results, image_ids=[known[name]["id"] for name in chosen]),
        images=len(chosen),
        missing=tuple(sorted(chosen - rows.keys())),
        errors=tuple(name for name, row in rows.items() if row.is_error),
        other_size=tuple(name for name, row in rows.items() if _size_differs(row, known[name])),
        unannotated=unannotated,
        detections=len(results),
        threshold=threshold,
        models=tuple(sorted({row.model for row in rows.values()})),
    )


def _read_annotations(uri: str, options: StoreOptions) -> Json:
    name = without_secrets(uri)
    try:
        truth = json.loads(Stores(options).get(uri).data)
    except StoreError as error:
        raise RunStopped(f"cannot read the annotations: {error}") from error
    except ValueError as error:
        raise RunStopped(f"annotations {name}: this is not JSON ({error}).") from error
    for part, fields in _COCO_FIELDS.items():
        entries = truth.get(part) if isinstance(truth, dict) else None
        if not isinstance(entries, list) or not entries:
            raise RunStopped(
                f"annotations {name}: there are no {part}, so this is not what COCO's instances files hold."
            )
        for number, entry in enumerate(entries):
            wrong = [
                key for key, kind in fields.items() if not isinstance(entry, dict) or not _is(entry.get(key), kind)
            ]
            if wrong:
                raise RunStopped(f"annotations {name}: {part}[{number}] has no usable {' and no usable '.join(wrong)}.")
    return dict(truth)


def _is(value: object, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and len(value) == 4 and all(isinstance(side, (int, float)) for side in value)
    return isinstance(value, kind)


def _by_file_name(truth: Json, annotations: str) -> dict[str, Json]:
    named: dict[str, Json] = {}
    for image in truth["images"]:
        name = file_name(image["file_name"])
        if name in named:
            raise RunStopped(
                f"annotations {annotations}: the images {named[name]['file_name']!r} and {image['file_name']!r} have "
                "the same file name, by which rows are matched. Give each a name of its own, or evaluate them apart."
            )
        named[name] = image
    return named


def _no_such_size(truth: Json, picture_size: tuple[int, int] | None) -> str:
    height, width = picture_size or (0, 0)
    sizes = Counter((image["height"], image["width"]) for image in truth["images"])
    shown = ", ".join(f"{one} x {other} ({count:,})" for (one, other), count in sizes.most_common(6))
    return f"no annotated image is {height} x {width} (height x width). The most frequent are {shown}."


def _table_files(table: Store, run_id: str | None) -> dict[str, Entry]:
    prefix = "data/" if run_id is None else f"data/{run_id}/"
    files = {entry.key: entry for entry in table.list(prefix) if entry.key.endswith(".parquet")}
    if not files:
        whose = "" if run_id is None else f" of run {run_id}"
        raise RunStopped(f"table {table.uri} has no published rows{whose}. Check the address, or label images into it.")
    return files


def _latest_rows(table: Store, files: Mapping[str, Entry], names: Collection[str]) -> tuple[dict[str, _Row], int]:
    """Return the latest row of every image that has one of the names, and how many rows are of other images."""
    latest: dict[str, _Row] = {}
    others = 0
    for key, entry in files.items():
        file = _open(table, entry)
        with parquet_of(join_uri(table.uri, key)):
            for group in range(file.num_row_groups):
                uris = file.read_row_group(group, columns=["uri"])["uri"].to_pylist()
                named = {index: name for index, name in enumerate(map(file_name, uris)) if name in names}
                others += len(uris) - len(named)
                if not named:
                    continue
                values = file.read_row_group(group, columns=[*_KEYS]).take(list(named)).to_pylist()
                for (index, name), value in zip(named.items(), values, strict=True):
                    _keep_latest(latest, name, _row(uris[index], value, (key, group, index)))
    return latest, others


def _open(table: Store, entry: Entry) -> pq.ParquetFile:
    size = entry.size if entry.size is not None else len(table.get(entry.key).data)
    file = open_object(table, entry.key, size)
    missing = {"uri", "detections", *_KEYS} - set(file.schema_arrow.names)
    if missing:
        raise RunStopped(
            f"{join_uri(table.uri, entry.key)} has no column {', '.join(sorted(missing))}: it is not of a detection "
            "table. Move it out of data/."
        )
    return file


def _row(uri: str, value: Json, place: tuple[str, int, int]) -> _Row:
    return _Row(
        uri=uri,
        is_error=value["status"] != "ok",
        height=value["height"],
        width=value["width"],
        model=value["model"],
        threshold=value["threshold"],
        newness=(value["labelled_at"], value["run_id"]),
        place=place,
    )


def _keep_latest(latest: dict[str, _Row], name: str, row: _Row) -> None:
    known = latest.setdefault(name, row)
    if known.uri != row.uri:
        raise RunStopped(
            f"the table has two images of the file name {name!r}, by which rows are matched: {known.uri} and "
            f"{row.uri}. Choose one run by --run-id, or evaluate a table that has one of them."
        )
    if row.newness > known.newness:
        latest[name] = row


def _check_rows(rows: Mapping[str, _Row], *, allow_thresholded: bool) -> float:
    """Return the highest threshold of the rows, which must be of one model."""
    models = sorted({row.model for row in rows.values()})
    if len(models) > 1:
        raise RunStopped(
            f"the latest rows are of {len(models)} models, {', '.join(models)}: the figure would be nobody's. "
            "Choose one run by --run-id."
        )
    threshold = max((row.threshold for row in rows.values()), default=0.0)
    if threshold > 0 and not allow_thresholded:
        raise ValueError(
            f"the rows have threshold {threshold:.3g}: without the detections below it, AP is lower than the model's. "
            "Label with --threshold 0, or give --allow-thresholded to measure what there is."
        )
    return threshold


def _size_differs(row: _Row, image: Json) -> bool:
    return row.height is not None and (row.height, row.width) != (image["height"], image["width"])


def _results(table: Store, files: Mapping[str, Entry], ids: Mapping[tuple[str, int, int], int]) -> Iterator[Json]:
    """Yield the detections of the rows at these places as COCO's results, with the image ids given."""
    places: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, group, index in sorted(ids):
        places[key][group].append(index)
    for key, groups in places.items():
        file = _open(table, files[key])
        with parquet_of(join_uri(table.uri, key)):
            for group, indices in groups.items():
                column = file.read_row_group(group, columns=["detections"])["detections"].take(indices)
                for index, found in zip(indices, column.to_pylist(), strict=True):
                    image_id = ids[key, group, index]
                    yield from (_result(image_id, detection) for detection in found)


def _result(image_id: int, detection: Json) -> Json:
    box = detection["box"]
    return {
        "image_id": image_id,
        "category_id": detection["category_id"],
        "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
        "score": detection["score"],
    }
