import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Generator, Tensor

from detr.images.decoding import TooExtreme, resize_shape
from detr.training.augment import (
    Augmentation,
    Crop,
    Mirror,
    Resize,
    augment_image,
    augment_target,
    draw_augmentation,
    image_generator,
)
from detr.training.augment_config import AugmentConfig
from detr.training.targets import ImageTarget

GOLDEN = Path(__file__).parents[2] / "golden" / "target_transforms.safetensors"  # made by the original's transforms
PAPER = AugmentConfig()
SMALL = AugmentConfig(scales=(48, 56, 64), longest=107, crop_scales=(32, 40, 48), crop_range=(31, 48))
SEEDS = st.integers(0, 2**40)


def target_of(height: int, width: int, boxes: list[list[float]]) -> ImageTarget:
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return ImageTarget(torch.arange(len(boxes)), boxes_xyxy, height, width)


def one_step(step: Mirror | Resize | Crop, height: int, width: int) -> Augmentation:
    after = (height, width) if isinstance(step, Mirror) else (step.height, step.width)
    return Augmentation((step,), *after, source_height=height, source_width=width)


def close(ours: Tensor, expected: Tensor) -> bool:
    assert ours.shape == expected.shape
    return ours.numel() == 0 or float((ours - expected).abs().max()) <= 1e-6 * max(1e-6, float(expected.abs().max()))


