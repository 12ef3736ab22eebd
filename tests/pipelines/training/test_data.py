"""Similar sizes as a run draws them: each worker the same micro-batches, of the sizes that training then sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detr.config import SCENES_CONFIG
from pipelines.training.config import TrainConfig
from pipelines.training.data import TrainData, open_data
from pipelines.training.recipe import RECIPES

RECIPE = replace(
    RECIPES["finetune"],
    effective_batch=4,
    batch_size=2,
    scale_phases=((1.0, (32, 48, 64)),),
    longest=96,
    crop_scales=(40, 50),
    crop_range=(30, 40),
    sized_for=0,
    similar_sizes=True,
)


def data_of(shards: str, worker: int, workers: int) -> TrainData:
    config = TrainConfig(train=shards, storage="/tmp", name="a", recipe=RECIPE, finetune="scenes")  # noqa: S108 - unused
    return open_data(config, worker=worker, workers=workers)


def test_sizes_of_an_epoch_are_those_that_are_trained_with(drawn_shards: str) -> None:
    data = data_of(drawn_shards, 0, 1)
    assert data.sizes is not None
    order = data.order(3, SCENES_CONFIG)
    sizes = data.sizes.of_epoch(data._preparation(3, SCENES_CONFIG), 3)
    for reader in range(order.readers):
        for step in range(len(order.bounds[reader]) - 1):
            places = order.micro_batch(reader, step)
            images = [data.groups.read(group)[row] for group, row in places.tolist()]
            batch = data._preparation(3, SCENES_CONFIG).prepare(images, epoch=3, step=step, reader=reader)
            assert np.array_equal(sizes(places), batch.extents.numpy())


def test_two_workers_take_the_micro_batches_of_one(drawn_shards: str) -> None:
    alone = data_of(drawn_shards, 0, 1).order(3, SCENES_CONFIG)

    for worker in range(2):
        order = data_of(drawn_shards, worker, 2).order(3, SCENES_CONFIG)
        assert order.steps == alone.steps
        for step in range(order.steps):
            assert order.micro_batch(worker, step).tolist() == alone.micro_batch(worker, step).tolist()
