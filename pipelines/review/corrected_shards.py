"""Write training shards from corrections of a table's images, and record their origin."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from detr.classes import Category
from pipelines.coco.text import CocoText, json_text, read_coco
from pipelines.errors import RayDetrError, UsageError
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.models import identify_model
from pipelines.review.batches import Batch, ReviewImage, distinct_names, read_batches
from pipelines.review.config import CorrectionsConfig
from pipelines.review.corrections import CorrectedBox, Correction, Corrections, ExportedImages, read_coco_corrections
from pipelines.review.files import CorrectionsFile, read_files
from pipelines.review.label_studio import read_label_studio
from pipelines.shards.checks import Problem
from pipelines.shards.config import ShardConfig
from pipelines.shards.plan import UNKNOWN_SIZE, Found, ShardPlan, shard_key
from pipelines.shards.reader import ORIGIN
from pipelines.shards.sharding import ShardProgress, ShardSummary, write_shards
from pipelines.shards.writer import ShardSpec, WrittenShard, fetch_image, keep_shard, shard_work, write_shard
from pipelines.store import Store, StoreError, open_store
from pipelines.strict_json import parse_json

_EXAMPLES: Final = 5

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CorrectionsSummary:
    """The result of importing corrections.

    Attributes:
        batches: batches of the corrected images.
        reviewed: images with an answer.
        boxes: number of their boxes.
        without_boxes: images that were reviewed as empty, which are used for training without boxes.
        skipped: images that were skipped or cancelled.
        not_reviewed: images of these batches without an answer.
        repeated: additional answers for images that already have one.
        unmatched: tasks or images that are not in a batch of the table, which are left out.
        other_size: sentences about images that the tool showed with other proportions, which are left out.
        classes: names, in the order of ids.
        shards: the written shards.
    """

    batches: tuple[int, ...]
    reviewed: int
    boxes: int
    without_boxes: int
    skipped: int
    not_reviewed: int
    repeated: int
    unmatched: int
    other_size: tuple[str, ...]
    classes: tuple[str, ...]
    shards: ShardSummary


def shard_corrections(
    config: CorrectionsConfig, *, on_progress: Callable[[ShardProgress], None] | None = None
) -> CorrectionsSummary:
    """Write training shards of corrected images; the same call resumes after a stop.

    This process reads the images from their addresses. Images that are missing, unreadable, or not in the labelled
    version are left out and counted. Memory: the files of corrections, the records of the table's batches, one shard.

    Args:
        config: The corrections, and the folder of the shards.
        on_progress: Called in this thread with the progress.

    Raises:
        UsageError: a file is not an export of images of this table, or a box has no class of the model.
        RayDetrError: there are more problems than a limit allows, or a store refused.
    """
    began = time.monotonic()
    show = on_progress or (lambda _: None)
    try:
        table = open_store(config.table, config.options)
        batches = read_batches(table)
        if not batches:
            raise UsageError(
                f"no images of table {table.uri} were exported for correction. Write a batch with `ray-detr review "
                "--export`, and correct that."
            )
        show(ShardProgress("reading corrections"))
        files = read_files(config.files, config.options)
        corrections = _read_corrections(files, ExportedImages(batches), table)
        chosen = [corrections.found[key] for key in sorted(corrections.found)]
        of = sorted({key[0] for key in (*corrections.found, *corrections.skipped)})
        concerned = [batch for batch in batches if batch.number in of]
        if not chosen:
            raise UsageError(
                f"no image of {', '.join(file.name for file in files)} has been reviewed: {len(corrections.skipped):,} "
                "were skipped, the others have no annotation. Submit annotations, and export again."
            )
        categories = _categories(config, concerned)
        _check_labels([box for one in chosen for box in one.boxes], categories, config)
        origin = _origin(table, concerned, chosen, files)
        coco, images = _as_coco(chosen, categories, origin)
        summary = _write(config, table, coco, images, show, began)
    except StoreError as error:
        raise RayDetrError(f"{error} Written shards are kept; run the same command again to resume.") from error
    given = sum(len(batch.images) for batch in concerned)
    skipped = corrections.skipped - corrections.found.keys()
    return CorrectionsSummary(
        batches=tuple(of),
        reviewed=len(chosen),
        boxes=sum(len(one.boxes) for one in chosen),
        without_boxes=sum(not one.boxes for one in chosen),
        skipped=len(skipped),
        not_reviewed=given - len(chosen) - len(skipped),
        repeated=corrections.repeated,
        unmatched=corrections.unmatched,
        other_size=tuple(corrections.other_size),
        classes=tuple(category.name for category in categories),
        shards=summary,
    )


def _read_corrections(files: Sequence[CorrectionsFile], exported: ExportedImages, table: Store) -> Corrections:
    corrections = Corrections()
    for number, (name, data) in enumerate(document for file in files for document in file.documents):
        try:
            document = parse_json(json_text(data, name=f"corrections {name}"))
        except ValueError as error:
            raise UsageError(f"corrections {name}: this is not JSON ({error}).") from error
        if isinstance(document, list):
            read_label_studio(document, name=name, exported=exported, file_number=number, into=corrections)
        elif isinstance(document, dict) and "images" in document:
            read_coco_corrections(data, name=name, exported=exported, file_number=number, into=corrections)
        else:
            raise UsageError(
                f"corrections {name}: this is neither a COCO json nor a list of tasks. Export JSON or JSON-MIN from "
                "Label Studio, or COCO from another tool."
            )
        if corrections.unmatched and not (corrections.found or corrections.skipped or corrections.other_size):
            raise UsageError(
                f"corrections {name}: nothing in it belongs to a batch of table {table.uri}; for example, "
                f"{corrections.unmatched_example} does not. Check --table; tasks are found by `review` and `uri` in "
                "their data, COCO's images by file name."
            )
    return corrections


def _categories(config: CorrectionsConfig, batches: Sequence[Batch]) -> tuple[Category, ...]:
    """Return the classes of the shards: those of the batches or of a model, then new ones."""
    by_id: dict[int, str] = {}
    if config.classes_of is not None:
        model = identify_model(config.classes_of, config.options)
        by_id = {category.id: category.name for category in model.categories if category.is_used}
    for category in (category for batch in batches for category in batch.categories):
        name = by_id.setdefault(category.id, category.name) if config.classes_of is None else by_id.get(category.id)
        if name != category.name:
            raise UsageError(
                f"class {category.id} is {category.name!r} in one batch and {name!r} in another or in the model. "
                "Import the batches of each model separately, or name the model that labelled them by --classes-of."
            )
    taken = {name: number for number, name in by_id.items()}
    for name in config.add_classes:
        if name in taken:
            raise UsageError(f"--add-classes: {name!r} is a class already, with the id {taken[name]}. Omit it.")
        number = max(by_id, default=0) + 1
        by_id[number], taken[name] = name, number
    return tuple(Category(number, by_id[number]) for number in sorted(by_id))


def _check_labels(boxes: Sequence[CorrectedBox], categories: Sequence[Category], config: CorrectionsConfig) -> None:
    """Raise one error for all labels that are not classes."""
    names = [category.name for category in categories]
    unknown = Counter(box.label for box in boxes if box.label not in names)
    if not unknown:
        return
    first = {box.label: box.origin for box in reversed(boxes)}
    parts = []
    for label, count in unknown.most_common(_EXAMPLES):
        near = difflib.get_close_matches(label, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        parts.append(f"{label!r} ({count:,} {'box' if count == 1 else 'boxes'}, first in {first[label]}{hint})")
    more = f" and {len(unknown) - len(parts)} others" if len(unknown) > len(parts) else ""
    whose = f"model {config.classes_of}" if config.classes_of else "the table's rows"
    raise UsageError(
        f"labels that are not classes of {whose}: {', '.join(parts)}{more}. Classes are {', '.join(names[:8])}"
        f"{' ...' if len(names) > len(names[:8]) else ''}. Correct the labels and export again, name with --classes-of "
        "the model whose classes they are, or allow new classes with --add-classes."
    )


def _origin(
    table: Store, batches: Sequence[Batch], corrections: Sequence[Correction], files: Sequence[CorrectionsFile]
) -> Json:
    """Return the origin of corrected images for the shards and the record of a training run."""
    used = Counter(one.given.batch for one in corrections)
    return {
        "table": table.uri,
        "batches": [
            {
                "batch": batch.number,
                "choice": batch.choice,
                "images": len(batch.images),
                "reviewed": used[batch.number],
                "models": sorted({image.model for image in batch.images}),
                "runs": sorted({image.run_id for image in batch.images}),
            }
            for batch in batches
        ],
        "corrections": [{"file": file.name, "sha256": hashlib.sha256(file.data).hexdigest()} for file in files],
    }


def _as_coco(
    corrections: Sequence[Correction], categories: Sequence[Category], origin: Json
) -> tuple[CocoText, list[ReviewImage]]:
    """Return the corrections as a COCO json, and its images in order."""
    given = distinct_names([one.given.image for one in corrections])
    ids = {category.name: category.id for category in categories}
    images: list[Json] = []
    annotations: list[Json] = []
    for image_id, (one, image) in enumerate(zip(corrections, given, strict=True), 1):
        size = {"width": image.width, "height": image.height}
        version = {"uri": image.shown_uri, "etag": image.etag, "batch": one.given.batch}
        images.append({"id": image_id, "file_name": image.name, **size, **version})
        for box in one.boxes:
            bbox = [round(side, 3) for side in box.bbox]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.label],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 3),
                    "iscrowd": int(box.is_crowd),
                }
            )
    document = {
        "info": {"description": "corrected detections"},
        ORIGIN: origin,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }
    return read_coco(json.dumps(document, ensure_ascii=False).encode(), name="of the corrections"), given


def _write(
    config: CorrectionsConfig,
    table: Store,
    coco: CocoText,
    images: Sequence[ReviewImage],
    show: Callable[[ShardProgress], None],
    began: float,
) -> ShardSummary:
    source = ReviewedImages(images, ImageStores(config.options, MemberIndexes(table)))
    sizes = np.array([UNKNOWN_SIZE if image.size is None else image.size for image in images], np.int64)
    versions = json.dumps([[image.shown_uri, image.etag, image.size] for image in images])
    found = Found(sizes, hashlib.sha256(versions.encode()).hexdigest(), unlisted_count=0, unlisted_example=None)

    def write(*, spec: ShardSpec, plan: ShardPlan, there: Set[str]) -> Iterator[WrittenShard]:
        for number in range(len(plan.shards)):
            if shard_key(number) in there:
                yield keep_shard(spec, number)
            else:
                yield write_shard(spec, shard_work(coco, plan, number), source)

    shards = ShardConfig(
        annotations=", ".join(config.files),
        images=config.table,
        out=config.out,
        ambiguous_exif="upright",  # rows and tools have upright pictures
        max_missing=config.max_missing,
        max_unusable=config.max_unusable,
        image_options=config.options,
    )
    return write_shards(shards, coco, found, lambda: nullcontext(write), show, began=began)


class ReviewedImages:
    """Corrected images, read from their addresses in the version that was labelled."""

    def __init__(self, images: Sequence[ReviewImage], stores: ImageStores) -> None:
        self._by_name: Mapping[str, ReviewImage] = {image.name: image for image in images}
        self._stores = stores

    def fetch(self, file_name: str, key: str | None, size: int) -> bytes | Problem:
        """Return the bytes of an image, or the reason for leaving it out; see `pipelines.shards.writer.ImageSource`."""
        del key, size
        image = self._by_name[file_name]
        blob = fetch_image(lambda: self._stores.get(image.uri))
        if isinstance(blob, Problem):
            return blob
        if image.etag is not None and blob.etag is not None:
            is_same = image.etag == blob.etag
        else:
            is_same = image.size in (None, len(blob.data))
        if not is_same:
            return Problem("changed", f"{image.shown_uri} has changed since it was labelled")
        return blob.data
