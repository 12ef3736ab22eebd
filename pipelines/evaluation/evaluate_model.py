"""Evaluate a model: label the annotated images of a lake at threshold 0, then evaluate the rows."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from detr.evaluation.evaluators import Evaluator
from detr.precision import Precision
from pipelines.cluster import connected, node_resources, refuse_local
from pipelines.coco.names import ImageNames
from pipelines.errors import RayDetrError, SettingsMismatch, UsageError
from pipelines.evaluation.annotations import Annotations
from pipelines.evaluation.class_numbers import MatchClasses, check_class_numbers
from pipelines.evaluation.evaluate import Evaluation, evaluate_table
from pipelines.evaluation.table_results import RowChoice
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.progress import Progress
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.lake.sources import check_addresses
from pipelines.lake.uri_tables import is_uri_table
from pipelines.models import identify_model
from pipelines.store import StoreOptions, without_secrets

_EVERY_ERROR_RATE = 1.0  # the evaluation counts errors, as missed images


@dataclass(frozen=True, slots=True)
class ModelEvaluationConfig:
    """Configuration of the evaluation of a model.

    Args:
        model: What `detr.load` takes, or the URI of a model directory.
        images: Folders, prefixes, globs, single images, or tables of URIs, as for labelling; also a folder of a web
            server, which is assumed to have every annotated image.
        keep_table: The table for the rows, existing or new; None is a temporary one. Images with rows of this model are
            not labelled again.
        precision: "fp32", "tf32", "bf16", "fp16", or "auto": that of a labelling run on its machines. Figures from
            different machines are comparable in "fp32" only.
        device: "auto", "cpu" or "cuda".
        batch_size: Largest number of images in a batch; None is as for labelling.
        actors: Smallest and largest number of actors; None is 1 and what fits into the cluster.
        options: Access to the images.
        shared_folders: Whether local paths are shared by all nodes; without it, a cluster of several refuses them.
        verbose: Show Ray's messages.
        match_classes: Whether classes are matched by number or name; None is by number, refused where a class of the
            model has another number in the annotations.
        evaluator: The package that computes the figures; both give the same.
    """

    model: str
    images: tuple[str, ...]
    keep_table: str | None = None
    precision: Precision = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = None
    actors: tuple[int | None, int | None] = (None, None)
    options: StoreOptions = field(default_factory=StoreOptions)
    shared_folders: bool = False
    verbose: bool = False
    match_classes: MatchClasses | None = None
    evaluator: Evaluator = "ultrafast"

    def __post_init__(self) -> None:
        self.label_config(self.images, table=self.keep_table or "table")  # checks the common fields

    def label_config(self, images: tuple[str, ...], *, table: str) -> LabelConfig:
        """Return the configuration of the labelling run for these images."""
        return LabelConfig(
            images=images,
            table=table,
            model=self.model,
            threshold=0.0,
            precision=self.precision,
            device=self.device,
            batch_size=self.batch_size,
            actors=self.actors,
            max_error_rate=_EVERY_ERROR_RATE,
            image_options=self.options,
            shared_folders=True,  # `evaluate_model` checks paths itself: those of the user
            verbose=self.verbose,
        )


def evaluate_model(
    config: ModelEvaluationConfig,
    annotations: Annotations,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Label only the images to evaluate, and evaluate the rows.

    With a `keep_table`, the same call resumes a stopped one.

    Args:
        config: The model, the images and the resources.
        annotations: The truth.
        on_progress: Called in this thread with the progress.

    Raises:
        UsageError: the `keep_table` has rows of the model with other settings.
        RayDetrError: the environment failed; the message says how.
    """
    known = annotations.by_file_name()
    names = {name for name, image in known.items() if image["id"] in annotations.image_ids}
    found = find_annotated(config.images, names, options=config.options)
    with ExitStack() as temporary:
        if config.keep_table is None:
            table = temporary.enter_context(tempfile.TemporaryDirectory(prefix="ray-detr-evaluation-"))
        else:
            table = config.keep_table
        labelling = config.label_config((str(_write_list(found)),), table=table)
        if config.match_classes is None:
            _check_class_numbers(labelling, annotations)
        with connected(verbose=config.verbose):
            _check_is_reached(config.keep_table)
            kept = () if config.keep_table is None else (config.keep_table,)
            images = [uri for uri in config.images if not is_uri_table(uri)]
            refuse_local([*images, *kept], are_shared=config.shared_folders)
            try:
                summary = label(labelling, on_progress=on_progress)
            except SettingsMismatch as error:
                raise UsageError(
                    f"table {without_secrets(table)} has rows of this model with other settings than evaluation needs: "
                    "a threshold of 0, all classes and the same precision. Name another --keep-table."
                ) from error
        choice = RowChoice(model=summary.model, uris=frozenset(item.uri for item in found))
        evaluation = evaluate_table(
            table,
            annotations,
            options=labelling.table_options,
            picture_options=config.options,
            choice=choice,
            allow_thresholded=True,
            match_classes=config.match_classes,
            evaluator=config.evaluator,
        )
    if evaluation.threshold or evaluation.kept_classes:
        raise UsageError(
            f"table {without_secrets(table)} already has rows of {summary.model} without low scores or without some "
            "classes, so nothing was labelled: figures from these rows would be lower than the model's. Name another "
            "--keep-table."
        )
    return evaluation


