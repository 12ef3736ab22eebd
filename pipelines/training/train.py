"""Trains a model: begins or resumes a run, runs its workers, and returns the result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, Final

from pipelines.actor_resources import count_nodes_for
from pipelines.caps import Meter, adding_costs, metering
from pipelines.cluster import connected, is_given, node_resources, refuse_local
from pipelines.coco.text import USABLE
from pipelines.doctor.at_start import check_at_start
from pipelines.errors import RayDetrError
from pipelines.models import check_trainable, identify_model
from pipelines.shards.checks import UNUSABLE
from pipelines.shards.reader import INDEX_KEY, ORIGIN, ShardIndex, read_index
from pipelines.store import StoreError, open_store, require_create_only, without_secrets
from pipelines.training.checkpoint_index import Manifest, read_manifest
from pipelines.training.config import TrainConfig
from pipelines.training.experiment_trackers import check_trackers
from pipelines.training.initial_checkpoint import write_initial_checkpoint
from pipelines.training.ray_trainer import fit
from pipelines.training.recipe import differing_batch
from pipelines.training.run_record import check_same, extended_epochs, read_record
from pipelines.training.run_status import TrainProgress
from pipelines.training.training_run import open_run
from pipelines.training.worker_group import Group, choose_group

PACKAGES: Final = ("ray-detr", "ray", "torch", "torchvision", "pillow", "pyarrow", "obstore")


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """The result of a run.

    Attributes:
        run: URI of the run's directory.
        model: URI of the model directory, for `ray-detr label` and `detr.load`.
        checkpoint: name of the checkpoint of which the model is a copy.
        epochs: number of epochs, of all attempts.
        steps: number of optimizer steps, of all attempts.
        metrics: COCO metrics of the model by pycocotools' names; None if it was not evaluated.
        starts: the steps at which workers were started in this attempt.
        seconds: duration of this attempt.
        resumed: whether an earlier attempt had begun the run.
        was_finished: whether the run was finished before.
        nodes: largest number of nodes that could hold a worker in this attempt.
        node_hours: their hours together.
        cost: the cost of these hours by `caps.price_per_hour`; None without a price.
    """

    run: str
    model: str
    checkpoint: str
    epochs: int
    steps: int
    metrics: Mapping[str, Any] | None
    starts: tuple[int, ...]
    seconds: float
    resumed: bool
    was_finished: bool
    nodes: int = 0
    node_hours: float = 0.0
    cost: float | None = None


def train(
    config: TrainConfig,
    *,
    on_progress: Callable[[TrainProgress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainSummary:
    """Train until the last epoch, or resume the run of this name.

    Uses the Ray that is initialised already, the cluster of `RAY_ADDRESS`, or a local Ray during the call. Lost workers
    are restarted from the newest checkpoint, as many as the cluster has room for.

    Args:
        config: The data, the initial weights, the recipe and the resources.
        on_progress: Called with the progress about twice a second, in another thread.
        say: Called with notes for the user.

    Raises:
        CapReached: a limit of `config.caps` is reached; a checkpoint is written.
        RayDetrError: the run stopped because of the cluster, a store, the data or the loss. The same call resumes from
            the newest checkpoint.
    """
    began = time.monotonic()
    show, tell = on_progress or (lambda _: None), say or (lambda _: None)
    show(TrainProgress("reading shards and run"))
    try:
        if not is_given():  # otherwise the packages are needed on a node of the cluster, where the first worker looks
            check_trackers(config.trackers)
        index = read_index(open_store(config.train, config.options))
        _check(config, index)
        store = open_store(config.run_uri, config.options)
        require_create_only(store, what="a run", loss="two processes could lose each other's checkpoints")
        record, manifest = read_record(store), read_manifest(store)
        if record is not None and "sized_for" not in record.configuration:
            # begun with other sizes, or by a release whose sizes did not follow the model's
            config = replace(config, recipe=replace(config.recipe, sized_for=0))
        configuration = {**config.resume_identity(), **_fingerprints(config), **_origin(index)}
        if record is not None:
            configuration |= extended_epochs(record, config.recipe, run=config.name)
        if record is not None:
            check_same(record, configuration, store)
        if manifest is not None and manifest.finished and _epochs(manifest) >= config.recipe.epochs:
            return _summary(config, manifest, (), began, resumed=True, was_finished=True)
        if manifest is not None and manifest.finished:
            tell(f"the run was finished after {_epochs(manifest)} epochs; it continues to {config.recipe.epochs}")
        sentence = differing_batch(config.recipe_name, config.recipe)
        if sentence is not None:
            tell(sentence)
        resumed = manifest is not None and manifest.latest is not None
        if not resumed and config.finetune is not None:
            check_trainable(identify_model(config.finetune, config.options))  # before Ray is started, which takes long
        show(TrainProgress("connecting to Ray"))
        # here, because killed workers do not remove theirs, and workers live until Ray has ended
        with (
            metering(config.caps) as meter,
            adding_costs(meter),
            TemporaryDirectory(prefix="ray-detr-train-", ignore_cleanup_errors=True) as scratch,
            connected(verbose=config.verbose),
        ):
            check_at_start()
            refuse_local(config.places(), are_shared=config.shared_folders)
            group = choose_group(
                node_resources(),
                *config.workers,
                device=config.device,
                micro_batches=config.recipe.micro_batches,
                threads=config.threads,
            )
            if group.idle:
                tell(
                    f"a step has {config.recipe.micro_batches} micro-batches, so {group.idle} further workers have "
                    "nothing to do: raise --effective-batch, or lower --batch-size, to use them"
                )
            if group.uses_gpu:
                tell(_precision(config))
            start_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            if not resumed:  # otherwise the workers claim the run when they begin
                show(TrainProgress("preparing the model"))
                run = open_run(store, configuration, start_id=start_id, now=datetime.now(UTC), versions=_versions())
                write_initial_checkpoint(run, config, index, say=tell)
            show(TrainProgress("starting workers"))
            with _counted_nodes(meter, group):
                starts = fit(
                    config,
                    group,
                    configuration,
                    show,
                    tell,
                    start_id=start_id,
                    versions=_versions(),
                    scratch=scratch,
                    meter=meter,
                )
        manifest = read_manifest(store)
        assert manifest is not None
        summary = _summary(config, manifest, starts, began, resumed=resumed, was_finished=False)
        return replace(summary, nodes=meter.most_nodes, node_hours=meter.node_hours, cost=meter.cost)
    except StoreError as error:
        raise RayDetrError(
            f"{error} Every complete checkpoint is kept; run the same command again to resume."
        ) from error


@contextmanager
def _counted_nodes(meter: Meter, group: Group) -> Iterator[None]:
    cpus, gpus = group.resources.get("CPU", 0.0), group.resources.get("GPU", 0.0)
    meter.count_nodes(lambda: count_nodes_for(cpus, gpus, most=group.most))
    try:
        yield
    finally:
        meter.count_nodes(None)  # asking for nodes after Ray's end would start it again


def _epochs(manifest: Manifest) -> int:
    return 0 if manifest.latest is None else manifest.latest.epoch


def _precision(config: TrainConfig) -> str:
    """Return the precision of the network on GPUs."""
    if config.recipe.bf16:
        return "the network computes in bfloat16, the loss in float32"
    if config.tf32:
        return "the network computes in float32 with TensorFloat-32 (--no-tf32: exact float32; --bf16: faster)"
    return "the network computes in exact float32 (--tf32, --bf16: faster)"


def _check(config: TrainConfig, index: ShardIndex) -> None:
    """Check that the data can be used for training and evaluation, before the run is begun."""
    if not index.images:
        raise RayDetrError(f"{without_secrets(config.train)} has no images.")
    worst = max(
        index.report.get(kind, 0) for kind in (*UNUSABLE, "crowds")
    )  # shards of earlier releases have no other counts
    if not index.report.get(USABLE, index.annotations - worst):
        examples = "; ".join(some[0] for kind, some in index.examples.items() if kind in UNUSABLE and some)
        raise RayDetrError(
            f"{without_secrets(config.train)} has {index.annotations:,} annotations, none of which can be used for "
            f"training{': ' * bool(examples)}{examples}. Correct the json, and write the shards again to an empty "
            "folder."
        )
    if config.val is None:
        return
    other = read_index(open_store(config.val, config.options))
    ours = {category.id: category.name for category in index.categories}
    theirs = {category.id: category.name for category in other.categories}
    wrong = sorted(number for number in theirs if ours.get(number) != theirs[number])
    if wrong:
        raise RayDetrError(
            f"{without_secrets(config.val)} has the category {wrong[0]} {theirs[wrong[0]]!r}, which is "
            f"{ours.get(wrong[0], 'unknown')!r} in {without_secrets(config.train)}. Use the same categories in both."
        )


def _fingerprints(config: TrainConfig) -> dict[str, Any]:
    """Return what identifies the shards: other shards in the same folder are another data set."""
    places = {"train_index": config.train, "val_index": config.val}
    return {
        name: None if uri is None else hashlib.sha256(open_store(uri, config.options).get(INDEX_KEY).data).hexdigest()
        for name, uri in places.items()
    }


def _origin(index: ShardIndex) -> dict[str, Any]:
    """Return the table and the corrections of which the shards were made, or nothing for other shards."""
    return {"train_origin": index.other[ORIGIN]} if ORIGIN in index.other else {}


def _summary(
    config: TrainConfig, run: Manifest, starts: tuple[int, ...], began: float, *, resumed: bool, was_finished: bool
) -> TrainSummary:
    latest, chosen = run.latest, run.best or run.latest
    assert latest is not None
    assert chosen is not None
    return TrainSummary(
        run=without_secrets(config.run_uri),
        model=f"{without_secrets(config.run_uri)}/model",
        checkpoint=chosen.name,
        epochs=latest.epoch,
        steps=latest.step,
        metrics=chosen.metrics,
        starts=starts,
        seconds=time.monotonic() - began,
        resumed=resumed,
        was_finished=was_finished,
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
