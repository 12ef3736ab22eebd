"""Training on a simulated GPU: no mix of devices, the values of the CPU, and one wait of the host a micro-batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import detr.training.step
import pipelines.training.learner
from detr.classes import Category
from detr.config import BackboneConfig, DetrConfig
from detr.training.matcher import Target
from pipelines.training.batch import TrainBatch
from pipelines.training.evaluation import evaluate_on_all
from pipelines.training.learner import Learner, StepResult, empty_network
from pipelines.training.pinning import pinned_batches
from pipelines.training.recipe import RECIPES, Recipe
from tests.device.simulated_cuda import DEVICE, SimulatedCuda, SimulatedTensor, moved_by_ddp, running

CPU = torch.device("cpu")
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
    shorter=48,
    longest=96,
)
NORMS = replace(TINY, backbone=replace(TINY.backbone, norm="batch"))


@dataclass(frozen=True)
class Case:
    """A recipe, and what the steps are taken with."""

    recipe: Recipe
    config: DetrConfig = TINY
    padded: bool = True
    micro_batches: int = 1
    options: dict[str, Any] = field(default_factory=dict)


PAPER = replace(RECIPES["paper-300"], lr=1e-3, lr_backbone=1e-4)
CASES = {
    "paper": Case(PAPER),
    "finetune": Case(replace(RECIPES["finetune"], lr=1e-3)),
    "scenes": Case(replace(RECIPES["scenes"], warm_up_steps=0), NORMS, padded=False),  # dense losses, norms, average
    "without padding": Case(PAPER, padded=False),
    "average": Case(replace(PAPER, ema_decay=0.9)),
    "bf16": Case(replace(PAPER, bf16=True)),
    "scenes in bf16": Case(replace(RECIPES["scenes"], warm_up_steps=0, bf16=True), NORMS, padded=False),
    "accumulated": Case(PAPER, micro_batches=3),
    "trained norms": Case(replace(PAPER, freeze_backbone="none"), NORMS),
    "frozen backbone": Case(replace(PAPER, lr_backbone=0.0)),
    "without clipping": Case(replace(PAPER, clip_max_norm=0.0)),
    "last layer only": Case(replace(PAPER, aux_loss=False)),
}
STEPS = 3


def drawn_batch(step: int, reader: int, *, padded: bool) -> TrainBatch:
    """Two images of noise with boxes anywhere; the second batch has none in its second image."""
    generator = torch.Generator().manual_seed(1000 * step + reader)
    extents = torch.tensor([[32, 48], [28, 40] if padded else [32, 48]])
    targets = []
    for count in (2, 0 if step % 3 == 1 else 3):
        boxes = torch.cat(
            (
                0.3 + 0.4 * torch.rand(count, 2, generator=generator),
                0.1 + 0.4 * torch.rand(count, 2, generator=generator),
            ),
            dim=1,
        )
        targets.append(Target(torch.randint(3, (count,), generator=generator), boxes))
    pixels = torch.randint(256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    return TrainBatch(pixels, extents, tuple(targets), (10 * step, 10 * step + 1), reader=reader, step=step)


def learner_of(case: Case, device: torch.device, **options: Any) -> Learner:
    norm = case.config.backbone.norm == "batch"
    network = empty_network(case.config, seed=5)
    return Learner(network, case.recipe, device=device, trainable_norm=norm, **options)


def pinned(batches: Sequence[TrainBatch], device: torch.device) -> list[TrainBatch]:
    """The batches as a worker is given them."""
    return list(batches) if device == CPU else next(pinned_batches(one for one in [list(batches)]))


def take(learner: Learner, case: Case, steps: range) -> list[StepResult]:
    """Take steps as a worker does: what one gave is read after the next was begun."""
    results, pending = [], None
    for step in steps:
        batches = [drawn_batch(step, reader, padded=case.padded) for reader in range(case.micro_batches)]
        boxes = sum(len(target.labels) for batch in batches for target in batch.targets)
        begun = learner.begin_step(
            pinned(batches, learner.device),
            step=step,
            num_boxes=boxes / len(batches),
            micro_batches=len(batches),
            factor=1 - step / 10,
        )
        if pending is not None:
            results.append(pending.result())
        pending = begun
    return results if pending is None else [*results, pending.result()]


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> tuple[list[StepResult], dict[str, Tensor]]:
    """What the CPU makes of a case, computed before the simulation begins."""
    case = CASES[request.getfixturevalue("name")]
    learner = learner_of(case, CPU)
    return take(learner, case, range(STEPS)), learner.tensors()


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_as_on_the_cpu(
    name: str, expected: tuple[list[StepResult], dict[str, Tensor]], cuda: SimulatedCuda
) -> None:
    case = CASES[name]
    results, tensors = expected

    learner = learner_of(case, cuda.device)
    found = take(learner, case, range(STEPS))

    assert all(parameter.device == cuda.device for parameter in learner.module.parameters())
    assert found == results
    after = learner.tensors()
    assert after.keys() == tensors.keys()
    assert [one for one, value in tensors.items() if not torch.equal(after[one], value)] == []


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_once_a_micro_batch_for_the_matching_costs(name: str, cuda: SimulatedCuda) -> None:
    case = CASES[name]
    learner = learner_of(case, cuda.device)
    take(learner, case, range(1))
    cuda.reset()

    take(learner, case, range(1, 6))

    # besides, the last of the five steps is waited for, because none follows
    assert dict(cuda.waits) == {"download": 5 * case.micro_batches, "event": 1}
    assert {line.partition(":")[0] for kind, line in cuda.lines if kind == "download"} == {"detr/training/matcher.py"}


def test_an_optimiser_that_is_not_fused_waits_once_more_to_see_whether_the_norm_is_finite(cuda: SimulatedCuda) -> None:
    learner = learner_of(CASES["paper"], cuda.device, fused=False)
    take(learner, CASES["paper"], range(1))
    cuda.reset()

    take(learner, CASES["paper"], range(1, 6))

    # besides, the last of the five steps is waited for, because none follows
    assert dict(cuda.waits) == {"download": 5, "bool": 5, "event": 1}


def test_a_batch_is_uploaded_in_two_copies(cuda: SimulatedCuda) -> None:
    learner = learner_of(CASES["paper"], cuda.device)
    cuda.reset()

    take(learner, CASES["paper"], range(1))

    pixels = 2 * 3 * 32 * 48
    packed = 4 * 2 * (3 + 5 * 3)  # float32: two images; number, height, width and up to three labels and boxes each
    pairs = 8 * 4 * 2 * 5  # int64: layer, image, query, target of five pairs at each of two layers
    assert cuda.copies["upload"] == pixels + packed + pairs


def test_a_batch_without_any_object_does_not_wait_more(cuda: SimulatedCuda) -> None:
    learner = learner_of(CASES["paper"], cuda.device)
    none = Target(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    batch = replace(drawn_batch(0, 0, padded=True), targets=(none, none))
    cuda.reset()

    result = learner.begin_step(
        pinned([batch], cuda.device), step=0, num_boxes=0.0, micro_batches=1, factor=1.0
    ).result()

    assert math.isfinite(result.gradient_norm)
    assert dict(cuda.waits) == {"download": 1, "event": 1}


def test_a_worker_without_a_micro_batch_takes_part(cuda: SimulatedCuda) -> None:
    learner = learner_of(CASES["paper"], cuda.device)
    before = learner.tensors()
    cuda.reset()

    result = learner.begin_step([], step=0, num_boxes=1.0, micro_batches=2, factor=0.0).result()

    assert result == StepResult({}, 0, 0.0, None)
    assert dict(cuda.waits) == {"event": 1}
    assert torch.equal(
        learner.tensors()["module.network.class_embed.weight"], before["module.network.class_embed.weight"]
    )


@pytest.mark.parametrize("place", ["box", "overflow"])
def test_a_step_that_diverges_changes_nothing_and_names_its_images(place: str, cuda: SimulatedCuda) -> None:
    case = Case(replace(PAPER, ema_decay=0.9, bbox_loss_coef=1e38 if place == "overflow" else 5.0))
    learner = learner_of(case, cuda.device)
    before = learner.tensors()
    batch = drawn_batch(0, 0, padded=True)
    if place == "box":
        batch.targets[1].boxes_cxcywh[0, 2] = torch.nan

    result = learner.begin_step(
        pinned([batch], cuda.device), step=0, num_boxes=5.0, micro_batches=1, factor=1.0
    ).result()

    assert not math.isfinite(result.gradient_norm)
    if place == "box":
        assert result.diverged is not None
        assert result.diverged[0] == (1,)
    after = learner.tensors()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []


@pytest.mark.parametrize("name", ["average", "scenes"])
def test_a_checkpoint_restores_and_goes_on_to_the_bit(name: str, cuda: SimulatedCuda) -> None:
    case = CASES[name]
    straight, before, after = (learner_of(case, cuda.device) for _ in range(3))
    take(straight, case, range(4))
    take(before, case, range(2))

    after.restore(safetensors.torch.load(safetensors.torch.save(before.tensors())), source="2")
    take(after, case, range(2, 4))

    tensors = straight.tensors()
    assert all(value.device.type == "cpu" and type(value) is Tensor for value in tensors.values())
    assert [one for one, value in after.tensors().items() if not torch.equal(value, tensors[one])] == []
    assert all(value.device == cuda.device for state in after.optimizer.state.values() for value in state.values())


class DistributedLike(nn.Module):
    """What DDP does in one process: it moves arguments where `device_ids` says so, and averages over one worker."""

    __signature__ = inspect.signature(DistributedDataParallel)

    def __init__(self, module: nn.Module, *, device_ids: Sequence[torch.device] | None = None, **options: Any) -> None:
        super().__init__()
        self.__signature__.bind(module, device_ids=device_ids, **options)  # raises like the installed DDP
        assert set(options) <= {"gradient_as_bucket_view", "forward_sync_buffers", "broadcast_buffers", "static_graph"}
        self.module, self.device_ids = module, device_ids
        self.syncs: list[bool] = []
        self._is_synced = True

    def no_sync(self) -> Any:
        learner = self

        class Context:
            def __enter__(self) -> None:
                learner._is_synced = False

            def __exit__(self, *_: object) -> None:
                learner._is_synced = True

        return Context()

    def forward(self, *args: Any) -> Any:
        self.syncs.append(self._is_synced)
        return self.module(*(moved_by_ddp(args) if self.device_ids else args))


@pytest.fixture
def ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP's handling of arguments without its buckets, which simulated tensors have no memory for."""
    monkeypatch.setattr(pipelines.training.learner, "DistributedDataParallel", DistributedLike)
    monkeypatch.setattr(detr.training.step, "DistributedDataParallel", DistributedLike)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)


