"""Labels a lake: connects listing, table, model and actors, then runs the driver.

Neither Ray nor torch is imported before there is something to label.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Protocol

import pyarrow as pa

from detr.checkpoints.references import absolute_reference
from detr.images.heic import has_decoder
from detr.precision import family_precision
from pipelines.caps import Meter, adding_costs, metering
from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.job import Environment, LabellingJob
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.lease import TRIES_SECONDS, holding
from pipelines.labelling.manifest import planned_columns
from pipelines.labelling.mask_column import with_mask_column
from pipelines.labelling.model_names import with_recorded_name
from pipelines.labelling.outcome import ShardReport, Work
from pipelines.labelling.planning import Planner
from pipelines.labelling.progress import Progress, WithUnfinishedShards
from pipelines.labelling.ray_runner import Actors, RayRunner, cluster_is_given
from pipelines.labelling.reach import check_answers
from pipelines.labelling.repeated_errors import count_repeated_errors
from pipelines.labelling.run import RunRequest, find_unfinished
from pipelines.labelling.segments import publishing
from pipelines.lake.listing import list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.lake.uri_tables import is_uri_table
from pipelines.models import ModelInfo, check_classes, check_masks, identify_model
from pipelines.store import (
    Store,
    StoreError,
    StoreOptions,
    join_uri,
    open_store,
    require_create_only,
    split_uri,
    without_secrets,
)
from pipelines.table.files import newest_columns
from pipelines.table.schema import NO_COLUMNS
from pipelines.watchdog import watching

WAVE_SHARDS = 4_000  # one Ray Data execution; driver memory grows by 10-17 kB a shard (measured, Ray 2.60)

PACKAGES = ("ray-detr", "ray", "torch", "torchvision", "pillow", "pyarrow", "obstore")


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """Result of a run in all its attempts; `images_this_start`, `changed_this_start` and `seconds` are of this attempt.

    `repeated_errors` counts the errors of images whose latest earlier row had an error of the same kind. They are
    counted if the share of all errors is above `max_error_rate`; otherwise 0.
    `changed_this_start` counts images that changed between listing and reading; they are labelled as they were read.
    `work`, `nodes`, `node_hours` and `cost` are of this attempt, too: seconds, requests, bytes; the largest number
    of nodes that could hold an actor; their hours, and the cost of these by `caps.price_per_hour`.
    `run_id` is None if there was nothing to do: then no run was begun.
    """

    table: str
    run_id: str | None
    model: str
    images: int
    images_this_start: int
    changed_this_start: int
    detections: int
    errors: Mapping[str, int]
    already_labelled: int
    duplicates: int
    skipped: Mapping[str, int]
    files: int
    seconds: float
    labelling_seconds: float
    resumed: bool
    max_error_rate: float
    query: str
    work: Work = field(default_factory=Work)
    nodes: int = 0
    node_hours: float = 0.0
    cost: float | None = None
    repeated_errors: int = 0

    @property
    def error_rate(self) -> float:
        """Share of the images that have errors, in 0..1."""
        return sum(self.errors.values()) / self.images if self.images else 0.0

    @property
    def new_errors(self) -> int:
        """Errors of images that did not have the same error before."""
        return sum(self.errors.values()) - self.repeated_errors

    @property
    def new_error_rate(self) -> float:
        """Share of the images that have new errors, in 0..1. Images with repeated errors are left out."""
        images = self.images - self.repeated_errors
        return self.new_errors / images if images else 0.0

    @property
    def within_budget(self) -> bool:
        """Whether the rate of new errors is at most `max_error_rate`."""
        return self.new_error_rate <= self.max_error_rate


def label(
    config: LabelConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    afterwards: ExitStack | None = None,
    on_shard: Callable[[str, ShardReport], None] | None = None,
) -> LabelSummary:
    """Label the images that are not labelled yet, or resume the table's unfinished run.

    Returns when every planned image has exactly one published row. Uses the Ray that is initialised already, the
    cluster of `RAY_ADDRESS`, or a local Ray during the call. If every image is labelled already, Ray is not started
    and no run is begun.

    Args:
        config: The images, the table, the model and the resources.
        on_progress: Called with the progress, mostly in this thread, never by two threads at once.
        afterwards: If given, a local Ray ends when this is closed, which takes a second or two; otherwise before this
            function returns.
        on_shard: Called with the run's name and the report of each shard that is committed.

    Raises:
        LeaseHeld: another process is writing the table.
        CapReached: a limit of `caps` is reached; the same call resumes the run.
        RayDetrError: the run cannot continue. Committed rows stay; the same call resumes the run.
    """
    began = time.monotonic()
    progress = WithUnfinishedShards(on_progress or (lambda _: None))
    show = progress.show
    show(Progress("listing images and reading the table"))
    check_answers([(uri, config.image_options) for uri in config.images])
    check_answers([(f"{config.table.rstrip('/')}/", config.table_options)])  # only its own folder must be listed
    try:
        table = open_store(config.table, config.table_options)
        indexes = MemberIndexes(table)
        listing = list_objects(
            config.images,
            options=config.image_options,
            keep=config.keep,
            stored=_stored_columns(table, new_run=config.new_run) if config.keep else NO_COLUMNS,
            table=config.table,
            image_column=config.image_column,
            modified_since=config.modified_since,
            indexes=indexes,
        )
        if config.masks:
            listing = with_mask_column(listing)
        with (
            metering(config.caps) as meter,
            adding_costs(meter),
            watching() as watchdog,
            ExitStack() as before_the_lease,
        ):
            runner = RayRunner(
                _spec(config),
                _actors(config),
                show=show,
                show_unfinished=progress.show_unfinished,
                watchdog=watchdog,
                meter=meter,
                own_disks=own_disks(config),
            )
            before_the_lease.callback(runner.close)
            model = _identify(config, runner)  # before anything is written
            if not model.is_native:
                config = replace(config, precision=family_precision(config.precision))
            runner.use_model(model.pinned, config.precision)
            store = require_create_only(table, what="a table", loss="two runs could lose each other's rows")
            indexes.keep()
            quick = open_store(config.table, replace(config.table_options, retry_seconds=TRIES_SECONDS))
            with (
                holding(
                    table,
                    can_swap=store.swap is not None,
                    token=secrets.token_hex(16),
                    wait_seconds=60 * min(config.wait_minutes, meter.minutes_left),
                    say=lambda sentence: show(Progress(sentence)),
                    quick=quick,
                ) as check_lease,
                before_the_lease.pop_all() as before_the_lease_ends,
                publishing() as publisher,
            ):
                model = with_recorded_name(table, model)
                request = _request(config, model)
                result = run_labelling(
                    LabellingJob(table, request, listing, config.selection, runner, config.new_run, config.relabel),
                    Environment(
                        clock=SystemClock(),
                        tail=secrets.token_hex(2),
                        publisher=publisher,
                        plan_ahead=lambda plan: Planner(plan, wave_shards=WAVE_SHARDS),
                        quick=quick,
                        check_lease=check_lease,
                        meter=meter,
                        watchdog=watchdog,
                        show=show,
                        on_shard=on_shard or (lambda _run_id, _report: None),
                    ),
                )
                meter.count_nodes(None)
                if afterwards is not None:  # all actors are idle
                    afterwards.push(before_the_lease_ends.pop_all())
        return with_repeated_errors(_summary(config, result, model, time.monotonic() - began, meter), table)
    except StoreError as error:
        raise RayDetrError(f"{error} Run the same command again to resume.") from error


def with_repeated_errors(summary: LabelSummary, table: Store) -> LabelSummary:
    """Return the summary with its repeated errors counted in the table, if its error rate is above the limit.

    If the table cannot be read, none counts as repeated, with a warning: the run is finished, and the same command
    would find nothing to label.
    """
    if summary.run_id is None or summary.within_budget:
        return summary
    try:
        repeated = count_repeated_errors(table, summary.run_id, summary.model)
    except (RayDetrError, StoreError) as error:
        logging.getLogger(__name__).warning("all errors count as new ones: %s", error)
        return summary
    return replace(summary, repeated_errors=repeated)


def _stored_columns(table: Store, *, new_run: bool) -> pa.Schema:
    """Return the columns whose types kept columns should have: those of an unfinished run's plan, else of the table."""
    unfinished = None if new_run else find_unfinished(table)
    if unfinished is not None:
        with suppress(RayDetrError):  # a damaged plan is reported when the run is resumed
            columns = planned_columns(table, unfinished.run_id)
            if columns is not None:
                return columns
    return newest_columns(table)


