"""Converts a COCO json and its images to training shards, with a Ray task for each shard."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

import numpy as np

from pipelines.cluster import connected, is_given, refuse_local
from pipelines.coco.documents import read_document
from pipelines.coco.text import USABLE, CocoText, read_coco
from pipelines.doctor.at_start import check_at_start
from pipelines.errors import BudgetExceeded, RayDetrError, UsageError
from pipelines.shards.checks import UNUSABLE, check_class_names
from pipelines.shards.config import ShardConfig
from pipelines.shards.left_out import write_left_out
from pipelines.shards.plan import NOT_LISTED, PLAN_VERSION, Found, ShardPlan, find_images, hold_plan, plan_shards
from pipelines.shards.reader import INDEX_KEY, ShardIndex, read_index, write_index
from pipelines.shards.tasks import write_by_tasks
from pipelines.shards.writer import PICTURE_HASH_BYTES, ShardSpec, WrittenShard
from pipelines.store import (
    NotFound,
    Store,
    StoreError,
    join_uri,
    open_store,
    require_create_only,
    split_uri,
    without_secrets,
)

MEGABYTE: Final = 1024**2
TASK_BYTES: Final = 700 * MEGABYTE  # of a process with its imports and prefetched images
REACH_SECONDS: Final = 20.0  # for the first response of a store
EXAMPLES: Final = 5

Json = dict[str, Any]


class WriteShards(Protocol):
    """Yields the shards of a plan: writes missing ones, and reads the findings of existing ones."""

    def __call__(self, *, spec: ShardSpec, plan: ShardPlan, there: Set[str]) -> Iterator[WrittenShard]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """The progress of a job.

    Attributes:
        stage: "shard", or a text about what happens before or after it.
        images: images of the written shards, including those of earlier attempts.
        images_planned: images of all shards.
        began: `time.monotonic()` when the first shard was begun.
    """

    stage: str
    images: int = 0
    images_planned: int = 0
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The result of a job. `was_done`: an earlier attempt had written everything."""

    out: str
    images: int
    annotations: int
    files: int
    size_bytes: int
    report: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    seconds: float
    was_done: bool


def shard(config: ShardConfig, *, on_progress: Callable[[ShardProgress], None] | None = None) -> ShardSummary:
    """Write the missing shards, then the index. The same call resumes a stopped job.

    Uses the Ray that is initialised already, the cluster of `RAY_ADDRESS`, or a local Ray during the call. Memory in
    this process: the json's text, about 100 bytes for each image and 40 for each annotation; a task has one shard.

    Args:
        config: The annotations, the images and the folder of the shards.
        on_progress: Called with the progress, in this thread.

    Raises:
        RayDetrError: the input cannot be used, or the environment failed. Written shards stay; the same call resumes.
    """
    began = time.monotonic()
    show = on_progress or (lambda _: None)
    try:
        if is_given():  # a local Ray has one machine
            with connected(verbose=config.verbose):
                check_at_start()
                refuse_local([config.images, config.out], are_shared=config.shared_folders)
        else:
            check_at_start()
        _check_answers(config)
        show(ShardProgress(f"reading {without_secrets(config.annotations)}"))
        data = read_document(config.annotations, what="the annotations", options=config.image_options)
        coco = read_coco(data, name=without_secrets(config.annotations))
        del data
        check_class_names(coco, name=without_secrets(config.annotations))
        _check_usable(config, coco.annotations, coco.findings, coco.examples)
        show(ShardProgress(f"listing {without_secrets(config.images)}"))
        found = _find_images(config, coco)

        @contextmanager
        def writing() -> Iterator[WriteShards]:
            show(ShardProgress("connecting to Ray"))
            with connected(verbose=config.verbose):
                yield partial(write_by_tasks, coco=coco, memory=TASK_BYTES + 2 * config.shard_megabytes * MEGABYTE)

        return write_shards(config, coco, found, writing, show, began=began)
    except StoreError as error:
        raise RayDetrError(f"{error} Written shards are kept; run the same command again to resume.") from error


