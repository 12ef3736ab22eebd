"""What a training step computes: one network and its loss as one module, and one step of the optimiser over it.

Nothing here knows where batches come from or how many processes take part. A step is a set of micro-batches, dealt to
any number of workers; gradients are those of the mean over all micro-batches, however they were dealt.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr.criterion import Losses, LossWeights, criterion
from detr.hub_config import IMAGE_MEAN, IMAGE_STD
from detr.matcher import MatchWeights, NotFinite, Target
from detr.model import Detr, outside
from detr.warm import dense_loss, position_loss

POSITION_WEIGHT = 3.0  # of the position loss of `detr.warm`


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What is added up to the loss.

    Attributes:
        weights: factors of the paper's parts.
        match_weights: factors of the matching costs.
        auxiliary: whether the earlier decoder layers are trained, too.
        warm: whether the two losses of `detr.warm` on the encoder's output are added: for training a small network
            from scratch, on batches without padding. No part of the paper.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    match_weights: MatchWeights = field(default_factory=MatchWeights)
    auxiliary: bool = True
    warm: bool = False


class NetworkWithLoss(nn.Module):
    """A DETR and its loss in one forward, so that a wrapper such as DDP sees one graph.

    Attributes:
        network: the DETR that is trained; its parameters keep its names behind `network.`.
        position_head: only with warm losses; thrown away when training ends.
    """

    def __init__(self, network: Detr, settings: LossSettings, *, bf16: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.bf16 = bf16
        self.position_head = nn.Linear(network.config.hidden_dim, 2) if settings.warm else None
        # not a submodule: names in checkpoints must not depend on it
        self._call = [torch.compile(network, dynamic=True) if compiled else network]
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(
        self, pixels: Tensor | None, extents: Tensor, targets: Sequence[Target], num_boxes: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch, and its unweighted parts by the original's names, detached.

        Args:
            pixels: uint8 `(B, 3, H, W)`, padded to the right and at the bottom; None gives a zero that depends on every
                parameter, for a worker that has nothing to do in a step which its peers take.
            extents: int64 `(B, 2)`, each image's own height and width in pixels; on the CPU.
            targets: one per image, relative to the image without its padding.
            num_boxes: targets of all micro-batches of the step divided by their number.

        Raises:
            NotFinite: a matching cost of an image is NaN or infinite.
        """
        if pixels is None:
            zero = sum((p.sum() for p in self.parameters() if p.requires_grad), start=self.get_buffer("mean").sum())
            return zero * 0, {}
        height, width = pixels.shape[-2:]
        normalised = (pixels - self.get_buffer("mean")) / self.get_buffer("std")
        # channels last: the convolutions take 20 % less time on a CPU, and half precision wants it on a GPU
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        mask = None
        if bool((extents != torch.tensor([height, width])).any()):
            mask = outside(extents.to(pixels.device, non_blocking=True), 1, height, width)
            normalised = normalised * ~mask[:, None]  # the original pads after normalisation
        with self._autocast(pixels.device):
            output = self._call[0](normalised, mask, padding="plain")
        if not self.settings.auxiliary:
            output = replace(output, aux=())
        losses = criterion(
            output,
            targets,
            num_boxes=num_boxes,
            weights=self.settings.weights,
            match_weights=self.settings.match_weights,
        )
        if self.position_head is None:
            return losses.total, _detached(losses.parts)
        assert mask is None, "the warm losses need batches without padding"
        assert output.memory is not None
        return self._with_warm_losses(losses, output.memory.float(), targets, height, width)

    def _with_warm_losses(
        self, losses: Losses, memory: Tensor, targets: Sequence[Target], height: int, width: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.position_head is not None
        weights, stride = self.settings.weights, self.network.config.backbone.stride
        tokens = self.network.transformer.decoder.norm(memory)
        dense = dense_loss(
            self.network.class_embed(tokens),
            self.network.bbox_embed(tokens).sigmoid(),
            targets,
            height,
            width,
            stride=stride,
        )
        position = position_loss(self.position_head(memory).sigmoid(), height, width, stride=stride)
        total = (
            losses.total
            + weights.classification * dense["dense_ce"]
            + weights.l1 * dense["dense_bbox"]
            + weights.giou * dense["dense_giou"]
            + POSITION_WEIGHT * position
        )
        return total, _detached({**losses.parts, **dense, "position": position})

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


class Diverged(FloatingPointError):
    """A loss or a matching cost is NaN or infinite: of micro-batch `batch` of this worker, image `image` if known."""

    def __init__(self, message: str, *, batch: int, image: int | None = None) -> None:
        super().__init__(message)
        self.batch = batch
        self.image = image


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images that go through the network together.

    Attributes:
        pixels: uint8 `(B, 3, H, W)` on the network's device, padded with anything to the right and at the bottom.
        extents: int64 `(B, 2)`, each image's own height and width in pixels; on the CPU.
        targets: one per image, normalised by the image without its padding.
        seed: of the dropout.
    """

    pixels: Tensor
    extents: Tensor
    targets: Sequence[Target]
    seed: int


def accumulate_gradients(
    network: NetworkWithLoss | DistributedDataParallel,
    batches: Sequence[MicroBatch],
    *,
    num_boxes: float,
    micro_batches: int,
    workers: int = 1,
) -> tuple[list[tuple[Tensor, dict[str, Tensor]]], Diverged | None]:
    """Add to the gradients this worker's share of a step; return loss and parts of each of its micro-batches.

    After it the gradients, which DDP averages over the workers, are those of the mean of the losses of all
    `micro_batches` of the step. A worker without a micro-batch takes part with a zero. One that meets a matching cost
    which is not finite takes part with NaN, so that all workers see it in the gradients and none waits for another;
    what it met is returned.

    Args:
        network: bare, or within DDP when there are several workers.
        batches: this worker's micro-batches, possibly none.
        num_boxes: targets of all micro-batches of the step divided by their number.
        micro_batches: of all workers in this step.
        workers: how many take part.
    """
    # DDP divides by the workers what here counts by its share of the micro-batches
    share = workers / micro_batches
    computed: list[tuple[Tensor, dict[str, Tensor]]] = []
    diverged = None
    for index, batch in enumerate(batches):
        torch.manual_seed(batch.seed)  # of all devices: dropout does not depend on who computes the micro-batch
        is_last = index == len(batches) - 1
        with nullcontext() if is_last or not isinstance(network, DistributedDataParallel) else network.no_sync():
            try:
                total, parts = network(batch.pixels, batch.extents, batch.targets, num_boxes)
            except NotFinite as error:
                diverged = Diverged(str(error), batch=index, image=error.image)
                break
            (total * share).backward()
        computed.append((total.detach(), parts))
    if diverged is not None or not batches:
        _take_part(network, torch.nan if diverged else 0.0)
    return computed, diverged


def _take_part(network: nn.Module, factor: float) -> None:
    """Go through forward and backward with nothing but zeros, or NaN: peers wait for this worker's gradients."""
    total, _ = network(None, torch.zeros((0, 2), dtype=torch.int64), (), 1.0)
    (total * factor).backward()


def take_step(optimizer: torch.optim.Optimizer, *, factor: float, clip_norm: float) -> float:
    """Clip the gradients together, set the learning rates, step, and clear the gradients; return their norm before.

    Nothing is changed when the norm is not finite: the caller looks at it.

    Args:
        optimizer: of `detr.optimizer.build_optimizer`.
        factor: of the schedule.
        clip_norm: the largest norm of all gradients together; 0 does not clip.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    value = float(norm)  # waits for the device: once a step
    if math.isfinite(value):
        if clip_norm > 0:
            nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
    optimizer.zero_grad()
    return value


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on every one of the numbers, the same on every machine; at least 0, below 2**63."""
    state = 0
    for number in numbers:  # splitmix64, so that neighbouring steps share nothing
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items()}
