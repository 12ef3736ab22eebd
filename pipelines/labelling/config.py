"""Configurations of labelling: images, table, model, kept rows, and resources.

Needs the standard library only, because the command line is built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from detr.images import MAX_PIXELS
from detr.precision import Precision
from detr.tiles import MOST_OVERLAP, OVERLAP, Tiling, make_tiling, tile_size
from pipelines.caps import Caps
from pipelines.labelling.process_time import DECODE_SECONDS
from pipelines.options import check_options, group, number_range, option
from pipelines.store import StoreOptions, TableOptions, check_no_secret, join_uri, split_uri, without_secrets

MOST_SHARD_IMAGES: Final = 10**9
NO_CREDENTIALS: Final = "Omit them: credentials are found as docs/security.md says."

RetryErrors = Literal["transient", "all"]
SkipLabelled = Literal["same", "any"]
ClassThreshold = tuple[str, float | None]


def class_threshold(text: str) -> ClassThreshold:
    """Return the name and the threshold of `NAME` or `NAME=THRESHOLD`."""
    name, equals, threshold = text.rpartition("=")
    if not equals:
        return text, None
    try:
        value = float(threshold)
    except ValueError:
        raise ValueError(f"{threshold!r} is not a number") from None
    if not 0 <= value <= 1:
        raise ValueError(f"{threshold} is not in 0..1")
    return name, value


def point_in_time(text: str) -> datetime:
    """Return the time of an ISO 8601 text such as 2026-11-28 or 2026-11-28T02:00+01:00; without an offset it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time such as 2026-11-28 or 2026-11-28T02:00:00+01:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def which_errors(text: str) -> RetryErrors:
    """Return which errors to retry; "passing" is the former name of "transient"."""
    if text not in ("transient", "passing", "all"):
        raise ValueError(f"{text!r} is not one of transient, all")
    return "all" if text == "all" else "transient"


