import json
from pathlib import Path

import pytest

from pipelines.benchmarks.rounds import OURS, Runner, Trial, Variant, alternate, python_path


def test_every_second_round_goes_backwards() -> None:
    assert alternate(["A", "B", "C"], 3) == [
        (0, "A"), (0, "B"), (0, "C"),
        (1, "C"), (1, "B"), (1, "A"),
        (2, "A"), (2, "B"), (2, "C"),
    ]  # fmt: skip


def test_the_measured_checkout_comes_first_and_ours_not_at_all_where_another_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{OURS}:/peers")

    assert python_path(Path("/before")) == "/before:/peers"


def other_checkout(folder: Path) -> Path:
    """A checkout without benchmarks."""
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "__init__.py").touch()
    (folder / "detr").mkdir()
    (folder / "detr" / "__init__.py").touch()
    return folder


def run(tmp_path: Path, subject: str, code: Path = OURS, **settings: object) -> Trial:
    told: list[Trial] = []
    runner = Runner(tmp_path, timeout_s=60, on_trial=told.append)
    trial = runner.run(Variant("ours", subject, settings, code=code))
    assert told == [trial]
    return trial


def test_a_subject_runs_in_a_process_of_its_own_and_what_it_returns_comes_back(tmp_path: Path) -> None:
    trial = run(tmp_path, "label_subjects:imports", module="colorsys")

    assert trial.error is None
    assert trial.returned is not None
    assert set(trial.returned["phases"]) == {"import"}
    assert trial.use.cpu_s > 0


def test_another_checkout_is_measured_with_the_benchmarks_of_this_one(tmp_path: Path) -> None:
    code = other_checkout(tmp_path / "before")

    theirs = run(tmp_path, "label_subjects:imports", code, module="detr").returned
    ours = run(tmp_path, "label_subjects:imports", module="pipelines.errors").returned

    assert theirs is not None
    assert theirs["file"] == str(code / "detr" / "__init__.py")
    assert ours is not None
    assert ours["file"] == str(OURS / "pipelines" / "errors.py")


def test_a_subject_that_fails_is_a_trial_with_the_end_of_its_output(tmp_path: Path) -> None:
    trial = run(tmp_path, "label_subjects:imports", module="there_is_no_such_module")

    assert trial.returned is None
    assert "exit code 1" in (trial.error or "")
    assert "there_is_no_such_module" in (trial.error or "")


def test_a_command_that_leaves_with_an_exit_code_is_a_failed_trial(tmp_path: Path) -> None:
    trial = run(tmp_path, "label_subjects:command", module="jobs.scenes", arguments=["--count", "1"])

    assert "exit code 2" in (trial.error or "")
    assert "--out" in (trial.error or "")


def test_the_result_of_an_earlier_subject_is_not_taken_for_that_of_a_failed_one(tmp_path: Path) -> None:
    (tmp_path / "returned.json").write_text(json.dumps({"phases": {}}))

    assert run(tmp_path, "label_subjects:imports", module="there_is_no_such_module").returned is None
