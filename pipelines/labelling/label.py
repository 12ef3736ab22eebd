"""A labelling run from start to end: plan, label in the pool, publish, finish; resumed where it was left.

Neither Ray nor torch is imported before there is something to label.
"""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from detr.images.header import MAX_PIXELS
from detr.precision import family_precision
from pipelines.caps import Caps, Meter, metering
from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.cutting import RetryErrors, Selection
from pipelines.labelling.driver import RunResult, run_labelling
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.lease import TRIES_SECONDS, holding
from pipelines.labelling.model_names import with_recorded_name
from pipelines.labelling.outcome import ShardReport, Work
from pipelines.labelling.plan import PlanConfig
from pipelines.labelling.planning import Planner
from pipelines.labelling.process_time import DECODE_SECONDS
from pipelines.labelling.progress import Progress, WithUnfinishedShards
from pipelines.labelling.ray_runner import Actors, RayRunner, cluster_is_given
from pipelines.labelling.reach import check_answers
from pipelines.labelling.run import RunRequest, check_run_id
from pipelines.labelling.segments import publishing
from pipelines.lake.listing import list_objects
from pipelines.models import FETCH_FIRST, ModelInfo, check_classes, identify_model
from pipelines.store import (
    StoreError,
    StoreOptions,
    check_no_secret,
    join_uri,
    open_store,
    require_create_only,
    split_uri,
    without_secrets,
)
from pipelines.watchdog import watching

if TYPE_CHECKING:
    from detr.precision import Precision

WAVE_SHARDS = 4_000  # one Ray Data execution; driver memory grows by 10-17 kB a shard (measured, Ray 2.60)

