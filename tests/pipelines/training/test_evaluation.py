"""The figure of a model while it trains: the same for any number of workers, and a failure is everybody's."""

from __future__ import annotations

import json
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import detr
from detr.classes import Category
from detr.detector import Detector
from detr.evaluation.coco_results import ResultRow, result_rows
from detr.model import Detr
from detr.training.finetune import with_categories
from pipelines.errors import RayDetrError
from pipelines.evaluation.evaluate import evaluate_results
from pipelines.shards.reader import TrainingImage, decode_training_image, read_index
from pipelines.shards.rows import coco_json
from pipelines.store import open_store
from pipelines.training.collective import Collective
from pipelines.training.evaluation import evaluate_on_all
from pipelines.training.row_groups import RowGroups


@dataclass
class Table:
    """Where threads that stand for workers meet."""

    workers: int
    values: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.workers, timeout=30)


class Threads(Collective):
    """An collective between threads."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.workers = table, rank, table.workers

    def gather(self, value: Any) -> list[Any]:
        everywhere = self._exchange(value)
        return everywhere if self.rank == 0 else []

    def broadcast(self, value: Any) -> Any:
        return self._exchange(value)[0]

    def _exchange(self, value: Any) -> list[Any]:
        self.table.values[self.rank] = value
        self.table.barrier.wait()
        values = [self.table.values[rank] for rank in range(self.workers)]
        self.table.barrier.wait()
        return values


class Broken(RowGroups):
    """Row groups of which one has an image that is cut off."""

    def read(self, number: int, **others: Any) -> list[TrainingImage]:
        images = super().read(number, **others)
        return [replace(image, data=image.data[:100]) for image in images] if number == 1 else images


@pytest.fixture(scope="module")
def model() -> Detr:
    embedded, _ = with_categories(detr.load("scenes"), (Category(7, "seven"), Category(9, "nine")))
    embedded.config = replace(embedded.config, shorter=48, longest=80)
    return embedded


def on_workers(count: int, work: Callable[[Collective], Any]) -> list[Any]:
    table = Table(count)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, Threads(table, rank)) for rank in range(count)]
        return [future.exception(timeout=60) or future.result() for future in futures]


def truth_of(folder: str, model: Detr) -> dict[str, Any]:
    """As truth the two best detections of every image by itself, a pixel aside; other boxes than the shards have."""
    store, detector = open_store(folder), Detector(model, device="cpu", threshold=0.0)
    groups = RowGroups(store, read_index(store))
    annotations = []
    for number in range(len(groups.rows)):
        for image in groups.read(number):
            found = detector(decode_training_image(image))
            for category, (xmin, ymin, xmax, ymax) in zip(
                found.category_ids[:2].tolist(), found.boxes_xyxy[:2].tolist(), strict=True
            ):
                box = [xmin + 1, ymin, xmax - xmin, ymax - ymin]
                annotations.append({"image_id": image.image_id, "category_id": category, "bbox": box})
    categories = [{"id": 7, "name": "seven"}, {"id": 9, "name": "nine"}]
    return {"images": coco_json(store)["images"], "annotations": annotations, "categories": categories}


def rows_of(folder: str, model: Detr) -> list[ResultRow]:
    store, detector = open_store(folder), Detector(model, device="cpu", threshold=0.0)
    groups = RowGroups(store, read_index(store))
    rows: list[ResultRow] = []
    for number in range(len(groups.rows)):
        for image in groups.read(number):
            found = detector(decode_training_image(image))
            rows += result_rows(
                image.image_id, found.category_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist()
            )
    return rows


def evaluate(
    folder: str, model: Detr, count: int, truth: dict[str, Any] | None = None, kind: type[RowGroups] = RowGroups
) -> list[Any]:
    store = open_store(folder)
    groups = kind(store, read_index(store))

    def work(collective: Collective) -> Any:
        own = (truth or {}) if collective.rank == 0 else None
        return evaluate_on_all(model, groups, own, collective, device="cpu", precision="fp32")

    return on_workers(count, work)


def test_the_figure_does_not_depend_on_the_workers(drawn_shards: str, model: Detr) -> None:
    truth = truth_of(drawn_shards, model)

    [alone] = evaluate(drawn_shards, model, 1, truth)
    two = evaluate(drawn_shards, model, 2, truth)
    eight = evaluate(drawn_shards, model, 8, truth)  # more than there are row groups

    assert (alone["images"], alone["missing"], alone["missing_examples"]) == (21, 0, [])
    assert {"AP", "AP50", "AR100", "class_agnostic_AP"} < alone.keys()
    assert [(one["category_id"], one["name"]) for one in alone["classes"]] == [(7, "seven"), (9, "nine")]
    assert alone["AP50"] > 0.3  # they are found again, each where it is
    for name in ("AP", "AP50", "AR100", "class_agnostic_AP"):
        assert two[0][name] == pytest.approx(alone[name], abs=1e-6), name
        assert eight[0][name] == pytest.approx(alone[name], abs=1e-6), name
    assert two[1:] == [None]
    assert eight[1:] == [None] * 7


def test_the_detections_that_rank_0_gathers_take_little_memory(
    drawn_shards: str, model: Detr, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = truth_of(drawn_shards, model)
    sent: list[bytes] = []
    gather = Threads.gather

    def gathered(collective: Threads, value: Any) -> list[Any]:
        sent.append(pickle.dumps(value))
        return gather(collective, value)

    monkeypatch.setattr(Threads, "gather", gathered)
    evaluate(drawn_shards, model, 2, truth)

    tracemalloc.start()
    try:
        received = [pickle.loads(one) for one in sent]  # noqa: S301 - written above
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    detections = 21 * model.config.queries
    assert len(received) == 2
    assert held < 100 * detections  # a dict for each takes 400 bytes


def test_images_that_the_shards_could_not_take_are_missed_as_an_evaluation_by_the_json_says(
    drawn_shards: str, model: Detr, tmp_path: Path
) -> None:
    truth = truth_of(drawn_shards, model)
    lost = [{"id": 1000 + n, "file_name": f"lost-{n}.jpg", "height": 48, "width": 64} for n in range(5)]
    truth["images"] += lost
    truth["annotations"] += [{"image_id": image["id"], "category_id": 7, "bbox": [4, 8, 10, 16]} for image in lost]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(rows_of(drawn_shards, model)))

    [found, _] = evaluate(drawn_shards, model, 2, truth)

    assert (found["images"], found["missing"]) == (26, 5)
    assert found["missing_examples"] == ["lost-0.jpg", "lost-1.jpg", "lost-2.jpg"]
    official = evaluate_results(str(tmp_path / "results.json"), str(tmp_path / "truth.json"))
    assert found["annotations_sha256"] == official.annotations_sha256
    for name, value in official.average_precision.numbers().items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_the_model_stays_as_it_is(drawn_shards: str, model: Detr) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()

    evaluate(drawn_shards, model, 1, truth_of(drawn_shards, model))

    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


def test_an_image_that_cannot_be_read_stops_every_worker(drawn_shards: str, model: Detr) -> None:
    found = evaluate(drawn_shards, model, 2, kind=Broken)

    assert [type(one) for one in found] == [RayDetrError, RayDetrError]
    assert len({str(one) for one in found}) == 1
    assert str(found[0]).startswith("image 104 (4.jpg) cannot be decoded: ")


def test_a_network_that_gives_nan_stops_every_worker(drawn_shards: str, model: Detr) -> None:
    broken, _ = with_categories(model, model.config.categories)
    torch.nn.init.constant_(broken.class_embed.bias, torch.nan)

    found = evaluate(drawn_shards, broken, 2)

    assert [type(one) for one in found] == [RayDetrError, RayDetrError]
    assert "the model cannot be evaluated: " in str(found[1])
