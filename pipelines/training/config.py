"""Configuration of a training run: data, initial weights, recipe, and resources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from detr.config import SCENES_CONFIG, VARIANTS, DetrConfig
from pipelines.caps import Caps
from pipelines.store import StoreOptions, join_uri, split_uri, without_secrets
from pipelines.training.recipe import Recipe

NETWORKS = {**VARIANTS, "scenes": SCENES_CONFIG}
"""What can be trained from the beginning: the official variants, and the small network of the embedded model."""

TRACKERS = ("mlflow", "wandb")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What a training run is given. Relative paths of shards and storage become absolute when it is made.

    Args:
        train: URI of the shards to train on.
        val: URI of the shards to evaluate on; None evaluates never.
        storage: URI below which runs keep their checkpoints and logs.
        name: The run's: the same name goes on where it stopped.
        recipe: What decides the outcome.
        recipe_name: Which preset it was made from.
        finetune: A DETR to start from: what `detr.load` takes, or a URI.
        network: A name of `NETWORKS`; None with `finetune`.
        backbone_weights: ImageNet weights of the backbone: a file, a URI, torchvision's name, or None.
        queries: Of the network; None is its own. More or fewer than the start has are not possible.
        position_embedding: "sine" or "learned"; None is the network's own.
        shorter: Side that images are resized to when evaluated, and by whoever uses the model; None is the network's.
        longest: Upper bound of the longer side; None is the network's.
        least_workers: Workers that must run; None is 1.
        most_workers: Workers that may run; None is what the cluster holds.
        device: "auto", "cpu" or "cuda".
        ingest: "direct", or "ray-data": CPUs anywhere in the cluster decode and augment.
        threads: That decode and augment for each worker; None is the worker's CPUs.
        prefetch_steps: Steps that are ready before they are needed.
        evaluate_epochs: Evaluate every so many epochs, and at the end; 0 only at the end.
        keep: Newest checkpoints that are kept; the best is kept besides.
        checkpoint_minutes: A checkpoint at least as often, and after every epoch of half a minute or more.
        log_steps: Steps between two lines of the log; each is the mean over those steps.
        trackers: Of `TRACKERS`, besides TensorBoard.
        fused: Whether AdamW runs as one kernel.
        tf32: Whether float32 on GPUs may round the operands of convolutions and matrix products to 10 bits of mantissa.
        compiled: Whether the network goes through torch.compile.
        gradient_checkpointing: Whether the backward pass computes activations again instead of keeping them.
        restarts: Starts of the workers without a new checkpoint between them, before the run gives up.
        collective_seconds: That a worker may keep the others waiting before it counts as lost.
        shared_folders: Whether local paths are the same folders on every node, as with NFS.
        endpoint: The S3 server; None is as the environment says.
        region: The S3 region; None is as the environment says.
        profile: The AWS profile; None is as the environment says.
        caps: Limits on the time and the cost of one call.
        verbose: Let Ray's own messages through.
    """

    train: str
    storage: str
    name: str
    val: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    recipe_name: str = "paper-300"
    finetune: str | None = None
    network: str | None = None
    backbone_weights: str | None = None
    queries: int | None = None
    position_embedding: Literal["sine", "learned"] | None = None
    shorter: int | None = None
    longest: int | None = None
    least_workers: int | None = None
    most_workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ingest: Literal["direct", "ray-data"] = "direct"
    threads: int | None = None
    prefetch_steps: int = 2
    evaluate_epochs: int = 1
    keep: int = 3
    checkpoint_minutes: float = 10.0
    log_steps: int = 10
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    fused: bool = True
    tf32: bool = True
    compiled: bool = False
    gradient_checkpointing: bool = False
    restarts: int = 5
    collective_seconds: int = 600
    shared_folders: bool = False
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    caps: Caps = field(default_factory=Caps)
    verbose: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is not letters, digits, '.', '_' and '-', at most 100 of them")
        if (self.finetune is None) == (self.network is None):
            raise ValueError("finetune, network: give one of them, a model to start from or a network to begin with")
        if self.network is not None and self.network not in NETWORKS:
            raise ValueError(f"network: {self.network!r} is not one of {', '.join(NETWORKS)}")
        if self.finetune is not None and self.backbone_weights is not None:
            raise ValueError("backbone weights: a model that is fine-tuned has its own")
        if self.finetune is not None and self.queries is not None:
            raise ValueError("queries: a model that is fine-tuned has its own")
        if self.finetune is not None and self.position_embedding is not None:
            raise ValueError("position embedding: a model that is fine-tuned has its own")
        if self.position_embedding not in (None, "sine", "learned"):
            raise ValueError(f"position embedding: {self.position_embedding!r} is neither sine nor learned")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: {self.device!r} is not one of auto, cpu, cuda")
        if self.ingest not in ("direct", "ray-data"):
            raise ValueError(f"ingest: {self.ingest!r} is neither direct nor ray-data")
        least, most = 1 if self.least_workers is None else self.least_workers, self.most_workers
        if least < 1 or (most is not None and most < least):
            raise ValueError(f"num workers: {least}:{most} is not a range of at least 1 worker")
        for name in (
            "queries", "shorter", "longest", "threads", "prefetch_steps", "keep", "log_steps", "restarts",
            "collective_seconds",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', ' ')}: {value} is not at least 1")
        if self.evaluate_epochs < 0 or not self.checkpoint_minutes > 0:
            raise ValueError("evaluate epochs, checkpoint minutes: they must not be negative, and minutes not 0")
        begun = self.network_config()
        is_frozen = self.recipe.freeze_backbone != "none" or self.recipe.lr_backbone == 0
        if begun is not None and begun.backbone.norm == "batch" and is_frozen:
            raise ValueError(
                f"freeze backbone: {self.network} has trainable norms, so its backbone cannot be frozen. Give "
                "--freeze-backbone none and an --lr-backbone above 0, or --recipe scenes."
            )
        unknown = sorted(set(self.trackers) - set(TRACKERS))
        if unknown:
            raise ValueError(f"log to: {unknown[0]!r} is not one of {', '.join(TRACKERS)}")
        _ = self.options  # checks what it is made of
        for name in ("train", "val", "storage"):
            value = getattr(self, name)
            if value is not None:  # workers have other working directories
                object.__setattr__(self, name, join_uri(*split_uri(value)))

    @property
    def options(self) -> StoreOptions:
        """How stores are reached."""
        return StoreOptions(endpoint=self.endpoint, region=self.region, profile=self.profile)

    @property
    def run_uri(self) -> str:
        """Where everything of this run lies."""
        return self.storage.rstrip("/") + "/" + self.name

    def places(self) -> tuple[str, ...]:
        """Return every place that workers read or write."""
        return (self.run_uri, self.train, *(() if self.val is None else (self.val,)))

    def network_config(self) -> DetrConfig | None:
        """Return the configuration of the network to begin with; None where a model is fine-tuned."""
        return None if self.network is None else NETWORKS[self.network]

    def resume_identity(self) -> dict[str, Any]:
        """Return what decides the outcome, for the run's record; the rest may differ from start to start."""
        recipe = self.recipe.as_json()
        recipe["train_longest"] = recipe.pop("longest")  # as its option is called: the network has another
        values = {
            "train": without_secrets(self.train),
            "val": None if self.val is None else without_secrets(self.val),
            "finetune": None if self.finetune is None else without_secrets(self.finetune),
            "network": self.network,
            "backbone_weights": None if self.backbone_weights is None else without_secrets(self.backbone_weights),
            "queries": self.queries,
            "position_embedding": self.position_embedding,
            "shorter": self.shorter,
            "longest": self.longest,
            **recipe,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(values))  # as the record gives it back: lists, no tuples
        return as_json
