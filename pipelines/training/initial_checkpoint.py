"""The initial checkpoint (step 0) of a training run: a model for the classes of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from detr.checkpoints.checkpoint import CheckpointError, dump
from detr.checkpoints.imagenet import load_backbone
from detr.classes import Category
from detr.config import DetrConfig
from detr.model import Detr
from detr.size_rule import Resizing
from detr.training.finetune import with_categories
from pipelines.errors import RayDetrError
from pipelines.models import load_model, short_name
from pipelines.shards.reader import ShardIndex
from pipelines.store import StoreError, Stores, without_secrets
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.learner import empty_network
from pipelines.training.training_run import TrainingRun

FEW_IMAGES: Final = (
    10_000  # DETR's authors: with less than 10-15 thousand images, training from scratch gives poor results
)
MENTIONED: Final = 8


def write_initial_checkpoint(
    run: TrainingRun, config: TrainConfig, index: ShardIndex, *, say: Callable[[str], None]
) -> None:
    """Write the checkpoint of step 0.

    Args:
        run: the run, which has no checkpoint.
        config: the configuration, which names the weights.
        index: the index of the training shards, which has the classes.
        say: called with notes for the user, for example about new classes.

    Raises:
        RayDetrError: a model or weights cannot be loaded, or do not fit.
        StoreError: the run's store refused.
    """
    model, trainable_norm = initial_model(config, index.categories, say=say)
    if config.network is not None and config.network != "scenes" and index.images < FEW_IMAGES:
        say(
            f"{index.images:,} images are few for training a DETR from random weights (its authors advise at least "
            "10,000); use --finetune with a trained model instead"
        )
    sentence = training_sizes(config, model.config)
    if sentence is not None:
        say(sentence)
    run.save(TrainingPosition(0, 0, 0), dump(model), {}, trainable_norm=trainable_norm, keep=config.keep)


def initial_model(
    config: TrainConfig, categories: Sequence[Category], *, say: Callable[[str], None]
) -> tuple[Detr, bool]:
    """Return the initial model for these classes, and whether its norms are trained.

    Raises:
        RayDetrError: the model cannot be loaded, or does not fit.
    """
    begun = config.network_config()
    if begun is None:
        assert config.finetune is not None
        model, _ = load_model(config.finetune, config.options)
        try:
            model, transfer = with_categories(model, categories, seed=config.recipe.seed)
        except ValueError as error:
            raise RayDetrError(
                f"the classes of {without_secrets(config.finetune)} cannot be replaced: {error}"
            ) from error
        if transfer.new:
            names = ", ".join(transfer.new[:MENTIONED]) + (", ..." if len(transfer.new) > MENTIONED else "")
            say(
                f"{len(transfer.kept)} of {len(categories)} classes are known to {short_name(config.finetune)}, "
                f"{len(transfer.new)} start from random weights: {names}"
            )
        trainable_norm = False
    else:
        wanted = replace(
            begun,
            categories=tuple(categories),
            queries=config.queries or begun.queries,
            positions=config.position_embedding or begun.positions,
        )
        trainable_norm = wanted.backbone.norm == "batch"
        model = empty_network(wanted, seed=config.recipe.seed)
        if config.backbone_weights is not None:
            _load_backbone(model, config)
    if config.shorter or config.longest:
        shorter, longest = config.shorter or model.config.shorter, config.longest or model.config.longest
        kept = model.config.resizing == "transformers"  # else these sides replace a box
        resizing: Resizing = "transformers" if kept else "original"
        model.config = replace(model.config, shorter=shorter, longest=longest, resizing=resizing, box=(0, 0))
    return model, trainable_norm


def training_sizes(config: TrainConfig, network: DetrConfig) -> str | None:
    """Return a note if the sizes of training images are scaled or do not fit the model's, or None."""
    recipe = config.recipe
    if recipe.augmentation == "none":
        return None  # images have the model's size
    given, sides = recipe.scale_phases[-1][1], recipe.for_model(network.shorter, network.longest).scale_phases[-1][1]
    trained = f"images are trained with shorter sides of {min(sides)} to {max(sides)} pixels"
    if not min(sides) <= network.shorter <= max(sides):
        return (
            f"{trained}, but the model is used at {network.shorter}, where it may find fewer objects than before. "
            f"Omit --scales, --crop-scales, --crop-range and --train-longest, or give --shorter {max(sides)}, too"
        )
    if sides != given:
        return f"{trained}, because the model is used at {network.shorter} (the recipe is for {recipe.sized_for})"
    return None


def _load_backbone(model: Detr, config: TrainConfig) -> None:
    """Load ImageNet weights into the backbone: from a file, a URI, or by torchvision's name."""
    assert config.backbone_weights is not None
    reference = config.backbone_weights
    with TemporaryDirectory(prefix="ray-detr-") as folder:
        if "://" in reference and not reference.startswith("file://"):
            name = without_secrets(reference).rsplit("/", 1)[-1]
            local = Path(folder) / name
            try:
                local.write_bytes(Stores(config.options).get(reference).data)
            except StoreError as error:
                raise RayDetrError(f"the backbone's weights cannot be read: {error}") from error
            reference = str(local)
        try:
            load_backbone(model, reference.removeprefix("file://"))
        except CheckpointError as error:
            raise RayDetrError(str(error)) from error
