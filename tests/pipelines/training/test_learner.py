"""What a worker trains: the same weights however micro-batches are dealt, and whenever training was interrupted.

Where several workers matter they are real processes: this file, run as a script, is one of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pipelines.training.learner
from detr.classes import Category
from detr.config import IMAGE_MEAN, IMAGE_STD, BackboneConfig, DetrConfig
from detr.model import Detr
from detr.training.criterion import criterion
from detr.training.matcher import Target
from pipelines.errors import RayDetrError
from pipelines.training.batch import TrainBatch
from pipelines.training.learner import Learner, StepResult, empty_network
from pipelines.training.order import served_readers
from pipelines.training.recipe import Recipe

ROOT = Path(__file__).parents[3]
STEPS = 20
TINY = DetrConfig(
    backbone=BackboneConfig(name="tiny", block="basic", stem_width=8, stage_widths=(8, 16), depths=(1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward_dim=32,
    dropout=0.1,
    queries=6,
    categories=(Category(7, "ball"), Category(40, "cube"), Category(1000, "cone")),
)
RECIPE = Recipe(
    epochs=2, lr=1e-3, lr_backbone=1e-4, lr_drop=1, effective_batch=4, batch_size=2, dropout=0.0, ema_decay=0.9, seed=3
)
NORMS = replace(TINY, backbone=replace(TINY.backbone, norm="batch"))
WITH_NORMS = replace(RECIPE, freeze_backbone="none", warm_losses=True, one_shape_a_batch=True, crop=0.0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run of 20 steps: `readers[step]` says which virtual readers have a micro-batch in it."""

    recipe: Recipe
    readers: Sequence[Sequence[int]]


CASES = {
    "even": Case(RECIPE, [(0, 1)] * STEPS),
    # 3 micro-batches on 2 workers; and in every fourth step one, so that the second worker has none
    "uneven": Case(replace(RECIPE, effective_batch=6), [(0,) if step % 4 == 3 else (0, 1, 2) for step in range(STEPS)]),
    "dropout": Case(replace(RECIPE, effective_batch=8, dropout=0.3), [(0, 1, 2, 3)] * STEPS),
}


# where the second worker runs out of memory: it serves the micro-batches 1 and 3
NO_MEMORY = {"first forward": 1, "last forward": 2, "first backward": 1}
# the reader whose micro-batch has a NaN in it: workers serve 0 and 2, 1 and 3
NAN = {"first worker": 0, "second worker": 1, "last micro-batch": 2}


def drawn_batch(step: int, reader: int, *, images: int = 2, padded: bool = True) -> TrainBatch:
    """Noise with boxes anywhere; in every seventh micro-batch without any."""
    generator = torch.Generator().manual_seed(1000 * step + reader)
    extents = torch.tensor([[32, 48]] * images)
    if padded:
        extents[-1] = torch.tensor([28, 40])
    counts = [0 if (step + reader) % 7 == 6 else 1 + (step + index) % 3 for index in range(images)]
    targets = []
    for count in counts:
        centres = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        sizes = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
        targets.append(Target(torch.randint(3, (count,), generator=generator), torch.cat((centres, sizes), dim=1)))
    return TrainBatch(
        torch.randint(256, (images, 3, 32, 48), generator=generator, dtype=torch.uint8),
        extents,
        tuple(targets),
        tuple(100 * step + 10 * reader + index for index in range(images)),
        reader=reader,
        step=step,
    )


def boxes(batches: Sequence[TrainBatch]) -> int:
    return sum(len(target.labels) for batch in batches for target in batch.targets)


def learner_of(recipe: Recipe, *, workers: int = 1, config: DetrConfig = TINY) -> Learner:
    norm = config.backbone.norm == "batch"
    return Learner(empty_network(config, seed=5), recipe, device=CPU, workers=workers, trainable_norm=norm)


def take(learner: Learner, case: Case, steps: range, *, worker: int = 0) -> list[StepResult]:
    """Take steps with the micro-batches that the worker serves."""
    results = []
    for step in steps:
        every = [drawn_batch(step, reader) for reader in case.readers[step]]
        served = served_readers(worker, learner.workers, case.recipe.micro_batches)
        own = [batch for batch in every if batch.reader in served]
        results.append(
            learner.begin_step(
                own, step=step, num_boxes=boxes(every) / len(every), micro_batches=len(every), factor=1.0 - step / 40
            ).result()
        )
    return results


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def take_with_norms(learner: Learner, worker: int) -> None:
    """Take steps with norms that are trained, on micro-batches without padding."""
    for step in range(3):
        batch = drawn_batch(step, worker, padded=False)
        learner.begin_step([batch], step=step, num_boxes=3.0, micro_batches=2, factor=1.0).result()