@pytest.mark.parametrize("name", ["paper", "scenes", "accumulated"])
def test_ddp_is_built_and_called_so_that_nothing_mixes(name: str, ddp: None, cuda: SimulatedCuda) -> None:
    case = CASES[name]
    learner = learner_of(case, cuda.device, workers=2)
    assert isinstance(learner._trained, DistributedLike)

    results = take(learner, case, range(1))
    cuda.reset()
    results += take(learner, case, range(1, 3))

    assert all(math.isfinite(result.gradient_norm) for result in results)
    assert dict(cuda.waits) == {"download": 2 * case.micro_batches, "event": 1}
    assert learner._trained.syncs == ([False] * (case.micro_batches - 1) + [True]) * 3


def test_arguments_that_ddp_moves_would_do_no_harm(ddp: None, cuda: SimulatedCuda) -> None:
    """Where somebody gives DDP `device_ids` again: what the host looks at is no tensor."""
    learner = learner_of(CASES["paper"], cuda.device, workers=2)
    assert isinstance(learner._trained, DistributedLike)
    learner._trained.device_ids = [DEVICE]

    [result] = take(learner, CASES["paper"], range(1))

    assert math.isfinite(result.gradient_norm)


class OneWorker:
    """The agreement of a single worker."""

    rank, workers = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


