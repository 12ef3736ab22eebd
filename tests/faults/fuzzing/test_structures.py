"""Damaged tables, models, annotations and lists: read as they were, or refused in one sentence that names the file."""

import pytest

from tests.faults.fuzzing.running import fuzz


@pytest.mark.slow  # to start, not to run
@pytest.mark.parametrize(("suite", "cases"), [("table", 100), ("model", 150), ("annotations", 200), ("lists", 400)])
def test_what_is_damaged_is_refused_in_one_sentence_or_harmless(suite: str, cases: int) -> None:
    refuse_findings(suite, seed=1, cases=cases)


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "cases"), [("table", 1000), ("model", 600), ("annotations", 600), ("lists", 1200)])
def test_of_thousands_of_damaged_files_each_is_refused_in_one_sentence_or_harmless(suite: str, cases: int) -> None:
    refuse_findings(suite, seed=20261126, cases=cases)


def refuse_findings(suite: str, *, seed: int, cases: int) -> None:
    found = fuzz(suite, seed=seed, cases=cases)

    assert not found.findings, "\n".join(map(str, found.findings))
    assert found.cases == cases
    refused = sum(count for outcome, count in found.outcomes.items() if "refused" in outcome)
    assert cases / 4 < refused < cases  # the damage is neither nothing nor everything