def run_workers(task: str, folder: Path, *, seconds: float) -> list[str]:
    """Run two workers; return what they said. They meet by a file, so no port is needed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, task, str(rank), str(folder)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=seconds) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return [out for out, _ in outputs]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two real workers left their weights of every case."""
    folder = tmp_path_factory.mktemp("two-workers")
    run_workers("cases", folder, seconds=120)
    return folder


def left_by(folder: Path, case: str, rank: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    tensors = safetensors.torch.load_file(folder / f"{case}-{rank}.safetensors")
    losses: list[dict[str, float]] = json.loads((folder / f"{case}-{rank}.json").read_text())
    return tensors, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_workers_are_one(two_workers: Path, name: str) -> None:
    case = CASES[name]
    alone = learner_of(case.recipe)

    results = take(alone, case, range(STEPS))

    first, first_losses = left_by(two_workers, name, 0)
    second, second_losses = left_by(two_workers, name, 1)
    weights = {tensor: value for tensor, value in first.items() if not tensor.startswith("optimizer.")}
    assert all(torch.equal(value, second[tensor]) for tensor, value in weights.items())  # they never part
    # sums of float32 in another order, carried on by 20 steps of AdamW; a weight moves by 1e-3 a step
    assert largest_difference(alone.tensors(), first) < 2e-4
    for result, one, other in zip(results, first_losses, second_losses, strict=True):
        both = {part: one.get(part, 0.0) + other.get(part, 0.0) for part in result.parts}
        assert both == pytest.approx(dict(result.parts), rel=1e-3, abs=1e-4)
        assert one["gradient_norm"] == other["gradient_norm"] == pytest.approx(result.gradient_norm, rel=1e-3)


@pytest.mark.slow
def test_a_worker_without_micro_batches_has_no_losses_and_the_same_weights(two_workers: Path) -> None:
    first, first_losses = left_by(two_workers, "uneven", 0)
    second, second_losses = left_by(two_workers, "uneven", 1)

    assert set(second_losses[3]) == {"gradient_norm"}
    assert second_losses[3]["gradient_norm"] == first_losses[3]["gradient_norm"] > 0
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_workers_are_the_mean_of_their_losses_in_plain_pytorch(two_workers: Path) -> None:
    """One process, nothing of ours but network and criterion: the losses of both workers added, halved, stepped."""
    network = empty_network(replace(TINY, dropout=0.0), seed=5).train()
    named = dict(network.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(not name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1")))
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    groups = [
        {"params": [parameter for name, parameter in trained.items() if ("backbone" in name) == slow], "full": rate}
        for slow, rate in ((False, 1e-3), (True, 1e-4))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=1e-4, fused=False)
    losses, box_parts, joined_box_parts = [], [], []

    for step in range(STEPS):
        batches = [drawn_batch(step, 0), drawn_batch(step, 1)]
        local = [plain_losses(network, batch, num_boxes=boxes(batches) / 2) for batch in batches]
        total = sum(one.total for one in local) / 2
        total.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (1.0 - step / 40)
        # the box terms of the two are those of one batch of four, at the same weights
        with torch.no_grad():
            joined = plain_losses(network, joined_batch(batches), num_boxes=boxes(batches))
        box_parts.append([sum(float(one.parts[part].detach()) for one in local) / 2 for part in BOX_PARTS])
        joined_box_parts.append([float(joined.parts[part]) for part in BOX_PARTS])
        losses.append(float(total.detach()))
        optimizer.step()
        optimizer.zero_grad()

    found, first_losses = left_by(two_workers, "even", 0)
    _, second_losses = left_by(two_workers, "even", 1)
    # rounding only: 8e-8 of the losses, 8e-6 of the weights were measured
    assert [(a["loss"] + b["loss"]) / 2 for a, b in zip(first_losses, second_losses, strict=True)] == pytest.approx(
        losses, rel=1e-5
    )
    expected = {name: parameter.detach() for name, parameter in trained.items()}
    assert largest_difference(expected, {name: found[f"module.network.{name}"] for name in expected}) < 5e-5
    for both, joined_parts in zip(box_parts, joined_box_parts, strict=True):
        assert both == pytest.approx(joined_parts, rel=1e-5)


@pytest.mark.slow
def test_workers_have_the_same_statistics_of_trained_norms_for_they_evaluate_together(two_workers: Path) -> None:
    first, second = (safetensors.torch.load_file(two_workers / f"norms-{rank}.safetensors") for rank in range(2))
    alone = learner_of(WITH_NORMS, config=NORMS)
    take_with_norms(alone, 0)

    seen = {name for name in first if name.endswith(("running_mean", "running_var"))}
    assert len(seen) > 10
    assert [name for name in seen if not torch.equal(first[name], second[name])] == []
    assert not any(torch.equal(first[name], alone.tensors()[name]) for name in seen)  # it is no one worker's


BOX_PARTS = ("loss_bbox", "loss_giou", "loss_bbox_0", "loss_giou_0")


def plain_losses(network: Detr, batch: TrainBatch, *, num_boxes: float):  # type: ignore[no-untyped-def]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = (batch.pixels / 255 - mean) / std
    padding = torch.ones((len(pixels), *pixels.shape[2:]), dtype=torch.bool)
    for index, (height, width) in enumerate(batch.extents.tolist()):
        padding[index, :height, :width] = False
    pixels = pixels.masked_fill(padding[:, None], 0)
    return criterion(network(pixels, padding, padding="plain"), batch.targets, num_boxes=num_boxes)


def joined_batch(batches: Sequence[TrainBatch]) -> TrainBatch:
    return replace(
        batches[0],
        pixels=torch.cat([batch.pixels for batch in batches]),
        extents=torch.cat([batch.extents for batch in batches]),
        targets=tuple(target for batch in batches for target in batch.targets),
    )


@pytest.fixture(scope="module")
def two_workers_with_nan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two real workers left what they knew after one of them met a NaN; none may wait for ever."""
    folder = tmp_path_factory.mktemp("nan")
    run_workers("nan", folder, seconds=90)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", NAN)
def test_a_nan_at_one_worker_stops_both_and_names_its_image(two_workers_with_nan: Path, task: str) -> None:
    told = [json.loads((two_workers_with_nan / f"{task}-{rank}.json").read_text()) for rank in range(2)]

    guilty, other = (told[1], told[0]) if NAN[task] == 1 else (told[0], told[1])
    assert guilty["diverged"][0] == [200 + 10 * NAN[task] + 1]
    assert "matching cost is NaN or infinite" in guilty["diverged"][1]
    assert other["diverged"] is None
    assert [one["is_finite"] for one in told] == [False, False]
    assert [one["is_unchanged"] for one in told] == [True, True]


@pytest.fixture(scope="module")
def two_workers_without_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two real workers left what they knew after the second ran out of memory in a forward pass."""
    folder = tmp_path_factory.mktemp("memory")
    run_workers("memory", folder, seconds=120)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", NO_MEMORY)
def test_out_of_memory_at_one_worker_ends_both(two_workers_without_memory: Path, task: str) -> None:
    told = [json.loads((two_workers_without_memory / f"{task}-{rank}.json").read_text()) for rank in range(2)]

    assert told[1]["out_of_memory"] == "a micro-batch of 2 images, padded to 32 x 48 pixels, does not fit"
    assert told[0]["out_of_memory"] is None
    assert [one["is_finite"] for one in told] == [False, False]
    assert [one["is_unchanged"] for one in told] == [True, True]


@pytest.mark.slow
def test_out_of_memory_while_gradients_are_averaged_is_raised_and_frees_the_peer(tmp_path: Path) -> None:
    """The worker cannot take part any more: it ends, and with its connections the waiting of its peer."""
    outputs = run_workers("averaging", tmp_path, seconds=120)

    assert outputs[1] == "OutOfDeviceMemory: a micro-batch of 2 images, padded to 32 x 48 pixels, does not fit\n"
    assert outputs[0].startswith("RuntimeError: ")


def test_one_step_less_and_one_more_is_the_same_to_the_bit() -> None:
    case = CASES["dropout"]
    straight = learner_of(case.recipe)
    take(straight, case, range(6))

    before = learner_of(case.recipe)
    take(before, case, range(4))
    saved = safetensors.torch.load(safetensors.torch.save(before.tensors()))
    after = learner_of(case.recipe)
    after.restore(saved, source="4")
    take(after, case, range(4, 6))

    assert_equal(after.tensors(), straight.tensors())
    assert_equal(dict(after.kept.state_dict()), dict(straight.kept.state_dict()))
    assert after.kept is not after.network  # an average


def test_a_trainable_norm_and_dense_losses_go_on_to_the_bit() -> None:
    batches = [drawn_batch(step, 0, padded=False) for step in range(4)]

    def go_on(learner: Learner, steps: range) -> None:
        for step in steps:
            learner.begin_step(
                [batches[step]], step=step, num_boxes=boxes([batches[step]]), micro_batches=1, factor=1.0
            ).result()

    straight, before, after = (learner_of(WITH_NORMS, config=NORMS) for _ in range(3))
    go_on(straight, range(4))
    go_on(before, range(2))
    after.restore(safetensors.torch.load(safetensors.torch.save(before.tensors())), source="2")
    go_on(after, range(2, 4))

    assert_equal(after.tensors(), straight.tensors())
    assert float(after.tensors()["module.network.backbone.0.body.bn1.num_batches_tracked"]) == 4
    assert after.trainable_norm


def test_a_checkpoint_of_the_beginning_has_nothing_to_restore() -> None:
    learner = learner_of(RECIPE)
    before = learner.tensors()

    learner.restore({}, source="0")

    assert_equal(learner.tensors(), before)


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        (replace(RECIPE, ema_decay=0.0), replace(TINY, queries=7)),
        (replace(RECIPE, freeze_backbone="none"), TINY),
        (RECIPE, replace(TINY, categories=TINY.categories[:2])),
    ],
)
def test_tensors_of_another_network_or_recipe_are_refused(recipe: Recipe, config: DetrConfig) -> None:
    tensors = learner_of(RECIPE).tensors()

    with pytest.raises(RayDetrError, match="checkpoint s3://runs/a/000000004 does not fit the run: "):
        learner_of(recipe, config=config).restore(tensors, source="s3://runs/a/000000004")


def test_the_tensors_are_copies() -> None:
    case = CASES["even"]
    learner = learner_of(case.recipe)
    taken = learner.tensors()
    kept = {name: value.clone() for name, value in taken.items()}

    take(learner, case, range(1))

    assert_equal(taken, kept)
    assert not torch.equal(
        learner.tensors()["module.network.class_embed.bias"], kept["module.network.class_embed.bias"]
    )


@pytest.mark.parametrize("aux_loss", [True, False])
@pytest.mark.parametrize("warm_losses", [True, False])
def test_the_names_of_the_parts_are_known_before_any_step(aux_loss: bool, warm_losses: bool) -> None:
    recipe = replace(RECIPE, aux_loss=aux_loss, warm_losses=warm_losses, one_shape_a_batch=True, crop=0.0)
    learner = learner_of(recipe)

    result = learner.begin_step(
        [drawn_batch(0, 0, padded=False)], step=0, num_boxes=2.0, micro_batches=1, factor=1.0
    ).result()

    assert sorted(result.parts) == sorted(learner.part_names)
    assert all(isinstance(value, float) for value in result.parts.values())


def test_parts_are_sums_over_micro_batches() -> None:
    batches = [drawn_batch(0, 0), drawn_batch(0, 1)]
    apart = [
        learner_of(RECIPE)
        .begin_step([batch], step=0, num_boxes=boxes(batches) / 2, micro_batches=2, factor=1.0)
        .result()
        for batch in batches
    ]

    together = (
        learner_of(RECIPE)
        .begin_step(batches, step=0, num_boxes=boxes(batches) / 2, micro_batches=2, factor=1.0)
        .result()
    )

    assert together.micro_batches == 2
    for name, value in together.parts.items():
        assert value == pytest.approx(apart[0].parts[name] + apart[1].parts[name], rel=1e-6), name


def test_a_norm_that_overflows_changes_nothing_and_is_reported() -> None:
    learner = learner_of(replace(RECIPE, bbox_loss_coef=1e38))
    before = learner.tensors()

    result = learner.begin_step([drawn_batch(0, 0)], step=0, num_boxes=2.0, micro_batches=1, factor=1.0).result()

    assert not torch.tensor(result.gradient_norm).isfinite()
    assert_equal(learner.tensors(), before)


def test_a_backbone_of_rate_zero_is_frozen() -> None:
    learner = learner_of(replace(RECIPE, lr_backbone=0.0))

    trained = [name for name, parameter in learner.network.named_parameters() if parameter.requires_grad]

    assert trained
    assert not [name for name in trained if name.startswith("backbone.")]


def test_an_empty_network_is_a_function_of_its_seed_and_leaves_chance_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    one, same, other = (empty_network(TINY, seed=seed).state_dict() for seed in (4, 4, 5))

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["query_embed.weight"], other["query_embed.weight"])


