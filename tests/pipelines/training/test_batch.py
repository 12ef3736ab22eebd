"""Images become micro-batches: by seed, epoch and image alone, padded with zeros, their truth with them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from detr.images.decoding import SizeRule
from detr.training.augment_config import AugmentConfig
from pipelines.shards.reader import TrainingImage, read_index
from pipelines.store import open_store
from pipelines.training.batch import Preparation, TrainBatch, UnusableImage
from pipelines.training.row_groups import RowGroups

CLASSES = ((7, 0), (9, 1))
SMALL = AugmentConfig(scales=(32, 40, 48), longest=80, crop_scales=(40, 50), crop_range=(24, 40))
COCO = Preparation("coco", CLASSES, seed=3, augment=SMALL)
SCENES = Preparation("scenes", CLASSES, seed=3, scene_sides=(32, 40, 48))
PLAIN = Preparation("none", CLASSES, seed=3, size_rule=SizeRule(shorter=24, longest=30))


@pytest.fixture(scope="module")
def images(drawn_shards: str) -> list[TrainingImage]:
    store = open_store(drawn_shards)
    groups = RowGroups(store, read_index(store))
    return [image for number in range(len(groups.rows)) for image in groups.read(number)]


def own_pixels(batch: TrainBatch, index: int) -> torch.Tensor:
    height, width = batch.extents[index].tolist()
    return batch.pixels[index, :, :height, :width]


def of_shape(images: list[TrainingImage], height: int, width: int) -> list[TrainingImage]:
    return [image for image in images if (image.height, image.width) == (height, width)]


@pytest.mark.parametrize("preparation", [COCO, SCENES, PLAIN], ids=lambda preparation: preparation.augmentation)
def test_an_image_is_prepared_alike_in_any_micro_batch(images: list[TrainingImage], preparation: Preparation) -> None:
    together = preparation.prepare(images[:5], epoch=2, step=8, reader=1)

    for index, image in enumerate(images[:5]):
        alone = preparation.prepare([image], epoch=2, step=9, reader=0)
        assert torch.equal(alone.pixels[0], own_pixels(together, index))
        assert torch.equal(alone.targets[0].labels, together.targets[index].labels)
        assert torch.equal(alone.targets[0].boxes_cxcywh, together.targets[index].boxes_cxcywh)
    assert together.image_ids == (100, 101, 102, 103, 104)
    assert (together.step, together.reader) == (8, 1)


@pytest.mark.parametrize("preparation", [COCO, SCENES, PLAIN], ids=lambda preparation: preparation.augmentation)
def test_the_size_of_an_image_is_known_before_it_is_decoded(
    images: list[TrainingImage], preparation: Preparation
) -> None:
    batch = preparation.prepare(images, epoch=2, step=8, reader=1)

    sizes = [preparation.size(image.height, image.width, image.image_id, epoch=2) for image in images]

    assert [list(size) for size in sizes] == batch.extents.tolist()


@pytest.mark.parametrize("preparation", [COCO, SCENES], ids=lambda preparation: preparation.augmentation)
def test_another_epoch_and_another_seed_augment_anew(images: list[TrainingImage], preparation: Preparation) -> None:
    first = preparation.prepare(images[:8], epoch=0, step=0, reader=0)
    again = preparation.prepare(images[:8], epoch=0, step=0, reader=0)
    epoch = preparation.prepare(images[:8], epoch=1, step=0, reader=0)
    seed = replace(preparation, seed=4).prepare(images[:8], epoch=0, step=0, reader=0)

    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.extents, epoch.extents)
    assert not torch.equal(first.extents, seed.extents)


def test_without_augmentation_images_are_only_resized(images: list[TrainingImage]) -> None:
    batch = PLAIN.prepare(images[:3], epoch=0, step=0, reader=0)

    assert batch.extents.tolist() == [[22, 29], [29, 22], [24, 24]]
    assert batch.extents.dtype == torch.int64
    assert batch.pixels.shape == (3, 3, 29, 29)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    # image 2 is (40, 40) with boxes x 6, y 8, 10 x 16 and x 6, y 8, 10 x 15
    assert [target.labels.tolist() for target in batch.targets] == [[], [0], [0, 1]]
    expected = torch.tensor([[11 / 40, 16 / 40, 10 / 40, 16 / 40], [11 / 40, 15.5 / 40, 10 / 40, 15 / 40]])
    torch.testing.assert_close(batch.targets[2].boxes_cxcywh, expected)


def test_what_is_right_of_an_image_and_below_it_is_zero(images: list[TrainingImage]) -> None:
    batch = COCO.prepare(images[:6], epoch=0, step=0, reader=0)

    for index, (height, width) in enumerate(batch.extents.tolist()):
        assert batch.pixels[index, :, height:].count_nonzero() == 0
        assert batch.pixels[index, :, :, width:].count_nonzero() == 0
        assert own_pixels(batch, index).count_nonzero() > 0
    assert batch.extents.amax(dim=0).tolist() == list(batch.pixels.shape[2:])


@pytest.mark.parametrize("preparation", [COCO, SCENES, PLAIN], ids=lambda preparation: preparation.augmentation)
def test_boxes_stay_on_their_rectangles(images: list[TrainingImage], preparation: Preparation) -> None:
    preparation = replace(preparation, augment=replace(SMALL, crop=0.0))
    # the rectangle is the only part whose channels differ as yellow's do, whatever was done to colours
    boxed = [image for image in images if len(image.annotations) == 1]

    batch = preparation.prepare(boxed, epoch=0, step=0, reader=0)

    for index, image in enumerate(boxed):
        pixels = own_pixels(batch, index).int()
        inside = (pixels - pixels[:, :1, :1]).abs().sum(0) > 100
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        height, width = inside.shape
        x, y, w, h = batch.targets[index].boxes_cxcywh[0].tolist()
        found = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        assert [float(edge) for edge in found] == pytest.approx(expected, abs=0.05), image.image_id


@pytest.mark.parametrize("preparation", [COCO, SCENES], ids=lambda preparation: preparation.augmentation)
def test_one_scale_a_batch_leaves_nothing_to_pad_where_shapes_are_equal(
    images: list[TrainingImage], preparation: Preparation
) -> None:
    preparation = replace(preparation, one_scale_a_batch=True, augment=replace(SMALL, crop=0.0))
    landscape = of_shape(images, 48, 64)

    batches = [preparation.prepare(landscape, epoch=0, step=step, reader=0) for step in range(12)]

    assert all((batch.extents == batch.extents[0]).all() for batch in batches)
    assert {int(batch.extents[0].min()) for batch in batches} == {32, 40, 48}
    turned = {bool(batch.extents[0, 0] > batch.extents[0, 1]) for batch in batches}
    assert turned == ({True, False} if preparation.augmentation == "scenes" else {False})


def test_one_scale_a_batch_is_a_function_of_seed_epoch_step_and_reader(images: list[TrainingImage]) -> None:
    preparation = replace(COCO, one_scale_a_batch=True)

    def shapes(**others: int) -> list[list[int]]:
        where = {"epoch": 0, "reader": 0} | others
        prepared = [preparation.prepare(images[2:3], step=step, **where) for step in range(12)]
        return [batch.extents[0].tolist() for batch in prepared]

    assert shapes() == shapes()
    assert shapes(reader=1) != shapes()


def test_categories_that_are_not_classes_are_left_out(images: list[TrainingImage]) -> None:
    batch = replace(PLAIN, class_of=((9, 0),)).prepare(images[2:3], epoch=0, step=0, reader=0)

    assert batch.targets[0].labels.tolist() == [0]


def test_an_empty_target_has_the_shape_of_one(images: list[TrainingImage]) -> None:
    target = COCO.prepare(images[:1], epoch=0, step=0, reader=0).targets[0]

    assert (target.labels.shape, target.boxes_cxcywh.shape) == ((0,), (0, 4))


def test_an_image_that_cannot_be_used_is_named(images: list[TrainingImage]) -> None:
    cut = replace(images[1], data=images[1].data[:200])
    other = replace(images[1], height=50)
    sink = io.BytesIO()
    Image.new("RGB", (300, 1)).save(sink, "PNG")
    thin = TrainingImage(5, "thin.png", height=1, width=300, data=sink.getvalue(), upright=True, annotations=())

    for unusable, reason in ((cut, "decoded"), (other, "boxes were drawn for"), (thin, "cannot be trained from")):
        with pytest.raises(UnusableImage, match=rf"image {unusable.image_id} .*{reason}") as raised:
            COCO.prepare([images[0], unusable], epoch=0, step=0, reader=0)
        assert raised.value.index == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"augmentation": "mixup"}, "not one of coco, scenes, none"), ({"augmentation": "scenes"}, "scene sides")],
)
def test_a_preparation_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preparation(class_of=CLASSES, seed=0, **arguments)
