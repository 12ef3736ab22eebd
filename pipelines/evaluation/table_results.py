"""Convert the current published rows of a detection table to COCO results, in the orientation of the annotations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from detr.evaluation.coco_results import ResultColumns
from detr.images.header import read_header
from detr.images.results import ImageError
from pipelines.coco.names import ImageNames, NameMatch
from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.annotations import Annotations, Json
from pipelines.evaluation.class_numbers import MatchClasses, align_classes, class_names_in
from pipelines.labelling.recorded_settings import RecordedSettings, columns_of
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.parquet_files import open_listed, parquet_of
from pipelines.store import Store, StoreEntry, StoreError, StoreOptions, Stores, join_uri, open_store, without_secrets
from pipelines.strict_json import parse_object
from pipelines.table.files import DATA, LAYOUTS, SUFFIX, in_order_of_runs, table_files_prefix
from pipelines.table.schema import TRANSIENT_KINDS, check_columns, read_metadata

HEADER_THREADS: Final = 16  # pictures whose headers are fetched concurrently

_RUN_OPTIONS: Final = "`evaluate --run-id`, `report --run`"
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")
_KEYS: Final = ("status", "error_kind", "width", "height", "model", "threshold", "run_id", "labelled_at")


@dataclass(frozen=True, slots=True)
class RowChoice:
    """The rows of a table to use; None is all.

    Attributes:
        run_id: of this run.
        model: of this model, by its name in rows.
        settings: with these settings, as in the column `settings`.
        uris: of these images.
    """

    run_id: str | None = None
    model: str | None = None
    settings: str | None = None
    uris: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class TableResults:
    """The rows of a table for the evaluated images; file names are sorted.

    Attributes:
        detections: by image id; within an image in the order of its row, best first.
        missing: file names of images without a row.
        errors: file names of images whose row is an error.
        turned_back: file names of images that were annotated as stored, without EXIF orientation; their boxes were
            rotated back.
        other_size: file names of images whose row and annotation differ in height and width in another way.
        unread: those of `other_size` whose height and width are exchanged and whose picture could not be read again for
            its EXIF orientation.
        unannotated: rows of images that are not annotated.
        matched_otherwise: sentences about images whose file has another spelling or folder than in the annotations.
        short: images with fewer detections than `queries`.
        threshold: the highest of the rows.
        classes: names of the kept classes if a run kept only some; None is all.
        renamed: sentences about numbers whose class has another name in the annotations.
        models: the models of the rows.
    """

    detections: ResultColumns
    missing: tuple[str, ...]
    errors: tuple[str, ...]
    turned_back: tuple[str, ...]
    other_size: tuple[str, ...]
    unread: tuple[str, ...]
    unannotated: int
    matched_otherwise: tuple[str, ...]
    short: int
    threshold: float
    classes: tuple[str, ...] | None
    renamed: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """The relevant values of one row, and the location of its detections: file key, row group, row."""

    uri: str
    is_error: bool
    height: int | None
    width: int | None
    model: str
    threshold: float
    settings: str | None
    rank: tuple[bool, datetime, str]  # the highest is the current one, as in `exports.current`
    place: tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class _Found:
    """The detections of one row: N category ids, N scores, and `(N, 4)` corners in pixels of the upright picture."""

    category_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    boxes_xyxy: npt.NDArray[np.float32]


def read_table_results(
    table_uri: str,
    annotations: Annotations,
    *,
    options: StoreOptions | None = None,
    picture_options: StoreOptions | None = None,
    choice: RowChoice | None = None,
    allow_thresholded: bool = False,
    match_classes: MatchClasses | None = None,
    queries: int = 100,
) -> TableResults:
    """Read the current row of every evaluated image; see `exports.current`.

    Images are matched by the end of their URI, as in `ImageNames`. Memory: the keys of one row group at a time, and the
    detections of annotated images. Rows are of the upright picture; if height and width are exchanged in the
    annotations, the picture's header is read for the orientation that these ignored.

    Args:
        table_uri: the detection table.
        annotations: the images and their sizes.
        options: access to the table.
        picture_options: access to pictures; None is as for the table.
        choice: the rows to use.
        allow_thresholded: whether to read rows that left out low scores or classes.
        match_classes: whether classes are matched by number or name; None is by number, refused where a name has
            another number in the annotations.
        queries: number of detections per image if none are left out; 100 for the official models.

    Raises:
        RayDetrError: the table cannot be read, or does not fit the annotations.
        ValueError: rows left something out and that is not allowed.
    """
    class_names: dict[int, str] = {}
    opened, chosen_rows = options or StoreOptions(), choice or RowChoice()
    known = annotations.by_file_name()
    chosen = {name for name, image in known.items() if image["id"] in annotations.image_ids}
    try:
        table = open_store(table_uri, opened)
        files = _table_files(table, chosen_rows.run_id)
        rows, unannotated, otherwise = _current_rows(table, files, ImageNames(known), chosen_rows)
        rows = {name: row for name, row in sorted(rows.items()) if name in chosen}
        models = _models(rows)
        _check_settings(rows)
        threshold = max((row.threshold for row in rows.values()), default=0.0)
        classes = _kept_classes(table, files, rows)
        if not allow_thresholded:
            _check_complete(threshold, classes)
        names = {row.place: name for name, row in rows.items() if not row.is_error}
        found = {names[place]: part for place, part in _detections(table, files, names.keys(), class_names)}
    except StoreError as error:
        raise RayDetrError(f"cannot read the table {without_secrets(table_uri)}: {error}") from error
    differing = {name: row for name, row in rows.items() if _size_differs(row, known[name])}
    exchanged = {name: row for name, row in differing.items() if name in found and _is_exchanged(row, known[name])}
    orientations = _orientations(exchanged, ImageStores(picture_options or opened, MemberIndexes(table)))
    turned = {name: orientation for name, orientation in orientations.items() if orientation and orientation >= 5}
    image_ids = {name: known[name]["id"] for name in found}
    parts = [
        _columns(image_ids[name], found[name], rows[name], turned.get(name, 1))
        for name in sorted(found, key=image_ids.__getitem__)
    ]
    everything = ResultColumns.concatenate(parts)
    detections, renamed = align_classes(everything, class_names, annotations.class_names(), by=match_classes)
    return TableResults(
        detections=detections,
        missing=tuple(sorted(chosen - rows.keys())),
        errors=tuple(name for name, row in rows.items() if row.is_error),
        turned_back=tuple(turned),
        other_size=tuple(name for name in differing if name not in turned),
        unread=tuple(name for name, orientation in orientations.items() if orientation is None),
        unannotated=unannotated,
        matched_otherwise=otherwise,
        short=sum(len(part) < queries for part in parts),
        threshold=threshold,
        classes=classes,
        renamed=renamed,
        models=models,
    )


def _table_files(table: Store, run_id: str | None) -> dict[str, StoreEntry]:
    prefixes = [DATA] if run_id is None else [table_files_prefix(run_id, layout) for layout in LAYOUTS]
    files = {
        entry.key: entry
        for prefix in prefixes
        for entry in table.list(prefix)
        if entry.key.endswith(SUFFIX) and (run_id is None or in_order_of_runs(entry.key)[0] == run_id)
    }
    if not files:
        whose = "" if run_id is None else f" of run {run_id}"
        raise UsageError(f"table {table.uri} has no published rows{whose}. Check the address, or label images into it.")
    return files


def _current_rows(
    table: Store, files: Mapping[str, StoreEntry], names: ImageNames, choice: RowChoice
) -> tuple[dict[str, _Row], int, tuple[str, ...]]:
    """Return the current row of every annotated image, the number of rows of other images, and notes on matches.

    Rows that share only the last part of a name with an annotated image are used if all rows are of this kind: the
    photographs are then in other folders than annotated.
    """
    placed: dict[str, _Row] = {}
    elsewhere: dict[str, _Row] = {}
    respelled: dict[str, str] = {}
    total = 0
    ambiguous: str | None = None
    recorded = RecordedSettings(table)
    counted = {True: 0, False: 0}  # rows of annotated images, by whether the folders match
    for key, entry in files.items():
        file = _open(table, entry)
        with parquet_of(join_uri(table.uri, key)):
            for group in range(file.num_row_groups):
                uris = file.read_row_group(group, columns=["uri"])["uri"].to_pylist()
                total += len(uris)
                found = {index: match for index, match in enumerate(map(names.find, uris)) if match is not None}
                ambiguous = ambiguous or next((uri for uri in uris if len(names.of_the_same_last_part(uri)) > 1), None)
                if not found:
                    continue
                columns = list(dict.fromkeys([*_KEYS, *columns_of(file)]))
                taken = file.read_row_group(group, columns=columns).take(list(found))
                settings = recorded.of_rows(taken).to_pylist()
                for (index, match), value, own in zip(found.items(), taken.to_pylist(), settings, strict=True):
                    counted[match.is_placed_alike] += 1
                    if not _counts(uris[index], value, own, choice):
                        continue
                    row = _row(uris[index], value, own, (key, group, index))
                    _keep_current(placed if match.is_placed_alike else elsewhere, match, row)
                    if not match.is_spelled_alike:
                        respelled[match.name] = uris[index]
    if choice.settings is not None and not placed and not elsewhere and any(counted.values()):
        raise UsageError(
            f"no row of an annotated image has the settings {choice.settings}. `ray-detr runs` lists the settings of "
            "the table's runs."
        )
    if placed or not elsewhere:
        if not placed and ambiguous is not None:
            one, other = names.of_the_same_last_part(ambiguous)[:2]
            raise UsageError(
                f"{ambiguous} may belong to the annotated image {one!r} or {other!r}, and no row of the table lies in "
                "the folders that the annotations name. Label images whose paths end in the annotated names."
            )
        sentences = tuple(f"{name} is {without_secrets(uri)}" for name, uri in sorted(respelled.items()))
        return placed, total - counted[True], sentences
    sentences = tuple(f"{name} is {without_secrets(row.uri)}" for name, row in sorted(elsewhere.items()))
    return elsewhere, total - counted[False], sentences


def _counts(uri: str, value: Json, settings: str | None, choice: RowChoice) -> bool:
    is_chosen = choice.model in (None, value["model"]) and choice.settings in (None, settings)
    return is_chosen and (choice.uris is None or uri in choice.uris)


def _open(table: Store, entry: StoreEntry) -> pq.ParquetFile:
    file = open_listed(table, entry)
    check_columns(file, ("uri", "detections", *_KEYS), name=join_uri(table.uri, entry.key))
    return file


def _row(uri: str, value: Json, settings: str | None, place: tuple[str, int, int]) -> _Row:
    return _Row(
        uri=uri,
        is_error=value["status"] != "ok",
        height=value["height"],
        width=value["width"],
        model=value["model"],
        threshold=value["threshold"],
        settings=settings,
        rank=(value["error_kind"] not in TRANSIENT_KINDS, value["labelled_at"], value["run_id"]),
        place=place,
    )


def _keep_current(current: dict[str, _Row], match: NameMatch, row: _Row) -> None:
    known = current.setdefault(match.name, row)
    if known.uri != row.uri:
        raise UsageError(
            f"the table has two images with the file name {match.name!r}, by which rows are matched: {known.uri} and "
            f"{row.uri}. Choose one run ({_RUN_OPTIONS}), or a table that has only one of them."
        )
    if row.rank > known.rank:
        current[match.name] = row


def _models(rows: Mapping[str, _Row]) -> tuple[str, ...]:
    models = tuple(sorted({row.model for row in rows.values()}))
    if len(models) > 1:
        raise UsageError(
            f"the current rows come from {len(models)} models, {', '.join(models)}, and one figure cannot describe "
            f"several models. Choose one run ({_RUN_OPTIONS})."
        )
    return models


def _check_settings(rows: Mapping[str, _Row]) -> None:
    counts = Counter(row.settings or "unknown settings" for row in rows.values())
    if len(counts) > 1:
        found = ", ".join(f"{count:,} with {settings}" for settings, count in sorted(counts.items()))
        raise UsageError(
            f"the current rows have several settings ({found}), and one figure cannot describe several. Choose "
            "one with --settings, or one run."
        )


def _kept_classes(table: Store, files: Mapping[str, StoreEntry], rows: Mapping[str, _Row]) -> tuple[str, ...] | None:
    """Return the names of the classes that the runs of these rows kept; None if all runs kept all.

    They are in the metadata of every published file.
    """
    kept: set[str] = set()
    for key in sorted({row.place[0] for row in rows.values()}):
        configuration = read_metadata(_open(table, files[key])).get("configuration")
        try:
            classes = None if configuration is None else parse_object(configuration).get("classes")
            kept.update(name for name, _ in classes or ())
        except (ValueError, TypeError, AttributeError) as error:
            raise RayDetrError(
                f"{join_uri(table.uri, key)} is damaged: its metadata does not contain the configuration of its run."
            ) from error
    return tuple(sorted(kept)) or None


def _check_complete(threshold: float, classes: tuple[str, ...] | None) -> None:
    if classes is not None:
        raise ValueError(
            f"the rows have only the classes {', '.join(classes)}: all objects of other classes would count as missed. "
            "Label into another table without --classes, or give --allow-thresholded to measure these rows anyway."
        )
    if threshold > 0:
        raise ValueError(
            f"the rows have threshold {threshold:.3g}: without the detections below it, AP is lower than the model's. "
            "Label into another table with --threshold 0, or give --allow-thresholded to measure these rows anyway."
        )


def _size_differs(row: _Row, image: Json) -> bool:
    return None not in (row.height, image["height"]) and (row.height, row.width) != (image["height"], image["width"])


def _is_exchanged(row: _Row, image: Json) -> bool:
    return (row.height, row.width) == (image["width"], image["height"])


def _orientations(rows: Mapping[str, _Row], stores: Stores) -> dict[str, int | None]:
    """Return the EXIF orientation of the pictures of these rows; None if one cannot be read any more."""
    with ThreadPoolExecutor(HEADER_THREADS) as threads:
        return dict(zip(rows, threads.map(lambda row: _orientation(stores, row), rows.values()), strict=True))


def _orientation(stores: Stores, row: _Row) -> int | None:
    try:
        header = read_header(stores.get(row.uri).data)
    except (StoreError, ImageError):
        return None  # counted and reported
    # another size than the row's: the picture was replaced after labelling
    return header.orientation if (header.height, header.width) == (row.height, row.width) else None


def _detections(
    table: Store, files: Mapping[str, StoreEntry], rows: Collection[tuple[str, int, int]], class_names: dict[int, str]
) -> Iterator[tuple[tuple[str, int, int], _Found]]:
    """Yield the detections of the rows at these locations, with one row group in memory at a time.

    The names of their classes are added to `class_names` by number.
    """
    places: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, group, index in sorted(rows):
        places[key][group].append(index)
    for key, groups in places.items():
        file = _open(table, files[key])
        with parquet_of(join_uri(table.uri, key)):
            for group, indices in groups.items():
                column = file.read_row_group(group, columns=["detections"])["detections"].take(indices)
                class_names.update(class_names_in(column))
                for index, found in zip(indices, _per_row(column), strict=True):
                    yield (key, group, index), found


def _per_row(column: pa.ChunkedArray) -> Iterator[_Found]:
    """Yield the detections of each row of a column as arrays."""
    for chunk in column.chunks:
        detections = chunk.flatten()  # of all rows of the slice
        box = detections.field("box")
        boxes = np.stack([box.field(side).to_numpy() for side in _SIDES], axis=1)
        category_ids = detections.field("category_id").to_numpy()
        scores = detections.field("score").to_numpy()
        stops = np.cumsum(chunk.value_lengths().fill_null(0).to_numpy())
        for start, stop in zip([0, *stops], stops, strict=False):
            yield _Found(category_ids[start:stop], scores[start:stop], boxes[start:stop])


def _columns(image_id: int, found: _Found, row: _Row, orientation: int) -> ResultColumns:
    boxes = found.boxes_xyxy
    if orientation != 1:
        import torch  # imported here: takes seconds and hundreds of megabytes, and is rarely needed

        from detr.images.orientation import to_stored_orientation

        assert row.height is not None
        assert row.width is not None
        boxes = to_stored_orientation(
            torch.from_numpy(boxes.astype(np.float64)), row.height, row.width, orientation
        ).numpy()
    image_ids = np.full(len(found.scores), image_id, np.int64)
    return ResultColumns.of_corners(image_ids, found.category_ids, found.scores, boxes)