class OlderDDP(DistributedDataParallel):
    """DDP with the arguments that it has in torch 2.11."""

    def __init__(
        self, module: nn.Module, *, broadcast_buffers: bool = True, gradient_as_bucket_view: bool = False
    ) -> None:
        super().__init__(module, gradient_as_bucket_view=gradient_as_bucket_view)
        self.broadcast_buffers = broadcast_buffers


@pytest.mark.parametrize("kind", [DistributedDataParallel, OlderDDP])
def test_several_workers_start_with_the_ddp_of_every_torch_and_do_not_broadcast_buffers(
    kind: type[DistributedDataParallel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.training.learner, "DistributedDataParallel", kind)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        trained = learner_of(RECIPE, workers=2)._trained
    finally:
        dist.destroy_process_group()

    assert isinstance(trained, kind)
    assert trained.broadcast_buffers is False


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def main(task: str, rank: int, folder: Path) -> None:
    """Be one of two workers."""
    torch.set_num_threads(1)
    seconds = 100 if task == "cases" else 30
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=seconds)
    )
    if task == "cases":
        for name, case in CASES.items():
            learner = learner_of(case.recipe, workers=2)
            results = take(learner, case, range(STEPS), worker=rank)
            safetensors.torch.save_file(learner.tensors(), folder / f"{name}-{rank}.safetensors")
            lines = [{**result.parts, "gradient_norm": result.gradient_norm} for result in results]
            (folder / f"{name}-{rank}.json").write_text(json.dumps(lines))
        learner = learner_of(WITH_NORMS, workers=2, config=NORMS)
        take_with_norms(learner, rank)
        safetensors.torch.save_file(learner.tensors(), folder / f"norms-{rank}.safetensors")
    elif task == "memory":
        for place in NO_MEMORY:
            run_out_of_memory(place, rank, folder)
    elif task == "averaging":
        fail_while_averaging(rank)
        return
    else:
        for nan in NAN:
            meet_nan(nan, rank, folder)
    dist.barrier()
    dist.destroy_process_group()