@dataclass(frozen=True, slots=True)
class Selection:
    """The selection of listed images that a run labels; the fields are those of `PlanConfig`."""

    max_images: int | None = None
    sample: int | None = None
    seed: int = 0
    retry_errors: RetryErrors = "transient"
    skip_labelled: SkipLabelled = "same"


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Images, table, and the detections to keep: the options of `ray-detr plan`."""

    images: tuple[str, ...] = option(
        "folders, prefixes, globs, images, .tar archives, lists of URIs (.parquet, .csv, .tsv, .txt, .json, .jsonl), "
        "or the manifest.json of an S3 Inventory; s3://, gs://, az://, local paths, http(s):// in lists",
        metavar="URI",
    )
    table: str = option("the detection table, existing or new", metavar="URI")
    model: str | None = option(
        "the model of the run, which is read to find its rows; without it, rows of any model count as labelled",
        default=None, metavar="REF",
    )  # fmt: skip
    threshold: float = option(
        "lowest score to keep; 0 keeps all queries", default=0.05, metavar="SCORE", at_least=0, at_most=1
    )
    classes: tuple[ClassThreshold, ...] | None = option(
        "keep only these classes; a class may have its own threshold (all classes)",
        default=None, metavar="NAME[=THRESHOLD]", parse=class_threshold, is_list=True,
    )  # fmt: skip
    precision: Precision = option(
        "number format of the network; auto is fp16 on GPUs and fp32 on CPUs; tf32 is fp32 with operands rounded to 10 "
        "bits on GPUs",
        default="auto",
    )
    masks: bool = option(
        "with a panoptic DETR: a column `masks` with COCO's run-length code of each detection", default=False
    )
    tiles: tuple[int, int] | None = option(
        "cut larger pictures into tiles of SIZE x SIZE or WIDTHxHEIGHT pixels, and detect in each of them and in the "
        "whole picture, which finds smaller objects: docs/models.md (detect only in the whole picture)",
        default=None, metavar="SIZE[xSIZE]", parse=tile_size,
    )  # fmt: skip
    overlap: float | None = option(
        f"least overlap of neighbouring tiles, as a share of their width and height ({OVERLAP:g})",
        default=None, metavar="SHARE", at_least=0, at_most=MOST_OVERLAP,
    )  # fmt: skip
    relabel: bool = option(
        "label again images that the table has with another threshold, classes, precision or tiles; both rows are "
        "kept, with different values in the column settings (refuse to label them)",
        default=False,
    )
    shard_images: int | None = option(
        "images in each shard (2048 on GPUs, 64 on CPUs, an eighth with --tiles, fewer in small runs)",
        default=None,
        metavar="N",
        at_least=1,
        at_most=MOST_SHARD_IMAGES,
    )
    max_images: int | None = option("label only the first N images (all)", default=None, metavar="N", at_least=1)
    sample: int | None = option("label N images drawn at random (all)", default=None, metavar="N", at_least=1)
    seed: int = option("random seed of --sample", default=0, at_least=-(2**63), at_most=2**63 - 1)
    keep: tuple[str, ...] = option(
        "columns of the lists of URIs to copy into the table (none)", default=(), metavar="COLUMN"
    )
    image_column: str | None = option(
        "read the images themselves from this column of the Parquet files: bytes, or a struct of bytes and path "
        "(Parquet files are lists of URIs)",
        default=None, metavar="COLUMN",
    )  # fmt: skip
    modified_since: datetime | None = option(
        "label only images that were modified at or after this time, such as 2026-11-28 or 2026-11-28T02:00:00+01:00; "
        "UTC without an offset; an unfinished run is resumed with its own time (all)",
        default=None, metavar="TIME", parse=point_in_time,
    )  # fmt: skip
    retry_errors: RetryErrors = option(
        "which images with error rows to label again: those with transient errors, or all (transient)",
        default="transient", metavar="{transient,all}", parse=which_errors,
    )  # fmt: skip
    skip_labelled: SkipLabelled = option(
        "which images count as labelled: those with rows of the same model and settings, or those with any rows; "
        "after the promotion of another model, any labels only new images",
        default="same",
    )
    shared_folders: bool = option(
        "declare that local paths are shared by all nodes, as with NFS; without it, local paths are refused on a "
        "cluster of several nodes",
        default=False,
    )
    image_options: StoreOptions = group(StoreOptions)
    table_access: TableOptions = group(TableOptions, prefix="table_")

    def __post_init__(self) -> None:
        from pipelines.labelling.mask_column import MASKS
        from pipelines.lake.sources import check_addresses
        from pipelines.models import FETCH_FIRST
        from pipelines.table.schema import check_kept

        check_options(self)
        if not self.images:
            raise ValueError("images: name at least one folder, glob, image or list of URIs.")
        if self.max_images is not None and self.sample is not None:
            raise ValueError("max images and sample exclude each other: give either the first N or N at random.")
        if self.modified_since is not None and self.modified_since.tzinfo is None:
            raise ValueError(f"modified since: {self.modified_since} has no time zone; give one, such as UTC.")
        if self.relabel and self.skip_labelled == "any":
            raise ValueError("relabel and skip labelled any exclude each other: label such images again, or skip them.")
        if self.tiling is not None and self.masks:
            raise ValueError(
                "masks and tiles exclude each other: masks of tiles cannot be joined; give only one of them."
            )
        check_kept((*self.keep, MASKS.name) if self.masks else self.keep)
        check_addresses(self.images)
        check_no_secret("table", self.table, instead=NO_CREDENTIALS)
        if self.model is not None:
            check_no_secret("model", self.model, instead=FETCH_FIRST)

    @property
    def table_options(self) -> StoreOptions:
        """Access to the table and to a model in a store."""
        return self.image_options.of_table(self.table_access)

    @property
    def selection(self) -> Selection:
        """The selection of listed images."""
        return Selection(self.max_images, self.sample, self.seed, self.retry_errors, self.skip_labelled)

    @property
    def tiling(self) -> Tiling | None:
        """How large pictures are cut into tiles; None: they are not."""
        return make_tiling(self.tiles, self.overlap)

    @property
    def configuration(self) -> dict[str, object]:
        """The options that distinguish rows of one model, in the form of a run's record."""
        classes = None if self.classes is None else [[name, own] for name, own in self.classes]
        # records of runs without these do not change
        masks = {"masks": True} if self.masks else {}
        tiles = {} if self.tiling is None else {"tiles": str(self.tiling), "overlap": self.tiling.overlap}
        return {"threshold": self.threshold, "classes": classes, "precision": self.precision, **masks, **tiles}