def _spec(config: LabelConfig) -> LabelerSpec:
    return LabelerSpec(
        table=join_uri(*split_uri(config.table)),  # absolute: actors have another working directory
        run_id="",
        model=absolute_reference(config.model),
        model_sha256="",
        threshold=config.threshold,
        classes=config.classes,
        device="cpu",
        precision=config.precision,
        batch_size=config.batch_size,
        threads=1,
        max_pixels=config.max_pixels,
        image_options=config.image_options,
        table_options=config.table_options,
        decode_seconds=config.decode_seconds,
        masks=config.masks,
        tiling=config.tiling,
        heic=has_decoder(),
    )


class Places(Protocol):
    """The part of a configuration that says what actors read and write."""

    @property
    def images(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def image_column(self) -> str | None: ...  # noqa: D102
    @property
    def table(self) -> str | None: ...  # noqa: D102
    @property
    def shared_folders(self) -> bool: ...  # noqa: D102


def own_disks(config: Places) -> list[str]:
    """Return what actors read or write and a cluster of several machines must not have on the disk of one."""
    if config.shared_folders:
        return []
    images = (uri for uri in config.images if config.image_column is not None or not is_uri_table(uri))
    return [*images, *(() if config.table is None else (config.table,))]  # only the driver reads lists


def _actors(config: LabelConfig) -> Actors:
    return Actors(
        least=config.actors[0],
        most=config.actors[1],
        device=config.device,
        node_minutes=config.node_minutes,
        stall_minutes=config.stall_minutes,
        verbose=config.verbose,
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
    )


def _identify(config: LabelConfig, runner: RayRunner) -> ModelInfo:
    """Return the model's identity, read on this machine, or if that fails on a node of the cluster.

    Raises:
        UsageError: there is no such model, or it does not have a requested class.
        RayDetrError: the model cannot be read now.
    """
    try:
        model = identify_model(config.model, config.table_options)
    except RayDetrError:
        if not cluster_is_given():
            raise
        model = runner.try_model()  # nodes may reach stores that this machine cannot
    check_classes(model, [name for name, _ in config.classes or ()], reference=config.model)
    if config.masks:
        check_masks(model, reference=config.model)
    return model


def _request(config: LabelConfig, model: ModelInfo) -> RunRequest:
    return RunRequest(
        model=model.id,
        model_sha256=model.sha256,
        configuration=config.resume_identity(),
        shard_images=config.shard_images,
        versions=_versions(),
        run_id=config.run_id,
    )


def _summary(config: LabelConfig, result: RunResult, model: ModelInfo, seconds: float, meter: Meter) -> LabelSummary:
    return LabelSummary(
        table=without_secrets(config.table),
        run_id=None if result.run is None else result.run.run_id,
        model=model.id,
        images=result.totals.rows,
        images_this_start=result.images_this_start,
        changed_this_start=result.changed_this_start,
        detections=result.totals.detections,
        errors=result.totals.errors,
        already_labelled=result.planned.labelled,
        duplicates=result.planned.duplicates,
        skipped=result.planned.skipped,
        files=result.segments,
        seconds=seconds,
        labelling_seconds=result.labelling_seconds,
        resumed=result.resumed,
        max_error_rate=config.max_error_rate,
        query=query_command(without_secrets(config.table), model.id, config.table_options),
        work=result.work,
        nodes=meter.most_nodes,
        node_hours=meter.node_hours,
        cost=meter.cost,
    )


def query_command(table: str, model: str, options: StoreOptions) -> str:
    """Return a shell command that counts the current detections of a model in a table by label."""
    stores = {"endpoint": options.endpoint, "region": options.region, "profile": options.profile}
    given = [f"--{name} {quote(value)}" for name, value in stores.items() if value is not None]
    words = ["ray-detr query", f"--table {quote(table)}", f"--model {quote(model)}", *given]
    sql = "SELECT label, count(*) AS detections FROM detections GROUP BY ALL ORDER BY 2 DESC"
    return f'{" ".join(words)} "{sql}"'


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