PACKAGES = ("ray-detr", "ray", "torch", "torchvision", "pillow", "pyarrow", "obstore")


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What a labelling run is given.

    Args:
        images: Folders, prefixes, globs, single images, or tables of URIs.
        table: The detection table's URI, existing or new.
        model: What `detr.load` takes, or the URI of a model directory.
        threshold: The least score that is kept; 0 keeps all queries.
        classes: (name, own threshold or None) of the classes that are kept; None keeps all.
        precision: "auto", "fp32", "tf32", "bf16" or "fp16".
        device: "auto", "cpu" or "cuda".
        batch_size: Images in a batch at most; None is 32 on GPUs and 1 on CPUs.
        run_id: The run's name; None makes one of the time.
        new_run: Seal the table's unfinished run instead of resuming it.
        relabel: Label images again that the table has with other settings of the model, instead of refusing.
        least_actors: Actors that must run; None is 1.
        most_actors: Actors that may run; None is what the cluster holds.
        cpus_per_actor: CPUs that each actor takes of its node; None is 1 on GPUs, else cores so that eight fill a node.
        gpus_per_actor: GPUs that each actor takes, such as 0.5 for two on a GPU; None is 1.
        shard_images: Images a shard; None is 2,048 on GPUs and 64 on CPUs, and fewer in a small run.
        max_error_rate: Above this share of error rows `LabelSummary.within_budget` is false.
        max_images: Label the first N images of the listing only.
        sample: Label N images drawn at random.
        seed: Of the draw.
        keep: Columns of tables of URIs that rows carry.
        via: "fsspec" reads images through fsspec.
        anonymous: Read images without credentials.
        endpoint: The S3 server; None is as the environment says.
        region: The S3 region; None is as the environment says.
        profile: The AWS profile; None is as the environment says.
        request_payer: Pay for reading images of requester-pays buckets.
        table_endpoint: The S3 server of the table and of a model in a store; None is the images'.
        table_region: The S3 region of the table; None is the region of the images.
        table_profile: The AWS profile for the table; None is the profile of the images.
        max_pixels: Larger pictures become a `too_large` row, decided from the header.
        retry_errors: "all": images with errors of permanent kinds are labelled again, too.
        wait_minutes: How long another start that writes the table is waited for; 0: not at all.
        decode_seconds: CPU time, or time asleep, after which decoding an image is given up; not time without a core.
        node_minutes: How long nodes of an autoscaling cluster are waited for when it cannot hold `least_actors` yet.
        stall_minutes: Give up, resumable, when no shard has come back for so long, waiting for nodes included.
        caps: Limits on the time and the cost of one call.
        verbose: Let Ray's own messages through.
    """

    images: tuple[str, ...]
    table: str
    model: str
    threshold: float = 0.05
    classes: tuple[tuple[str, float | None], ...] | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: int | None = None
    run_id: str | None = None
    new_run: bool = False
    relabel: bool = False
    least_actors: int | None = None
    most_actors: int | None = None
    cpus_per_actor: int | None = None
    gpus_per_actor: float | None = None
    shard_images: int | None = None
    max_error_rate: float = 0.05
    max_images: int | None = None
    sample: int | None = None
    seed: int = 0
    keep: tuple[str, ...] = ()
    via: Literal["auto", "fsspec"] = "auto"
    anonymous: bool = False
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    request_payer: bool = False
    table_endpoint: str | None = None
    table_region: str | None = None
    table_profile: str | None = None
    max_pixels: int = MAX_PIXELS
    retry_errors: RetryErrors = "transient"
    wait_minutes: float = 0.0
    decode_seconds: float = DECODE_SECONDS
    node_minutes: float = 0.0
    stall_minutes: float = 60.0
    caps: Caps = field(default_factory=Caps)
    verbose: bool = False

    def __post_init__(self) -> None:
        shard_images = 1 if self.shard_images is None else self.shard_images
        self.plan_config(model=None, shard_images=shard_images)  # checks what both have
        check_no_secret("model", self.model, instead=FETCH_FIRST)
        for name, value in (("threshold", self.threshold), ("max error rate", self.max_error_rate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not in 0..1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device: {self.device!r} is not one of auto, cpu, cuda. Each actor takes the GPU that Ray gives it."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch size: {self.batch_size} is less than 1")
        if self.run_id is not None:
            check_run_id(self.run_id)
        least, most = 1 if self.least_actors is None else self.least_actors, self.most_actors
        if least < 1 or (most is not None and most < least):
            raise ValueError(f"actors: {least}:{most} is not a range of at least 1 actor")
        for name in ("cpus_per_actor", "gpus_per_actor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name.replace('_', ' ')}: {value:g} is not above 0")
        if self.wait_minutes < 0:
            raise ValueError(f"wait minutes: {self.wait_minutes:g} is not a waiting time; give 0 or more.")
        if self.decode_seconds <= 0:
            raise ValueError(f"decode seconds: {self.decode_seconds:g} is not a time limit; give more than 0.")
        if self.node_minutes < 0:
            raise ValueError(f"node minutes: {self.node_minutes:g} is not a waiting time; give 0 or more.")
        if self.stall_minutes <= 0:
            raise ValueError(f"stall minutes: {self.stall_minutes:g} is not a waiting time; give more than 0.")
        if self.via not in ("auto", "fsspec"):
            raise ValueError(f"via: {self.via!r} is neither auto nor fsspec")

    @property
    def table_options(self) -> StoreOptions:
        """How the table and a model in a store are reached."""
        return self.image_options.of_table(
            endpoint=self.table_endpoint, region=self.table_region, profile=self.table_profile
        )

    @property
    def image_options(self) -> StoreOptions:
        """How the images are reached."""
        return StoreOptions(
            via=self.via,
            anonymous=self.anonymous,
            endpoint=self.endpoint,
            region=self.region,
            profile=self.profile,
            request_payer=self.request_payer,
        )

    @property
    def selection(self) -> Selection:
        """Which of the listed images are meant."""
        return Selection(self.max_images, self.sample, self.seed, self.retry_errors)

    def plan_config(self, *, model: str | None, shard_images: int) -> PlanConfig:
        """Return the part that says which images are labelled."""
        return PlanConfig(
            images=self.images,
            table=self.table,
            model=model,
            shard_images=shard_images,
            max_images=self.max_images,
            sample=self.sample,
            seed=self.seed,
            keep=self.keep,
            options=self.image_options,
            table_options=self.table_options,
        )

    def resume_identity(self) -> dict[str, object]:
        """Return what decides which rows come out, for the run's record: a resumed run must be given the same.

        How fast and where they come out - actors, device, ways to a store - may differ from start to start.
        """
        return {
            "images": [without_secrets(join_uri(*split_uri(uri))) for uri in self.images],
            "threshold": self.threshold,
            "classes": None if self.classes is None else [[name, own] for name, own in self.classes],
            "precision": self.precision,
            "max_images": self.max_images,
            "sample": self.sample,
            "seed": self.seed,
            "keep": list(self.keep),
            "retry_errors": "all" if self.retry_errors == "all" else "passing",  # the stored name of "transient"
            "max_pixels": self.max_pixels,
        }


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """What a run did, all its starts together; `images_this_start`, `changed_this_start`, `seconds` are of this one.

    `changed_this_start`: images that were another version than was listed; they are labelled as they were read.
    `work`, `nodes`, `node_hours` and `cost` are of this start, too: seconds, requests and bytes; the most nodes that
    could hold an actor; their hours, and what these cost by `caps.price_per_hour`.
    `run_id` is None where there was nothing to do: no run was begun then.
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

    @property
    def error_rate(self) -> float:
        """Share of the images that are errors, 0..1."""
        return sum(self.errors.values()) / self.images if self.images else 0.0

    @property
    def within_budget(self) -> bool:
        """Whether no more images are errors than was allowed."""
        return self.error_rate <= self.max_error_rate


