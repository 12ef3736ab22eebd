"""What a table's rows say about the settings of a new run."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from pipelines.errors import SettingsMismatch
from pipelines.labelling.job import Workforce
from pipelines.labelling.past_settings import PastSettings
from tests.simulation.world import World, Writer


@pytest.fixture
def past() -> PastSettings:
    """Of a night with threshold 0.1 in bf16, one with 0.5 in fp32, and then one of another model."""
    world = World({"s3://lake/0.jpg": "v0"})
    nights = [("a", 0.1, "bf16", "detr@1"), ("b", 0.5, "fp32", "detr@1"), ("c", 0.9, "fp32", "detr@2")]
    for tail, threshold, precision, model in nights:
        world.lake[f"s3://lake/{tail}.jpg"] = "v0"
        writer = Writer(world, tail, model=model, relabels=True)
        writer.threshold = threshold
        with patch.object(Writer, "workforce", lambda _: Workforce(1, 1, precision)):  # noqa: B023 - called in this turn
            writer.start()
    return PastSettings(world.objects, "detr@1", threads=1)


def settings(threshold: float, precision: str = "fp32") -> str:
    return f'{{"precision":"{precision}","threshold":{threshold}}}'


def test_settings_of_a_model_come_newest_first_and_however_often(past: PastSettings) -> None:
    assert past.last == settings(0.5)
    assert list(past) == list(past) == [settings(0.5), settings(0.1, "bf16")]


def test_a_note_names_newer_rows_with_other_settings(past: PastSettings) -> None:
    assert past.note(settings(0.5)) == ""
    assert past.note(settings(0.1)) == (
        "the newest rows of detr@1 in table memory://table have other settings (threshold 0.5, now 0.1). This run "
        "labels images that have no row with its own settings."
    )


@pytest.mark.parametrize(
    ("asked", "threshold", "relabel", "found"),
    [
        ("auto", 0.1, False, settings(0.1, "bf16")),
        ("fp32", 0.5, False, settings(0.5)),
        ("auto", 0.5, True, settings(0.5, "bf16")),
    ],
)
def test_settings_that_the_table_has_or_that_are_allowed_are_taken(
    past: PastSettings, asked: str, threshold: float, found: str, *, relabel: bool
) -> None:
    assert past.check({"threshold": threshold, "precision": asked}, "bf16", relabel=relabel) == found


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
    assert past.guess_precision({"threshold": 0.1, "precision": "auto"}) == "bf16"
    assert past.guess_precision({"threshold": 0.3, "precision": "auto"}) == "fp32"  # as the newest rows