def meet_nan(task: str, rank: int, folder: Path) -> None:
    """Take two good steps and one where a box of image 1 of a micro-batch is NaN; say what is known after it."""
    case = CASES["dropout"]
    learner = learner_of(case.recipe, workers=2)
    take(learner, case, range(2), worker=rank)
    before = learner.tensors()
    every = [drawn_batch(2, reader) for reader in case.readers[2]]
    every[NAN[task]].targets[1].boxes_cxcywh[0, 2] = torch.nan
    own = [batch for batch in every if batch.reader % 2 == rank]

    result = learner.begin_step(own, step=2, num_boxes=boxes(every) / 4, micro_batches=4, factor=1.0).result()

    tell(result, learner, before, folder / f"{task}-{rank}.json")


def run_out_of_memory(task: str, rank: int, folder: Path) -> None:
    """Take two good steps and one in which the second worker runs out of memory; say what is known after it."""
    case = CASES["dropout"]
    learner = learner_of(case.recipe, workers=2)
    take(learner, case, range(2), worker=rank)
    before = learner.tensors()
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == NO_MEMORY[task]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if rank == 1 and task.endswith("forward"):
        learner.network.register_forward_pre_hook(fail)
    elif rank == 1:
        learner.network.query_embed.weight.register_hook(fail)

    every = [drawn_batch(2, reader) for reader in case.readers[2]]
    own = [batch for batch in every if batch.reader % 2 == rank]
    result = learner.begin_step(own, step=2, num_boxes=boxes(every) / 4, micro_batches=4, factor=1.0).result()

    tell(result, learner, before, folder / f"{task}-{rank}.json")


def fail_while_averaging(rank: int) -> None:
    """Run out of memory in the second worker's only backward pass; say how both end."""
    learner = learner_of(RECIPE, workers=2)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if rank == 1:
        learner.network.query_embed.weight.register_hook(fail)
    try:
        learner.begin_step([drawn_batch(0, rank)], step=0, num_boxes=2.0, micro_batches=2, factor=1.0).result()
    except RuntimeError as error:
        sys.stdout.write(f"{type(error).__name__}: {str(error).splitlines()[0]}\n")
        sys.stdout.flush()
    os._exit(0)  # as a worker that Ray ends: nothing is said to the peer


def tell(result: StepResult, learner: Learner, before: Mapping[str, Tensor], path: Path) -> None:
    after = learner.tensors()
    told = {
        "diverged": result.diverged,
        "out_of_memory": result.out_of_memory,
        "is_finite": bool(torch.tensor(result.gradient_norm).isfinite()),
        "is_unchanged": all(torch.equal(value, after[name]) for name, value in before.items()),
    }
    path.write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
