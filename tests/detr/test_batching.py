import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detr.batching import (
    LEFTOVER_PADDING,
    Batch,
    HostBatch,
    Prepared,
    ahead,
    equal_batches,
    order_batches,
    pad,
)
from detr.images.decoding import resize_shape

SHAPES = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), max_size=60)
FEW_SHAPES = st.lists(st.sampled_from([(96, 128), (128, 96), (100, 130), (64, 64), (120, 100)]), max_size=60)
BATCH_SIZES = st.integers(1, 9)

# (height, width): images of that size among 350 of COCO's, those that occur at least thrice; the others one by one
COCO_SIZES = {
    (480, 640): 77, (427, 640): 35, (640, 480): 25, (426, 640): 18, (375, 500): 16, (428, 640): 12, (640, 427): 11,
    (500, 375): 10, (333, 500): 5, (640, 426): 5, (500, 333): 4, (425, 640): 4, (640, 478): 4, (374, 500): 4,
    (640, 425): 4, (332, 500): 4, (424, 640): 3, (640, 428): 3, (406, 640): 3, (336, 448): 3, (433, 640): 3,
}  # fmt: skip
RARE_COCO_SIZES = [
    (640, 424), (334, 500), (449, 640), (429, 640), (444, 640), (408, 640), (479, 640), (500, 600), (327, 640),
    (218, 640), (360, 640), (226, 640), (640, 520), (500, 409), (640, 621), (335, 500), (230, 352), (368, 640),
    (640, 634), (640, 358), (400, 500), (357, 500), (612, 612), (358, 640), (385, 640), (500, 640), (457, 640),
    (423, 640), (640, 460), (476, 640), (640, 474), (432, 640), (462, 640), (511, 640), (320, 640), (486, 500),
    (640, 383), (423, 500), (304, 640), (414, 640), (371, 640), (484, 640), (500, 381), (640, 512), (481, 640),
    (313, 500), (312, 460), (640, 423), (593, 600), (359, 640), (469, 469), (320, 480), (500, 389), (346, 500),
    (364, 640), (512, 640), (326, 640), (450, 301), (140, 213), (302, 400), (640, 414), (640, 638), (343, 500),
    (640, 516), (407, 640), (500, 334), (640, 443), (540, 640), (485, 640), (347, 640), (267, 400), (573, 640),
    (580, 640), (478, 640), (640, 359), (640, 565), (491, 640), (640, 586), (496, 500), (640, 502), (483, 640),
]  # fmt: skip


@given(shapes=SHAPES, batch_size=BATCH_SIZES)
def test_every_image_is_in_exactly_one_batch(shapes: list[tuple[int, int]], batch_size: int) -> None:
    batches = order_batches(shapes, batch_size=batch_size)

    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(shapes)))


@given(shapes=SHAPES | FEW_SHAPES, batch_size=BATCH_SIZES)
def test_a_batch_is_not_empty_and_not_too_large(shapes: list[tuple[int, int]], batch_size: int) -> None:
    batches = order_batches(shapes, batch_size=batch_size)

    assert all(1 <= len(batch.indices) <= batch_size for batch in batches)


@given(shapes=SHAPES | FEW_SHAPES, batch_size=BATCH_SIZES)
def test_every_image_fits_into_the_shape_of_its_batch(shapes: list[tuple[int, int]], batch_size: int) -> None:
    for batch in order_batches(shapes, batch_size=batch_size):
        assert all(shapes[i][0] <= batch.height and shapes[i][1] <= batch.width for i in batch.indices)


@given(shapes=SHAPES | FEW_SHAPES, batch_size=BATCH_SIZES)
def test_a_batch_is_padded_by_8_percent_at_most(shapes: list[tuple[int, int]], batch_size: int) -> None:
    for batch in order_batches(shapes, batch_size=batch_size):
        own = sum(shapes[i][0] * shapes[i][1] for i in batch.indices)
        assert len(batch.indices) * batch.height * batch.width <= LEFTOVER_PADDING * own


@given(shapes=FEW_SHAPES, batch_size=BATCH_SIZES)
def test_what_fills_batches_of_one_shape_is_not_mixed(shapes: list[tuple[int, int]], batch_size: int) -> None:
    batches = order_batches(shapes, batch_size=batch_size)

    for shape in set(shapes):
        alone = [batch for batch in batches if {shapes[i] for i in batch.indices} == {shape}]
        assert sum(len(batch.indices) == batch_size for batch in alone) >= shapes.count(shape) // batch_size


def test_full_batches_hold_one_shape_and_are_not_padded() -> None:
    batches = order_batches([(800, 1066)] * 5 + [(800, 1070)], batch_size=2)

    assert batches == [Batch((0, 1), 800, 1066), Batch((2, 3), 800, 1066), Batch((5, 4), 800, 1070)]


