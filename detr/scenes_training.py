"""Training the embedded default from scratch on drawn scenes: one process, one loop, a budget of time.

The schedule is a function of the share of the budget that is used up, so a run ends when it was said to, however busy
the machine is. What training from scratch needs beyond the paper's criterion is in `detr.warm`.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from detr.augment import augment_scene, transpose
from detr.checkpoint import save
from detr.config import DetrConfig
from detr.criterion import LossWeights, criterion
from detr.hub_config import IMAGE_MEAN, IMAGE_STD
from detr.images import resize, resize_shape
from detr.matcher import Target
from detr.model import Detr
from detr.scenes_pool import RATIO_WEIGHTS, PoolScenes
from detr.warm import dense_loss, position_loss

# (until this share of the budget, shorter sides drawn from, side to be measured at)
PHASES = (
    (0.20, (80, 96, 112), 96),
    (0.50, (96, 128, 144, 160), 144),
    (1.00, (144, 160, 176, 192, 208), 192),
)
LONGEST_SHARE = 5 / 3  # of the shorter side, the proportion of 1333 to 800
# with the paper's class weight of 1 boxes were learned while classes stayed near chance; matching keeps its costs
LOSS_WEIGHTS = LossWeights(classification=5)
POSITION_WEIGHT = 3.0
RATE, BACKBONE_RATE = 8e-4, 1.6e-3  # the backbone's is higher, since it starts from nothing
WEIGHT_DECAY = 1e-4
CLIP_NORM = 0.5  # far below the raw norm of 15 to 60: in effect a normalised gradient
WARM_UP_STEPS = 150
CONSTANT_SHARE = 0.40  # of the budget at full rate, then a cosine
LAST_RATE = 0.01  # of the full one
EMA_DECAY = 0.998


@dataclass(frozen=True, slots=True)
class ScenesTraining:
    """How long and from which seed; checkpoints hold it, and only the budget may differ on resume."""

    budget_seconds: float = 7500.0
    seed: int = 0
    micro_batches: int = 3  # each of one shape of its own
    micro_batch_images: int = 16
    log_seconds: float = 60.0
    checkpoint_seconds: float = 600.0
    evaluate_seconds: float = 900.0

    def __post_init__(self) -> None:
        if self.budget_seconds <= 0 or self.micro_batches < 1 or self.micro_batch_images < 1:
            raise ValueError("budget_seconds, micro_batches and micro_batch_images must be positive")


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one shape: `pixels` `(B, 3, H, W)` float32, normalised, without padding, and their targets."""

    pixels: Tensor
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the loop tells now and then: what it has used up, and the mean of each loss since it last told."""

    step: int
    images: int
    seconds: float
    share: float
    rate_factor: float
    losses: Mapping[str, float]
    cpu_ms_per_image: float


def rate_factor(share: float, step: int) -> float:
    """Return what the learning rates are multiplied by, from the used share of the budget and the step."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    if share <= CONSTANT_SHARE:
        return warm
    falling = min(1.0, (share - CONSTANT_SHARE) / (1 - CONSTANT_SHARE))
    return warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * falling)))


def phase(share: float) -> tuple[tuple[int, ...], int]:
    """Return the shorter sides to draw from and the side to measure at."""
    for end, sides, measured in PHASES:
        if share < end:
            return sides, measured
    return PHASES[-1][1:]


