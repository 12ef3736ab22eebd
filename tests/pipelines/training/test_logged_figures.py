"""The log of a training run, read back: repeated steps count once, and means are over time."""

from __future__ import annotations

import math

import pytest

from pipelines.errors import RayDetrError
from pipelines.training.logged_figures import Evaluation, WorkerStart, read_logged
from tests.memory_store import memory_store
from tests.pipelines.report.training_runs import log_line, write_log


def test_lines_are_read_and_repeated_steps_are_those_of_the_last_start() -> None:
    store = memory_store()
    first = [log_line(2, 0, 8.0), log_line(4, 0, 6.0), log_line(6, 1, 5.0)]
    write_log(store, "a-3", 1, first, [(4, {"AP": 0.25})])
    write_log(store, "a-11", 5, [log_line(5, 1, 4.5), log_line(8, 1, 4.0)], [(8, {"AP": 0.5})])
    write_log(store, "b-100", 9, [])

    logged = read_logged(store)

    assert [(line["step"], line["loss"]) for line in logged.lines] == [(2, 8.0), (4, 6.0), (5, 4.5), (8, 4.0)]
    assert list(logged.steps) == [2, 2, 1, 3]
    assert "loss_ce" in logged.lines[0]
    assert "loss_ce_0" not in logged.lines[0]  # of an earlier layer
    assert list(logged.evaluations) == [Evaluation(4, 1, {"AP": 0.25}), Evaluation(8, 2, {"AP": 0.5})]
    assert [(start.command, start.first_step, start.last_step) for start in logged.starts] == [
        ("a", 1, 6), ("a", 5, 8), ("b", 9, 8),
    ]  # fmt: skip
    assert logged.starts[2] == WorkerStart("b", 9, 8, None, None)


def test_an_evaluation_that_a_restart_makes_again_replaces_the_first() -> None:
    store = memory_store()
    write_log(store, "a-3", 1, [log_line(2, 0, 8.0)], [(2, {"AP": 0.25})])
    write_log(store, "a-4", 1, [log_line(2, 0, 8.0)], [(2, {"AP": 0.5})])

    assert list(read_logged(store).evaluations) == [Evaluation(2, 1, {"AP": 0.5})]


def test_rates_are_means_over_time() -> None:
    store = memory_store()
    # 2 steps at 8 images/s take as long as 1 step at 4 images/s
    write_log(store, "a-3", 1, [log_line(2, 0, 8.0, rate=8, wait=0.1), log_line(3, 0, 8.0, rate=4, wait=0.3)])

    rate, waiting = read_logged(store).mean_rates

    assert rate == 6
    assert waiting == pytest.approx(0.2)
    assert read_logged(memory_store()).mean_rates == (None, None)


def test_a_figure_that_was_not_finite_is_nan() -> None:
    store = memory_store()
    write_log(store, "a-3", 1, [log_line(1, 0, math.nan)])

    assert math.isnan(read_logged(store).lines[0]["loss"])


@pytest.mark.parametrize("data", [b'{"step": 1', b'{"step": 1}\n', b"[1]\n"])
def test_a_damaged_file_is_named(data: bytes) -> None:
    store = memory_store()
    store.put("logs/steps-000000001-a-3.jsonl", data)

    with pytest.raises(RayDetrError, match=r"logs/steps-000000001-a-3\.jsonl is damaged"):
        read_logged(store)
