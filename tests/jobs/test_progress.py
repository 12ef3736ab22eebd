"""How far a run is, as a log file and a terminal see it."""

from __future__ import annotations

import os
import pty
import time
from pathlib import Path

import pytest

from jobs.progress import line, shown_progress
from pipelines.labelling.progress import Progress, WithUnfinishedShards
from tests.waiting import wait_until

HALF = Progress("label", images=600, images_this_start=400, images_planned=1_200, is_planned=True, errors=25)


@pytest.mark.parametrize(
    ("progress", "seconds", "shown"),
    [
        (Progress("planning"), 0.0, "  planning"),
        (HALF, 100.0, "  label  50.0%  600 of 1,200 images  4.0 images/s  25 errors  2 min 30 s left"),
        (HALF, 10_000.0, "  label  50.0%  600 of 1,200 images  0.0 images/s  25 errors  4 h 10 min left"),
        (HALF, 0.0, "  label  50.0%  600 of 1,200 images  0.0 images/s  25 errors"),
        (
            Progress("label", images=5, images_this_start=5, images_planned=131_072, errors=1),
            10.0,
            "  label  0.0%  5 of more than 131,072 images  0.5 images/s  1 error",
        ),
        (Progress("label"), 3.0, "  label  0 of more than 0 images  0.0 images/s  0 errors"),
        (
            Progress("label", images=12, images_this_start=12, images_planned=12, is_planned=True),
            6.0,
            "  label  100.0%  12 of 12 images  2.0 images/s  0 errors",
        ),
    ],
)
def test_one_line_says_share_images_rate_errors_and_time_left(progress: Progress, seconds: float, shown: str) -> None:
    assert line(progress, seconds) == shown


def test_images_of_earlier_starts_count_as_done_and_not_as_fast() -> None:
    resumed = Progress("label", images=1_000, images_this_start=10, images_planned=1_030, is_planned=True)

    assert line(resumed, 10.0) == "  label  97.1%  1,000 of 1,030 images  1.0 images/s  0 errors  30 s left"


def test_a_log_file_gets_each_stage_once_and_as_it_begins(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream, shown_progress(stream) as show:
        for stage in ("listing images and reading the table", "planning", "planning"):
            show(Progress(stage))
        seen = log.read_text()
        show(HALF)

    assert seen == "  listing images and reading the table\n  planning\n"
    assert log.read_text() == seen  # the figures come with time


def test_a_log_file_gets_the_figures_from_time_to_time_though_nothing_moves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream, shown_progress(stream, line_seconds=0.02) as show:
        show(Progress("label", images=7, images_planned=9, is_planned=True, began=time.monotonic()))
        wait_until(lambda: log.read_text().count("\n") >= 3)

    lines = log.read_text().splitlines()
    assert all(one.startswith("  label  77.8%  7 of 9 images") for one in lines)
    wait_until(lambda: len(log.read_text().splitlines()) == len(lines))  # the thread has ended with the block


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "CI", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    seen = b""
    with os.fdopen(theirs, "w") as terminal:
        with shown_progress(terminal) as show:
            show(Progress("planning"))
            show(Progress("label", 600, 400, 1_200, is_planned=True, began=time.monotonic() - 100))
            while b"600 of 1,200 images" not in seen:
                seen += os.read(ours, 65_536)
        while not seen.endswith(b"\x1b[2K"):  # the bar's line is cleared
            seen += os.read(ours, 65_536)
    os.close(ours)

    assert b"25 errors" not in seen
    assert "━".encode() in seen


def test_an_exception_of_the_run_passes_through(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run() -> None:
        with log.open("w") as stream, shown_progress(stream) as show:
            show(Progress("planning"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert log.read_text() == "  planning\n"


def test_images_of_unfinished_shards_are_counted_once_and_never_taken_back() -> None:
    seen: list[Progress] = []
    progress = WithUnfinishedShards(seen.append)
    progress.show_unfinished(7)  # before anything is labelled: told by nobody
    progress.show_unfinished(0)
    progress.show(Progress("planning"))
    progress.show(Progress("label", images=10, images_this_start=4, images_planned=20))
    progress.show_unfinished(3)
    progress.show_unfinished(0)  # its shard is committed, and told next
    progress.show(Progress("label", images=15, images_this_start=9, images_planned=20))
    progress.show_unfinished(50)  # no more than there are

    assert seen[0] == Progress("planning")
    assert [(one.images, one.images_this_start) for one in seen[1:]] == [(10, 4), (13, 7), (13, 7), (15, 9), (20, 14)]
