"""Configuration of a labelling run: images, table, model, what is kept, and resources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from detr.images.header import MAX_PIXELS
from pipelines.caps import Caps
from pipelines.labelling.cutting import RetryErrors, Selection
from pipelines.labelling.plan import PlanConfig
from pipelines.labelling.process_time import DECODE_SECONDS
from pipelines.labelling.run import check_run_id
from pipelines.models import FETCH_FIRST
from pipelines.store import StoreOptions, check_no_secret, join_uri, split_uri, without_secrets

if TYPE_CHECKING:
    from detr.precision import Precision


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """Configuration of a labelling run.

    Args:
        images: Folders, prefixes, globs, single images, or lists of URIs.
        table: The detection table's URI, existing or new.
        model: A reference as `load_detector` takes it, or the URI of a model directory.
        threshold: Lowest score that is kept, 0..1; 0 keeps all queries.
        classes: (name, own threshold or None) of the classes that are kept; None keeps all.
        precision: "auto", "fp32", "tf32", "bf16" or "fp16".
        device: "auto", "cpu" or "cuda".
        batch_size: Images in a batch at most; None is 32 on GPUs and 1 on CPUs.
        run_id: The run's name; None: made from the current time.
        new_run: Seal the table's unfinished run instead of resuming it.
        relabel: Label images again that the table has with other settings of the model, instead of refusing.
        least_actors: Actors that must run; None is 1.
        most_actors: Actors that may run; None is what the cluster holds.
        cpus_per_actor: CPUs that each actor takes of its node; None is 1 on GPUs, else cores so that eight fill a node.
        gpus_per_actor: GPUs that each actor takes, such as 0.5 for two on a GPU; None is 1.
        shard_images: Images a shard; None is 2,048 on GPUs and 64 on CPUs, and fewer in a small run.
        max_error_rate: Above this share of error rows `LabelSummary.within_budget` is false.
        max_images: Label only the first N images of the listing.
        sample: Label N images drawn at random.
        seed: Seed of the random draw.
        keep: Columns of lists of URIs that are copied to the rows.
        image_column: Parquet files hold images in this column; None: they are lists of URIs.
        via: "fsspec" reads images through fsspec.
        anonymous: Read images without credentials.
        endpoint: The S3 server; None: as the environment says.
        region: The S3 region; None: as the environment says.
        profile: The AWS profile; None: as the environment says.
        request_payer: Send requester-pays headers when reading images.
        table_endpoint: The S3 server of the table and of a model in a store; None is the images'.
        table_region: The S3 region of the table; None is the region of the images.
        table_profile: The AWS profile for the table; None is the profile of the images.
        max_pixels: Larger images become `too_large` rows, decided from the header.
        retry_errors: "transient", or "all": images with permanent errors are labelled again as well.
        wait_minutes: How long to wait for another process that is writing the table.
        decode_seconds: Limit for decoding one image, in CPU time or time asleep; waiting for a core does not count.
        node_minutes: How long to wait for nodes of an autoscaling cluster that cannot hold `least_actors` yet.
        stall_minutes: Stop, resumably, when no shard was finished for so long, waiting for nodes included.
        caps: Limits on the time and the cost of one call.
        verbose: Show Ray's own messages.
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
    image_column: str | None = None
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
        if self.gpus_per_actor is not None and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"gpus per actor: {self.gpus_per_actor:g} is neither a share below 1 nor a whole number")
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
        """Return the options that determine which images are labelled."""
        return PlanConfig(
            images=self.images,
            table=self.table,
            model=model,
            shard_images=shard_images,
            max_images=self.max_images,
            sample=self.sample,
            seed=self.seed,
            keep=self.keep,
            image_column=self.image_column,
            options=self.image_options,
            table_options=self.table_options,
        )

    def resume_identity(self) -> dict[str, object]:
        """Return the options that determine the rows, for the run's record. A resumed run must have the same.

        Options of speed and access (actors, device, endpoints) may differ between the processes of a run.
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
            **({} if self.image_column is None else {"image_column": self.image_column}),
        }