@pytest.mark.parametrize("case", range(6))
def test_every_step_does_to_targets_what_the_original_does(case: int) -> None:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name.removeprefix(f"{case}/"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        info = json.loads(file.metadata()["info"])["cases"][case]
    target = ImageTarget(tensors["in/labels"], tensors["in/boxes"], info["h"], info["w"])

    for number, (name, values) in enumerate(info["ops"]):
        expected = {key: tensors[f"step{number}/{key}"] for key in ("labels", "boxes", "size")}
        if name == "normalize":
            assert close(target.normalised().boxes_cxcywh, expected["boxes"])
            continue
        step: Mirror | Resize | Crop = Mirror()
        if name == "resize":
            step = Resize(*resize_shape(target.height, target.width, shorter=values[0], longest=values[1]))
        if name == "crop":
            step = Crop(*values)
        target = augment_target(target, one_step(step, target.height, target.width))
        assert close(target.boxes_xyxy, expected["boxes"]), (number, name)
        assert torch.equal(target.labels, expected["labels"])
        assert [target.height, target.width] == expected["size"].tolist()


def test_a_mirror_image_by_hand() -> None:
    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3).expand(3, 2, 3)
    augmentation = one_step(Mirror(), 2, 3)

    assert augment_image(image, augmentation)[0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert augment_target(target_of(2, 3, [[2, 0, 3, 1]]), augmentation).boxes_xyxy.tolist() == [[0, 0, 1, 1]]


def test_a_crop_by_hand() -> None:
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(3, 3, 4)
    target = target_of(3, 4, [[0, 0, 2, 2], [3, 0, 4, 3], [1, 2, 4, 3], [0, 0, 1.001, 3]])
    augmentation = one_step(Crop(top=1, left=1, height=1, width=2), 3, 4)

    cropped = augment_target(target, augmentation)

    assert augment_image(image, augmentation)[0].tolist() == [[5, 6]]
    assert cropped.labels.tolist() == [0, 3]  # the second and third touch the crop only; the sliver of the last stays
    torch.testing.assert_close(cropped.boxes_xyxy, torch.tensor([[0, 0, 1, 1], [0, 0, 0.001, 1]]), rtol=0, atol=1e-6)
    assert (cropped.height, cropped.width) == (1, 2)


def test_a_crop_may_leave_no_target() -> None:
    cropped = augment_target(target_of(9, 9, [[0, 0, 4, 4]]), one_step(Crop(5, 5, 4, 4), 9, 9))

    assert cropped.boxes_xyxy.shape == (0, 4)
    assert cropped.normalised().labels.tolist() == []


def test_the_two_ways_come_up_as_often_as_configured() -> None:
    ways: Counter[tuple[bool, bool]] = Counter()
    scales: Counter[int] = Counter()
    for seed in range(2000):
        drawn = draw_augmentation(480, 640, Generator().manual_seed(seed), PAPER)
        kinds = [type(step) for step in drawn.steps]
        mirrored, cropped = Mirror in kinds, Crop in kinds
        assert kinds == [Mirror] * mirrored + [Resize, Crop] * cropped + [Resize]
        ways[mirrored, cropped] += 1
        scales[min(drawn.height, drawn.width)] += 1

    assert all(430 < ways[way] < 570 for way in [(False, False), (False, True), (True, False), (True, True)])
    assert set(scales) == set(range(480, 801, 32))
    assert min(scales.values()) > 130  # of 182 expected


def test_chances_of_nought_and_one_are_certain() -> None:
    never = AugmentConfig(flip=0, crop=0)
    always = AugmentConfig(flip=1, crop=1)

    for seed in range(50):
        generator = Generator().manual_seed(seed)
        assert [type(step) for step in draw_augmentation(480, 640, generator, never).steps] == [Resize]
        kinds = [type(step) for step in draw_augmentation(480, 640, generator, always).steps]
        assert kinds == [Mirror, Resize, Crop, Resize]


def test_crops_take_every_size_of_the_range_and_every_place() -> None:
    config = AugmentConfig(flip=0, crop=1, crop_scales=(10,), crop_range=(8, 12))  # 20 x 10 is first left as it is
    crops = [draw_augmentation(10, 20, Generator().manual_seed(seed), config).steps[1] for seed in range(1500)]

    sizes = Counter((crop.height, crop.width) for crop in crops if isinstance(crop, Crop))
    assert set(sizes) == {(height, width) for height in (8, 9, 10) for width in (8, 9, 10, 11, 12)}
    assert min(sizes.values()) > 60  # of 100 expected
    tops = {crop.top for crop in crops if isinstance(crop, Crop) and crop.height == 8}
    lefts = {crop.left for crop in crops if isinstance(crop, Crop) and crop.width == 12}
    assert (tops, lefts) == ({0, 1, 2}, set(range(9)))


def test_the_crops_range_ends_at_the_sides_of_a_smaller_picture() -> None:
    config = AugmentConfig(flip=0, crop=1, crop_scales=(100,))  # the range is 384 to 600

    steps = draw_augmentation(480, 640, Generator().manual_seed(0), config).steps

    assert steps[:2] == (Resize(100, 133), Crop(0, 0, 100, 133))


def test_draws_of_this_version_are_those_of_the_next() -> None:
    # written down: a run that is resumed by another version of this library goes on with the same pictures
    drawn = [draw_augmentation(426, 640, image_generator(42, 0, image_id), PAPER) for image_id in (141, 139)]

    assert drawn[0] == Augmentation(
        (Mirror(), Resize(500, 751), Crop(top=47, left=44, height=447, width=596), Resize(800, 1066)),
        800,
        1066,
        426,
        640,
    )
    assert drawn[1].steps == (Resize(600, 901), Crop(top=30, left=364, height=544, width=431), Resize(767, 608))


def test_the_first_resize_has_no_longest_side_and_the_last_goes_by_the_shape_of_the_crop() -> None:
    config = AugmentConfig(flip=0, scales=(500,), crop=1, crop_scales=(450, 600), crop_range=(600, 600))  # draws 600

    drawn = draw_augmentation(400, 1100, Generator().manual_seed(1), config)

    before, crop, last = drawn.steps
    assert before == Resize(600, 1650)
    assert isinstance(crop, Crop)
    assert (crop.height, crop.width) == (600, 600)
    assert last == Resize(500, 500)


@pytest.mark.parametrize(("height", "width", "cropped"), [(400, 1333, True), (400, 1334, False), (4000, 400, False)])
def test_panoramas_are_resized_without_a_crop(height: int, width: int, cropped: bool) -> None:
    config = AugmentConfig(crop=1)

    drawn = [draw_augmentation(height, width, image_generator(0, 0, image_id), config) for image_id in range(20)]

    assert [any(isinstance(step, Crop) for step in one.steps) for one in drawn] == [cropped] * 20


def test_a_scale_from_outside_is_that_of_the_last_resize_alone() -> None:
    for seed in range(40):
        free = draw_augmentation(480, 640, Generator().manual_seed(seed), PAPER)
        held = draw_augmentation(480, 640, Generator().manual_seed(seed), PAPER, scale=333)

        assert held.steps[:-1] == free.steps[:-1]
        assert min(held.height, held.width) == 333


@pytest.mark.parametrize(("height", "width"), [(1, 2666), (2666, 1), (10, 30_000)])
def test_an_image_too_narrow_is_refused_whatever_is_drawn(height: int, width: int) -> None:
    for image_id in range(30):
        with pytest.raises(TooExtreme, match="too narrow"):
            draw_augmentation(height, width, image_generator(0, 0, image_id), PAPER)


@settings(deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), seed=SEEDS)
def test_drawn_sizes_are_bounded_and_steps_fit_in_each_other(height: int, width: int, seed: int) -> None:
    assume(max(height, width) < 2666 * min(height, width))

    drawn = draw_augmentation(height, width, Generator().manual_seed(seed), PAPER)

    now = (height, width)
    for step in drawn.steps:
        if isinstance(step, Crop):
            assert 0 <= step.top <= now[0] - step.height
            assert 0 <= step.left <= now[1] - step.width
            assert all(min(384, side) <= kept <= 600 for side, kept in zip(now, (step.height, step.width), strict=True))
        if not isinstance(step, Mirror):
            now = (step.height, step.width)
            assert min(now) >= 1
            assert min(now) <= 800
            assert max(now) <= 2665  # the least upper bound of the size rule at 1333
    assert now == (drawn.height, drawn.width)
    assert (height, width) == (drawn.source_height, drawn.source_width)