def write_shards(
    config: ShardConfig,
    coco: CocoText,
    found: Found,
    writing: Callable[[], AbstractContextManager[WriteShards]],
    show: Callable[[ShardProgress], None],
    *,
    began: float,
) -> ShardSummary:
    """Plan the shards of a json, write the missing ones, then the index.

    Args:
        config: the limits, and the folder of the shards.
        coco: the json.
        found: the listed images.
        writing: a context that returns the function which writes shards; not used if all shards exist.
        show: called with the progress.
        began: `time.monotonic()` at the start of the command.

    Raises:
        RayDetrError: more of the input is unusable than allowed, or the folder has other shards.
        StoreError: a store refused or did not answer.
    """
    plan = plan_shards(coco, found, most_bytes=config.shard_megabytes * MEGABYTE, max_images=config.max_images)
    out = open_store(config.out, config.out_options)
    _check_share(config, plan, plan.problems)
    hold_plan(out, _plan_record(config, coco, found, plan))
    index = _finished(out)
    was_done = index is not None
    if index is None:
        with writing() as write:
            written = _written(config, coco, plan, out, write, show)
        show(ShardProgress("writing the index"))
        index = _index(config, coco, plan, found, out, written)
        write_index(out, index)
    return ShardSummary(
        out=without_secrets(config.out),
        images=index.images,
        annotations=index.annotations,
        files=len(index.files),
        size_bytes=sum(file.size_bytes for file in index.files),
        report=index.report,
        examples=index.examples,
        seconds=time.monotonic() - began,
        was_done=was_done,
    )


def _check_answers(config: ShardConfig) -> None:
    """Check, with short retries, that the stores answer, and that shards can be written safely."""
    out = open_store(config.out, replace(config.out_options, retry_seconds=REACH_SECONDS))
    require_create_only(out, what="shards", loss="two jobs could mix theirs", folder="")
    images = open_store(config.images, replace(config.image_options, retry_seconds=REACH_SECONDS))
    if next(iter(images.list()), None) is None:
        raise UsageError(f"there are no images at {without_secrets(config.images)}. Check the address of --images.")


def _find_images(config: ShardConfig, coco: CocoText) -> Found:
    found = find_images(open_store(config.images, config.image_options), coco)
    if (found.size_bytes == NOT_LISTED).all() and found.unlisted_example is not None:
        name = json.loads(coco.image(0))["file_name"]
        raise UsageError(
            f"no image of the json was found at {without_secrets(config.images)}: the json has, for example, {name!r}, "
            f"the folder has {found.unlisted_example!r}. Set --images to the folder that the file names are relative "
            "to. Absolute names of another machine match if they contain a folder of that name."
        )
    return found


def _plan_record(config: ShardConfig, coco: CocoText, found: Found, plan: ShardPlan) -> Json:
    return {
        "version": PLAN_VERSION,
        "annotations_sha256": coco.sha256,
        "images": without_secrets(join_uri(*split_uri(config.images))),
        "images_listing": found.digest,
        "shards": len(plan.shards),
        **config.resume_identity(),
    }


def _finished(out: Store) -> ShardIndex | None:
    try:
        out.head(INDEX_KEY)
    except NotFound:
        return None
    return read_index(out)


def _check_share(config: ShardConfig, plan: ShardPlan, problems: Mapping[int, tuple[str, str]]) -> None:
    """Stop if more images are missing or unreadable than allowed."""
    if len(problems) <= config.max_missing * plan.images and len(problems) < plan.images:
        return
    counts = Counter(kind for kind, _ in problems.values())
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in counts.most_common())
    first = problems[min(problems)][1]
    raise BudgetExceeded(
        f"{len(problems):,} of {plan.images:,} images are missing or unreadable ({kinds}): a share of "
        f"{len(problems) / plan.images:.3g}, but --max-missing allows {config.max_missing:.3g}. The first: {first}. "
        "Correct --images, or give a larger --max-missing to train without them."
    )


def _check_usable(
    config: ShardConfig, annotations: int, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]
) -> None:
    """Stop if more annotations are unusable for training than allowed, or all of them.

    Args:
        config: has the limit.
        annotations: number of all annotations.
        counts: numbers of usable annotations, and of others by problem.
        examples: a few messages for each problem.
    """
    usable = counts.get(USABLE, 0)
    unusable = annotations - counts.get("crowds", 0) - usable
    if unusable <= config.max_unusable * annotations and (usable or not annotations):
        return
    found = "; ".join(
        f"{kind.replace('_', ' ')} {counts[kind]:,}" + "".join(f", such as {one}" for one in examples.get(kind, ())[:1])
        for kind in ("annotations_of_no_image", "crowds", *sorted(UNUSABLE))
        if counts.get(kind)
    )
    if not usable:
        raise UsageError(
            f"none of the {annotations:,} annotations can be used for training: {found}. Category and image ids must "
            "be declared, and boxes must be lists of four numbers. Correct the json."
        )
    raise BudgetExceeded(
        f"{unusable:,} of {annotations:,} annotations cannot be used for training: a share of "
        f"{unusable / annotations:.3g}, but --max-unusable allows {config.max_unusable:.3g}: {found}. Correct the "
        "json, or give a larger --max-unusable to train without them."
    )


