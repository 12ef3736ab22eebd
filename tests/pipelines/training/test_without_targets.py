"""Shards on which nothing could be learnt are refused before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from detr.classes import Category
from pipelines.errors import RayDetrError
from pipelines.shards.reader import ShardIndex, write_index
from pipelines.store import open_store
from pipelines.training.config import TrainConfig
from pipelines.training.train import train


@pytest.mark.parametrize(
    "report",
    [
        {"annotations": 6, "undeclared_categories": 6},  # of an earlier release
        {"annotations": 6, "crowds": 6},
        {"annotations": 6, "usable_annotations": 0, "undeclared_categories": 6},
        {},
    ],
)
def test_shards_without_a_box_that_can_be_trained_on_are_refused(report: dict[str, int], tmp_path: Path) -> None:
    examples = {"undeclared_categories": ("1.jpg, annotation 1: 0",)} if "undeclared_categories" in report else {}
    index = ShardIndex((), (Category(1, "cat"),), 3, report.get("annotations", 0), {}, report=report, examples=examples)
    write_index(open_store(str(tmp_path / "shards")), index)
    config = TrainConfig(str(tmp_path / "shards"), str(tmp_path / "runs"), "first", finetune="scenes")

    said = r"has \d annotations, none of which can be used for training" + (
        ": 1.jpg, annotation 1: 0" if examples else ""
    )
    with pytest.raises(RayDetrError, match=said):
        train(config)
    assert not (tmp_path / "runs").exists()
