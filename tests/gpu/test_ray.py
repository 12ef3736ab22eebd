"""Whole commands through Ray with one GPU, and two processes that train on one GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray", reason="pip install ray[data,train]")

ROOT = Path(__file__).parents[2]
SECONDS = 150

pytestmark = pytest.mark.gpu


def run(*command: str) -> str:
    """Run a command in the project's folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 drawn pictures and their json."""
    from detr.scenes.files import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 16, 5, sizes={(96, 128): 1, (128, 96): 1})
    return folder


@pytest.mark.ray
def test_a_labelling_run_gives_the_rows_of_the_cpu(device: torch.device, scenes: Path, tmp_path: Path) -> None:
    import pyarrow.dataset

    tables = {}
    for where in (device.type, "cpu"):
        table = tmp_path / where
        run(
            "-m", "jobs.label", "--images", str(scenes), "--table", str(table), "--model", "scenes", "--device", where,
            "--precision", "fp32",
        )  # fmt: skip
        found = pyarrow.dataset.dataset(f"{table}/data").to_table().sort_by("uri").to_pylist()
        tables[where] = found

    assert len(tables["cpu"]) == 16
    for one, other in zip(tables[device.type], tables["cpu"], strict=True):
        assert one["uri"] == other["uri"]
        assert one["error_kind"] is None
        # near the threshold a rounding decides
        assert abs(len(one["detections"]) - len(other["detections"])) <= 1


@pytest.mark.ray
def test_a_training_run_goes_from_the_first_step_to_its_evaluation(
    device: torch.device, scenes: Path, tmp_path: Path
) -> None:
    [truth] = scenes.glob("*.json")
    shards = str(tmp_path / "shards")
    run("-m", "jobs.shard", "--annotations", str(truth), "--images", str(scenes), "--out", shards)

    printed = run(
        "-m", "jobs.train", "--train", shards, "--val", shards, "--storage", str(tmp_path / "runs"), "--name", "gpu",
        "--finetune", "scenes", "--recipe", "finetune", "--epochs", "1", "--effective-batch", "4", "--batch-size", "2",
        "--augmentation", "scenes", "--scales", "96,128", "--shorter", "96", "--longest", "160",
        "--device", device.type, "--num-workers", "1", "--log-steps", "1", "--bf16", "--json",
    )  # fmt: skip

    summary = json.loads(printed[printed.index("{") :])
    assert summary["steps"] == 4
    assert 0 <= summary["metrics"]["AP"] <= 1


def test_two_processes_on_one_gpu_train_the_same_weights(device: torch.device, tmp_path: Path) -> None:
    """By gloo, which averages gradients of a GPU through CPU memory; NCCL wants a GPU for each process."""
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path), str(device)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()

    assert [worker.returncode for worker in workers] == [0, 0], outputs
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) > 20
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    # of its batches each worker's norms count their own
    assert [name for name in differing if not name.endswith("num_batches_tracked")] == []


def main(rank: int, folder: Path, device: torch.device) -> None:
    """Be one of two workers: three steps, in the last of which only the first worker has a micro-batch."""
    import torch.distributed as dist

    from detr.config import SCENES_CONFIG
    from detr.training.matcher import Target
    from pipelines.training.batch import TrainBatch
    from pipelines.training.learner import Learner, empty_network
    from pipelines.training.recipe import Recipe

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    recipe = Recipe(lr=1e-3, lr_backbone=1e-4, effective_batch=4, batch_size=2, freeze_backbone="none", ema_decay=0.9)
    network = empty_network(SCENES_CONFIG, seed=5)
    learner = Learner(network, recipe, device=device, workers=2, trainable_norm=True)
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        targets = tuple(Target(torch.tensor([image]), torch.tensor([[0.4, 0.5, 0.2, 0.3]])) for image in range(2))
        batch = TrainBatch(
            torch.randint(256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8),
            torch.tensor([[64, 96], [60, 80]]), targets, (0, 1), reader=rank, step=step,
        )  # fmt: skip
        own = [] if step == 2 and rank == 1 else [batch]
        begun = learner.begin_step(own, step=step, num_boxes=2.0, micro_batches=1 if step == 2 else 2, factor=1.0)
        assert torch.tensor(begun.result().gradient_norm).isfinite()
    torch.save(learner.tensors(), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), torch.device(sys.argv[3]))