def _written(
    config: ShardConfig,
    coco: CocoText,
    plan: ShardPlan,
    out: Store,
    write: WriteShards,
    show: Callable[[ShardProgress], None],
) -> list[WrittenShard]:
    """Return all shards of the plan in order, including those of earlier attempts."""
    spec = ShardSpec(
        out=join_uri(*split_uri(config.out)),  # absolute: tasks have another working directory
        images=join_uri(*split_uri(config.images)),
        out_options=config.out_options,
        image_options=config.image_options,
        source=_source(config, coco),
        category_ids=frozenset(category.id for category in coco.categories),
        ambiguous_upright=config.ambiguous_exif == "upright",
        check_decodes=config.decode_check,
        is_numbered=coco.is_numbered,
    )
    there = {entry.key for entry in out.list("shard-")}
    planned = sum(len(positions) for positions, _ in plan.shards)
    written: dict[int, WrittenShard] = {}
    progress = ShardProgress("shard", images_planned=planned, began=time.monotonic())
    show(progress)
    for one in write(spec=spec, plan=plan, there=there):
        written[one.number] = one
        progress = replace(progress, images=progress.images + len(plan.shards[one.number][0]))
        show(progress)
    return [written[number] for number in range(len(plan.shards))]


def _source(config: ShardConfig, coco: CocoText) -> str:
    """Return a hash of the input of the shards, which does not depend on its location."""
    return hashlib.sha256(json.dumps([coco.sha256, config.resume_identity()]).encode()).hexdigest()[:16]


def _index(
    config: ShardConfig, coco: CocoText, plan: ShardPlan, found: Found, out: Store, written: Sequence[WrittenShard]
) -> ShardIndex:
    """Write the file of left-out images, and return the index of all shards.

    Raises:
        RayDetrError: more images are missing or unreadable than allowed.
    """
    problems = dict(plan.problems)
    report: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for one in written:
        report.update(one.report.counts)
        problems.update({position: (kind, sentence) for position, kind, sentence in one.report.left_out})
        for kind, some in one.report.examples.items():
            examples.setdefault(kind, []).extend(some)
    _check_share(config, plan, problems)
    for position in sorted(problems):
        kind, sentence = problems[position]
        report[f"left_out_{kind}"] += 1
        examples.setdefault(f"left_out_{kind}", []).append(f"image {coco.image_ids[position]}: {sentence}")
    _check_usable(config, report["annotations"], report, examples)
    left_out = write_left_out(out, coco, problems)
    report["annotations_left_out"] = left_out.annotations
    report["annotations_of_no_image"] = left_out.annotations_of_no_image
    report["categories_left_out"] = coco.findings.get("categories_left_out", 0)
    examples["categories_left_out"] = list(coco.examples.get("categories_left_out", ()))
    if coco.is_numbered:
        report["images_numbered"] = len(coco.image_ids)
    report["images_respelled"] = len(found.respelled)
    examples["images_respelled"] = [
        f"{_file_name(coco, np.int64(position))} is {key}"
        for position, key in islice(found.respelled.items(), EXAMPLES)
    ]
    report["objects_not_named"] = found.unlisted_count
    duplicates = _duplicates(coco, written)
    report["duplicate_pictures"] = len(duplicates)
    examples["duplicate_pictures"] = duplicates[:EXAMPLES]
    return ShardIndex(
        files=tuple(one.file for one in written),
        categories=coco.categories,
        images=report["images"],
        annotations=report["annotations"],
        other=coco.other,
        left_out=left_out.file,
        report=dict(sorted((kind, count) for kind, count in report.items() if count)),
        examples={kind: tuple(some[:EXAMPLES]) for kind, some in sorted(examples.items()) if some},
    )


def _duplicates(coco: CocoText, written: Sequence[WrittenShard]) -> list[str]:
    """Return a message for each image with the bytes of an earlier one. Memory: 50 bytes for each image."""
    pictures = np.frombuffer(b"".join(one.report.pictures for one in written), f"S{PICTURE_HASH_BYTES}")
    positions = np.concatenate([np.array(one.report.positions, np.int64) for one in written])
    order = np.argsort(pictures, kind="stable")
    ordered = pictures[order]
    is_repeat = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    return [
        f"{_file_name(coco, positions[order[place]])} is {_file_name(coco, positions[order[place - 1]])}"
        for place in is_repeat
    ]


def _file_name(coco: CocoText, position: np.int64) -> str:
    name: str = json.loads(coco.image(int(position)))["file_name"]
    return name
