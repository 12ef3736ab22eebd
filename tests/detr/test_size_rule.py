import pytest
import torch
from transformers import DetrImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from detr.images.decoding import TooExtreme
from detr.images.results import ImageTooLarge
from detr.size_rule import SizeRule

SIZES = [(480, 640), (640, 480), (1000, 708), (707, 1000), (100, 333), (30, 500), (800, 800), (37, 41), (2339, 1653)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SizeRule("original", 800, 1333), [(800, 1066), (1066, 800), (1129, 800)]),
        (SizeRule("fit", height=480, width=480), [(360, 480), (480, 360), (480, 339)]),
        (SizeRule("fit", height=100, width=900), [(100, 133), (100, 75), (100, 70)]),
        (SizeRule("stretch", height=30, width=50), [(30, 50), (30, 50), (30, 50)]),
        (SizeRule("none"), [(480, 640), (640, 480), (1000, 708)]),
        (SizeRule("transformers", 800, 800), [(600, 800), (800, 600), (800, 566)]),
    ],
)
def test_each_rule_gives_its_sizes(rule: SizeRule, expected: list[tuple[int, int]]) -> None:
    assert [rule.shape(height, width) for height, width in SIZES[:3]] == expected


def test_a_picture_that_is_not_resized_has_a_limit() -> None:
    assert SizeRule("none").shape(4096, 4096) == (4096, 4096)
    with pytest.raises(ImageTooLarge, match=r"5000 x 4000 pixels \(width x height\) are more than 16,777,216, and"):
        SizeRule("none").shape(4000, 5000)


def test_the_arithmetic_of_transformers_is_theirs_on_every_shape() -> None:
    for shorter, longest in ((800, 800), (800, 1333), (224, 300), (1000, 1000)):
        rule = SizeRule("transformers", shorter, longest)
        for height in range(7, 900, 13):
            for width in range(7, 900, 17):
                assert rule.shape(height, width) == get_size_with_aspect_ratio((height, width), shorter, longest)


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        (SizeRule("fit", height=480, width=320), {"max_height": 480, "max_width": 320}),
        (SizeRule("stretch", height=48, width=32), {"height": 48, "width": 32}),
        (SizeRule("transformers", 200, 333), {"shortest_edge": 200, "longest_edge": 333}),
    ],
)
def test_each_rule_gives_what_their_image_processor_gives(rule: SizeRule, size: dict[str, int]) -> None:

    processor = DetrImageProcessor(size=size)
    for height, width in SIZES:
        pixels = torch.zeros(3, height, width, dtype=torch.uint8)
        shape = processor(images=pixels, return_tensors="pt")["pixel_values"].shape[-2:]
        assert rule.shape(height, width) == tuple(shape)


@pytest.mark.parametrize("rule", [SizeRule("fit", height=30, width=30), SizeRule("transformers", 30, 30), SizeRule()])
def test_a_picture_that_would_lose_a_side_is_refused(rule: SizeRule) -> None:
    with pytest.raises(TooExtreme, match="9000 x 1 pixels"):
        rule.shape(1, 9000)
