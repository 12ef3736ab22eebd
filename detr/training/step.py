"""Training steps: a network and its loss as one module, and one step of the optimiser.

This module does not depend on the source of batches or the number of processes. A step is a set of micro-batches,
distributed to any number of workers; gradients are those of the mean over all micro-batches, whatever the distribution.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr.device import upload
from detr.model import Detr, outside
from detr.training.criterion import Losses, LossWeights, criterion, refuse_bad_labels
from detr.training.dense_losses import dense_loss, position_loss
from detr.training.matcher import MatchWeights, NotFinite, PaddedTargets, Target, pad_targets

POSITION_WEIGHT = 3.0  # of the position loss of `detr.training.dense_losses`


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The terms of the loss.

    Attributes:
        weights: factors of the paper's parts.
        match_weights: factors of the matching costs.
        auxiliary: whether the earlier decoder layers are trained, too.
        warm: whether the two losses of `detr.training.dense_losses` are added to the encoder's output: for training a
            small network from scratch, on batches without padding. Not in the paper.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    match_weights: MatchWeights = field(default_factory=MatchWeights)
    auxiliary: bool = True
    warm: bool = False


class NetworkWithLoss(nn.Module):
    """A DETR and its loss in one forward, so that a wrapper such as DDP has one graph.

    Attributes:
        network: the trained DETR; its parameters have the prefix `network.`.
        position_head: only with dense losses; discarded when training ends.
    """

    def __init__(self, network: Detr, settings: LossSettings, *, bf16: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.bf16 = bf16
        self.position_head = nn.Linear(network.config.hidden_dim, 2) if settings.warm else None
        # not a submodule: names in checkpoints must not depend on it
        self._call = [torch.compile(network, dynamic=True) if compiled else network]
        self.register_buffer("mean", torch.tensor(network.config.image_mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(network.config.image_std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, batch: "MicroBatch | None", num_boxes: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch, and its unweighted parts by the original's names, detached.

        The host waits for the device once, for the matching costs.

        Args:
            batch: on the device of the network; None returns a zero that depends on every parameter, for a worker
                without a micro-batch in a step of its peers.
            num_boxes: targets of all micro-batches of the step divided by their number.

        Raises:
            NotFinite: a matching cost of an image is NaN or infinite.
        """
        if batch is None:
            zero = sum((p.sum() for p in self.parameters() if p.requires_grad), start=self.get_buffer("mean").sum())
            return zero * 0, {}
        height, width = batch.pixels.shape[-2:]
        normalised = (batch.pixels - self.get_buffer("mean")) / self.get_buffer("std")
        # channels last: convolutions take 20 % less time on a CPU, and half precision on a GPU is faster with it
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        mask = None
        if batch.is_padded:
            assert batch.targets.extents is not None
            mask = outside(batch.targets.extents, 1, height, width)
            normalised = normalised * ~mask[:, None]  # the original pads after normalisation
        with self._autocast(batch.pixels.device):
            output = self._call[0](normalised, mask, padding="plain")
        if not self.settings.auxiliary:
            output = replace(output, aux=())
        losses = criterion(
            output,
            batch.targets,
            num_boxes=num_boxes,
            weights=self.settings.weights,
            match_weights=self.settings.match_weights,
        )
        if self.position_head is None:
            return losses.total, _detached(losses.parts)
        assert mask is None, "the dense losses need batches without padding"
        assert output.memory is not None
        return self._with_dense_losses(losses, output.memory.float(), batch.targets, height, width)

    def _with_dense_losses(
        self, losses: Losses, memory: Tensor, targets: PaddedTargets, height: int, width: int
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


class OutOfDeviceMemory(RuntimeError):
    """Micro-batch `batch` of this worker does not fit into the memory of the device.

    `left_peers` is True if the worker can no longer take part in the step, so that its peers would wait for it forever.
    """

    def __init__(self, pixels: Tensor, *, batch: int, left_peers: bool) -> None:
        images, _, height, width = pixels.shape
        super().__init__(f"a micro-batch of {images} images, padded to {height} x {width} pixels, does not fit")
        self.batch = batch
        self.left_peers = left_peers


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images of one forward pass, on the network's device; created by `upload_batch`.

    The host does not need to read its tensors: values that control the code are Python values.

    Attributes:
        pixels: uint8 `(B, 3, H, W)`; padding, to the right and at the bottom, has any values.
        is_padded: whether any image is smaller than (H, W).
        targets: of the B images, normalised by the image without its padding; with `extents`.
        seed: of the dropout.
    """

    pixels: Tensor
    is_padded: bool
    targets: PaddedTargets
    seed: int


def upload_batch(
    pixels: Tensor,
    extents: Tensor,
    targets: Sequence[Target],
    *,
    seed: int,
    device: torch.device,
    class_count: int | None = None,
) -> MicroBatch:
    """Copy a micro-batch from CPU memory to a device in two asynchronous copies.

    Args:
        pixels: uint8 `(B, 3, H, W)`; padding, to the right and at the bottom, has any values. Best in pinned memory if
            `device` is a GPU; otherwise it is copied to pinned memory first.
        extents: int64 `(B, 2)`, each image's own height and width in pixels.
        targets: one per image, normalised by the image without its padding.
        seed: of the dropout.
        device: of the network.
        class_count: of the network; labels are checked if it is given.

    Raises:
        ValueError: a label is not a class, or the number of targets is not that of the images.
    """
    if class_count is not None:
        refuse_bad_labels(targets, class_count)
    height, width = pixels.shape[-2:]
    is_padded = any(own != [height, width] for own in extents.tolist())
    padded = pad_targets(targets, images=len(pixels), device=device, extents=extents)
    return MicroBatch(upload(pixels, device), is_padded, padded, seed)


def accumulate_gradients(
    network: NetworkWithLoss | DistributedDataParallel,
    batches: Sequence[MicroBatch],
    *,
    num_boxes: float,
    micro_batches: int,
    workers: int = 1,
) -> tuple[list[tuple[Tensor, dict[str, Tensor]]], Diverged | OutOfDeviceMemory | None]:
    """Add this worker's share of a step to the gradients; return loss and parts of each of its micro-batches.

    Afterwards the gradients, which DDP averages over the workers, are those of the mean loss of all `micro_batches` of
    the step. A worker without a micro-batch contributes zero. A worker with a non-finite matching cost, or without
    enough memory, contributes NaN, so that all workers detect it in the gradients and none waits for another; the error
    is returned.

    Args:
        network: bare, or within DDP when there are several workers.
        batches: this worker's micro-batches, possibly none.
        num_boxes: targets of all micro-batches of the step divided by their number.
        micro_batches: of all workers in this step.
        workers: number of workers.

    Raises:
        OutOfDeviceMemory: raised in the backward pass that averages the gradients over the workers, which cannot be
            repeated.
    """
    # DDP divides by the number of workers; the share of the micro-batches is needed here
    share = workers / micro_batches
    computed: list[tuple[Tensor, dict[str, Tensor]]] = []
    problem: Diverged | OutOfDeviceMemory | None = None
    for index, batch in enumerate(batches):
        torch.manual_seed(batch.seed)  # on all devices: dropout does not depend on the worker
        is_last = index == len(batches) - 1
        waiting = isinstance(network, DistributedDataParallel) and not is_last
        is_averaged = False
        with network.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            try:
                total, parts = network(batch, num_boxes)
                is_averaged = isinstance(network, DistributedDataParallel) and is_last
                (total * share).backward()
                computed.append((total.detach(), parts))
            except NotFinite as error:
                problem = Diverged(str(error), batch=index, image=error.image)
            except torch.OutOfMemoryError:
                problem = OutOfDeviceMemory(batch.pixels, batch=index, left_peers=is_averaged)
        if problem is not None:
            break
    # here no traceback references the micro-batch's tensors any more
    total = parts = None
    if isinstance(problem, OutOfDeviceMemory):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if problem.left_peers:
            raise problem
    if problem is not None or not batches:
        _take_part(network, torch.nan if problem else 0.0)
    return computed, problem


def _take_part(network: nn.Module, factor: float) -> None:
    """Run forward and backward with zeros or NaN, because peers wait for this worker's gradients."""
    total, _ = network(None, 1.0)
    (total * factor).backward()


def take_step(optimizer: torch.optim.Optimizer, *, factor: float, clip_norm: float) -> Tensor:
    """Clip the gradients by their total norm, set the learning rates, step, and clear the gradients; return the norm.

    Weights and optimiser do not change if the norm is not finite, which the caller must check. A fused optimiser
    decides this on the device, so that the host does not wait; with another optimiser it waits once.

    Args:
        optimizer: of `detr.training.optimizer.build_optimizer`.
        factor: of the schedule.
        clip_norm: the largest norm of all gradients together; 0 does not clip.

    Returns:
        `()` float32, on the device.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    is_fused = all(group["fused"] for group in optimizer.param_groups)
    if is_fused:
        # as in torch.amp.GradScaler: the kernel does nothing if this is 1
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    if is_fused or norm.isfinite():
        if clip_norm > 0:
            nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
    optimizer.zero_grad()
    return norm


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on all of the numbers, the same on every machine; at least 0, below 2**63."""
    state = 0
    for number in numbers:  # splitmix64, so that neighbouring steps have unrelated seeds
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items()}
