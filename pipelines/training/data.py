"""The training and evaluation data of one worker: its share of the shards, in the order of the run."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from detr.config import DetrConfig
from pipelines.coco.truth import normal_truth
from pipelines.shards.reader import ShardIndex, read_index
from pipelines.shards.rows import coco_json
from pipelines.store import open_store
from pipelines.training.batch import Preparation, TrainBatch
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.image_sizes import ImageSizes
from pipelines.training.ingest import train_batches
from pipelines.training.ingest_ray_data import ShardSource, train_batches_by_ray_data
from pipelines.training.order import EpochOrder, Similar, plan_epoch, served_readers
from pipelines.training.row_groups import RowGroups

WINDOW_GROUPS: Final = 64  # row groups that an epoch is shuffled over at a time, all readers together: 2,000 images
SIMILAR_WINDOW_GROUPS: Final = 256  # where similar sizes are looked for: four times as many encoded images in memory
LEAST_WINDOW: Final = 2  # of one reader

Batches = Generator[list[TrainBatch], None, None]


@dataclass(frozen=True, slots=True)
class TrainData:
    """The shards of a run, opened by one of its workers.

    Attributes:
        config: of the run.
        index: of the training shards.
        groups: their row groups.
        shapes: (height, width) of every image, where batches are of one shape; else None.
        sizes: of every image, where steps are of similar sizes; else None.
        val: row groups of the evaluation shards; None where nothing is evaluated.
        truth: what COCO's json of those holds; at rank 0 only.
        worker: this one's rank.
        workers: how many there are.
    """

    config: TrainConfig
    index: ShardIndex
    groups: RowGroups
    shapes: list[list[tuple[int, int]]] | None
    sizes: ImageSizes | None
    val: RowGroups | None
    truth: dict[str, Any] | None
    worker: int
    workers: int

    def order(self, epoch: int, network: DetrConfig) -> EpochOrder:
        """Return the order of an epoch, the same for every worker as far as its own readers go."""
        recipe = self.config.recipe
        similar = None
        window_groups = WINDOW_GROUPS
        if self.sizes is not None:
            readers = served_readers(self.worker, self.workers, recipe.micro_batches)
            similar = Similar(self.sizes.of_epoch(self._preparation(epoch, network), epoch), readers)
            window_groups = SIMILAR_WINDOW_GROUPS
        return plan_epoch(
            self.groups.rows,
            seed=recipe.seed,
            epoch=epoch,
            readers=recipe.micro_batches,
            batch_size=recipe.batch_size,
            window_groups=max(LEAST_WINDOW, window_groups // recipe.micro_batches),
            shapes=self.shapes,
            similar=similar,
        )

    def batches(self, order: EpochOrder, position: TrainingPosition, network: DetrConfig, *, threads: int) -> Batches:
        """Yield this worker's micro-batches, step after step, from a position to the end of its epoch.

        Args:
            order: of the epoch.
            position: where to begin.
            network: its categories are the classes; it says how images are resized that are not augmented.
            threads: that decode and augment.
        """
        recipe, config = self.config.recipe, self.config
        preparation = self._preparation(position.epoch, network)
        readers = served_readers(self.worker, self.workers, recipe.micro_batches)
        if config.ingest == "ray-data":
            return train_batches_by_ray_data(
                ShardSource(config.train, config.options),
                order,
                preparation,
                epoch=position.epoch,
                readers=readers,
                workers=self.workers,
                first_step=position.step_in_epoch,
                prefetch_steps=config.prefetch_steps,
            )
        return train_batches(
            self.groups,
            order,
            preparation,
            epoch=position.epoch,
            readers=readers,
            first_step=position.step_in_epoch,
            threads=threads,
            prefetch_steps=config.prefetch_steps,
        )

    def _preparation(self, epoch: int, network: DetrConfig) -> Preparation:
        """Return what is done to the images of an epoch."""
        recipe = self.config.recipe.for_model(network.shorter, network.longest)
        share = epoch / recipe.epochs
        return Preparation(
            augmentation=recipe.augmentation,
            class_of=tuple((category.id, index) for index, category in enumerate(network.categories)),
            seed=recipe.seed,
            augment=recipe.augment(share),
            one_scale_a_batch=recipe.one_shape_a_batch,
            scene_sides=recipe.scales(share),
            size_rule=network.size_rule,
        )


def open_data(config: TrainConfig, *, worker: int, workers: int) -> TrainData:
    """Open the shards of a run.

    Raises:
        RayDetrError: shards are missing or damaged.
        StoreError: they cannot be read.
    """
    store = open_store(config.train, config.options)
    index = read_index(store)
    groups = RowGroups(store, index)
    val = truth = None
    if config.val is not None:
        val_store = open_store(config.val, config.options)
        val = RowGroups(val_store, read_index(val_store))
        truth = normal_truth(coco_json(val_store)) if worker == 0 else None
    return TrainData(
        config=config,
        index=index,
        groups=groups,
        shapes=groups.sizes() if config.recipe.one_shape_a_batch else None,
        sizes=ImageSizes(groups.image_ids(), groups.sizes()) if config.recipe.similar_sizes else None,
        val=val,
        truth=truth,
        worker=worker,
        workers=workers,
    )
