"""The training state of a worker: network, loss, optimizer and moving average."""

from __future__ import annotations

import inspect
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

# Prefixes of names in training.safetensors.
OF_OPTIMIZER: Final = "optimizer."
OF_MODULE: Final = "module."  # raw weights if the kept model is an average, and tensors that only training has
OF_AVERAGE: Final = "average."


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step of this worker.

    Attributes:
        parts: sums over the micro-batches of `loss` and of its unweighted parts, as floats.
        micro_batches: number of micro-batches.
        gradient_norm: norm of the gradients of all workers, before clipping; not finite if the step was not taken.
        diverged: image ids of the first micro-batch whose loss is not finite, and why; None if all are finite.
        out_of_memory: message about a micro-batch that did not fit into the device's memory, or None.
    """

    parts: Mapping[str, float]
    micro_batches: int
    gradient_norm: float
    diverged: tuple[tuple[int, ...], str] | None
    out_of_memory: str | None = None


class PendingStep:
    """A step in progress on the device; `result` waits for it."""

    def __init__(
        self,
        downloaded: Download,
        names: Sequence[str],
        batches: Sequence[TrainBatch],
        problem: Diverged | OutOfDeviceMemory | None,
        average: MovingAverage | None,
    ) -> None:
        """Store the inputs of `result`.

        Args:
            downloaded: float32: the norm of the gradients, then the parts of each micro-batch with a loss.
            names: names of the parts.
            batches: the micro-batches of this worker.
            problem: why a micro-batch has no loss, or None.
            average: the moving average, which is already updated.
        """
        self._downloaded, self._names, self._batches, self._problem = downloaded, names, batches, problem
        self._average = average
        self._result: StepResult | None = None

    def result(self) -> StepResult:
        """Wait for the device and return the result of the step."""
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
    """Everything that changes during training. Parameters are equal on all workers."""

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
        """Move a network to a device and create its optimizer.

        Args:
            model: the model of a checkpoint, with frozen norms.
            recipe: the recipe of the run.
            device: the device.
            workers: number of workers; if there are several, they must be in a process group.
            trainable_norm: whether to train the backbone's norms.
            fused: whether AdamW uses its fused kernel.
            compiled: whether to compile the network with torch.compile.
            gradient_checkpointing: see `detr.model.Detr.checkpoint_gradients`.
            tf32: whether float32 on a GPU may round the operands of convolutions and matrix products.
        """
        self._tf32 = tf32
        self.recipe, self.device, self.workers = recipe, device, workers
        self._transfer = transfer_for(device)
        network = _with_norm(model, trainable=trainable_norm, dropout=recipe.dropout).to(device).train()
        # like the pixels; otherwise each convolution would convert its weights
        self.network: Detr = network.to(memory_format=torch.channels_last)
        self.network.checkpoint_gradients(enabled=gradient_checkpointing)
        freeze_backbone(self.network, stages="all" if recipe.lr_backbone == 0 else recipe.freeze_backbone)
        torch.manual_seed(recipe.seed)  # for parameters that are in no checkpoint yet
        self.module = NetworkWithLoss(self.network, recipe.losses, bf16=recipe.bf16, compiled=compiled).to(device)
        self.average = MovingAverage(self.network, recipe.ema_decay) if recipe.ema_decay > 0 else None
        self.optimizer = build_optimizer(
            self.module, lr=recipe.lr, lr_backbone=recipe.lr_backbone, weight_decay=recipe.weight_decay, fused=fused
        )
        self._trained: NetworkWithLoss | DistributedDataParallel = self.module
        if workers > 1:
            assert dist.is_initialized()
            self._trained = _distributed(self.module)
        # the statistics of trained norms differ between workers
        self._statistics = [
            buffer
            for name, buffer in self.network.named_buffers()
            if workers > 1 and trainable_norm and name.endswith(("running_mean", "running_var"))
        ]

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names in `StepResult.parts` of a worker that has micro-batches."""
        earlier = range(self.network.config.decoder_layers - 1) if self.recipe.aux_loss else ()
        layers = ("", *(f"_{layer}" for layer in earlier))
        parts = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
        warm = ("dense_ce", "dense_bbox", "dense_giou", "position") if self.recipe.warm_losses else ()
        return ("loss", "class_error", *(part + layer for layer in layers for part in parts), *warm)

    @property
    def kept(self) -> Detr:
        """The model that is evaluated and saved: the moving average if there is one. Its mode may be training."""
        return self.network if self.average is None else self.average.model

    def begin_step(
        self, batches: Sequence[TrainBatch], *, step: int, num_boxes: float, micro_batches: int, factor: float
    ) -> PendingStep:
        """Begin a step of the optimizer together with all workers, without waiting for its end.

        The host waits for the device once for each micro-batch, for the costs of the matching. The device decides
        whether the optimizer's step is taken, so that the next step can begin before this one has ended.

        Args:
            batches: the micro-batches of this worker, possibly none.
            step: number of the step in the run; with the reader of a micro-batch it determines the dropout.
            num_boxes: mean number of targets of a micro-batch, over all workers.
            micro_batches: number of micro-batches of all workers.
            factor: factor of the learning rates.

        Raises:
            OutOfDeviceMemory: a micro-batch does not fit, and the other workers wait for this one.
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
        """Return copies on the CPU of the tensors of training.safetensors: what resuming needs besides `kept`."""
        tensors = {OF_OPTIMIZER + name: value for name, value in optimizer_tensors(self.optimizer, self.module).items()}
        tensors |= {OF_MODULE + name: _copy(value) for name, value in self.module.state_dict().items()}
        if self.average is not None:
            tensors |= {OF_AVERAGE + name: _copy(value) for name, value in self.average.state_dict().items()}
        return tensors

    @property
    def trainable_norm(self) -> bool:
        """Whether the backbone's norms are trained."""
        return self.network.config.backbone.norm == "batch"

    def restore(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Load the tensors that `tensors` returned; without any, keep the initial state.

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
        """Average the statistics of trained norms over all workers, so that all evaluate the same model.

        Workers are weighted by their `share` of the micro-batches.
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
    """Return a network with random weights, determined by the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Detr(config)


def _distributed(module: NetworkWithLoss) -> DistributedDataParallel:
    """Return the module with gradients that are averaged over the process group.

    Without device_ids, because DDP would move every tensor argument to the device. Without broadcasting buffers: a
    worker with a NaN makes one forward pass more than its peers, and a broadcast in each forward pass would block all
    of them (torch 2.14).
    """
    is_renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # not in torch 2.12
    name = "forward_sync_buffers" if is_renamed else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)


def _with_norm(model: Detr, *, trainable: bool, dropout: float | None) -> Detr:
    """Return the network with trainable norms or another dropout, if requested."""
    config = model.config
    wanted = replace(
        config,
        dropout=config.dropout if dropout is None else dropout,
        backbone=replace(config.backbone, norm="batch") if trainable else config.backbone,
    )
    if wanted == config:
        return model
    network = Detr(wanted)
    # only trainable norms have a counter of batches
    missing, unexpected = network.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return network


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
