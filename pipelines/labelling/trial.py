"""Predict speed, hours and price of a run by labelling a few random images."""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import stdev
from typing import Final

from pipelines.clock import SystemClock
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.lease import current_holder
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress
from pipelines.labelling.writer_process import this_process
from pipelines.store import Store, StoreEntry, StoreError, join_uri, open_store

_logger = logging.getLogger(__name__)

FOLDER: Final = "_trial-"  # below the table; readers ignore folders that begin with `_`
OLD_SECONDS: Final = 86_400.0  # after which a folder that no process writes was left by a killed trial
SHARDS: Final = 24  # number of shards of a trial, to measure the variation of its speed
MOST_SHARD_IMAGES: Final = 64
DEVIATIONS: Final = 2.1  # of the mean, for 95 % with about twenty shards
LEAST_SHARDS: Final = 4  # that must end while nearly all actors are busy
BUSY_SHARE: Final = 0.75  # share of the largest number of shards in progress
SLICES: Final = 8  # parts of the time in which nearly all actors are busy, whose speeds are compared


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted speed, time and price of a run, with 95 % intervals from the trial, without differences between days.

    Attributes:
        trial_images: number of labelled images.
        images_per_second: of the current cluster, while labelling.
        images_per_second_interval: lowest and highest.
        hours: of the run, including its start.
        hours_interval: lowest and highest.
        nodes: number of nodes that can hold an actor.
        price: of these nodes for these hours; None without a price.
        price_interval: lowest and highest.
    """

    trial_images: int
    images_per_second: float
    images_per_second_interval: tuple[float, float]
    hours: float
    hours_interval: tuple[float, float]
    nodes: int
    price: float | None
    price_interval: tuple[float, float] | None


def predict(config: LabelConfig, *, images: int, on_progress: Callable[[Progress], None] | None = None) -> Prediction:
    """Label `config.sample` images into a temporary folder below `config.table`, and predict a run of `images`.

    All written objects are deleted, even if the trial is interrupted; those of a killed trial by a later one.

    Args:
        config: That of the run, with the size of the sample.
        images: Number of images in the plan.
        on_progress: As for `label`.

    Raises:
        RayDetrError: the trial cannot continue; the run could not either.
    """
    assert config.sample is not None
    folder = f"{FOLDER}{secrets.token_hex(8)}"
    done: list[DoneShard] = []

    def on_shard(_run_id: str, report: ShardReport) -> None:
        done.append(DoneShard(time.monotonic(), report.images, report.seconds))

    trial = replace(
        config,
        table=f"{config.table.rstrip('/')}/{folder}",
        shard_images=max(1, min(MOST_SHARD_IMAGES, config.sample // SHARDS)),
    )
    table = open_store(config.table, config.table_options)
    try:
        _delete_left_folders(table, config)
    except StoreError as refused:
        _logger.warning("folders of earlier trials could not be looked for or deleted: %s", refused)
    try:
        summary = label(trial, on_progress=on_progress, on_shard=on_shard)
    finally:
        try:
            for entry in list(table.list(f"{folder}/")):
                table.delete(entry.key)
        except StoreError as refused:
            _logger.warning(
                "the trial's folder %s could not be deleted; delete it yourself: %s",
                join_uri(table.uri, folder),
                refused,
            )
    rate, error = steady_rate(done, labelling_seconds=summary.labelling_seconds)
    overhead = max(0.0, summary.seconds - summary.images_this_start / rate)
    slow, fast = max(rate - DEVIATIONS * error, rate / 10), rate + DEVIATIONS * error

    def hours(images_per_second: float) -> float:
        return (overhead + images / images_per_second) / 3600

    per_hour = None if config.caps.price_per_hour is None else config.caps.price_per_hour * summary.nodes
    return Prediction(
        trial_images=summary.images_this_start,
        images_per_second=rate,
        images_per_second_interval=(slow, fast),
        hours=hours(rate),
        hours_interval=(hours(fast), hours(slow)),
        nodes=summary.nodes,
        price=None if per_hour is None else hours(rate) * per_hour,
        price_interval=None if per_hour is None else (hours(fast) * per_hour, hours(slow) * per_hour),
    )


def _delete_left_folders(table: Store, config: LabelConfig) -> None:
    """Delete the folders of trials that were killed: no process writes them, and nothing in them is new.

    Other folders with such names, as of a table `_trial-new-model`, stay.
    """
    folders: dict[str, list[StoreEntry]] = {}
    for entry in table.list(FOLDER):
        folder, slash, _ = entry.key.partition("/")
        if slash and re.fullmatch(rf"{FOLDER}[0-9a-f]{{16}}", folder):
            folders.setdefault(folder, []).append(entry)
    now = SystemClock().now()
    for folder, entries in folders.items():
        if not all(entry.modified is not None and now.timestamp() - entry.modified > OLD_SECONDS for entry in entries):
            continue
        uri = f"{config.table.rstrip('/')}/{folder}"
        if current_holder(open_store(uri, config.table_options), this_process(), now) is None:
            for entry in entries:
                table.delete(entry.key)
            _logger.warning("deleted %s, the folder of a trial that was killed", join_uri(table.uri, folder))


@dataclass(frozen=True, slots=True)
class DoneShard:
    """A shard of the trial: when it was finished (seconds), its images, and the time an actor took for it."""

    at: float
    images: int
    seconds: float

    @property
    def began(self) -> float:
        """The time at which an actor began it."""
        return self.at - self.seconds


def steady_window(done: Sequence[DoneShard]) -> tuple[float, float] | None:
    """Return start and end of the time in which nearly all actors were busy; None if it is too short to measure speed.

    It begins after the first shard has ended, because before that actors start and load the model, once per run, and
    when three quarters of the largest number of shards are in progress: other actors may start later. It ends when the
    last shard begins, or when the number falls permanently, for example to one shard that is repeated because its actor
    died.
    """
    if not done:
        return None
    changes = sorted([(one.began, 1) for one in done] + [(one.at, -1) for one in done])  # ends come before begins
    in_work = list(accumulate(change for _, change in changes))
    enough = BUSY_SHARE * max(in_work)
    busy = [number for number, count in enumerate(in_work) if count >= enough]
    start = max(min(one.at for one in done), changes[busy[0]][0])
    end = min(max(one.began for one in done), changes[min(busy[-1] + 1, len(changes) - 1)][0])
    return (start, end) if sum(start < one.at <= end for one in done) >= LEAST_SHARDS else None


def images_between(done: Sequence[DoneShard], start: float, end: float) -> float:
    """Return how many images were labelled between two times; shards in progress count in part.

    Counting whole shards when they end would count too many: those of several actors end in rounds.
    """
    return sum(one.images * max(0.0, min(one.at, end) - max(one.began, start)) / max(one.seconds, 1e-9) for one in done)


def steady_rate(done: Sequence[DoneShard], *, labelling_seconds: float) -> tuple[float, float]:
    """Return the images/s while nearly all actors were busy, and its standard error.

    The error is the larger of two: from the differences between shards, and from the variation of the total speed.

    Args:
        done: the shards of a trial.
        labelling_seconds: of the whole trial, used if there are too few shards.
    """
    window = steady_window(done)
    if window is None:
        rate = sum(one.images for one in done) / max(labelling_seconds, 1e-9)
        return rate, rate / 2
    start, end = window
    rate = images_between(done, start, end) / (end - start)
    within = [one for one in done if start < one.at]
    seconds = sum(one.seconds for one in within)
    an_image = seconds / sum(one.images for one in within)
    squares = sum((one.seconds - an_image * one.images) ** 2 for one in within)
    of_shards = rate * math.sqrt(squares) / seconds
    step = (end - start) / SLICES
    speeds = [
        images_between(done, start + number * step, start + (number + 1) * step) / step for number in range(SLICES)
    ]
    return rate, max(of_shards, stdev(speeds) / math.sqrt(SLICES))