def test_the_generator_is_a_function_of_seed_epoch_and_image_in_every_process() -> None:
    drawn = torch.randint(2**60, (3,), generator=image_generator(7, 11, 581929)).tolist()

    # drawn in another process; another stream would change the pictures of a run that is resumed
    assert drawn == [1151123005418205292, 120205027654950021, 348196438693955400]


@given(
    first=st.tuples(*[st.integers(0, 2**33)] * 3),
    second=st.tuples(*[st.integers(0, 2**33)] * 3),
)
def test_other_numbers_give_another_stream(first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    streams = [torch.randint(2**60, (2,), generator=image_generator(*numbers)).tolist() for numbers in (first, second)]

    assert (streams[0] == streams[1]) is (first == second)


@pytest.mark.parametrize("numbers", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 10), (0, 11, 0), (1, 10, 0)])
def test_each_of_the_three_numbers_counts(numbers: tuple[int, int, int]) -> None:
    assert image_generator(*numbers).initial_seed() != image_generator(0, 0, 0).initial_seed()


def test_equal_generators_give_equal_pictures() -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=Generator().manual_seed(0))

    first, second = (draw_augmentation(60, 80, image_generator(3, 4, 5), SMALL) for _ in range(2))

    assert first == second
    assert torch.equal(augment_image(image, first), augment_image(image, second))


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(40, 140),
    width=st.integers(40, 140),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
    share=st.tuples(st.floats(0.15, 0.4), st.floats(0.15, 0.4)),
    seed=SEEDS,
)
def test_a_white_block_is_found_where_its_box_is(
    height: int, width: int, corner: tuple[float, float], share: tuple[float, float], seed: int
) -> None:
    x0, y0 = int(corner[0] * width), int(corner[1] * height)
    x1, y1 = x0 + max(6, int(share[0] * width)), y0 + max(6, int(share[1] * height))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    augmentation = draw_augmentation(height, width, Generator().manual_seed(seed), SMALL)

    pixels = augment_image(image, augmentation)
    target = augment_target(target_of(height, width, [[x0, y0, x1, y1]]), augmentation)

    assert pixels.shape == (3, augmentation.height, augmentation.width)
    assert pixels.dtype == torch.uint8
    white = (pixels[0] > 127).nonzero()
    if len(target.labels) == 0:
        assert len(white) == 0
        return
    box = target.boxes_xyxy[0]
    assume(min(float(box[2] - box[0]), float(box[3] - box[1])) > 3)  # a sliver may be grey
    rows, columns = white[:, 0], white[:, 1]
    seen = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    assert max(abs(a - b) for a, b in zip(seen, box.tolist(), strict=True)) <= 2