def label(
    config: LabelConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    afterwards: ExitStack | None = None,
    on_shard: Callable[[str, ShardReport], None] | None = None,
) -> LabelSummary:
    """Label what is not labelled yet; resume the table's unfinished run if there is one.

    Returns when every planned image has exactly one published row. Ray is the one that is initialised already, the
    cluster that `RAY_ADDRESS` names, or a local one for the time of the call; where every image is labelled already it
    is not started, and no run is begun.

    Args:
        config: What to label with what.
        on_progress: Called whenever something is done, mostly in this thread, never by two threads at once.
        afterwards: Takes over ending a local Ray, which takes a second or two: it is ended when this is closed. None:
            before this function returns.
        on_shard: Called with the run's name and the report of each shard, when the shard is committed.

    Raises:
        LeaseHeld: another start writes the table.
        CapReached: a limit of `caps` is reached; the same call resumes.
        RayDetrError: the run cannot go on; a sentence says why. What is committed stays, the same call goes on there.
    """
    began = time.monotonic()
    progress = WithUnfinishedShards(on_progress or (lambda _: None))
    show = progress.show
    show(Progress("listing images and reading the table"))
    check_answers([(uri, config.image_options) for uri in config.images])
    check_answers([(f"{config.table.rstrip('/')}/", config.table_options)])  # its folder is all that must be listed
    listing = list_objects(config.images, options=config.image_options, keep=config.keep, table=config.table)
    try:
        with metering(config.caps) as meter, watching() as watchdog, ExitStack() as before_the_lease:
            runner = RayRunner(
                _spec(config),
                _actors(config),
                show=show,
                show_unfinished=progress.show_unfinished,
                watchdog=watchdog,
                meter=meter,
            )
            before_the_lease.callback(runner.close)
            model = _identify(config, runner)  # before anything is written
            config = _with_precision(config, model)
            runner.use_precision(config.precision)
            table = open_store(config.table, config.table_options)
            store = require_create_only(table, what="a table", loss="two runs could lose each other's rows")
            with (
                holding(
                    table,
                    can_swap=store.swap is not None,
                    token=secrets.token_hex(16),
                    wait_seconds=60 * min(config.wait_minutes, meter.minutes_left),
                    say=lambda sentence: show(Progress(sentence)),
                    impatient=open_store(config.table, replace(config.table_options, retry_seconds=TRIES_SECONDS)),
                ) as still_ours,
                before_the_lease.pop_all() as before_the_lease_ends,
                publishing() as publisher,
            ):
                model = with_recorded_name(table, model)
                result = run_labelling(
                    table,
                    _request(config, model),
                    listing,
                    config.selection,
                    runner,
                    new_run=config.new_run,
                    relabel=config.relabel,
                    plan_ahead=lambda plan: Planner(plan, wave_shards=WAVE_SHARDS),
                    publisher=publisher,
                    clock=SystemClock(),
                    tail=secrets.token_hex(2),
                    show=show,
                    watchdog=watchdog,
                    still_ours=still_ours,
                    meter=meter,
                    on_shard=on_shard or (lambda _run_id, _report: None),
                )
                meter.count_nodes(None)
                if afterwards is not None:  # no actor works any more
                    afterwards.push(before_the_lease_ends.pop_all())
    except StoreError as error:
        raise RayDetrError(f"{error} Run the same command again to resume.") from error
    return _summary(config, result, model, time.monotonic() - began, meter)


def _spec(config: LabelConfig) -> LabelerSpec:
    return LabelerSpec(
        table=join_uri(*split_uri(config.table)),  # a relative path would be another folder where actors run
        run_id="",
        model=_everywhere(config.model),
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
    )


def _actors(config: LabelConfig) -> Actors:
    return Actors(
        least=config.least_actors,
        most=config.most_actors,
        device=config.device,
        node_minutes=config.node_minutes,
        stall_minutes=config.stall_minutes,
        verbose=config.verbose,
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
    )


def _identify(config: LabelConfig, runner: RayRunner) -> ModelInfo:
    """Return what the model is, as this machine reads it, else as a node of the cluster loads it.

    Raises:
        UsageError: there is no such model, or it has no class of a name that is wanted.
        RayDetrError: it cannot be had now.
    """
    try:
        model = identify_model(config.model, config.table_options)
    except RayDetrError:
        if not cluster_is_given():
            raise
        model = runner.try_model()  # nodes may reach what this machine does not
    check_classes(model, [name for name, _ in config.classes or ()], reference=config.model)
    return model


def _with_precision(config: LabelConfig, model: ModelInfo) -> LabelConfig:
    """Return the configuration with the precision of a model of `transformers`, which is the same on every device.

    Raises:
        UsageError: it does not have the precision that is asked for.
    """
    if model.is_native:
        return config
    try:
        return replace(config, precision=family_precision(config.precision, model.family, name=config.model))
    except ValueError as error:
        raise UsageError(str(error)) from error


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


def _everywhere(model: str) -> str:
    """Return a model's reference as it is understood from any folder: actors run in another one."""
    is_path = "://" not in model and Path(model).exists() and model != "scenes"
    return str(Path(model).resolve()) if is_path else model


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
