"""The speed of a trial, and what is predicted from it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.caps import Caps
from pipelines.errors import RayDetrError
from pipelines.labelling import trial
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import LabelSummary
from pipelines.labelling.lease import holding
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.trial import DoneShard, predict, steady_rate
from pipelines.store import open_store


def one_after_the_other(*seconds: float) -> list[DoneShard]:
    """Return shards of 10 images of one actor, the first of which is done after 100 s."""
    return [DoneShard(100.0 + sum(seconds[1 : number + 1]), 10, taken) for number, taken in enumerate(seconds)]


def test_the_start_is_left_out_and_steady_work_has_no_error() -> None:
    done = one_after_the_other(90.0, *[2.0] * 10)

    assert steady_rate(done, labelling_seconds=120) == (pytest.approx(5), pytest.approx(0))


def test_uneven_work_has_an_error() -> None:
    rate, error = steady_rate(one_after_the_other(1.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 2.0), labelling_seconds=120)

    assert rate == pytest.approx(60 / 12)
    assert rate * 6**0.5 / 14 <= error < rate / 4


def two_actors(*, late: float = 0.0) -> list[DoneShard]:
    """Return shards of 10 images that take two actors 10 s each; the second actor begins `late`."""
    return [DoneShard(20.0 + 10 * number, 10, 10.0) for number in range(12)] + [
        DoneShard(20.0 + late + 10 * number, 10, 10.0) for number in range(12 - int(late // 10))
    ]


def test_an_actor_that_starts_late_counts_from_then_on() -> None:
    assert steady_rate(two_actors(late=60.0), labelling_seconds=1) == (pytest.approx(2), pytest.approx(0))


def test_a_shard_that_is_repeated_alone_after_the_others_does_not_count() -> None:
    repeated = DoneShard(180.0, 10, 10.0)  # after its actor died and a new pool was started

    assert steady_rate([*two_actors(), repeated], labelling_seconds=1) == (pytest.approx(2), pytest.approx(0))


def test_a_speed_that_changes_has_an_error_though_each_shard_takes_as_long() -> None:
    four_then_three = [
        DoneShard(20.0 + 10 * number, 10, 10.0) for actor in range(4) for number in range(12 if actor else 6)
    ]

    rate, error = steady_rate(four_then_three, labelling_seconds=1)

    assert 3 < rate < 4
    assert rate - trial.DEVIATIONS * error < 3.5 < rate + trial.DEVIATIONS * error


def test_too_few_shards_are_a_guess() -> None:
    assert steady_rate(one_after_the_other(90.0, 1.0), labelling_seconds=10) == (2.0, 1.0)
    assert steady_rate([], labelling_seconds=10) == (0.0, 0.0)


@pytest.mark.parametrize("apart", [0.0, 0.01, 1.0, 2.5])
def test_the_speed_is_that_of_all_actors_at_work(apart: float) -> None:
    """Four actors that take 10 s for a shard of 10 images make 4 images/s, in however few rounds."""
    rounds = [DoneShard(20.0 + 10 * number + apart * actor, 10, 10.0) for number in range(4) for actor in range(4)]
    late = DoneShard(60.0, 10, 10.0)  # the first actor works on the last shard alone

    for done in (rounds, [*rounds, late]):
        assert steady_rate(done, labelling_seconds=1) == (pytest.approx(4, rel=0.001), pytest.approx(0))


def test_where_all_shards_begin_at_once_the_speed_is_a_guess() -> None:
    together = [DoneShard(20.0 + number, 10, 15.0) for number in range(8)]

    assert steady_rate(together, labelling_seconds=20) == (4.0, 2.0)


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


def test_the_next_trial_deletes_what_a_killed_one_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def label(*_words: object, **_more: object) -> LabelSummary:
        raise RayDetrError("the cluster is away")

    monkeypatch.setattr(trial, "label", label)
    table = open_store(str(tmp_path))
    left, new, held = (f"_trial-{letter * 16}" for letter in "0af")
    keys = [
        f"{left}/_runs/a.json", f"{left}/data/a.parquet", f"{new}/_runs/a.json", f"{new}/data/a.parquet",
        f"{held}/_runs/a.json", "_trial-new-model/_runs/a/end.json", "_trial-new-model/data/a.parquet",
        "_trial-note", "data/_trial-x.parquet", "data/a.parquet",
    ]  # fmt: skip
    with holding(open_store(str(tmp_path / held)), can_swap=False, token="t", wait_seconds=0.0, say=lambda _: None):
        for key in keys:
            table.put(key, b"x")
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            is_new = path.parent == tmp_path / new / "data"
            os.utime(path, (time.time() - (60 if is_new else 2 * 86_400),) * 2)
        with pytest.raises(RayDetrError):
            predict(LabelConfig(("/lake",), str(tmp_path), "scenes", sample=100), images=9)
        there = {entry.key for entry in table.list()}

    assert {key for key in keys if key not in there} == {f"{left}/_runs/a.json", f"{left}/data/a.parquet"}
    assert [one.getMessage() for one in caplog.records] == [
        f"deleted {table.uri.rstrip('/')}/{left}, the folder of a trial that was killed"
    ]
