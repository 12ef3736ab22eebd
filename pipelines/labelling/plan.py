"""Plans a run: which images it labels, in which shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

from pipelines.errors import RayDetrError
from pipelines.labelling.config import PlanConfig, Selection
from pipelines.labelling.cutting import IsLabelled, Look, cut_segments, select
from pipelines.labelling.labelled_keys import read_labelled
from pipelines.labelling.manifest import (
    SEGMENT_SHARDS,
    ListingPosition,
    PlannedSegment,
    Segment,
    read_kept_schema,
    read_manifest,
    read_shard,
    write_complete,
    write_segment,
)
from pipelines.labelling.past_settings import PastSettings
from pipelines.labelling.publish import THREADS, read_done
from pipelines.labelling.run import find_unfinished, sealed_sentence
from pipelines.lake.list_addresses import is_unusual_file
from pipelines.lake.listing import Listing, list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.parquet_files import plain_type
from pipelines.store import Store, StoreError, open_store

__all__ = [
    "SEGMENT_SHARDS",
    "Look",
    "PlanSummary",
    "PlannedSegment",
    "cut_segments",
    "read_kept_schema",
    "read_manifest",
    "read_shard",
    "summarise_plan",
    "write_plan",
]

GPU_SHARD_IMAGES: Final = 2_048  # with less than a thousand, batches of equal shapes are not full
CPU_SHARD_IMAGES: Final = 64
TILED_DIVISOR: Final = 8  # smaller shards with tiles: the 31 views of 12 megapixels take almost a minute on a CPU


def usual_shard_images(*, gpus: bool, tiled: bool) -> int:
    """Return the default number of images in a shard: minutes of work for the device."""
    return (GPU_SHARD_IMAGES if gpus else CPU_SHARD_IMAGES) // (TILED_DIVISOR if tiled else 1)


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """The plan of a run, without starting it.

    Attributes:
        images: Images to label, in `shards` shards and `segments` table files.
        size_bytes: Bytes of the images with known size; the size of `unknown_sizes` images is unknown.
        labelled: Images that are skipped because the table has their rows.
        duplicates: Images that are skipped because another source has them, too.
        skipped: Objects that are skipped for other reasons, by reason.
        unfinished_run: The unfinished run, which `label` would resume first.
        unfinished_images: Planned images of that run so far.
        unfinished_done: Those of them that are labelled, but perhaps not yet published.
    """

    images: int
    size_bytes: int
    unknown_sizes: int
    shards: int
    segments: int
    labelled: int
    duplicates: int
    skipped: Mapping[str, int]
    unfinished_run: str | None
    unfinished_images: int = 0
    unfinished_done: int = 0


def summarise_plan(config: PlanConfig, *, model: str | None = None) -> PlanSummary:
    """Return the plan of a run without writing anything. Memory as for `write_plan`.

    Args:
        config: images and table.
        model: `name@sha256[:12]` whose rows with the settings of `config` count as labelled; None: any model's rows.

    Raises:
        SettingsMismatch: the run would be refused, because the table has rows of the model with other settings only.
        RayDetrError: images or table cannot be read.
    """
    shard_images = config.shard_images or usual_shard_images(gpus=True, tiled=config.tiling is not None)
    table = open_store(config.table, config.table_options)
    listing = list_objects(
        config.images,
        options=config.image_options,
        keep=config.keep,
        table=config.table,
        image_column=config.image_column,
        modified_since=config.modified_since,
        indexes=MemberIndexes(table),
    )
    try:
        unfinished = find_unfinished(table)
        left = list(read_manifest(table, unfinished.run_id)) if unfinished else []
        done = read_done(table, unfinished.run_id, unfinished.layout).count_images(left) if unfinished else 0
        if config.skip_labelled == "any":
            model = None
        settings = None if model is None else _settings(table, config, model)
        labelled = read_labelled(table, model, settings=settings, retry_errors=config.retry_errors, threads=THREADS)
    except StoreError as error:
        raise RayDetrError(f"cannot read the table {table.uri}: {error}") from error
    segments, position = 0, ListingPosition()
    for segment in cut_segments(
        select(listing, None, Selection(sample=config.sample, seed=config.seed)),
        labelled.contains,
        shard_images=shard_images,
        max_images=config.max_images,
    ):
        segments += bool(segment.shards)
        position = segment.position
    counts = position.counts
    return PlanSummary(
        images=counts.images,
        size_bytes=counts.size_bytes,
        unknown_sizes=counts.unknown_sizes,
        shards=counts.shards,
        segments=segments,
        labelled=counts.labelled,
        duplicates=counts.duplicates,
        skipped=counts.skipped,
        unfinished_run=unfinished.run_id if unfinished else None,
        unfinished_images=sum(segment.images for segment in left),
        unfinished_done=done,
    )


def _settings(table: Store, config: PlanConfig, model: str) -> str | None:
    """Return the settings of the rows of this run, or None if rows with any settings count as labelled."""
    past = PastSettings(table, model)
    guess = past.guess_precision(config.configuration)
    return None if guess is None else past.check(config.configuration, guess, relabel=config.relabel)


def write_plan(
    table: Store,
    run_id: str,
    listing: Listing,
    is_labelled: IsLabelled,
    *,
    shard_images: int,
    selection: Selection | None = None,
    spread: Callable[[], int] = lambda: 1,
    look: Look | None = None,
) -> Iterator[PlannedSegment]:
    """Write the plan of a run, and yield its segments when they are durable, those of earlier attempts first.

    An interrupted planning continues after the last image of the last durable segment. Several processes that plan one
    run get one plan: the first file of each segment counts, and the other processes continue after it. Does nothing
    before it is iterated. Memory: one segment.

    Args:
        table: The table.
        run_id: The run.
        listing: The images.
        is_labelled: Returns which images are labelled already, as read after the run was begun.
        shard_images: Images in each shard, the same for all attempts of a run.
        selection: Which of the images; None means all.
        spread: Returns the least number of shards of a shorter segment, about: a few for each actor. Called only
            when there is a segment to cut.
        look: What was read of the listing before the run was begun, if nothing was added to the table since.

    Raises:
        RayDetrError: the run was sealed, or listing a source failed.
        StoreError: the table's store refused.
    """
    index, position, ended = 0, ListingPosition(), False
    for planned in read_manifest(table, run_id):
        yield from _open_segment(table, run_id, planned)
        index, position, ended = planned.index + 1, planned.position, planned.ending is not None
    kept_schema = listing.kept_schema
    if index and not ended:
        kept_schema = read_kept_schema(table, run_id)
        if _as_listed(kept_schema, listing.kept_schema) != listing.kept_schema:
            raise _other_types(run_id, kept_schema)
        if position.last_uri is not None and is_unusual_file(position.last_uri):
            raise RayDetrError(
                f"an earlier release began run {run_id} with addresses such as {position.last_uri}, which this release "
                "writes without repeated slashes and dots, in another order. Use --new-run to seal the run and start "
                "a new one."
            )
    selection = selection or Selection()
    if index:
        look = None  # the plan already goes beyond what was read
    while not ended:
        if look is not None:
            segments = look.segments(shard_images=shard_images, spread=spread())
        else:
            segments = cut_segments(
                select(listing, position.last_uri, selection),
                is_labelled,
                shard_images=shard_images,
                max_images=selection.max_images,
                spread=spread(),
                start=(index, position),
            )
        look = None
        for segment, ending in _with_ending(segments):
            if kept_schema != listing.kept_schema and not _fits(segment, kept_schema):
                raise _other_types(run_id, kept_schema)
            planned, is_ours = write_segment(table, run_id, segment, kept_schema, ending=ending)
            yield from _open_segment(table, run_id, planned)
            index, position, ended = planned.index + 1, planned.position, planned.ending is not None
            if ended or not is_ours:
                break  # another process wrote this segment first: continue the listing after it
    write_complete(table, run_id, index - 1, position.counts)


def _as_listed(begun: pa.Schema, listed: pa.Schema) -> pa.Schema:
    """Return the kept columns of a begun run, with the types of today's lists for those that earlier releases planned.

    They stored an empty column as nulls, and categories as a dictionary.
    """
    if begun.names != listed.names:
        return begun

    return pa.schema(
        [listed.field(old.name) if pa.types.is_null(old.type) else old.with_type(plain_type(old.type)) for old in begun]
    )


def _fits(segment: Segment, kept_schema: pa.Schema) -> bool:
    """Return whether no image has a value in a column of nulls."""
    places = [place for place, field in enumerate(kept_schema) if pa.types.is_null(field.type)]
    return all(item.kept[place] is None for shard in segment.shards for item in shard for place in places)


def _other_types(run_id: str, kept_schema: pa.Schema) -> RayDetrError:
    return RayDetrError(
        f"the kept columns have other types than when run {run_id} began ({kept_schema}). "
        "Restore the list of URIs, or use --new-run to seal the run and start a new one."
    )


def _with_ending(segments: Iterable[Segment]) -> Iterator[tuple[Segment, Literal["complete"] | None]]:
    """Yield the segments with shards, and the end of the manifest after the last one."""
    for segment in segments:
        if segment.shards:
            yield segment, None
        if segment.is_last:
            yield Segment(segment.index + bool(segment.shards), (), segment.position), "complete"


def _open_segment(table: Store, run_id: str, planned: PlannedSegment) -> Iterator[PlannedSegment]:
    if planned.ending == "sealed":
        raise RayDetrError(sealed_sentence(table, run_id))
    if planned.ending is None:
        yield planned
