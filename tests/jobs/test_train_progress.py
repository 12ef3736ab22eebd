"""How far training is, as a log file sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.train_progress import line, shown_training
from pipelines.training.run_status import TrainProgress

HALF = TrainProgress(
    "train", epoch=1, epochs=12, step=1_500, steps_done=500, steps=1_000, workers=2, images_per_second=31.26,
    losses={"loss": 4.5678},
)  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (TrainProgress("connecting to Ray"), "  connecting to Ray"),
        (TrainProgress("evaluate", epoch=1, steps=10, workers=2), "  evaluate"),
        (TrainProgress("train", epochs=3, workers=1), "  train"),
        (HALF, "  train  epoch 2 of 12  step 500 of 1,000  31.3 images/s  loss 4.568  2 workers"),
        (
            TrainProgress("train", epochs=1, steps=3, workers=1, AP=0.41234, best=0.42),
            "  train  epoch 1 of 1  step 0 of 3  0.0 images/s  AP 0.412 (best 0.420)  1 worker",
        ),
        (
            TrainProgress("train", epochs=1, steps=3, workers=1, AP=-1.0, best=-1.0),
            "  train  epoch 1 of 1  step 0 of 3  0.0 images/s  AP none (best none)  1 worker",
        ),
    ],
)
def test_one_line_says_epoch_step_rate_loss_figure_and_workers(progress: TrainProgress, shown: str) -> None:
    assert line(progress) == shown


def test_a_log_file_gets_stages_and_notes_as_they_come(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as stream, shown_training(stream) as (show, say):
        show(TrainProgress("connecting to Ray"))
        say("the effective batch is 8 images")
        show(TrainProgress("starting workers"))
        show(HALF)
        show(TrainProgress("evaluate"))

    assert log.read_text().splitlines() == [
        "  connecting to Ray",
        "note: the effective batch is 8 images",
        "  starting workers",
        "  evaluate",
    ]
