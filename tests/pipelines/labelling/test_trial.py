"""The speed of a trial, and what is predicted from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.caps import Caps
from pipelines.labelling import trial
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import LabelSummary
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.trial import predict, steady_rate
from pipelines.store import open_store


def test_the_start_is_left_out_and_steady_work_has_no_error() -> None:
    done = [(100.0 + 2 * number, 10) for number in range(11)]

    assert steady_rate(done, labelling_seconds=120) == (pytest.approx(5), pytest.approx(0))


def test_uneven_work_has_an_error() -> None:
    done = [(0.0, 10), (1.0, 10), (4.0, 10), (5.0, 10), (8.0, 10)]
    rate, error = steady_rate(done, labelling_seconds=120)

    assert rate == pytest.approx(5)
    assert error == pytest.approx((4 * 5**2) ** 0.5 / 8)


def test_too_few_shards_are_a_guess() -> None:
    assert steady_rate([(9.0, 10), (10.0, 10)], labelling_seconds=10) == (2.0, 1.0)


def test_hours_and_price_follow_from_the_trial_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tables: list[LabelConfig] = []

    def label(config: LabelConfig, *, on_progress: object, on_shard: object) -> LabelSummary:
        tables.append(config)
        open_store(config.table).put("_runs/x.json", b"{}")
        for number in range(25):
            now[0] = 20.0 + number  # 20 s to start, then 4 images/s
            on_shard("run", ShardReport(number, 4, 0, {}, 1.0, 0.0, 0.0, 0.0))  # type: ignore[operator]
        return LabelSummary(
            table="t", run_id="r", model="m", images=100, images_this_start=100, changed_this_start=0, detections=0,
            errors={}, already_labelled=0, duplicates=0, skipped={}, files=1, seconds=55.0, labelling_seconds=44.0,
            resumed=False, max_error_rate=1.0, query="", nodes=2,
        )  # fmt: skip

    monkeypatch.setattr(trial, "label", label)
    config = LabelConfig(("/lake",), str(tmp_path), "scenes", sample=100, caps=Caps(price_per_hour=3.0))

    found = predict(config, images=144_000)

    assert (tables[0].shard_images, tables[0].sample) == (4, 100)
    assert tables[0].table.startswith(f"{tmp_path}/_trial-")
    assert list(open_store(str(tmp_path)).list()) == []
    assert (found.trial_images, found.images_per_second, found.nodes) == (100, pytest.approx(4), 2)
    assert found.hours == pytest.approx(10 + 30 / 3600)  # 30 s beside the labelling
    assert found.price == pytest.approx(found.hours * 2 * 3)
    assert found.hours_interval == (pytest.approx(found.hours), pytest.approx(found.hours))
