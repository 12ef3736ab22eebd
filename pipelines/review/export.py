"""Write a batch of a table's images for correction, with the model's detections drawn, and record it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa

from detr.classes import UNUSED_NAME, Category
from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError, UsageError, note_incomplete
from pipelines.exports.config import TASKS_PER_FILE
from pipelines.exports.documents import FROM_NAME, TO_NAME, coco_boxes, label_studio_task
from pipelines.exports.image_urls import image_url, refuse_unused
from pipelines.exports.images import Names, common_names
from pipelines.exports.places import require_empty
from pipelines.models import identify_model
from pipelines.report.drift import read_earlier
from pipelines.report.rows import Classes, Rows, table_files
from pipelines.review.batches import Batch, ReviewImage, distinct_names, read_batches, record_batch
from pipelines.review.choice import Chooser, Chosen, Converter, Disagreement, LeastCertain, PerClass, Random
from pipelines.review.config import ReviewConfig
from pipelines.store import Store, StoreError, StoreOptions, open_store, without_secrets

INTERFACE_KEY: Final = "interface.xml"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReviewSummary:
    """The result of an export for correction.

    Attributes:
        batch: its number.
        out: the folder.
        files: names of the files to import into the tool, in the folder.
        images: number of chosen images.
        asked: requested number of images.
        boxes: number of pre-drawn boxes.
        classes: names of the available classes.
        available: number of candidate images: without an error, and not in an earlier batch.
        exported_before: number of images in earlier batches.
    """

    batch: int
    out: str
    files: tuple[str, ...]
    images: int
    asked: int
    boxes: int
    classes: tuple[str, ...]
    available: int
    exported_before: int


def export_review(
    config: ReviewConfig, *, clock: Clock | None = None, show: Callable[[int], None] = lambda _rows: None
) -> ReviewSummary:
    """Choose images of a table, write them for correction, and record the batch in the table.

    Images are chosen from the current rows (or those of `run`) without an error whose image version was not exported
    before. The record is written last: without it the batch does not exist, and its images can be chosen again. Memory:
    one row group, the chosen rows, some 70 bytes for each row of the table while the current rows are found, and the
    records of earlier batches.

    Args:
        config: The options.
        clock: For the time of the batch.
        show: Called with the number of rows read so far.

    Raises:
        UsageError: there are no candidates, the folder is not empty, or the model has other classes.
        RayDetrError: the table is damaged, or a store refused.
    """
    try:
        table, out = open_store(config.table, config.options), open_store(config.out, config.options)
        require_empty(out)
        batches = read_batches(table)
        read = _Read(config, table, batches, show)
        chosen = read.chooser.chosen()
        if not chosen:
            raise UsageError(_nothing(config, table, read))
        categories = read.categories(config.classes_of, config.options)
        batch = _batch(config, batches, chosen, categories, clock or SystemClock())
        try:
            files = WRITERS[config.to](out, batch, chosen, config)
            record_batch(table, batch)
        except BaseException as error:
            if next(iter(out.list()), None) is not None:
                note_incomplete(error, out.uri)
            raise
    except StoreError as error:
        raise RayDetrError(f"cannot write a review of {without_secrets(config.table)}: {error}") from error
    return ReviewSummary(
        batch=batch.number,
        out=without_secrets(config.out),
        files=tuple(files),
        images=len(chosen),
        asked=config.count,
        boxes=sum(len(one.image.boxes) for one in chosen),
        classes=tuple(category.name for category in categories),
        available=read.available,
        exported_before=read.exported_before,
    )


class _Read:
    """The rows of a table, read once."""

    def __init__(
        self, config: ReviewConfig, table: Store, batches: Sequence[Batch], show: Callable[[int], None]
    ) -> None:
        classes = Classes()
        self.chooser = _chooser(config, table, classes)
        self.available = self.exported_before = seen = 0
        self._by_id: dict[int, str] = {}
        self._by_name: dict[str, int] = {}
        known = {(image.uri, image.etag) for batch in batches for image in batch.images}
        for rows in table_files(table, config.run).rows(classes):
            self._add_categories(rows, classes.names, config.table)
            is_exported = np.array(
                [one in known for one in zip(rows.words("uri"), rows.words("etag"), strict=True)], np.bool_
            )
            can_be_chosen = rows.is_ok & ~is_exported
            self.exported_before += int(is_exported.sum())
            self.available += int(can_be_chosen.sum())
            if can_be_chosen.any():
                self.chooser.add(rows.where(can_be_chosen))
            seen += len(rows)
            show(seen)

    def categories(self, classes_of: str | None, options: StoreOptions) -> tuple[Category, ...]:
        """Return the classes for corrections: those of the rows, or of a model that has all of these."""
        own = tuple(Category(number, self._by_id[number]) for number in sorted(self._by_id))
        if classes_of is None:
            if not own:
                raise UsageError(
                    "the rows have no detection, so no class is known that could be drawn. Name the model that has the "
                    "classes by --classes-of."
                )
            return own
        model = identify_model(classes_of, options)
        known = tuple(category for category in model.categories if category.is_used)
        unknown = next((category for category in own if category not in known), None)
        if unknown is not None:
            raise UsageError(
                f"the table has detections of class {unknown.id} {unknown.name!r}, which model {model.id} of "
                "--classes-of does not have. Name the model that labelled the table, or choose its rows by --run."
            )
        return known

    def _add_categories(self, rows: Rows, names: Sequence[str], table: str) -> None:
        pairs = np.unique(np.stack([rows.category_ids, rows.classes], axis=1), axis=0)
        for category_id, number in pairs.tolist():
            if names[number] == UNUSED_NAME:  # of official models, which have several; never a class to correct
                continue
            name = self._by_id.setdefault(category_id, names[number])
            if name != names[number]:
                raise UsageError(
                    f"class {category_id} is {name!r} in some rows of {without_secrets(table)} and {names[number]!r} "
                    "in others, as of two models. Choose the rows of one run with --run."
                )
            known = self._by_name.setdefault(name, category_id)
            if known != category_id:
                raise UsageError(
                    f"class {name!r} has the number {known} in some rows of {without_secrets(table)} and {category_id} "
                    "in others, as of two models. Choose the rows of one run with --run."
                )


def _chooser(config: ReviewConfig, table: Store, classes: Classes) -> Chooser:
    converter = Converter(classes, config.threshold)
    if config.choice == "least-certain":
        return LeastCertain(config.count, converter)
    if config.choice == "random":
        return Random(config.count, converter, config.seed)
    if config.choice == "per-class":
        return PerClass(config.count, converter, config.seed)
    assert config.against is not None, "the configuration checks it"
    return Disagreement(
        config.count, converter, read_earlier(table_files(table, config.against), classes, config.threshold)
    )


def _nothing(config: ReviewConfig, table: Store, read: _Read) -> str:
    if not read.available:
        exported_before = f", and {read.exported_before:,} images were exported before" if read.exported_before else ""
        return f"table {table.uri} has no image to choose{exported_before}. Label more images."
    reasons = {
        "least-certain": "has a detection with a score between 0.2 and 0.8. Choose random ones",
        "random": "",
        "per-class": f"has a detection with a score of {config.threshold:g} or more. Give a lower --threshold",
        "disagreement": f"differs from run {config.against}. Choose in another way",
    }
    return f"none of the {read.available:,} images of {table.uri} that can be chosen {reasons[config.choice]}."


def _batch(
    config: ReviewConfig,
    batches: Sequence[Batch],
    chosen: Sequence[Chosen],
    categories: tuple[Category, ...],
    clock: Clock,
) -> Batch:
    names = common_names([pa.chunked_array([pa.array([one.image.uri for one in chosen], pa.string())])])
    images = [_review_image(one, names) for one in chosen]
    return Batch(
        number=1 + max((batch.number for batch in batches), default=0),
        created=clock.now(),
        choice=config.choice,
        count=config.count,
        seed=config.seed,
        threshold=config.threshold,
        run=config.run,
        against=config.against,
        to=config.to,
        out=without_secrets(config.out),
        categories=categories,
        images=tuple(distinct_names(images)),
    )


def _review_image(one: Chosen, names: Names) -> ReviewImage:
    width, height = one.image.size
    name = names.of(one.image.uri)
    return ReviewImage(one.uri, one.etag, one.size, width, height, name, one.image.model, one.run_id)


def write_tasks(out: Store, batch: Batch, chosen: Iterable[Chosen], config: ReviewConfig) -> list[str]:
    """Write Label Studio's tasks, and the labelling interface of the batch's classes; return the names of the tasks.

    `data` of a task has `image`, the address that Label Studio opens; `uri`, the image's address in the table; and
    `review`, batch and index of the image, which identify it in corrections.
    """
    tasks = []
    for place, one in enumerate(chosen):
        task = label_studio_task(one.image)
        uri = one.image.uri
        task["data"] = {"image": image_url(uri, config.image_urls), "uri": uri, "review": f"{batch.number}/{place}"}
        tasks.append(task)
    if config.image_urls:
        refuse_unused((one["data"]["uri"] for one in tasks), config.image_urls)
    parts = [tasks[first : first + TASKS_PER_FILE] for first in range(0, len(tasks), TASKS_PER_FILE)]
    names = ["tasks.json"] if len(parts) == 1 else [f"tasks-{number:03}.json" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        out.put(name, _json_lines(part))
    out.put(INTERFACE_KEY, interface(batch.categories).encode())
    return names


def write_coco(out: Store, batch: Batch, chosen: Sequence[Chosen], config: ReviewConfig) -> list[str]:
    """Write a COCO json whose file names are those of the batch's record; return its name."""
    del config
    images = [
        {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
        for number, image in enumerate(batch.images, 1)
    ]
    boxes = [box for number, one in enumerate(chosen, 1) for box in coco_boxes(one.image, number)]
    annotations = [
        {"id": number, **box, "area": round(box["bbox"][2] * box["bbox"][3], 3), "iscrowd": 0}
        for number, box in enumerate(boxes, 1)
    ]
    document = {
        "info": {"description": f"batch {batch.number} of {without_secrets(out.uri)}", "table_batch": batch.number},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in batch.categories],
    }
    out.put("instances.json", (json.dumps(document, ensure_ascii=False) + "\n").encode())
    return ["instances.json"]


WRITERS: Final[Mapping[str, Callable[[Store, Batch, Sequence[Chosen], ReviewConfig], list[str]]]] = {
    "labelstudio": write_tasks,
    "coco-dataset": write_coco,
}


def interface(categories: Iterable[Category]) -> str:
    """Return Label Studio's labelling interface for these classes, which a project needs before importing tasks."""
    labels = "\n".join(f"    <Label value={quoteattr(category.name)}/>" for category in categories)
    return (
        f'<View>\n  <Image name="{TO_NAME}" value="$image"/>\n  <RectangleLabels name="{FROM_NAME}" '
        f'toName="{TO_NAME}" canRotate="false">\n{labels}\n  </RectangleLabels>\n</View>\n'
    )


def _json_lines(entries: Sequence[object]) -> bytes:
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries)
    return f"[\n{lines}\n]\n".encode()