def test_leftovers_of_like_shape_share_a_batch_and_others_do_not() -> None:
    batches = order_batches([(100, 100), (100, 102), (100, 400)], batch_size=4)

    assert sorted(batches, key=lambda batch: batch.width) == [Batch((1, 0), 100, 102), Batch((2,), 100, 400)]


def test_no_images_give_no_batches() -> None:
    assert order_batches([], batch_size=4) == []


@pytest.mark.parametrize(("batch_size", "bound"), [(8, 0.005), (16, 0.01), (32, 0.015)])
def test_padding_over_coco_s_sizes_stays_small(batch_size: int, bound: float) -> None:
    draw = random.Random(0)  # noqa: S311 - a shard of photographs, the same in every run
    shapes = [resize_shape(*size) for size in coco_like_sizes(draw, 2048)]

    batches = order_batches(shapes, batch_size=batch_size)

    own = sum(height * width for height, width in shapes)
    padded = sum(len(batch.indices) * batch.height * batch.width for batch in batches)
    assert padded / own - 1 <= bound  # measured: 0.002, 0.005, 0.009
    assert len(batches) <= 1.12 * 2048 / batch_size
    exact = [batch for batch in batches if {shapes[i] for i in batch.indices} == {(batch.height, batch.width)}]
    assert sum(len(batch.indices) for batch in exact) >= 0.55 * 2048  # without padding: measured 0.71, 0.69, 0.61


def coco_like_sizes(draw: random.Random, count: int) -> list[tuple[int, int]]:
    """Sizes as frequent as COCO's; the rare ones moved by up to 20 pixels, since there are many more of them."""
    frequent, counts = list(COCO_SIZES), list(COCO_SIZES.values())
    sizes = []
    for _ in range(count):
        if draw.random() < sum(counts) / 350:
            sizes.append(draw.choices(frequent, counts)[0])
        else:
            height, width = draw.choice(RARE_COCO_SIZES)
            sizes.append((height + draw.randint(-20, 20), width + draw.randint(-20, 20)))
    return sizes


def test_padding_is_zero_to_the_right_and_below() -> None:
    images = [torch.full((3, 2, 3), 7, dtype=torch.uint8), torch.full((3, 3, 1), 9, dtype=torch.uint8)]

    batch, extents = pad(images, 4, 5)

    assert batch[0, 0].tolist() == [[7, 7, 7, 0, 0], [7, 7, 7, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert batch[1, 2].tolist() == [[9, 0, 0, 0, 0], [9, 0, 0, 0, 0], [9, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert extents.tolist() == [[2, 3], [3, 1]]
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_image_larger_than_the_shape_is_refused() -> None:
    with pytest.raises(RuntimeError):
        pad([torch.zeros(3, 5, 5, dtype=torch.uint8)], 4, 5)


def host_batch(count: int, height: int, width: int) -> HostBatch:
    return HostBatch.allocate(count, height, width, lambda shape, dtype: torch.full(shape, 5, dtype=dtype))


def full(value: int, height: int, width: int) -> Prepared:
    return Prepared(torch.full((3, height, width), value, dtype=torch.uint8), 10 * height, 10 * width)


def test_an_image_is_written_to_the_top_left_of_its_place_with_its_sizes() -> None:
    batch = host_batch(2, 2, 3)

    batch.write(1, full(7, 2, 1))
    batch.write(0, full(9, 2, 3))

    assert batch.pixels[:, 0].tolist() == [[[9, 9, 9], [9, 9, 9]], [[7, 5, 5], [7, 5, 5]]]
    assert batch.sizes.tolist() == [[2, 3, 20, 30], [2, 1, 20, 10]]
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert (batch.is_padded, batch.part(0, 1).is_padded, batch.part(1, 2).is_padded) == (True, False, True)


def test_places_that_are_kept_move_together() -> None:
    batch = host_batch(4, 1, 1)
    for place in range(4):
        batch.write(place, full(place, 1, 1))

    kept = batch.only([1, 3])

    assert len(kept) == 2
    assert kept.pixels[:, 0, 0, 0].tolist() == [1, 3]
    assert kept.sizes.tolist() == [[1, 1, 10, 10]] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_larger_than_its_place_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"5 x 4 pixels do not fit into \(4, 5\)"):
        host_batch(count, 4, 5).write(0, full(1, 5, 4))


def test_items_are_begun_ahead_and_come_in_order() -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return 10 * item

    results = [(result, len(begun)) for result in ahead(range(5), begin, 2)]

    assert results == [(0, 3), (10, 4), (20, 5), (30, 5), (40, 5)]


def test_batches_of_equal_shape_pad_nothing_and_hold_every_image_once() -> None:
    shapes = [(64, 96), (96, 64), (64, 96), (64, 95), (64, 96)]

    assert equal_batches(shapes, batch_size=2) == [
        Batch((0, 2), 64, 96),
        Batch((4,), 64, 96),
        Batch((1,), 96, 64),
        Batch((3,), 64, 95),
    ]
    assert equal_batches([], batch_size=2) == []
