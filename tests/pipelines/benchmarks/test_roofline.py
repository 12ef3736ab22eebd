from dataclasses import replace

import pytest

from detr.classes import SCENE_CATEGORIES
from detr.config import SCENES_CONFIG, VARIANTS, BackboneConfig, DetrConfig
from pipelines.benchmarks.roofline import GFLOP, is_covered, known_card, most_images_per_s, usd_per_million


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3, 580.159, 81559 MiB", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10, 535.161, 23028 MiB", "A10"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
    ],
)
def test_cards_are_known_by_the_name_that_the_driver_gives(device: str, card: str) -> None:
    found = known_card(device)

    assert found is not None
    assert found.name == card


@pytest.mark.parametrize(
    "device", ["", "NVIDIA GeForce RTX 4090", "NVIDIA B200", "NVIDIA L40S", "NVIDIA RTX A1000", "NVIDIA A100X"]
)
def test_another_card_has_no_roofline(device: str) -> None:
    assert known_card(device) is None


@pytest.mark.parametrize(
    ("config", "covered"),
    [
        (VARIANTS["detr-resnet-50"], True),
        (DetrConfig(BackboneConfig(norm="batch"), categories=SCENE_CATEGORIES, shorter=480), True),
        (VARIANTS["detr-resnet-50-dc5"], False),
        (VARIANTS["detr-resnet-101"], False),
        (replace(VARIANTS["detr-resnet-50"], queries=300), False),
        (SCENES_CONFIG, False),
    ],
)
def test_only_a_detr_of_resnet_50_has_the_work_of_the_table(config: DetrConfig, *, covered: bool) -> None:
    assert is_covered(config) is covered


def test_the_parts_add_up_to_the_work_of_the_network() -> None:
    assert pytest.approx(162.3, abs=0.1) == GFLOP


@pytest.mark.parametrize(("device", "expected"), [("H100", 2_526), ("A100-SXM4", 1_470), ("T4", 257)])
def test_the_roofline_is_the_sum_of_the_slower_of_arithmetic_and_memory_of_each_part(
    device: str, expected: int
) -> None:
    card = known_card(device)
    assert card is not None

    assert most_images_per_s(card, 800, 1066) == pytest.approx(expected, rel=0.02)
    assert most_images_per_s(card, 400, 1066) == pytest.approx(2 * expected, rel=0.02)


def test_a_million_images_at_a_thousand_a_second_take_a_thousand_seconds() -> None:
    assert usd_per_million(0.001, 3.6) == pytest.approx(1.0)
