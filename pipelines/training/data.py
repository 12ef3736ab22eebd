"""The training and evaluation data of one worker: its share of the shards, in the order of the run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detr.config import DetrConfig
from detr.images.decoding import TooExtreme
from pipelines.shards.reader import ShardIndex, read_index
from pipelines.shards.truth import shard_truth
from pipelines.store import open_store
from pipelines.training.batch import Preparation, TrainBatch
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.ingest import train_batches
from pipelines.training.order import EpochOrder, Places, Similar, plan_epoch, served_readers
from pipelines.training.row_groups import RowGroups

WINDOW_GROUPS: Final = 64  # row groups in the shuffle windows of all readers together: about 2,000 images
SIMILAR_WINDOW_GROUPS: Final = 256  # with batches of similar sizes: four times as many encoded images in memory
LEAST_WINDOW: Final = 2  # row groups of one reader

Batches = Generator[list[TrainBatch], None, None]


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Ids and sizes of the images of every row group, known before anything is read or decoded.

    Attributes:
        ids: ids in the data set, on which the random numbers of augmentation depend.
        sizes: (height, width) of the stored pictures in pixels.
    """

    ids: Sequence[Sequence[int]]
    sizes: Sequence[Sequence[tuple[int, int]]]

    def of_epoch(self, preparation: Preparation, epoch: int) -> Callable[[Places], npt.NDArray[np.int64]]:
        """Return a function from `(n, 2)` indices (row group, row) to `(n, 2)` heights and widths in an epoch.

        It draws the same random numbers as augmentation, which takes 0.1 ms for each image.
        """

        def sizes(places: Places) -> npt.NDArray[np.int64]:
            found = np.empty((len(places), 2), dtype=np.int64)
            for index, (group, row) in enumerate(places.tolist()):
                height, width = self.sizes[group][row]
                try:
                    found[index] = preparation.size(height, width, self.ids[group][row], epoch=epoch)
                except TooExtreme:  # training will report it with the image's name
                    found[index] = height, width
            return found

        return sizes


@dataclass(frozen=True, slots=True)
class TrainData:
    """The shards of a run, opened by a worker.

    Attributes:
        config: the configuration of the run.
        index: the index of the training shards.
        groups: the row groups of the training shards.
        shapes: (height, width) of every image if all images of a batch have one shape; else None.
        sizes: (height, width) of every image if the images of a step have similar sizes; else None.
        val: row groups of the evaluation shards; None without evaluation.
        truth: the annotations of the evaluation shards, on rank 0 only.
        worker: rank of this worker.
        workers: number of workers.
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
        """Return the order of an epoch. It is correct for the readers of this worker only."""
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
        """Yield the micro-batches of this worker, step by step, from a position to the end of its epoch.

        Args:
            order: the order of the epoch.
            position: the position to begin at.
            network: has the classes, and the size rule for images that are not augmented.
            threads: number of threads that decode and augment.
        """
        recipe = self.config.recipe
        preparation = self._preparation(position.epoch, network)
        readers = served_readers(self.worker, self.workers, recipe.micro_batches)
        return train_batches(
            self.groups,
            order,
            preparation,
            epoch=position.epoch,
            readers=readers,
            first_step=position.step_in_epoch,
            threads=threads,
            prefetch_steps=self.config.prefetch_steps,
        )

    def _preparation(self, epoch: int, network: DetrConfig) -> Preparation:
        """Return the preparation of the images of an epoch."""
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
        truth = shard_truth(val_store) if worker == 0 else None
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
