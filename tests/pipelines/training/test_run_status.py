"""What workers leave for the driver: why they must not start again, and when it is enough."""

from __future__ import annotations

import pytest

from pipelines.training.run_status import RunStatus, TrainProgress


def test_a_board_begins_empty() -> None:
    assert RunStatus(3).read() == (None, None, False, [])


def test_progress_is_replaced_and_the_end_noted() -> None:
    status = RunStatus(3)

    status.tell(TrainProgress("train", step=4))
    status.tell(TrainProgress("train", step=5))
    status.finish()

    assert status.read() == (TrainProgress("train", step=5), None, True, [])


def test_the_first_reason_to_stop_counts_and_keeps_workers_from_starting() -> None:
    status = RunStatus(3)
    assert status.begin(0) is None

    status.stop("training diverged")
    status.stop("a peer was lost")

    assert status.begin(4) == "training diverged"
    assert status.read() == (None, "training diverged", False, [0, 4])


@pytest.mark.parametrize("most", [1, 5])
def test_starts_without_a_checkpoint_between_them_are_counted(most: int) -> None:
    status = RunStatus(most)

    for _ in range(most):
        assert status.begin(40) is None
        status.fail("worker 1: out of memory")

    assert status.begin(40) == (
        f"the workers were started {most + 1} times at step 40 and failed every time before the next checkpoint "
        "(worker 1: out of memory). Fix the cause, then run the same command again to resume."
    )


def test_starts_with_checkpoints_between_them_are_not_too_many() -> None:
    status = RunStatus(2)

    begun = [status.begin(step) for step in (0, 0, 10, 10, 20, 30, 30)]

    assert begun == [None] * 7
    assert status.read()[3] == [0, 0, 10, 10, 20, 30, 30]


def test_the_last_few_different_failures_are_mentioned() -> None:
    status = RunStatus(5)
    for sentence in ("one", "two", "three", "four", "four"):
        status.begin(7)
        status.fail(sentence)

    assert "(three; four)" in str(status.begin(7))


def test_workers_that_fail_before_they_begin_end_the_run_too() -> None:
    status = RunStatus(2)
    status.begin(7)
    status.fail("worker 0: killed")  # it had begun
    status.begin(9)
    for _ in range(2):
        status.fail("worker 1: No module named 'pipelines'")
    assert status.read()[1] is None

    status.fail("worker 1: No module named 'pipelines'")

    assert "failed 3 times before they could begin (worker 1: No module named 'pipelines')" in str(status.read()[1])


def test_failures_without_a_word_are_no_secret() -> None:
    status = RunStatus(1)
    status.begin(7)
    status.fail("")

    assert "(no message)" in str(status.begin(7))


def test_workers_that_are_replaced_without_a_failure_are_not_counted() -> None:
    status = RunStatus(5)

    begun = []
    for _ in range(20):  # nodes joined, or were taken back
        begun.append(status.begin(0))
        status.end_group("the cluster has room for another number of workers")
        status.wait_for(4)

    assert begun == [None] * 20
    assert status.read()[1] is None


@pytest.mark.parametrize("is_told_before", [True, False])
def test_a_limit_stops_a_run_whose_workers_ended_without_a_failure(is_told_before: bool) -> None:
    status = RunStatus(5)
    status.begin(0)
    status.tell(TrainProgress("train", step=4))
    if is_told_before:
        status.cap("the limit is reached")
    status.end_group("a machine was taken back")
    status.wait_for(4)
    status.cap("the limit is reached")

    assert status.read()[1] == "the limit is reached, and no worker is running. Run the same command again to resume."
    assert status.stopped_at_cap() == (True, None)


def test_notes_of_workers_are_taken_once() -> None:
    status = RunStatus(5)
    status.note("tracker wandb failed")
    status.note("the training log could not be written")

    assert status.take_notes() == ["tracker wandb failed", "the training log could not be written"]
    assert status.take_notes() == []


def test_the_progress_shows_what_is_waited_for_and_why() -> None:
    status = RunStatus(5)
    stages = []

    def see(_: object) -> None:
        progress = status.read()[0]
        assert progress is not None
        stages.append((progress.stage, progress.step))

    see(status.wait_for(1))
    see(status.wait_for(None))
    status.begin(0)
    status.tell(TrainProgress("train", step=5))
    see(status.end_group("a machine was taken back"))
    see(status.wait_for(4))
    see(status.wait_for(None))

    assert stages == [
        ("starting workers", 0),
        ("starting workers", 0),
        ("waiting for workers (a machine was taken back)", 5),
        ("starting 4 workers as soon as there is room (a machine was taken back)", 5),
        ("starting workers", 5),
    ]


def test_workers_hear_of_a_limit_with_their_next_word_and_the_run_stops_with_the_checkpoint() -> None:
    status = RunStatus(3)
    assert status.begin(0) is None
    assert not status.tell(TrainProgress("train", step=4))

    status.cap("the limit of 5 minutes (--max-minutes) is reached")

    assert status.read()[1] is None  # a checkpoint comes first
    assert status.tell(TrainProgress("train", step=5))
    status.stop_at_cap(1_006)
    sentence = (
        "the limit of 5 minutes (--max-minutes) is reached. The newest checkpoint is from step 1,006. "
        "Run the same command again to resume."
    )
    assert (status.read()[1], status.stopped_at_cap(), status.begin(1_006)) == (sentence, (True, 1_006), sentence)


@pytest.mark.parametrize("begun", [True, False])
def test_a_limit_stops_a_run_without_workers_at_once(begun: bool) -> None:
    status = RunStatus(3)
    if begun:
        status.begin(0)
        status.fail("worker 1: its node was lost")

    status.cap("the limit is reached")

    assert status.read()[1] == "the limit is reached, and no worker is running. Run the same command again to resume."
    assert status.stopped_at_cap() == (True, None)


def test_workers_that_are_lost_behind_a_limit_are_not_started_again() -> None:
    status = RunStatus(3)
    status.begin(0)
    status.cap("the limit is reached")
    status.fail("worker 1: its node was lost")

    assert status.stopped_at_cap() == (True, None)


def test_another_reason_to_stop_is_not_a_limit() -> None:
    status = RunStatus(3)
    status.begin(0)
    status.stop("training diverged")
    status.cap("the limit is reached")
    status.stop_at_cap(5)

    assert (status.read()[1], status.stopped_at_cap()) == ("training diverged", (False, None))
