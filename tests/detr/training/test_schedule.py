import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr.training.schedule import Schedule


def test_the_paper_drops_to_a_tenth_after_epoch_200() -> None:
    schedule = Schedule()

    factors = [schedule.factor(epoch=epoch, step=epoch * 7393, share=epoch / 300) for epoch in (0, 1, 199, 200, 299)]

    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1])


def test_a_run_of_more_than_two_drops_drops_again_as_the_originals_scheduler_does() -> None:
    schedule = Schedule(epochs=500, drop=200)

    assert schedule.factor(epoch=399, step=0, share=0.798) == pytest.approx(0.1)
    assert schedule.factor(epoch=400, step=0, share=0.8) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_a_warm_up_rises_to_the_full_rate(kind: str) -> None:
    schedule = Schedule(kind=kind, warm_up_steps=4)  # type: ignore[arg-type]  # mypy does not see the literals

    assert [schedule.factor(epoch=0, step=step, share=0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize(
    ("share", "factor"),
    # figures of the schedule that the embedded model was trained with: constant to 0.4, then a cosine to 0.01
    [(0.0, 1.0), (0.4, 1.0), (0.55, 0.8550178566872711), (0.7, 0.505), (0.85, 0.15498214331272898), (1.0, 0.01)],
)
def test_a_cosine_falls_from_its_constant_share_to_its_last_rate(share: float, factor: float) -> None:
    schedule = Schedule(kind="cosine", constant_share=0.4, last_rate=0.01)

    assert schedule.factor(epoch=0, step=10_000, share=share) == pytest.approx(factor, rel=1e-12)


@given(share=st.floats(0, 1), step=st.integers(0, 400))
def test_a_warm_up_and_a_cosine_are_multiplied(share: float, step: int) -> None:
    schedule = Schedule(kind="cosine", warm_up_steps=150, constant_share=0.4, last_rate=0.01)

    expected = min(1.0, (step + 1) / 150)
    if share > 0.4:
        expected *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.4) / 0.6))
    assert schedule.factor(epoch=0, step=step, share=share) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "linear"}, "schedule 'linear' is not known"),
        ({"epochs": 0}, "epochs 0 and drop 200 must be 1 or more"),
        ({"drop": 0}, "epochs 300 and drop 0 must be 1 or more"),
        ({"warm_up_steps": -1}, "warm_up_steps -1"),
        ({"constant_share": 1.0}, "constant_share 1.0"),
        ({"last_rate": math.nan}, "last_rate nan"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**values)  # type: ignore[arg-type]
