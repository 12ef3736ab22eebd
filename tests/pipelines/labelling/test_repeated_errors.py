"""A nightly run does not end with exit code 3 for images that had the same error the night before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.labelling.label import LabelSummary, with_repeated_errors
from pipelines.store import Store
from pipelines.table.schema import Detected, Origin, Row, encode, rows_to_table, total
from tests.memory_store import memory_store

NOTHING = Detected([], [], [], [])
NIGHT = datetime(2026, 11, 1, 2, tzinfo=UTC)


def label(table: Store, night: int, kinds: dict[str, str | None], *, model: str = "tiny@1") -> LabelSummary:
    """Publish the rows of a night, and return its summary with the default limit of 0.05."""
    run_id, time = f"2026110{night}-020000-aaaa", NIGHT + timedelta(days=night)
    rows = [
        Row(uri, detections=None if kind else NOTHING, error_kind=kind, error=kind and "why")
        for uri, kind in sorted(kinds.items())
    ]
    found = rows_to_table(rows, origin=Origin(model, 0.5, run_id, 0, time))
    table.put(f"data/{run_id}-00000.parquet", encode(found))
    totals = total(found)
    summary = LabelSummary(
        table="memory://", run_id=run_id, model=model, images=totals.rows, images_this_start=totals.rows,
        changed_this_start=0, detections=0, errors=totals.errors, already_labelled=0, duplicates=0, skipped={}, files=1,
        seconds=1.0, labelling_seconds=1.0, resumed=False, max_error_rate=0.05, query="",
    )  # fmt: skip
    return with_repeated_errors(summary, table)


def good(count: int) -> dict[str, str | None]:
    return {f"s3://lake/{number}.jpg": None for number in range(count)}


def test_a_dead_link_does_not_fail_every_quiet_night() -> None:
    table = memory_store()
    assert label(table, 1, {**good(100), "s3://lake/dead.jpg": "missing"}).within_budget

    quiet = [label(table, night, {"s3://lake/dead.jpg": "missing"}) for night in (2, 3)]

    assert [night.within_budget for night in quiet] == [True, True]
    assert [(night.images, night.errors, night.error_rate) for night in quiet] == [(1, {"missing": 1}, 1.0)] * 2
    assert [(night.repeated_errors, night.new_errors) for night in quiet] == [(1, 0), (1, 0)]


def test_new_images_that_are_all_broken_exceed_the_limit_beside_old_errors() -> None:
    table = memory_store()
    label(table, 1, {f"s3://lake/dead-{number}.jpg": "missing" for number in range(300)} | good(10))
    again = {f"s3://lake/dead-{number}.jpg": "missing" for number in range(300)}

    broken = label(table, 2, again | {f"s3://lake/new-{number}.jpg": "truncated" for number in range(100)})

    assert not broken.within_budget
    assert (broken.new_errors, broken.new_error_rate, broken.repeated_errors) == (100, 1.0, 300)


def test_an_error_of_another_kind_or_after_a_good_row_or_of_another_model_is_new() -> None:
    table = memory_store()
    label(table, 1, {"s3://lake/a.jpg": "missing", "s3://lake/b.jpg": "denied", "s3://lake/c.jpg": "missing"})
    label(table, 2, {"s3://lake/b.jpg": None, "s3://lake/c.jpg": "missing"})

    third = label(table, 3, {"s3://lake/a.jpg": "denied", "s3://lake/b.jpg": "denied", "s3://lake/c.jpg": "missing"})
    other = label(table, 4, {"s3://lake/c.jpg": "missing"}, model="other@1")

    assert (third.new_errors, third.repeated_errors, third.within_budget) == (2, 1, False)
    assert (other.new_errors, other.within_budget) == (1, False)


def test_nothing_is_read_while_the_share_of_all_errors_is_allowed() -> None:
    table = memory_store()
    summary = label(table, 1, {**good(100), "s3://lake/dead.jpg": "missing"})
    table.put("data/20261101-010000-aaaa-00000.parquet", b"damaged")

    assert with_repeated_errors(replace(summary, max_error_rate=0.02), table).repeated_errors == 0


def test_too_many_errors_are_told_though_the_earlier_rows_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    table = memory_store()
    table.put("data/20261101-010000-aaaa-00000.parquet", b"damaged")

    summary = label(table, 2, {"s3://lake/dead.jpg": "missing"})

    assert (summary.new_errors, summary.within_budget) == (1, False)
    assert "all errors count as new ones: " in caplog.text
