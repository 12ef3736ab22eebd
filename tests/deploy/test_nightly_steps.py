"""The steps of deploy/nightly without a cluster: what they submit, and when a promotion is recorded."""

from __future__ import annotations

import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.clock import SystemClock
from pipelines.errors import LeaseHeld, UsageError
from pipelines.labelling.lease import holding
from pipelines.labelling.run import RunRequest, read_state
from pipelines.store import open_store
from tests.pipelines.labelling.runs import start_run

FOLDER = Path(__file__).parents[2] / "deploy" / "nightly"


class Steps:
    """The steps with folders for table and promotions; no job is run, its exit code is given."""

    def __init__(self, place: Path, modules: dict[str, Any]) -> None:
        settings = modules["settings"]
        self.table = open_store(str(place / "table"))
        settings.TABLE = str(place / "table")
        settings.PROMOTIONS = str(place / "promotions")
        settings.RUNS = "s3://runs"
        settings.JOB_OPTIONS = ["--region", "eu-west-1"]
        settings.FIGURES = "s3://runs/figures"
        settings.EVALUATIONS = "s3://runs/evaluations"
        self.submitted: list[list[str]] = []
        self.exit_code = 0
        for name in ("label", "evaluate", "finetune", "promote"):
            modules[name].submit = self._submit
        self.modules = modules

    def _submit(self, words: list[str]) -> None:
        self.submitted.append(words)
        if self.exit_code:
            sys.exit(self.exit_code)

    def call(self, step: str, *words: str) -> None:
        self.modules[step].main(words)

    def promote(self, *words: str) -> None:
        self.call("promote", *words)

    def models(self) -> dict[str, str]:
        promotions = self.modules["promotions"].all_promotions()
        return {slot: promotion.model for slot, promotion in promotions.items()}


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:  # so that the modules are gone after the test
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    return Steps(tmp_path, {name: importlib.import_module(name) for name in names})


def test_the_steps_submit_commands_for_the_model_in_use(steps: Steps) -> None:
    steps.promote("--slot", "2026-10", "--model", "first")
    steps.submitted.clear()

    steps.call("label", "--slot", "2026-11-28")
    steps.call("evaluate", "--slot", "2026-11-29")
    steps.call("finetune", "--slot", "2026-11")

    cluster = "--address http://YOUR-HEAD:8265 --slot"
    assert [" ".join(words).replace(steps.table.uri.removeprefix("file://"), "TABLE") for words in steps.submitted] == [
        f"{cluster} 2026-11-28 --ok 5 -- label --images s3://YOUR-LAKE/ --table TABLE --model first "
        "--skip-labelled any --max-minutes 300 --metrics --region eu-west-1",
        f"{cluster} 2026-11-29 -- evaluate --model first --images s3://YOUR-DATA/frozen/ "
        "--annotations s3://YOUR-DATA/frozen/instances.json --baseline s3://runs/figures/promotion-2026-10.json "
        "--output s3://runs/figures/week-2026-11-29.json --keep-table s3://runs/evaluations/week-2026-11-29 "
        "--region eu-west-1",
        f"{cluster} 2026-11 -- shard --images s3://YOUR-DATA/reviewed/ "
        "--annotations s3://YOUR-DATA/reviewed/instances.json --out s3://YOUR-RUNS/shards/2026-11 --region eu-west-1",
        f"{cluster} 2026-11 -- train --train s3://YOUR-RUNS/shards/2026-11 --storage s3://runs --name finetune-2026-11 "
        "--finetune first --recipe finetune --metrics --region eu-west-1",
    ]


def test_nothing_is_labelled_before_a_model_is_promoted(steps: Steps) -> None:
    with pytest.raises(UsageError, match=r"no model is in use\. Promote the first one: python promote\.py"):
        steps.call("label", "--slot", "2026-11-28")
    assert steps.submitted == []


def test_the_first_model_is_compared_with_nothing_and_the_next_one_with_its_figures(steps: Steps) -> None:
    steps.promote("--slot", "2026-10", "--model", "first")
    steps.promote("--slot", "2026-11")

    first, second = steps.submitted
    assert "--baseline" not in first
    options = ["--region", "eu-west-1"]
    assert first[first.index("--keep-table") :] == ["--keep-table", "s3://runs/evaluations/promotion-2026-10", *options]
    assert second[second.index("--baseline") :] == [
        "--baseline", "s3://runs/figures/promotion-2026-10.json", "--max-drop", "0", *options,
    ]  # fmt: skip
    assert steps.models() == {"2026-10": "first", "2026-11": "s3://runs/finetune-2026-11/model"}
    assert steps.modules["promotions"].in_use().model == "s3://runs/finetune-2026-11/model"


def test_a_refused_candidate_is_not_recorded(steps: Steps) -> None:
    steps.promote("--slot", "2026-10", "--model", "first")
    steps.exit_code = 3

    with pytest.raises(SystemExit) as left:
        steps.promote("--slot", "2026-11")

    assert left.value.code == 3
    assert steps.models() == {"2026-10": "first"}


def test_a_promotion_seals_the_unfinished_run(steps: Steps) -> None:
    request = RunRequest("detr@1", "1", {}, 2, {}, run_id="night")
    start_run(steps.table, request, now=datetime(2026, 11, 28, tzinfo=UTC), tail="0001")

    steps.promote("--slot", "2026-11", "--model", "new")

    assert read_state(steps.table, "night") == "sealed"
    assert steps.models() == {"2026-11": "new"}


def test_nothing_is_promoted_while_a_run_is_being_written(steps: Steps) -> None:
    request = RunRequest("detr@1", "1", {}, 2, {}, run_id="night")
    start_run(steps.table, request, now=datetime(2026, 11, 28, tzinfo=UTC), tail="0001")
    clock = SystemClock()

    with (
        holding(steps.table, can_swap=False, token="t", wait_seconds=0.0, say=lambda _: None, clock=clock),
        pytest.raises(LeaseHeld),
    ):
        steps.promote("--slot", "2026-11", "--model", "new")

    assert steps.models() == {}


def test_a_slot_is_promoted_once_and_later_than_the_others(steps: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    steps.promote("--slot", "2026-11", "--model", "new")
    steps.promote("--slot", "2026-11", "--model", "new")
    assert len(steps.submitted) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "new has been promoted already"

    with pytest.raises(SystemExit) as left:
        steps.promote("--slot", "2026-10", "--model", "other")
    assert left.value.code == 2
    assert "--slot 2026-10 is not later than the last promotion, 2026-11" in capsys.readouterr().err
