"""What a table's rows say about the settings of a new run."""

from __future__ import annotations

import pytest

from pipelines.errors import SettingsMismatch
from pipelines.labelling.past_settings import PastSettings
from tests.simulation.world import World, Writer


@pytest.fixture
def past() -> PastSettings:
    """Of two nights with the thresholds 0.1 and 0.5, and then an image of another model."""
    world = World({"s3://lake/0.jpg": "v0"})
    for tail, threshold, model in (("a", 0.1, "detr@1"), ("b", 0.5, "detr@1"), ("c", 0.9, "detr@2")):
        world.lake[f"s3://lake/{tail}.jpg"] = "v0"
        writer = Writer(world, tail, model=model, relabels=True)
        writer.threshold = threshold
        writer.start()
    return PastSettings(world.objects, "detr@1", threads=1)


def settings(threshold: float, precision: str = "fp32") -> str:
    return f'{{"precision":"{precision}","threshold":{threshold}}}'


def test_settings_of_a_model_come_newest_first_and_however_often(past: PastSettings) -> None:
    assert past.last == settings(0.5)
    assert list(past) == list(past) == [settings(0.5), settings(0.1)]


def test_a_note_names_newer_rows_with_other_settings(past: PastSettings) -> None:
    assert past.note(settings(0.5)) == ""
    assert past.note(settings(0.1)) == (
        "the newest rows of detr@1 in table memory://table have other settings (threshold 0.5, now 0.1). This run "
        "labels images that have no row with its own settings."
    )


@pytest.mark.parametrize(
    ("asked", "threshold", "found"),
    [("auto", 0.1, settings(0.1)), ("fp32", 0.5, settings(0.5)), ("auto", 0.5, settings(0.5, "bf16"))],
)
def test_settings_that_the_table_has_or_that_are_allowed_are_taken(
    past: PastSettings, asked: str, threshold: float, found: str
) -> None:
    configuration = {"threshold": threshold, "precision": asked}
    relabel = "bf16" in found

    assert past.check(configuration, "bf16" if relabel else "fp32", relabel=relabel) == found


@pytest.mark.parametrize(
    ("asked", "threshold", "differing"),
    [
        ("auto", 0.2, r"threshold 0.5, now 0.2\). Use the old value to"),
        ("bf16", 0.2, r"threshold 0.5, now 0.2; precision fp32, now bf16\). Use the old values to"),
    ],
)
def test_other_settings_are_refused(past: PastSettings, asked: str, threshold: float, differing: str) -> None:
    with pytest.raises(SettingsMismatch, match=differing):
        past.check({"threshold": threshold, "precision": asked}, "fp32", relabel=False)


def test_a_model_without_rows_may_have_any_settings() -> None:
    past = PastSettings(World({}).objects, "detr@1", threads=1)

    assert (past.last, past.guess_precision({}), past.note(settings(0.1))) == (None, None, "")
    assert past.check({"threshold": 0.3}, "bf16", relabel=False) == settings(0.3, "bf16")


def test_the_guess_of_a_precision_is_that_of_the_request_or_of_rows_with_its_settings(past: PastSettings) -> None:
    assert past.guess_precision({"threshold": 0.3, "precision": "fp16"}) == "fp16"
    assert past.guess_precision({"threshold": 0.1, "precision": "auto"}) == "fp32"
