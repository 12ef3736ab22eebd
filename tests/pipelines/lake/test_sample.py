"""Drawing images at random."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.lake_object import LakeObject, Listed, Skipped
from pipelines.lake.sample import draw_sample

LAKE: list[Listed] = [LakeObject(f"s3://b/{number:04d}.jpg", size=number) for number in range(1000)]


def drawn(listed: list[Listed], count: int, seed: int = 0) -> list[str]:
    return [item.uri for item in draw_sample(listed, count, seed=seed)]


@given(size=st.integers(0, 50), count=st.integers(1, 60), seed=st.integers(-5, 5))
def test_a_sample_is_as_large_as_asked_and_in_order(size: int, count: int, seed: int) -> None:
    sample = drawn(LAKE[:size], count, seed)

    assert len(sample) == min(size, count)
    assert sample == sorted(set(sample))


def test_the_seed_decides_which_are_drawn() -> None:
    assert drawn(LAKE, 100, seed=1) == drawn(LAKE, 100, seed=1)
    assert len({*drawn(LAKE, 100, seed=1)} & {*drawn(LAKE, 100, seed=2)}) < 30  # 10 of 100 are expected


def test_every_part_of_the_lake_is_drawn_from() -> None:
    tenths = [int(uri[7:11]) // 100 for uri in drawn(LAKE, 200)]

    assert all(8 <= tenths.count(tenth) <= 35 for tenth in range(10))  # 20 are expected, 4 is the standard deviation


def test_images_that_are_added_change_few_of_those_drawn() -> None:
    assert len({*drawn(LAKE, 100)} & {*drawn(LAKE[:900], 100)}) >= 80


def test_what_was_skipped_is_summed_up_before_the_images() -> None:
    listed: list[Listed] = [
        Skipped("a", ".json"),
        LakeObject("b", size=7),
        Skipped("c", ".json", 2),
        Skipped("d", "hidden"),
    ]

    assert list(draw_sample(listed, 5, seed=0)) == [
        Skipped("", ".json", 3),
        Skipped("", "hidden", 1),
        LakeObject("b", size=7),
    ]
