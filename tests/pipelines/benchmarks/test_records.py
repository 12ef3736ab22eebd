from dataclasses import replace
from typing import Any

import pytest

from pipelines.benchmarks.figures import Spread
from pipelines.benchmarks.process_tree import TreeUse
from pipelines.benchmarks.records import Record, costs, ratio, record
from pipelines.benchmarks.rounds import Trial, Variant


def use(cpu_s: float, wall_s: float = 1.0, peak_mb: float = 100.0) -> TreeUse:
    return TreeUse(0, timed_out=False, wall_s=wall_s, cpu_s=cpu_s, peak_bytes=int(peak_mb * 1e6), processes=1)


def steady_trial(number: int, cpu_s: float, wall_s: float, *, variant: str = "ours") -> Trial:
    returned: dict[str, Any] = {
        "phases": {"import": 2.0, "load": 1.0},
        "steady": {"images": 4, "cpu_s": cpu_s, "wall_s": wall_s, "gpu": None},
    }
    return Trial(variant, number, 0, use(10.0), returned, load_average=0.5)


def made(trials: list[Trial], **more: Any) -> Record:
    return record("model", "case", Variant("ours", "a:b", {}), trials, primary="cpu", threads=1, **more)


def test_costs_of_a_steady_state_are_per_image_and_the_phases_are_the_fixed_cost() -> None:
    found = costs([steady_trial(0, 4.0, 6.0), steady_trial(1, 8.0, 8.0)], largest=0)

    assert found["cpu_s_per_image"] == {0: 1.0, 1: 2.0}
    assert found["wall_s_per_image"] == {0: 1.5, 1: 2.0}
    assert found["fixed_cpu_s"] == {0: 3.0, 1: 3.0}


def test_costs_of_whole_processes_of_two_sizes_are_split_within_each_round() -> None:
    trials = [
        Trial("ours", number, size, use(cpu_s), {"exit_code": 0}, load_average=0.0)
        for number, size, cpu_s in [(0, 4, 18.0), (0, 16, 42.0), (1, 16, 40.0), (1, 4, 28.0)]
    ]

    found = costs(trials, largest=16)

    assert found["cpu_s_per_image"] == pytest.approx({0: 2.0, 1: 1.0})
    assert found["fixed_cpu_s"] == pytest.approx({0: 10.0, 1: 24.0})
    assert found["total_cpu_s"] == {0: 42.0, 1: 40.0}


def test_a_ratio_is_taken_within_each_round() -> None:
    ours = [steady_trial(0, 1.0, 1.0), steady_trial(1, 10.0, 10.0)]
    peer = [steady_trial(0, 2.0, 2.0, variant="peer"), steady_trial(1, 30.0, 30.0, variant="peer")]

    assert ratio(peer, ours, primary="cpu", of="image") == Spread(2.5, 2.0, 3.0)


def test_a_variant_without_a_common_round_has_no_ratio() -> None:
    assert ratio([steady_trial(0, 1.0, 1.0)], [steady_trial(1, 1.0, 1.0)], primary="cpu", of="image") is None


def test_failed_trials_leave_their_reason_and_count_for_nothing() -> None:
    failed = Trial("ours", 1, 0, use(1.0), None, load_average=3.0, error="exit code 1: out of paper")

    found = made([steady_trial(0, 4.0, 4.0), failed], agreement={"matched": 1.0})

    assert found.rounds == 1
    assert found.cpu_s_per_image == Spread(1.0, 1.0, 1.0)
    assert found.errors == ("exit code 1: out of paper",)
    assert found.load_average == (0.5, 3.0)


def test_a_variant_that_always_failed_has_a_record_without_figures() -> None:
    failed = Trial("ours", 0, 0, use(1.0), None, load_average=0.0, error="exit code 1: no")

    found = made([failed], agreement=None)

    assert (found.rounds, found.cpu_s_per_image, found.errors) == (0, None, ("exit code 1: no",))


def whole_trial(variant: str, number: int, size: int, cpu_s: float, *, error: str | None = None) -> Trial:
    return Trial(variant, number, size, use(cpu_s), {"exit_code": 0}, load_average=0.0, error=error)


def test_totals_of_different_sizes_are_not_compared() -> None:
    ours = [whole_trial("ours", 0, 4, 10.0), whole_trial("ours", 0, 16, 40.0), whole_trial("ours", 1, 16, 40.0)]
    peer = [
        whole_trial("peer", 0, 4, 20.0),
        whole_trial("peer", 0, 16, 9.0, error="exit code 1: no"),
        whole_trial("peer", 1, 16, 60.0),
    ]

    assert ratio(peer, ours, primary="cpu", of="total") == Spread(1.5, 1.5, 1.5)
    assert ratio(peer[:2], ours, primary="cpu", of="total") is None


def test_a_variant_whose_largest_trials_failed_has_no_totals() -> None:
    found = made(
        [whole_trial("ours", 0, 4, 10.0), whole_trial("ours", 0, 16, 5.0, error="exit code 1: no")], agreement=None
    )

    assert (found.rounds, found.total_cpu_s, found.total_wall_s, found.peak_mb) == (1, None, None, None)


@pytest.mark.parametrize(("load", "contended"), [(0.5, False), (1000.0, True)])
def test_a_whole_command_is_contended_where_the_machine_had_more_load_than_cores(
    load: float, *, contended: bool
) -> None:
    trials = [replace(whole_trial("ours", 0, size, float(size)), load_average=load) for size in (4, 16)]

    assert made(trials, agreement={}).contended is contended


def test_an_evaluation_that_waited_for_its_core_is_contended() -> None:
    call = {"phases": {}, "call": {"cpu_s": 4.0, "wall_s": 4.5}}

    assert made([replace(whole_trial("ours", 0, 4, 5.0), returned=call)], agreement={}).contended


@pytest.mark.parametrize(("wall_s", "contended"), [(4.3, False), (4.5, True)])
def test_a_thread_that_waited_for_its_core_marks_the_record_as_contended(wall_s: float, *, contended: bool) -> None:
    assert made([steady_trial(0, 4.0, wall_s)], agreement={}).contended is contended
