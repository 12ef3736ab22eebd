"""Configurations of labelling: which values are refused, and what the record of a run keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines.labelling.config import LabelConfig, PlanConfig, class_threshold, point_in_time, which_errors
from pipelines.labelling.settings import settings_differences, settings_text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": ()}, "images: name at least one"),
        ({"shard_images": 0}, "shard images: 0 is not in 1..1,000,000,000"),
        ({"shard_images": 2**63}, "shard images: 9,223,372,036,854,775,808 is not in 1..1,000,000,000"),
        (
            {"seed": 2**63},
            "seed: 9,223,372,036,854,775,808 is not in -9,223,372,036,854,775,808..9,223,372,036,854,775,807",
        ),
        ({"max_images": 0}, "max images: 0 is not at least 1"),
        ({"sample": -1}, "sample: -1 is not at least 1"),
        ({"sample": 1, "max_images": 1}, "exclude each other"),
        ({"relabel": True, "skip_labelled": "any"}, "relabel and skip labelled any exclude each other"),
        ({"tiles": (640, 0)}, "tiles: 640x0 is too small; give sides of 64 pixels or more"),
        ({"tiles": (640, 640), "overlap": 0.6}, r"overlap: 0.6 is not in 0..0.5"),
        ({"tiles": (640, 640), "masks": True}, "masks and tiles exclude each other"),
        ({"overlap": 0.2}, "overlap: only tiles overlap"),
        ({"modified_since": datetime(2026, 11, 28)}, "modified since: 2026-11-28 00:00:00 has no time zone"),  # noqa: DTZ001
        ({"keep": ("uri",)}, "'uri' is a column of the detection table"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PlanConfig(**{"images": ("a",), "table": "t", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("cat", ("cat", None)),
        ("cat=0.5", ("cat", 0.5)),
        ("traffic light=0", ("traffic light", 0.0)),
        ("a=b=0.25", ("a=b", 0.25)),
    ],
)
def test_a_class_may_have_its_own_threshold(text: str, meaning: tuple[str, float | None]) -> None:
    assert class_threshold(text) == meaning


def test_an_invalid_threshold_is_refused() -> None:
    for text, sentence in (("cat=2", "2 is not in"), ("cat=high", "'high'"), ("cat=", "''")):
        with pytest.raises(ValueError, match=sentence):
            class_threshold(text)


def test_a_time_without_an_offset_is_utc() -> None:
    day = datetime(2026, 11, 28, tzinfo=UTC)

    assert point_in_time("2026-11-28") == point_in_time("2026-11-28T00:00:00Z") == day
    assert point_in_time("2026-11-28T01:00+01:00") == day
    with pytest.raises(ValueError, match="'yesterday' is not a time such as 2026-11-28 or"):
        point_in_time("yesterday")


def test_passing_is_the_former_name_of_transient() -> None:
    assert [which_errors(text) for text in ("transient", "passing", "all")] == ["transient", "transient", "all"]
    with pytest.raises(ValueError, match=r"'some' is not one of transient, all"):
        which_errors("some")


def test_the_record_of_a_run_is_what_earlier_versions_wrote() -> None:
    config = LabelConfig(
        ("s3://lake/a", "/photographs"), "s3://t", "scenes", threshold=0.25, classes=(("cat", None), ("dog", 0.5)),
        precision="fp32", sample=9, seed=3, keep=("camera",),
    )  # fmt: skip

    assert config.resume_identity() == {
        "images": ["s3://lake/a", "file:///photographs"],
        "threshold": 0.25,
        "classes": [["cat", None], ["dog", 0.5]],
        "precision": "fp32",
        "max_images": None,
        "sample": 9,
        "seed": 3,
        "keep": ["camera"],
        "retry_errors": "passing",
        "max_pixels": 178_956_970,
    }


def test_runs_without_tiles_have_the_records_and_settings_of_earlier_releases() -> None:
    plain = LabelConfig(("s3://lake/a",), "s3://t", "scenes")
    tiled = replace(plain, tiles=(1024, 768))

    assert {"tiles", "overlap"}.isdisjoint(plain.resume_identity())
    assert tiled.resume_identity() == {**plain.resume_identity(), "tiles": "1024x768", "overlap": 0.2}
    before, now = (settings_text(config.resume_identity(), "fp32") for config in (plain, tiled))
    assert before == '{"precision":"fp32","threshold":0.05}'
    assert now == '{"overlap":0.2,"precision":"fp32","threshold":0.05,"tiles":"1024x768"}'
    other = settings_text(replace(tiled, overlap=0.5).resume_identity(), "fp32")
    assert settings_differences(before, now) == ["tiles none, now 1024x768", "overlap none, now 0.2"]
    assert settings_differences(now, other) == ["overlap 0.2, now 0.5"]
    assert settings_differences(now, now) == []