@dataclass(frozen=True, slots=True)
class LabelConfig(PlanConfig):
    """Configuration of a labelling run: the options of `ray-detr label`."""

    model: str = option(
        "DETR or another detector (docs/models.md): a hub id with optional @revision, a directory, a .pth or .ckpt, a "
        "URI, or scenes (the embedded model)",
        metavar="REF",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto uses GPUs if the cluster has any", default="auto")
    batch_size: int | None = option(
        "largest batch (32 on GPUs, 1 on CPUs; halved automatically if a GPU runs out of memory)",
        default=None, metavar="N", at_least=1,
    )  # fmt: skip
    run_id: str | None = option("name of the run (made from the time)", default=None, metavar="ID")
    new_run: bool = option(
        "seal the unfinished run of the table and start a new one instead of resuming", default=False
    )
    actors: tuple[int | None, int | None] = option(
        "number of detector processes, one for each GPU or core (1 to as many as fit into the cluster)",
        default=(None, None), metavar="MIN:MAX", parse=number_range,
    )  # fmt: skip
    cpus_per_actor: int | None = option(
        "CPUs that each actor reserves and decodes with (with GPUs: reserves 1, decodes with all cores of its share of "
        "the node; without GPUs: an eighth of the cores of a node)",
        default=None, metavar="N", at_least=1,
    )  # fmt: skip
    gpus_per_actor: float | None = option(
        "GPUs that each actor takes, such as 0.5 for two on a GPU (1)", default=None, metavar="X", above=0
    )
    max_error_rate: float = option(
        "exit with code 3 if more than this share of the images have errors; images whose latest earlier row has an "
        "error of the same kind do not count",
        default=0.05, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    wait_minutes: float = option(
        "minutes to wait for another process that is writing the table; then exit with code 4",
        default=0.0, metavar="N", at_least=0, takes_infinity=True,
    )  # fmt: skip
    decode_seconds: float = option(
        "limit for decoding one image, in seconds of CPU time or of sleep; an image that exceeds it gets a "
        "decode_timeout row",
        default=DECODE_SECONDS, metavar="N", above=0, takes_infinity=True,
    )  # fmt: skip
    node_minutes: float = option(
        "minutes to wait for new nodes of an autoscaling cluster that does not have room for the actors yet",
        default=0.0, metavar="N", at_least=0, takes_infinity=True,
    )  # fmt: skip
    stall_minutes: float = option(
        "stop after N minutes without a finished shard, including the wait for nodes; the same command resumes",
        default=60.0, metavar="N", above=0, takes_infinity=True,
    )  # fmt: skip
    max_pixels: int = MAX_PIXELS  # larger images become `too_large` rows
    caps: Caps = group(Caps)
    verbose: bool = option("show Ray's own messages", default=False)

    def __post_init__(self) -> None:
        from pipelines.labelling.run import check_run_id

        PlanConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        if self.run_id is not None:
            check_run_id(self.run_id)
        least, most = 1 if self.actors[0] is None else self.actors[0], self.actors[1]
        if least < 1 or (most is not None and most < least):
            raise ValueError(f"actors: {least}:{most} is not a range of at least 1 actor")
        check_gpus_per_actor(self.gpus_per_actor)

    def resume_identity(self) -> dict[str, object]:
        """Return the options that determine the rows, for the run's record. A resumed run must have the same.

        Options of speed and access (actors, device, endpoints) may differ between the processes of a run.
        """
        return {
            "images": [without_secrets(join_uri(*split_uri(uri))) for uri in self.images],
            **self.configuration,
            "max_images": self.max_images,
            "sample": self.sample,
            "seed": self.seed,
            "keep": list(self.keep),
            "retry_errors": "all" if self.retry_errors == "all" else "passing",  # the stored name of "transient"
            "max_pixels": self.max_pixels,
            # records of runs without these do not change
            **({"skip_labelled": "any"} if self.skip_labelled == "any" else {}),
            **({} if self.image_column is None else {"image_column": self.image_column}),
            **({} if self.modified_since is None else {"modified_since": self.modified_since.isoformat()}),
        }


def check_gpus_per_actor(gpus: float | None) -> None:
    """Refuse a number of GPUs that Ray cannot give to one actor.

    Raises:
        ValueError: it is above 1 and not whole.
    """
    if gpus is not None and gpus > 1 and gpus % 1:
        raise ValueError(f"gpus per actor: {gpus:g} is neither a share below 1 nor a whole number")
