"""Training state of one worker: network, loss, optimiser and moving average, loaded from and saved to checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detr.checkpoints.checkpoint import CheckpointError
from detr.config import DetrConfig
from detr.device import Download, float32_arithmetic, transfer_for
from detr.model import Detr
from detr.training.ema import MovingAverage
from detr.training.optimizer import build_optimizer, freeze_backbone, load_optimizer_tensors, optimizer_tensors
from detr.training.step import (
    Diverged,
    MicroBatch,
    NetworkWithLoss,
    OutOfDeviceMemory,
    accumulate_gradients,
    seed_of,
    take_step,
    upload_batch,
)
from pipelines.errors import RayDetrError
from pipelines.training.batch import TrainBatch
from pipelines.training.recipe import Recipe

# prefixes of names in training.safetensors
OF_OPTIMIZER: Final = "optimizer."
OF_MODULE: Final = "module."  # raw weights where the model that is kept is an average, and what only training has
OF_AVERAGE: Final = "average."


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of this worker gave.

    Attributes:
        parts: sums over its micro-batches of `loss` and of the unweighted parts, float, on the CPU.
        micro_batches: how many it had.
        gradient_norm: of all workers' gradients together, before clipping; not finite when the step was not taken.
        diverged: image ids of its first micro-batch whose loss is not finite, and why; None when all are.
        out_of_memory: which micro-batch did not fit into the device's memory, in words; None when all did.
    """

    parts: Mapping[str, float]
    micro_batches: int
    gradient_norm: float
    diverged: tuple[tuple[int, ...], str] | None
    out_of_memory: str | None = None


class PendingStep:
    """A step that was given to the device; `result` waits until it is done."""

    def __init__(
        self,
        downloaded: Download,
        names: Sequence[str],
        batches: Sequence[TrainBatch],
        problem: Diverged | OutOfDeviceMemory | None,
        average: MovingAverage | None,
    ) -> None:
        """Describe what is on its way.

        Args:
            downloaded: float32: the norm of the gradients, then for each micro-batch that has a loss its parts.
            names: of the parts.
            batches: of this worker.
            problem: what kept a micro-batch from having a loss.
            average: which took the step in.
        """
        self._downloaded, self._names, self._batches, self._problem = downloaded, names, batches, problem
        self._average = average
        self._result: StepResult | None = None

    def result(self) -> StepResult:
        """Return what the step gave. Free where the host has waited for the device since the step was begun."""
        if self._result is None:
            self._result = self._read()
        return self._result

    def _read(self) -> StepResult:
        values = self._downloaded.result().double()
        norm, table = float(values[0]), values[1:].view(-1, max(1, len(self._names)))
        parts = dict(zip(self._names, table.sum(0).tolist(), strict=True)) if len(table) else {}
        bad = [index for index, row in enumerate(table.tolist()) if not math.isfinite(row[0])]
        diverged = out_of_memory = None
        if isinstance(self._problem, OutOfDeviceMemory):
            out_of_memory = str(self._problem)
        elif self._problem is not None:
            ids = self._batches[self._problem.batch].image_ids
            image = self._problem.image
            diverged = ((ids[image],) if image is not None else ids, str(self._problem))
        elif bad:
            diverged = (self._batches[bad[0]].image_ids, "the loss is NaN or infinite")
        if self._average is not None and not math.isfinite(norm):
            self._average.forget_update()
        return StepResult(parts, len(self._batches), norm, diverged, out_of_memory)