@settings(deadline=None)
@given(
    height=st.integers(20, 1200),
    width=st.integers(20, 1200),
    corners=st.lists(st.tuples(*[st.floats(0, 0.95)] * 2, *[st.floats(0.01, 1)] * 2), max_size=5),
    config=st.sampled_from([PAPER, AugmentConfig(crop=0), AugmentConfig(crop=1)]),
    seed=SEEDS,
)
def test_boxes_stay_inside_the_picture_and_objects_are_lost_by_crops_alone(
    height: int, width: int, corners: list[tuple[float, float, float, float]], config: AugmentConfig, seed: int
) -> None:
    boxes = [
        [x * width, y * height, min(1.0, x + share_x) * width, min(1.0, y + share_y) * height]
        for x, y, share_x, share_y in corners
    ]
    target = target_of(height, width, boxes)
    before = target.boxes_xyxy.clone()
    augmentation = draw_augmentation(height, width, Generator().manual_seed(seed), config)

    after = augment_target(target, augmentation)

    assert torch.equal(target.boxes_xyxy, before)
    assert (after.height, after.width) == (augmentation.height, augmentation.width)
    x0, y0, x1, y1 = after.boxes_xyxy.unbind(-1)
    rounding = 1e-3
    assert bool(((x0 >= -rounding) & (x0 < x1) & (x1 <= after.width + rounding)).all())
    assert bool(((y0 >= -rounding) & (y0 < y1) & (y1 <= after.height + rounding)).all())
    kept = after.labels.tolist()
    assert kept == sorted(set(kept))
    if not any(isinstance(step, Crop) for step in augmentation.steps):
        assert len(kept) == len(boxes)


def test_a_picture_of_another_size_than_drawn_for_is_refused() -> None:
    augmentation = draw_augmentation(60, 80, image_generator(0, 0, 0), SMALL)

    with pytest.raises(ValueError, match=r"drawn for 80 x 60 pixels .* this picture has 60 x 80"):
        augment_image(torch.zeros(3, 80, 60, dtype=torch.uint8), augmentation)
    with pytest.raises(ValueError, match=r"drawn for 80 x 60 pixels .* this picture has 60 x 80"):
        augment_target(target_of(80, 60, []), augmentation)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5, expected a chance"),
        ({"crop": -0.1}, "crop is -0.1, expected a chance"),
        ({"flip": float("nan")}, "flip is nan"),
        ({"scales": ()}, r"scales is \(\), expected whole numbers"),
        ({"scales": (480, 0)}, "scales is .* at least 1"),
        ({"scales": (512, 480)}, "scales is .* ascending"),
        ({"scales": (480, 480)}, "scales is .* each once"),
        ({"scales": (480.5,)}, "scales is .* whole numbers"),
        ({"crop_scales": (500, 400)}, "crop_scales is .* ascending"),
        ({"longest": 0}, r"longest is \(0,\)"),
        ({"crop_range": (600, 384)}, r"crop_range is \(600, 384\), expected the smallest and the largest side"),
        ({"crop_range": (0, 384)}, "crop_range is .* at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)  # type: ignore[arg-type]
