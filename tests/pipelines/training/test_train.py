"""Training runs as a whole: how many workers a cluster gets, what comes out, and what an interruption changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import detr
from detr.scenes.files import write_scenes
from pipelines.caps import Caps, Meter
from pipelines.errors import CapReached, RayDetrError
from pipelines.evaluation.evaluate import evaluate_results
from pipelines.models import load_model
from pipelines.report.config import TrainingReportConfig
from pipelines.report.training import write_training_report
from pipelines.shards.config import ShardConfig
from pipelines.shards.sharding import shard
from pipelines.store import StoreOptions, open_store
from pipelines.training.checkpoints import latest_checkpoint
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES, Recipe
from pipelines.training.run_status import TrainProgress
from pipelines.training.train import TrainSummary, train

ROOT = Path(__file__).parents[3]
IMAGES = 24
CATEGORY_IDS = (7, 40, 1000, 3, 12, 5000)
RECIPE = replace(
    RECIPES["finetune"],
    epochs=2,
    lr_drop=1,
    effective_batch=4,
    batch_size=2,
    dropout=0.1,
    augmentation="scenes",
    scale_phases=((1.0, (96, 128)),),
    sized_for=0,
)
STEPS = 12  # six an epoch


@dataclass(frozen=True)
class Data:
    """A folder with pictures, their json and shards."""

    folder: Path
    truth: Path
    shards: str
    runs: str


@pytest.fixture(scope="module")
def data(local_ray: str, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Two dozen scenes, whose category ids have gaps and are not in order."""
    folder = tmp_path_factory.mktemp("scenes")
    truth = write_scenes(folder / "pictures", IMAGES, 5, sizes={(96, 128): 1, (128, 96): 1})
    content = json.loads(truth.read_text())
    new = dict(zip([category["id"] for category in content["categories"]], CATEGORY_IDS, strict=True))
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]
    truth.write_text(json.dumps(content))
    shard(ShardConfig(annotations=str(truth), images=str(folder / "pictures"), out=str(folder / "shards")))
    return Data(folder / "pictures", truth, str(folder / "shards"), str(folder / "runs"))


def config_of(data: Data, name: str, recipe: Recipe = RECIPE, **others: Any) -> TrainConfig:
    workers = others.pop("workers", 2)
    return TrainConfig(
        train=data.shards,
        storage=data.runs,
        name=name,
        recipe=recipe,
        recipe_name="finetune",
        finetune="scenes",
        shorter=96,
        longest=160,
        workers=(workers, workers),
        device="cpu",
        log_steps=1,
        **others,
    )


@pytest.fixture(scope="module")
def straight(data: Data) -> TrainSummary:
    """A run of two workers that nothing happened to."""
    return train(config_of(data, "straight", val=data.shards))


def weights(data: Data, name: str) -> dict[str, torch.Tensor]:
    return dict(detr.load(f"{data.runs}/{name}/model").state_dict())


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def logged_steps(data: Data, name: str) -> list[list[int]]:
    """The steps of each file of the log, earlier starts first."""
    files = sorted(Path(data.runs, name, "logs").glob("steps-*.jsonl"))
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [[line["step"] for line in file if "loss" in line] for file in lines]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_gives_a_model_with_the_names_and_ids_of_the_json(data: Data, straight: TrainSummary) -> None:
    assert (straight.epochs, straight.steps, straight.starts, straight.resumed) == (2, STEPS, (0,), False)
    expected = [(item["id"], item["name"]) for item in json.loads(data.truth.read_text())["categories"]]
    assert [number for number, _ in expected] == list(CATEGORY_IDS)
    for place in (f"{data.runs}/straight/model", f"{data.runs}/straight/checkpoints/{straight.checkpoint}"):
        assert [(item.id, item.name) for item in detr.load(place).config.categories] == expected
    model, info = load_model(straight.model, StoreOptions())  # as the labelling job does
    assert [(item.id, item.name) for item in info.categories] == expected
    assert (model.config.shorter, model.config.longest) == (96, 160)


