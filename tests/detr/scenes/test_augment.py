import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr.images.decoding import TooExtreme
from detr.scenes.augment import (
    SceneAugmentation,
    augment_scene_image,
    augment_scene_target,
    draw_scene_augmentation,
)
from detr.training.targets import ImageTarget


def drawn(height: int, width: int, seed: int, *, transposed: bool = False) -> SceneAugmentation:
    """A change of a scene that is not resized."""
    generator = torch.Generator().manual_seed(seed)
    shorter = min(height, width)
    return draw_scene_augmentation(height, width, generator, shorter=shorter, longest=100, transposed=transposed)


def test_boxes_stay_around_their_objects_under_all_chances() -> None:
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    image[:, 2:4, 5:11] = 255
    target = image_target_of(12, 12, [[5, 2, 11, 4]])
    seen = set()
    for seed in range(40):
        augmentation = drawn(12, 12, seed)

        changed, moved = augment_scene_image(image, augmentation), augment_scene_target(target, augmentation)

        xmin, ymin, xmax, ymax = moved.boxes_xyxy[0].int().tolist()
        inside = changed[0, ymin:ymax, xmin:xmax].flatten().tolist()
        assert len(inside) == 12
        assert len(set(inside)) == 1
        assert (changed[0] == inside[0]).sum() == 12
        seen.add((xmin, ymin, xmax, ymax))
    assert len(seen) == 8  # all mirrored and transposed versions come up


def test_colours_are_permuted_inverted_and_brightened() -> None:
    image = torch.tensor([50, 100, 150], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)

    results = [augment_scene_image(image, drawn(2, 2, seed))[:, 0, 0] for seed in range(60)]

    assert len({tuple(colours.argsort().tolist()) for colours in results}) == 6
    gains = []
    for colours in results:
        middle = sorted(colours.tolist())[1]
        # 100 stays 100 or becomes 155 when inverted, both times the gain
        gains.append(middle / 100 if int(colours.min()) < 70 else middle / 155)
    assert min(gains) >= 0.79
    assert max(gains) <= 1.16
    assert max(gains) - min(gains) > 0.2
    assert {int(colours.min()) < 70 for colours in results} == {True, False}
    assert all(colours.dtype == torch.uint8 for colours in results)


def test_equal_generators_draw_the_same() -> None:
    assert drawn(30, 40, 5) == drawn(30, 40, 5)
    assert drawn(30, 40, 5) != drawn(30, 40, 6)


def image_target_of(height: int, width: int, boxes: list[list[float]]) -> ImageTarget:
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return ImageTarget(torch.arange(len(boxes)), boxes_xyxy, height, width)


def test_a_batch_that_is_turned_is_portrait_and_one_that_is_not_is_landscape() -> None:
    shapes = set()
    for turned in (False, True):
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            drawn = draw_scene_augmentation(30, 40, generator, shorter=24, longest=40, transposed=turned)
            shapes.add((turned, drawn.height, drawn.width))

    assert shapes == {(False, 24, 32), (True, 32, 24)}


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(12, 80),
    width=st.integers(12, 80),
    x=st.floats(0, 0.5),
    y=st.floats(0, 0.5),
    turned=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_a_block_is_found_where_its_box_is(
    height: int, width: int, x: float, y: float, turned: bool, seed: int
) -> None:
    x0, y0, x1, y1 = int(x * width), int(y * height), int(x * width) + 6, int(y * height) + 6
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    before = image_target_of(height, width, [[x0, y0, x1, y1]])
    augmentation = draw_scene_augmentation(
        height, width, torch.Generator().manual_seed(seed), shorter=48, longest=200, transposed=turned
    )

    pixels = augment_scene_image(image, augmentation)
    target = augment_scene_target(before, augmentation)

    value = 0 if augmentation.inverted else 255
    near = (pixels[0].int() - int(min(255, round(value * augmentation.gain)))).abs() < 100
    rows, columns = near.nonzero().unbind(-1)
    seen = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    assert max(abs(a - b) for a, b in zip(seen, target.boxes_xyxy[0].tolist(), strict=True)) <= 2
    assert (target.height, target.width) == tuple(pixels.shape[1:])
    assert before.boxes_xyxy.tolist() == [[x0, y0, x1, y1]]  # the arguments are as they were


def test_a_scene_too_narrow_is_refused() -> None:
    with pytest.raises(TooExtreme, match="too narrow"):
        draw_scene_augmentation(1, 500, torch.Generator(), shorter=48, longest=80, transposed=False)
