"""Damaged images: each is a picture or an error of a known kind, and none takes its process along."""

import pytest

from pipelines.table.schema import PERMANENT_KINDS
from tests.faults.fuzzing.awkward_suite import FOLDER, awkward_files
from tests.faults.fuzzing.running import Fuzzed, fuzz


def refuse_findings(found: Fuzzed, *, cases: int) -> None:
    assert not found.findings, "\n".join(map(str, found.findings))
    assert found.cases == cases
    assert set(found.outcomes) <= {"ok", *PERMANENT_KINDS}
    # the damage is neither everything nor nothing: some pictures survive it, and every common kind of error is met
    assert found.outcomes["ok"] > cases / 20
    assert found.outcomes.keys() >= {"truncated", "unreadable", "not_an_image"}


@pytest.mark.slow  # to start, not to run
def test_six_hundred_damaged_images_are_pictures_or_image_errors() -> None:
    refuse_findings(fuzz("image", seed=1, cases=600), cases=600)


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.slow
def test_thirty_thousand_damaged_images_are_pictures_or_image_errors() -> None:
    refuse_findings(fuzz("image", seed=20261126, cases=30_000), cases=30_000)


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(not awkward_files(), reason=f"no awkward files: put a collection of them into {FOLDER}")
def test_ten_thousand_damaged_awkward_images_are_pictures_or_image_errors() -> None:
    refuse_findings(fuzz("awkward", seed=20261126, cases=10_000), cases=10_000)