@pytest.mark.ray
@pytest.mark.slow
def test_the_weights_have_moved(data: Data, straight: TrainSummary) -> None:
    trained, begun = weights(data, "straight"), dict(detr.load("scenes").state_dict())

    moved = {name for name, value in trained.items() if not torch.equal(value, begun[name])}

    assert {"class_embed.weight", "query_embed.weight", "backbone.0.body.layer3.0.conv1.weight"} <= moved
    assert not {name for name in moved if name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1"))}


@pytest.mark.ray
@pytest.mark.slow
def test_every_step_is_logged_once(data: Data, straight: TrainSummary) -> None:
    assert logged_steps(data, "straight") == [list(range(1, STEPS + 1))]


@pytest.mark.ray
@pytest.mark.slow
def test_the_report_shows_what_the_run_logged_and_what_its_model_finds(
    data: Data, straight: TrainSummary, tmp_path: Path
) -> None:
    summary = write_training_report(TrainingReportConfig(straight.run, tmp_path / "training.html", pictures=4))

    html = (tmp_path / "training.html").read_text()
    assert straight.metrics is not None
    assert (summary.epochs, summary.steps, summary.pictures, summary.problem) == (2, STEPS, 4, None)
    assert straight.metrics["AP"] == summary.AP
    assert f"<dt>best AP</dt><dd>{straight.metrics['AP']:.3f}</dd>" in html
    assert "<dt>worker restarts</dt><dd>0</dd>" in html
    assert all(title in html for title in ("AP over epochs", "Learning rates (logarithmic)", "Images per second"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_epochs_and_ends_as_one_that_had_them_from_the_beginning(
    data: Data, straight: TrainSummary
) -> None:
    said: list[str] = []
    short = train(config_of(data, "extended", replace(RECIPE, epochs=1), val=data.shards))

    longer = train(config_of(data, "extended", val=data.shards), say=said.append)

    assert (short.epochs, longer.epochs, longer.starts, longer.was_finished) == (1, 2, (STEPS // 2,), False)
    assert "the run was finished after 1 epochs; it continues to 2" in said
    assert largest_difference(weights(data, "extended"), weights(data, "straight")) < 1e-5
    assert train(config_of(data, "extended", val=data.shards)).was_finished


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_command_finds_nothing_to_do(data: Data, straight: TrainSummary) -> None:
    again = train(config_of(data, "straight", val=data.shards))

    assert again.was_finished
    assert (again.checkpoint, again.metrics, again.steps) == (straight.checkpoint, straight.metrics, STEPS)


def losses(data: Data, name: str) -> list[float]:
    (file,) = Path(data.runs, name, "logs").glob("steps-*.jsonl")
    return [line["loss"] for line in map(json.loads, file.read_text().splitlines()) if "loss" in line]


@pytest.mark.ray
@pytest.mark.slow
def test_gradient_checkpointing_takes_the_same_steps(data: Data, straight: TrainSummary) -> None:
    train(config_of(data, "checkpointing", val=data.shards, gradient_checkpointing=True))

    assert losses(data, "checkpointing") == pytest.approx(losses(data, "straight"), rel=1e-5)
    assert len(losses(data, "checkpointing")) == STEPS
    assert largest_difference(weights(data, "checkpointing"), weights(data, "straight")) < 1e-5


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "difference"),
    [
        ({"recipe": replace(RECIPE, lr=2e-4)}, "lr 0.0001, now 0.0002"),
        ({"recipe": replace(RECIPE, longest=640)}, "train longest 1333, now 640"),
        ({"val": None}, "val"),
    ],
)
def test_another_configuration_is_refused(
    data: Data, straight: TrainSummary, others: dict[str, Any], difference: str
) -> None:
    with pytest.raises(RayDetrError, match=r"run straight exists with another configuration") as raised:
        train(config_of(data, "straight", **{"val": data.shards, **others}))

    assert difference in str(raised.value)


@pytest.mark.ray
@pytest.mark.slow
def test_the_figure_is_that_of_the_evaluation(data: Data, straight: TrainSummary, tmp_path: Path) -> None:
    detector = detr.Detector(f"{data.runs}/straight/model", device="cpu", threshold=0.0)
    images = json.loads(data.truth.read_text())["images"]
    rows = []
    for image in images:
        found = detector(data.folder / image["file_name"])
        for number, score, (xmin, ymin, xmax, ymax) in zip(
            found.category_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
        ):
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            rows.append({"image_id": image["id"], "category_id": number, "score": score, "bbox": box})
    (tmp_path / "results.json").write_text(json.dumps(rows))

    measured = evaluate_results(str(tmp_path / "results.json"), str(data.truth))

    metrics = json.loads(Path(data.runs, "straight", "model", "metrics.json").read_text())
    assert metrics["images"] == IMAGES
    assert metrics["AP"] == pytest.approx(measured.average_precision.AP, abs=1e-4)
    assert metrics["AP50"] == pytest.approx(measured.average_precision.AP50, abs=1e-4)
    assert metrics["AP"] > 0.02  # of something, that is


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults
def test_a_worker_that_is_killed_costs_time_and_nothing_else(data: Data, straight: TrainSummary) -> None:
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            folders = Path(data.runs, "killed", "checkpoints").glob("*")
            if any(int(folder.name.partition("-")[0]) >= 2 for folder in folders):
                killed.append(_kill_a_worker())
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = train(config_of(data, "killed", checkpoint_minutes=1e-6))
    thread.join()

    assert killed
    assert (summary.epochs, summary.steps) == (2, STEPS)
    first, second = summary.starts
    assert first == 0
    assert 1 <= second < STEPS
    before, after = logged_steps(data, "killed")
    assert before[:second] == list(range(1, second + 1))
    assert after == list(range(second + 1, STEPS + 1))
    last = Path(data.runs, "straight", "checkpoints", _last(data, "straight"))
    assert largest_difference(weights(data, "killed"), dict(detr.load(last).state_dict())) < 1e-6


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_diverges_names_the_images_and_keeps_its_checkpoint(local_ray: str, data: Data) -> None:
    line = [
        *("--train", data.shards, "--storage", data.runs, "--name", "diverged", "--finetune", "scenes"),
        *(
            "--recipe",
            "finetune",
            "--augmentation",
            "none",
            "--shorter",
            "96",
            "--longest",
            "160",
            "--num-workers",
            "2",
        ),
        *("--lr", "1e30", "--clip-max-norm", "0", "--effective-batch", "4", "--device", "cpu"),
    ]
    environment = {**os.environ, "RAY_ADDRESS": local_ray, "RAY_AUTH_MODE": "disabled"}

    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", *line],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (1, "")
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: training diverged in epoch 0, step 1: ")
    ids = sentence.partition("Images of that micro-batch: ")[2].partition(".")[0]
    assert {int(number) for number in ids.split(", ")} <= set(range(1, IMAGES + 1))
    assert "Traceback" not in done.stderr
    kept = latest_checkpoint(open_store(f"{data.runs}/diverged"))
    assert kept is not None
    assert all(value.isfinite().all() for value in weights_of(f"{data.runs}/diverged/checkpoints/{kept.name}"))


def weights_of(place: str) -> Sequence[torch.Tensor]:
    return list(detr.load(place).state_dict().values())


def _last(data: Data, name: str) -> str:
    saved = latest_checkpoint(open_store(f"{data.runs}/{name}"))
    assert saved is not None
    return saved.name


def _kill_a_worker() -> int:
    """Kill one of the training workers of the Ray that these tests started, and no other; return its number."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended since
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    for number in parents:
        with contextlib.suppress(OSError):
            if os.getpid() in _ancestors(number, parents) and b"RayTrainWorker" in _command(number):
                os.kill(number, signal.SIGKILL)
                return number
    raise AssertionError("no worker is there to be killed")


def _ancestors(number: int, parents: Mapping[int, int]) -> list[int]:
    found = []
    while number in parents:
        number = parents[number]
        found.append(number)
    return found


def _command(number: int) -> bytes:
    return Path(f"/proc/{number}/cmdline").read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_a_limit_stops_behind_a_checkpoint_and_the_same_call_resumes(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(Caps(max_minutes=1_000, price_per_hour=7.2))
    config = config_of(data, "capped", recipe=replace(RECIPE, epochs=8), evaluate_epochs=0)

    def stop(progress: TrainProgress) -> None:
        if progress.step and not meter.reached.is_set():
            meter.caps = Caps(max_minutes=1e-9, price_per_hour=7.2)
            meter.look()

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.training.train.metering", lambda caps: contextlib.nullcontext(meter))
        patched.setattr("pipelines.training.ray_trainer.POLL_SECONDS", 0.02)  # a fast machine ends the run meanwhile
        with pytest.raises(CapReached) as reached:
            train(config, on_progress=stop)

    saved = latest_checkpoint(open_store(f"{data.runs}/capped"))
    assert saved is not None
    assert 1 <= saved.step < 48
    details = reached.value.details
    assert (details["step"], details["nodes"]) == (saved.step, 1)
    assert details["cost"] == pytest.approx(7.2 * meter.node_hours)
    assert meter.node_hours > 0
    assert str(reached.value) == (
        "the limit of 1e-09 minutes (--max-minutes) is reached. The newest checkpoint is from step "
        f"{saved.step}. Run the same command again to resume."
    )
    summary = train(replace(config, caps=Caps(price_per_hour=7.2)))
    assert (summary.resumed, summary.steps, summary.starts) == (True, 48, (saved.step,))
    assert summary.nodes == 1
    assert summary.cost == pytest.approx(7.2 * summary.node_hours)
    assert 0 < summary.node_hours < summary.seconds / 3600
    assert logged_steps(data, "capped") == [list(range(1, saved.step + 1)), list(range(saved.step + 1, 49))]
