"""`promote.py` of deploy/nightly without a cluster: when a promotion is recorded, and an unfinished run sealed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.clock import SystemClock
from pipelines.errors import LeaseHeld
from pipelines.labelling.lease import holding
from pipelines.labelling.run import RunRequest, read_state
from pipelines.store import open_store
from tests.pipelines.labelling.runs import start_run

STEPS = Path(__file__).parents[2] / "deploy" / "nightly"


class Promoting:
    """The step with folders for all places; the evaluation is not run, its exit code is given."""

    def __init__(self, place: Path, step: Any, settings: Any, promotions: Any) -> None:
        self.table = open_store(str(place / "table"))
        settings.TABLE = str(place / "table")
        settings.PROMOTIONS = str(place / "promotions")
        settings.RUNS = "s3://runs"
        settings.FIGURES = "s3://runs/figures"
        self.submitted: list[list[str]] = []
        self.exit_code = 0
        step.submit = self._submit
        self.step, self.promotions = step, promotions

    def _submit(self, words: list[str]) -> None:
        self.submitted.append(words)
        if self.exit_code:
            sys.exit(self.exit_code)

    def promote(self, *words: str) -> None:
        self.step.main(words)

    def models(self) -> dict[str, str]:
        return {slot: promotion.model for slot, promotion in self.promotions.all_promotions().items()}


@pytest.fixture
def promoting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Promoting:
    names = ("promote", "settings", "promotions")
    monkeypatch.syspath_prepend(STEPS)
    for name in names:  # so that the modules are gone after the test
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    import promote
    import promotions
    import settings

    return Promoting(tmp_path, promote, settings, promotions)


def test_the_first_model_is_compared_with_nothing_and_the_next_one_with_its_figures(promoting: Promoting) -> None:
    promoting.promote("--slot", "2026-10", "--model", "first")
    promoting.promote("--slot", "2026-11")

    first, second = promoting.submitted
    assert "--baseline" not in first
    assert second[second.index("--baseline") :] == [
        "--baseline", "s3://runs/figures/promotion-2026-10.json", "--max-drop", "0",
    ]  # fmt: skip
    assert promoting.models() == {"2026-10": "first", "2026-11": "s3://runs/finetune-2026-11/model"}
    assert promoting.promotions.in_use().model == "s3://runs/finetune-2026-11/model"


def test_a_refused_candidate_is_not_recorded(promoting: Promoting) -> None:
    promoting.promote("--slot", "2026-10", "--model", "first")
    promoting.exit_code = 3

    with pytest.raises(SystemExit) as left:
        promoting.promote("--slot", "2026-11")

    assert left.value.code == 3
    assert promoting.models() == {"2026-10": "first"}


def test_a_promotion_seals_the_unfinished_run(promoting: Promoting) -> None:
    request = RunRequest("detr@1", "1", {}, 2, {}, run_id="night")
    start_run(promoting.table, request, now=datetime(2026, 11, 28, tzinfo=UTC), tail="0001")

    promoting.promote("--slot", "2026-11", "--model", "new")

    assert read_state(promoting.table, "night") == "sealed"
    assert promoting.models() == {"2026-11": "new"}


def test_nothing_is_promoted_while_a_run_is_being_written(promoting: Promoting) -> None:
    request = RunRequest("detr@1", "1", {}, 2, {}, run_id="night")
    start_run(promoting.table, request, now=datetime(2026, 11, 28, tzinfo=UTC), tail="0001")
    clock = SystemClock()

    with (
        holding(promoting.table, can_swap=False, token="t", wait_seconds=0.0, say=lambda _: None, clock=clock),
        pytest.raises(LeaseHeld),
    ):
        promoting.promote("--slot", "2026-11", "--model", "new")

    assert promoting.models() == {}


def test_a_slot_is_promoted_once_and_later_than_the_others(
    promoting: Promoting, capsys: pytest.CaptureFixture[str]
) -> None:
    promoting.promote("--slot", "2026-11", "--model", "new")
    promoting.promote("--slot", "2026-11", "--model", "new")
    assert len(promoting.submitted) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "new has been promoted already"

    with pytest.raises(SystemExit) as left:
        promoting.promote("--slot", "2026-10", "--model", "other")
    assert left.value.code == 2
    assert "--slot 2026-10 is not later than the last promotion, 2026-11" in capsys.readouterr().err
