"""Reads the figures that a training run logged as JSON lines in its folder."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipelines.store import Store
from pipelines.training.run_record import damaged
from pipelines.training.training_log import LOGS

_FILE: Final = re.compile(r"steps-(?P<first>\d+)-(?P<start>.+)-(?P<claim>\d+)\.jsonl")
_KEPT: Final = re.compile(
    r"step|epoch|loss|loss_(ce|bbox|giou)|lr_\w+|gradient_norm|images_per_second|data_wait_share|gpu_memory_gib"
)


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """A start of the workers in the log.

    Attributes:
        command: identifies the execution of the command; if it has several starts, workers were lost.
        first_step: first step of this start.
        last_step: last logged step; `first_step - 1` if no step was logged.
        first_time: time of the first line, ISO 8601; None without lines.
        last_time: time of the last line.
    """

    command: str
    first_step: int
    last_step: int
    first_time: str | None
    last_time: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of an evaluation after `epoch` epochs, by pycocotools' names."""

    step: int
    epoch: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LoggedFigures:
    """The log of a run, without the steps that were repeated after a restart.

    Attributes:
        lines: numbers by name for each line, in the order of steps: `step`, `epoch` (from 0), and means since the
            previous line. Of the losses, only the total and the parts of the last decoder layer. NaN if not finite.
        steps: number of steps of each line.
        evaluations: evaluations in the order of steps.
        starts: starts of the workers in order.
    """

    lines: Sequence[Mapping[str, float]]
    steps: Sequence[int]
    evaluations: Sequence[Evaluation]
    starts: Sequence[WorkerStart]

    @property
    def mean_rates(self) -> tuple[float | None, float | None]:
        """Return images per second of all workers, and the share of time that they waited for data.

        Both are means over the duration of the steps, for steps with equal numbers of images. None without lines.
        """
        timed = [
            (line, steps / line["images_per_second"])
            for line, steps in zip(self.lines, self.steps, strict=True)
            if line["images_per_second"] > 0
        ]
        if not timed:
            return None, None
        total = sum(time for _, time in timed)
        rate = sum(time * line["images_per_second"] for line, time in timed) / total
        return rate, sum(time * line["data_wait_share"] for line, time in timed) / total


def read_logged(store: Store) -> LoggedFigures:
    """Read the log of a run. Memory: 1.4 kB for each line, and one file of the log.

    A start repeats the steps after its checkpoint; its lines replace those of earlier starts.

    Args:
        store: The run's directory.

    Raises:
        RayDetrError: a file of the log is damaged.
        StoreError: the store refused or did not answer.
    """
    files = []
    for entry in store.list(LOGS + "steps-"):
        name = _FILE.fullmatch(entry.key.removeprefix(LOGS))
        if name is not None:
            files.append((int(name["claim"]), int(name["first"]), name["start"], entry.key))
    trained: dict[int, tuple[dict[str, float], int]] = {}  # by step: the line, and its number of steps
    evaluated: dict[int, Mapping[str, float]] = {}
    starts: dict[int, WorkerStart] = {}
    for claim, first, start, key in sorted(files):
        if claim not in starts:
            starts[claim] = WorkerStart(start, first, first - 1, None, None)
            trained = {step: line for step, line in trained.items() if step < first}
            evaluated = {step: figures for step, figures in evaluated.items() if step < first}
        before = starts[claim].last_step
        for line in _lines(store, key):
            step = int(line["step"])
            figures = {name[4:]: _number(value) for name, value in line.items() if name.startswith("val/")}
            if figures:
                evaluated[step] = figures
            else:
                numbers = {name: _number(value) for name, value in line.items() if _KEPT.fullmatch(name)}
                trained[step] = numbers, step - before
                before = step
            one = starts[claim]
            starts[claim] = WorkerStart(start, one.first_step, before, one.first_time or line["time"], line["time"])
    ordered = sorted(trained)
    return LoggedFigures(
        lines=[trained[step][0] for step in ordered],
        steps=[trained[step][1] for step in ordered],
        evaluations=[Evaluation(step, _epochs(step, ordered, trained), evaluated[step]) for step in sorted(evaluated)],
        starts=list(starts.values()),
    )


def _lines(store: Store, key: str) -> list[dict[str, str]]:
    try:
        lines = [json.loads(text) for text in store.get(key).data.splitlines()]
        is_whole = all({"step", "time"} <= line.keys() for line in lines)
    except (ValueError, AttributeError) as error:
        raise damaged(store, key) from error
    if not is_whole:
        raise damaged(store, key)
    return lines


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _epochs(step: int, ordered: Sequence[int], trained: Mapping[int, tuple[Mapping[str, float], int]]) -> int:
    """Return the number of epochs at the step of an evaluation, which is at the end of an epoch."""
    before = bisect_right(ordered, step)
    return int(trained[ordered[before - 1]][0]["epoch"]) + 1 if before else 0