class Learner:
    """All that changes while a worker trains; every worker has the same."""

    def __init__(
        self,
        model: Detr,
        recipe: Recipe,
        *,
        device: torch.device,
        workers: int = 1,
        trainable_norm: bool = False,
        fused: bool = True,
        compiled: bool = False,
        gradient_checkpointing: bool = False,
        tf32: bool = True,
    ) -> None:
        """Put a network on a device and under an optimiser.

        Args:
            model: of a checkpoint; with frozen norms, as those are.
            recipe: what decides.
            device: where to.
            workers: how many train together; more than one must be in one process group.
            trainable_norm: whether the backbone's norms are trained.
            fused: whether AdamW runs as one kernel.
            compiled: whether the network goes through torch.compile.
            gradient_checkpointing: see `detr.model.Detr.checkpoint_gradients`.
            tf32: whether float32 on a GPU may round the operands of convolutions and matrix products.
        """
        self._tf32 = tf32
        self.recipe, self.device, self.workers = recipe, device, workers
        self._transfer = transfer_for(device)
        network = _with_norm(model, trainable=trainable_norm, dropout=recipe.dropout).to(device).train()
        # as the pixels are: else each convolution turns its weights round first
        self.network: Detr = network.to(memory_format=torch.channels_last)
        self.network.checkpoint_gradients(enabled=gradient_checkpointing)
        freeze_backbone(self.network, stages="all" if recipe.lr_backbone == 0 else recipe.freeze_backbone)
        torch.manual_seed(recipe.seed)  # for what is in no checkpoint yet
        self.module = NetworkWithLoss(self.network, recipe.losses, bf16=recipe.bf16, compiled=compiled).to(device)
        self.average = MovingAverage(self.network, recipe.ema_decay) if recipe.ema_decay > 0 else None
        self.optimizer = build_optimizer(
            self.module, lr=recipe.lr, lr_backbone=recipe.lr_backbone, weight_decay=recipe.weight_decay, fused=fused
        )
        self._trained: NetworkWithLoss | DistributedDataParallel = self.module
        if workers > 1:
            assert dist.is_initialized()
            # without device_ids: the module is on its device already, and DDP would move every tensor among the
            # arguments there. Buffers are left alone: a worker that meets NaN goes forward once more than its peers,
            # and a broadcast in each forward would make all of them wait for ever (torch 2.14)
            self._trained = DistributedDataParallel(
                self.module, gradient_as_bucket_view=True, forward_sync_buffers=False
            )
        # what a trained norm has seen differs from worker to worker
        self._statistics = [
            buffer
            for name, buffer in self.network.named_buffers()
            if workers > 1 and trainable_norm and name.endswith(("running_mean", "running_var"))
        ]

    @property
    def part_names(self) -> tuple[str, ...]:
        """What `StepResult.parts` holds of a worker that has micro-batches."""
        earlier = range(self.network.config.decoder_layers - 1) if self.recipe.aux_loss else ()
        layers = ("", *(f"_{layer}" for layer in earlier))
        parts = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
        warm = ("dense_ce", "dense_bbox", "dense_giou", "position") if self.recipe.warm_losses else ()
        return ("loss", "class_error", *(part + layer for layer in layers for part in parts), *warm)

    @property
    def kept(self) -> Detr:
        """The model that is evaluated and that users get: the average where there is one, in evaluation mode or not."""
        return self.network if self.average is None else self.average.model

    def step(
        self, batches: Sequence[TrainBatch], *, step: int, num_boxes: float, micro_batches: int, factor: float
    ) -> StepResult:
        """Take one step and wait for what it gives; see `begin_step`."""
        begun = self.begin_step(batches, step=step, num_boxes=num_boxes, micro_batches=micro_batches, factor=factor)
        return begun.result()

    def begin_step(
        self, batches: Sequence[TrainBatch], *, step: int, num_boxes: float, micro_batches: int, factor: float
    ) -> PendingStep:
        """Take one step of the optimiser together with all workers, as far as the host has to do with it.

        The host waits for the device once for each micro-batch, for the matching costs. The optimiser's step and
        whether it is taken are the device's business, so the next step can be begun before this one is done.

        Args:
            batches: this worker's micro-batches, possibly none.
            step: of the whole run; with the reader of a micro-batch it decides the dropout.
            num_boxes: targets of all workers' micro-batches divided by their number.
            micro_batches: of all workers.
            factor: of the learning rates.

        Raises:
            OutOfDeviceMemory: and the other workers wait for this one in vain.
        """
        with float32_arithmetic(tf32=self._tf32):
            computed, problem = accumulate_gradients(
                self._trained,
                [self._on_device(batch, step) for batch in batches],
                num_boxes=num_boxes,
                micro_batches=micro_batches,
                workers=self.workers,
            )
            self._share_statistics(len(batches) / micro_batches)
            norm = take_step(self.optimizer, factor=factor, clip_norm=self.recipe.clip_max_norm)
            if self.average is not None:
                self.average.update(self.network, was_taken=norm.isfinite())
        names = ["loss", *computed[0][1]] if computed else []
        values = [norm, *(value for total, parts in computed for value in (total, *parts.values()))]
        downloaded = self._transfer.download(torch.stack([value.float() for value in values]))
        return PendingStep(downloaded, names, batches, problem, self.average)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of what a checkpoint needs besides the model that is kept: training.safetensors."""
        tensors = {OF_OPTIMIZER + name: value for name, value in optimizer_tensors(self.optimizer, self.module).items()}
        tensors |= {OF_MODULE + name: _copy(value) for name, value in self.module.state_dict().items()}
        if self.average is not None:
            tensors |= {OF_AVERAGE + name: _copy(value) for name, value in self.average.state_dict().items()}
        return tensors

    def record(self) -> dict[str, Any]:
        """Return what training.json says besides the position.

        Order, augmentation and dropout are functions of seed and position: these two are the whole random state.
        """
        trainable_norm = self.network.config.backbone.norm == "batch"
        return {"recipe": self.recipe.as_json(), "seed": self.recipe.seed, "trainable_norm": trainable_norm}

    def restore(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Go on from what `tensors` returned; without any, from the model that the learner was made with.

        Raises:
            RayDetrError: they are of another network or recipe.
        """
        if not tensors:
            return
        try:
            self.module.load_state_dict(_within(tensors, OF_MODULE))
            load_optimizer_tensors(self.optimizer, self.module, _within(tensors, OF_OPTIMIZER), source=source)
            if self.average is not None:
                self.average.load_state_dict(_within(tensors, OF_AVERAGE), source=source)
        except (CheckpointError, RuntimeError) as error:
            raise RayDetrError(f"checkpoint {source} does not fit the run: {error}") from error

    def _share_statistics(self, share: float) -> None:
        """Give all workers the mean of what their trained norms have seen, so that all evaluate the same model.

        Each counts by its `share` of the micro-batches: one that had none has seen nothing.
        """
        if not self._statistics:
            return
        together = torch.cat(self._statistics) * share
        dist.all_reduce(together)
        for buffer, mean in zip(
            self._statistics, torch.split(together, [len(buffer) for buffer in self._statistics]), strict=True
        ):
            buffer.copy_(mean)

    def _on_device(self, batch: TrainBatch, step: int) -> MicroBatch:
        return upload_batch(
            batch.pixels,
            batch.extents,
            batch.targets,
            seed=seed_of(self.recipe.seed, step, batch.reader),
            device=self.device,
            class_count=self.network.config.class_count,
        )


def empty_network(config: DetrConfig, *, seed: int) -> Detr:
    """Return a network with random weights, a function of the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Detr(config)


def _with_norm(model: Detr, *, trainable: bool, dropout: float | None) -> Detr:
    """Return the same network with trainable norms, or another dropout, where that is wanted."""
    config = model.config
    wanted = replace(
        config,
        dropout=config.dropout if dropout is None else dropout,
        backbone=replace(config.backbone, norm="batch") if trainable else config.backbone,
    )
    if wanted == config:
        return model
    network = Detr(wanted)
    # a trainable norm counts its batches besides; a frozen one has no such number
    missing, unexpected = network.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return network


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
