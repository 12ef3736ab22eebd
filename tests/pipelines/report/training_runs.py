"""A small training run that was really written, without Ray, for the tests of its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path

from detr.checkpoints.checkpoint import dump, load
from detr.classes import Category
from detr.scenes.files import write_scenes
from pipelines.shards.reader import METADATA_PREFIX, SHARD_SCHEMA, SIZES_KEY, ShardFile, ShardIndex, write_index
from pipelines.shards.rows import RowsFile, image_row
from pipelines.store import Store, open_store
from pipelines.training.checkpoints import TrainingPosition
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES
from pipelines.training.training_log import TrainLog
from pipelines.training.training_run import open_run

ROW_GROUPS = (3, 2)  # images
BEGUN = datetime(2026, 11, 22, 11, 58, tzinfo=UTC)
METRICS = {
    "AP": 0.5,
    "AP50": 0.75,
    "AP75": 0.25,
    "classes": [
        {"name": "disc", "AP": 0.5, "annotations": 3},
        {"name": "<b>star", "AP": -1.0, "annotations": 0},
    ],
}


@dataclass
class Ticking:
    """A clock that is a minute later at every question."""

    minute: int = 0

    def now(self) -> datetime:
        self.minute += 1
        return datetime(2026, 11, 22, 12, self.minute, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits")


def log_line(step: int, epoch: int, loss: float, rate: float = 8.0, wait: float = 0.25) -> dict[str, float]:
    return {
        "step": step,
        "epoch": epoch,
        "loss": loss,
        "loss_ce": loss / 2,
        "loss_bbox": loss / 4,
        "loss_giou": loss / 8,
        "loss_ce_0": 9.0,
        "lr_other": 1e-4,
        "lr_backbone": 1e-5,
        "gradient_norm": 3.0,
        "images_per_second": rate,
        "data_wait_share": wait,
    }


def write_log(
    store: Store,
    start_id: str,
    first_step: int,
    lines: Sequence[dict[str, float]],
    evaluations: Sequence[tuple[int, dict[str, float]]] = (),
) -> None:
    """Write the log of one start of the workers; evaluations follow the line of their step."""
    config = TrainConfig(train="s3://shards", storage="s3://runs", name="r50", finetune="scenes")
    with TrainLog(store, config, TrainingPosition(0, 0, first_step - 1), start_id, clock=Ticking()) as log:
        for one in lines:
            log.add(one)
            for step, figures in evaluations:
                if step == one["step"]:
                    log.evaluated(step, figures)


def write_scene_shards(pictures: Path, shards: str) -> None:
    """Write five scenes as one shard with row groups of three and two images."""
    truth = json.loads(write_scenes(pictures, sum(ROW_GROUPS), 5, sizes={(96, 128): 1}).read_text())
    rows = []
    for position, image in enumerate(truth["images"]):
        own = [(place, one) for place, one in enumerate(truth["annotations"]) if one["image_id"] == image["id"]]
        broken = {"id": 900 + position, "image_id": image["id"], "category_id": 1, "bbox": [float("nan"), 2, 9, 9]}
        own.append((900 + position, broken))  # sharding counts such a box, and keeps it
        rows.append(image_row(position, image, own, data=(pictures / image["file_name"]).read_bytes()))
    file, images = RowsFile(SHARD_SCHEMA), iter(rows)
    for count in ROW_GROUPS:
        file.add(list(islice(images, count)))
    data, counts = file.finish({SIZES_KEY.removeprefix(METADATA_PREFIX): json.dumps([(96, 128)] * len(rows))})
    store = open_store(shards)
    store.put("shard-00000.parquet", data)
    written = ShardFile("shard-00000.parquet", len(rows), sha256(data).hexdigest(), len(data), counts)
    categories = tuple(Category(one["id"], one["name"]) for one in truth["categories"])
    write_index(store, ShardIndex((written,), categories, len(rows), len(truth["annotations"]), other={}))


def write_run(folder: Path, *, has_val: bool = True, is_finished: bool = True) -> str:
    """Write shards and a run of two epochs whose workers were lost once; return the run's place."""
    shards = str(folder / "shards")
    write_scene_shards(folder / "pictures", shards)
    config = TrainConfig(
        train=shards,
        val=shards if has_val else None,
        storage=str(folder / "runs"),
        name="first",
        recipe=RECIPES["finetune"],
        finetune="scenes",
    )
    store = open_store(config.run_uri)
    index = sha256((folder / "shards" / "index.json").read_bytes()).hexdigest()
    configuration = {**config.resume_identity(), "train_index": index, "val_index": index if has_val else None}
    run = open_run(store, configuration, start_id="a", now=BEGUN, versions={"torch": "2.14.1"})
    name = run.save(TrainingPosition(2, 0, 4), dump(load("scenes")), {}, trainable_norm=False, keep=1)
    run.set_metrics(name, METRICS)
    if is_finished:
        run.finish()
    first = [log_line(1, 0, 8.0), log_line(2, 0, 6.0), log_line(3, 1, 5.0)]
    write_log(store, "20261122-115800-aaaa-3", 1, first, [(2, {"AP": 0.25, "AP50": 0.5, "AP75": 0.125})])
    again = [log_line(3, 1, 4.0, rate=4.0, wait=0.5), log_line(4, 1, 3.0)]
    write_log(store, "20261122-115800-aaaa-5", 3, again, [(4, {"AP": 0.5, "AP50": 0.75, "AP75": 0.25})])
    return config.run_uri