def find_annotated(
    images: Sequence[str], names: Collection[str], *, options: StoreOptions | None = None
) -> list[LakeObject]:
    """Return the images that match these file names, as in `ImageNames`, by URI.

    Memory: the result, independent of the length of the listing.

    Args:
        images: as for labelling. A folder of a web server (`http://host/val2017/`) is not listed: it is assumed to have
            all names, and missing files become rows of the kind `missing`.
        names: file names of the annotations.
        options: how stores are reached.

    Raises:
        UsageError: no image was found, or two have the same file name.
    """
    try:
        check_addresses(images)
    except ValueError as error:
        raise UsageError(str(error)) from error
    folders = [uri for uri in images if uri.startswith(("http://", "https://")) and uri.endswith("/")]
    others = [uri for uri in images if uri not in folders]
    image_names = ImageNames(names)
    found = [
        LakeObject(folder + quote(image_names.without_common_folders(name))) for folder in folders for name in names
    ]
    if others:
        listed = list_objects(others, options=options)
        matched = [(image_names.find(item.uri), item) for item in listed if isinstance(item, LakeObject)]
        placed = [item for match, item in matched if match is not None and match.is_placed_alike]
        found += placed or [item for match, item in matched if match is not None]
    if not found:
        where = ", ".join(map(without_secrets, images))
        raise UsageError(
            f"none of the {len(names):,} annotated images, such as {min(names)}, is at {where}: images are found by "
            "file name. Check both addresses."
        )
    by_name: dict[str, LakeObject] = {}
    for item in found:
        match = image_names.find(item.uri)
        assert match is not None
        before = by_name.setdefault(match.name, item)
        if before.uri != item.uri:
            raise UsageError(
                f"two images have the file name {match.name!r}, by which annotations are matched: "
                f"{without_secrets(before.uri)} and {without_secrets(item.uri)}. Give only the folder of one of them."
            )
    return sorted(by_name.values(), key=lambda item: item.uri)


def _write_list(images: Sequence[LakeObject]) -> Path:
    """Write the images as a table of URIs to this user's cache.

    Its name is a hash of its contents, so that a resumed run has the same list.
    """
    table = pa.table(
        {
            "uri": pa.array([item.uri for item in images], pa.string()),
            "etag": pa.array([item.etag for item in images], pa.string()),
            "size": pa.array([item.size for item in images], pa.int64()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    data = sink.getvalue()
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "ray-detr" / "lists"
    file = folder / f"{hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()[:24]}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
            partial.write(data)
        Path(partial.name).replace(file)  # two evaluations may write the same list concurrently
    except OSError as error:
        raise RayDetrError(
            f"the list of images cannot be kept in {folder}: {error.strerror}. Free some space, or set XDG_CACHE_HOME "
            "to another folder."
        ) from error
    return file


def _check_class_numbers(labelling: LabelConfig, annotations: Annotations) -> None:
    """Refuse a model that numbers the annotated classes differently, before anything is labelled."""
    try:
        model = identify_model(labelling.model, labelling.table_options)
    except RayDetrError:
        return  # labelling asks the nodes, which may reach a model that this machine cannot; rows are checked again
    found = {category.id: category.name for category in model.categories if category.is_used}
    check_class_numbers(found, annotations.class_names(), whose="the model")


def _check_is_reached(keep_table: str | None) -> None:
    machines = len(node_resources())
    if keep_table is None and machines > 1:
        raise UsageError(
            f"the Ray cluster has {machines} machines, which do not share a temporary folder: with --keep-table, give "
            "a table that all of them can reach."
        )