def draw_batch(pool: Sequence[PoolScenes], images: int, sides: Sequence[int], generator: Generator) -> Batch:
    """Draw `images` augmented scenes of one random ratio, orientation and side."""
    weights = torch.tensor(RATIO_WEIGHTS[: len(pool)], dtype=torch.float32)
    scenes = pool[int(torch.multinomial(weights, 1, generator=generator))]
    side = sides[int(torch.randint(len(sides), (), generator=generator))]
    portrait = bool(torch.rand((), generator=generator) < 0.5)
    height, width = resize_shape(*scenes.images.shape[1:3], shorter=side, longest=int(side * LONGEST_SHARE))
    chosen = torch.randint(len(scenes.images), (images,), generator=generator).tolist()
    pictures, targets = [], []
    for index in chosen:
        image = torch.from_numpy(scenes.images[index].copy()).permute(2, 0, 1)
        # small first: every later change then touches fewer pixels, and none of them minds the order
        image, target = augment_scene(resize(image, height, width), scenes.target(index), generator)
        if portrait:
            image, target = transpose(image, target)
        pictures.append(image)
        targets.append(target)
    return Batch(normalise(torch.stack(pictures)), tuple(targets))


def normalise(images: Tensor) -> Tensor:
    """Map uint8 `(B, 3, H, W)` to the float32 that the network takes."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    # channels last: the convolutions take 20 % less time on a CPU
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class Trainer:
    """All state of a run: the network, its moving average, the optimiser and how much of the budget is used."""

    def __init__(self, model_config: DetrConfig, config: ScenesTraining) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        # only the pictures are channels last: fused AdamW needs moments in the layout of the weights, loaded ones too
        self.model = Detr(model_config).train()
        self.position_head = nn.Linear(model_config.hidden_dim, 2)  # thrown away at the end
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        named = list(self.model.named_parameters())
        backbone = [parameter for name, parameter in named if "backbone" in name]
        others = [parameter for name, parameter in named if "backbone" not in name]
        groups = [
            {"params": [*others, *self.position_head.parameters()], "lr": RATE},
            {"params": backbone, "lr": BACKBONE_RATE},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        self.step = 0
        self.images = 0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        """The used share of the budget, 0 to 1."""
        return min(1.0, self.seconds / self.config.budget_seconds)

    def train_step(self, pool: Sequence[PoolScenes]) -> dict[str, float]:
        """Take one step of the optimiser on new batches and return the means of the losses.

        What is drawn depends on the seed and the step alone, so a resumed run draws what it would have drawn.
        """
        config = self.config
        generator = Generator().manual_seed(config.seed * 10**9 + self.step)
        sides, _ = phase(self.share)
        batches = [draw_batch(pool, config.micro_batch_images, sides, generator) for _ in range(config.micro_batches)]
        num_boxes = sum(len(target.labels) for batch in batches for target in batch.targets) / len(batches)

        factor = rate_factor(self.share, self.step)
        for group, rate in zip(self.optimizer.param_groups, (RATE, BACKBONE_RATE), strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad()
        means: dict[str, float] = {}
        for batch in batches:
            total, parts = scene_loss(self.model, self.position_head, batch, num_boxes)
            if not total.isfinite():
                raise FloatingPointError(f"the loss of step {self.step} is {total.item()}: the run has diverged")
            (total / len(batches)).backward()  # type: ignore[no-untyped-call]
            for name, value in parts.items():
                means[name] = means.get(name, 0.0) + float(value) / len(batches)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        means["gradient_norm"] = float(nn.utils.clip_grad_norm_(trained, CLIP_NORM))
        self.optimizer.step()
        self._average()
        self.step += 1
        self.images += config.micro_batches * config.micro_batch_images
        return means

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (20 + self.step))
        current = self.model.state_dict()
        for name, average in self.ema.state_dict().items():
            if average.is_floating_point():  # the batch-norms' statistics as well as the weights
                average.lerp_(current[name], 1 - decay)

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on into one file, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        tensors |= {f"position_head.{name}": value for name, value in self.position_head.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        progress = {"step": self.step, "images": self.images, "seconds": self.seconds, "config": asdict(self.config)}
        partial = path.with_name(f"{path.name}.part")
        save_file(tensors, partial, {"progress": json.dumps(progress)})
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; the budget may be another, and the schedule goes on from its used share.

        Raises:
            ValueError: the checkpoint is of another configuration.
        """
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        mine = asdict(self.config)
        if {**progress["config"], "budget_seconds": self.config.budget_seconds} != mine:
            raise ValueError(
                f"{path} is of another run ({progress['config']}, now {mine}). Give the old values to "
                "resume it, or another folder to start afresh."
            )
        for prefix, module in (("model.", self.model), ("ema.", self.ema), ("position_head.", self.position_head)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step, self.images, self.seconds = progress["step"], progress["images"], progress["seconds"]


def scene_loss(
    model: Detr, position_head: nn.Linear, batch: Batch, num_boxes: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss to be trained and its parts, unweighted: the paper's criterion and the two of `detr.warm`."""
    height, width = batch.pixels.shape[-2:]
    output = model(batch.pixels, None)
    assert output.memory is not None
    losses = criterion(output, batch.targets, num_boxes=num_boxes, weights=LOSS_WEIGHTS)
    tokens = model.transformer.decoder.norm(output.memory)
    dense = dense_loss(
        model.class_embed(tokens),
        model.bbox_embed(tokens).sigmoid(),
        batch.targets,
        height,
        width,
        stride=model.config.backbone.stride,
    )
    position = position_loss(position_head(output.memory).sigmoid(), height, width, stride=model.config.backbone.stride)
    total = (
        losses.total
        + LOSS_WEIGHTS.classification * dense["dense_ce"]
        + LOSS_WEIGHTS.l1 * dense["dense_bbox"]
        + LOSS_WEIGHTS.giou * dense["dense_giou"]
        + POSITION_WEIGHT * position
    )
    return total, {name: value.detach() for name, value in {**losses.parts, **dense, "position": position}.items()}


def train(
    trainer: Trainer,
    pool: Sequence[PoolScenes],
    checkpoint: Path,
    *,
    report: Callable[[Progress], None],
    evaluate: Callable[[Trainer], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until the budget is used up, from wherever `trainer` is; write `checkpoint` now and then and at the end.

    Args:
        trainer: changed in place.
        pool: the scenes.
        checkpoint: the file that `Trainer.load` takes.
        report: called with the means of the losses now and then.
        evaluate: called now and then and at the end.
        clock: seconds; what it passes between two steps is used up.
    """
    config = trainer.config
    told, saved, evaluated = trainer.seconds, trainer.seconds, trainer.seconds
    sums: dict[str, float] = {}
    steps, cpu = 0, time.process_time()
    before = clock()
    while trainer.share < 1:
        for name, value in trainer.train_step(pool).items():
            sums[name] = sums.get(name, 0.0) + value
        steps += 1
        now = clock()
        trainer.seconds, before = trainer.seconds + now - before, now
        if trainer.seconds - told >= config.log_seconds:
            report(_progress(trainer, sums, steps, time.process_time() - cpu))
            sums, steps, cpu, told = {}, 0, time.process_time(), trainer.seconds
        if trainer.seconds - saved >= config.checkpoint_seconds:
            trainer.save(checkpoint)
            saved = trainer.seconds
        if trainer.seconds - evaluated >= config.evaluate_seconds:
            evaluate(trainer)
            evaluated = trainer.seconds
    trainer.save(checkpoint)
    evaluate(trainer)


def _progress(trainer: Trainer, sums: Mapping[str, float], steps: int, cpu_seconds: float) -> Progress:
    images = steps * trainer.config.micro_batches * trainer.config.micro_batch_images
    return Progress(
        step=trainer.step,
        images=trainer.images,
        seconds=trainer.seconds,
        share=trainer.share,
        rate_factor=rate_factor(trainer.share, trainer.step),
        losses={name: value / steps for name, value in sums.items()},
        cpu_ms_per_image=cpu_seconds / images * 1000,
    )


def export(trainer: Trainer, folder: Path) -> Path:
    """Write the moving average as a model directory and return it."""
    save(trainer.ema, folder)
    return folder


def use_threads(count: int) -> None:
    """Compute on `count` threads from now on."""
    torch.set_num_threads(count)
