"""Predicts speed, hours and price of a run from labelling a few images that are drawn at random."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress
from pipelines.store import StoreError, join_uri, open_store

_logger = logging.getLogger(__name__)

FOLDER: Final = "_trial-"  # below the table; readers take no folder that begins with `_` for data
SHARDS: Final = 24  # that a trial is cut into, so that its speed is seen to vary
MOST_SHARD_IMAGES: Final = 64
DEVIATIONS: Final = 2.1  # of the mean, for 95 % with some twenty shards
LEAST_SHARDS: Final = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run will take, with 95 % intervals of the trial's variation; they know nothing of other days.

    Attributes:
        trial_images: that were labelled.
        images_per_second: of the cluster as it is, while it labels.
        images_per_second_interval: lowest and highest.
        hours: of the run, its start included.
        hours_interval: lowest and highest.
        nodes: that could hold an actor.
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
    """Label `config.sample` images into a temporary place below `config.table`, and predict a run of `images`.

    Everything that was written is deleted, also when the trial is interrupted.

    Args:
        config: As of the run, but with the size of the sample.
        images: Of the plan.
        on_progress: As of `label`.

    Raises:
        RayDetrError: the run could not go on either.
    """
    assert config.sample is not None
    folder = f"{FOLDER}{secrets.token_hex(8)}"
    done: list[tuple[float, int]] = []

    def on_shard(_run_id: str, report: ShardReport) -> None:
        done.append((time.monotonic(), report.images))

    trial = replace(
        config,
        table=f"{config.table.rstrip('/')}/{folder}",
        shard_images=max(1, min(MOST_SHARD_IMAGES, config.sample // SHARDS)),
    )
    table = open_store(config.table, config.table_options)
    try:
        summary = label(trial, on_progress=on_progress, on_shard=on_shard)
    finally:
        try:
            for entry in list(table.list(f"{folder}/")):
                table.delete(entry.key)
        except StoreError as refused:
            _logger.warning("delete the trial's folder %s yourself: %s", join_uri(table.uri, folder), refused)
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


def steady_rate(done: Sequence[tuple[float, int]], *, labelling_seconds: float) -> tuple[float, float]:
    """Return the images/s between the first and the last shard, and its standard error.

    The first shard waits for actors and the model, which a long run does once.

    Args:
        done: when each shard was done (seconds), and its images.
        labelling_seconds: of the whole, which is taken where there are too few shards.
    """
    total = sum(images for _, images in done)
    if len(done) < LEAST_SHARDS or done[-1][0] <= done[0][0]:
        rate = total / max(labelling_seconds, 1e-9)
        return rate, rate / 2
    steps = [(after[0] - before[0], after[1]) for before, after in itertools.pairwise(done)]
    seconds = sum(step for step, _ in steps)
    rate = sum(images for _, images in steps) / seconds
    squares = sum((images - rate * step) ** 2 for step, images in steps)
    return rate, math.sqrt(squares) / seconds