def test_evaluation_while_training_runs_on_the_device(monkeypatch: pytest.MonkeyPatch, cuda: SimulatedCuda) -> None:
    """Up to COCO's numbers: every query of every image, from the weights that are trained, as the CPU finds them."""
    learner = learner_of(CASES["average"], cuda.device)
    take(learner, CASES["average"], range(1))
    seen: list[Any] = []
    monkeypatch.setattr("pipelines.training.evaluation.evaluation_images", lambda *_: iter(images(5)))
    monkeypatch.setattr("pipelines.training.evaluation.decode_training_image", lambda image: image.pixels)
    monkeypatch.setattr("pipelines.training.evaluation.merge_results", lambda parts: seen.extend(parts) or [])
    monkeypatch.setattr("pipelines.training.evaluation.average_precision", stop)

    with pytest.raises(Stop):
        evaluate_on_all(
            learner.kept,
            None,
            {"images": [], "annotations": []},
            OneWorker(),
            device="cuda:0",
            precision="fp32",  # type: ignore[arg-type]
        )

    [part] = seen
    ids, counts = np.unique(part.image_ids, return_counts=True)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert counts.tolist() == [TINY.queries] * 5


class Stop(Exception):
    """The evaluation got as far as COCO's numbers."""


def stop(*_: Any, **__: Any) -> None:
    raise Stop


@dataclass(frozen=True)
class Picture:
    image_id: int
    pixels: Tensor


def images(count: int) -> list[Picture]:
    generator = torch.Generator().manual_seed(0)
    return [
        Picture(index, torch.randint(256, (3, 40 + 8 * (index % 2), 64), generator=generator, dtype=torch.uint8))
        for index in range(count)
    ]


def test_training_and_the_simulation_leave_the_cpu_alone() -> None:
    case = CASES["paper"]
    alone = take(learner_of(case, CPU), case, range(1))

    with running(SimulatedCuda()) as device:
        learner = learner_of(case, device.device)
        assert isinstance(next(learner.module.parameters()), SimulatedTensor)
    again: Callable[[], list[StepResult]] = lambda: take(learner_of(case, CPU), case, range(1))  # noqa: E731

    assert again() == alone
