"""Configuration of a training run: data, initial weights, recipe, and resources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from detr.config import LEARNED_CELLS, SCENES_CONFIG, VARIANTS, DetrConfig
from pipelines.caps import Caps
from pipelines.options import check_options, group, number_range, option
from pipelines.store import S3, StoreOptions, join_uri, split_uri, without_secrets
from pipelines.training.recipe import Recipe

NETWORKS = {**VARIANTS, "scenes": SCENES_CONFIG}
"""Networks that can be trained from scratch: the official variants, and the small network of the embedded model."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of a training run: the options of `ray-detr train`. Relative paths are made absolute."""

    train: str = option("training shards, written by `ray-detr shard`", metavar="URI")
    storage: str = option("folder of all runs, for checkpoints and logs", metavar="URI")
    name: str = option("name of the run; an existing run of this name is resumed")
    val: str | None = option("shards for evaluation (none)", default=None, metavar="URI")
    recipe: Recipe = field(default_factory=Recipe)
    recipe_name: str = "paper-300"
    finetune: str | None = option(
        "start from this DETR or Table Transformer, with any classes: a hub id, a directory, a .pth or .ckpt, a URI, "
        "or scenes",
        default=None, metavar="REF",
    )  # fmt: skip
    network: str | None = option(
        "start from random weights: detr-resnet-50[-dc5], -101[-dc5] or scenes", default=None, metavar="NAME"
    )
    backbone_weights: str | None = option(
        "ImageNet weights of the backbone: a file or URI in torchvision's format, a name such as resnet50, or none "
        "(torchvision's weights of the same backbone)",
        default=None, metavar="REF",
    )  # fmt: skip
    queries: int | None = option(
        "number of queries, which is the largest number of objects in an image (100)",
        default=None, flag="--num-queries", metavar="N", at_least=1,
    )  # fmt: skip
    position_embedding: Literal["sine", "learned"] | None = option(
        "position embedding of a new network (sine)", default=None
    )
    shorter: int | None = option(
        "shorter image side in evaluation and use (the network's, 800)", default=None, metavar="PIXELS", at_least=1
    )
    longest: int | None = option(
        "limit of the longer side in evaluation and use (the network's, 1333)",
        default=None, metavar="PIXELS", at_least=1,
    )  # fmt: skip
    workers: tuple[int | None, int | None] = option(
        "number of workers, one for each GPU or core (1 to as many as fit into the cluster)",
        default=(None, None), flag="--num-workers", metavar="MIN:MAX", parse=number_range,
    )  # fmt: skip
    device: Literal["auto", "cpu", "cuda"] = option("auto uses GPUs if the cluster has any", default="auto")
    threads: int | None = option("decoding threads of each worker (its CPUs)", default=None, metavar="N", at_least=1)
    prefetch_steps: int = option("steps to prepare in advance", default=2, metavar="N", at_least=1)
    evaluate_epochs: int = option(
        "evaluate every N epochs and at the end; 0: only at the end", default=1, metavar="N", at_least=0
    )
    keep: int = option(
        "number of newest checkpoints to keep, in addition to the best", default=3, metavar="N", at_least=1
    )
    checkpoint_minutes: float = option(
        "minutes between checkpoints; there is also one after each epoch of half a minute or more",
        default=10.0, metavar="N", above=0, takes_infinity=True,
    )  # fmt: skip
    log_steps: int = option(
        "every N steps, write a log line with the means of these steps", default=10, metavar="N", at_least=1
    )
    trackers: tuple[Literal["mlflow", "wandb"], ...] = option(
        "also log to these, in addition to TensorBoard", default=(), flag="--log-to"
    )
    fused: bool = option("run AdamW as one kernel", default=True)
    tf32: bool = option("compute float32 on GPUs in TensorFloat-32, with 10 bits of mantissa", default=True)
    compiled: bool = option("compile the network with torch.compile", default=False, flag="--compile")
    gradient_checkpointing: bool = option("save memory: compute activations again in the backward pass", default=False)
    restarts: int = option(
        "stop when the workers failed N times without a new checkpoint", default=5, metavar="N", at_least=1
    )
    collective_seconds: int = option(
        "seconds without an answer after which a worker counts as lost", default=600, metavar="N", at_least=1
    )
    shared_folders: bool = option("declare that local paths are shared by all nodes, as with NFS", default=False)
    caps: Caps = group(Caps)
    options: StoreOptions = group(StoreOptions, only=S3)
    verbose: bool = option("show Ray's own messages", default=False)

    def __post_init__(self) -> None:
        check_options(self)
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is not letters, digits, '.', '_' and '-', at most 100 of them")
        if (self.finetune is None) == (self.network is None):
            raise ValueError(
                "finetune, network: give exactly one: a model to fine-tune, or a network with random weights"
            )
        if self.network is not None and self.network not in NETWORKS:
            raise ValueError(f"network: {self.network!r} is not one of {', '.join(NETWORKS)}")
        if self.finetune is not None and self.backbone_weights is not None:
            raise ValueError("backbone weights: omit them with --finetune, whose model has its own")
        if self.finetune is not None and self.queries is not None:
            raise ValueError("queries: omit them with --finetune, whose model has its own")
        if self.finetune is not None and self.position_embedding is not None:
            raise ValueError("position embedding: omit it with --finetune, whose model has its own")
        if self.position_embedding == "learned":
            self._check_learned_positions()
        least, most = 1 if self.workers[0] is None else self.workers[0], self.workers[1]
        if least < 1 or (most is not None and most < least):
            raise ValueError(f"num workers: {least}:{most} is not a range of at least 1 worker")
        begun = self.network_config()
        is_frozen = self.recipe.freeze_backbone != "none" or self.recipe.lr_backbone == 0
        if begun is not None and begun.backbone.norm == "batch" and is_frozen:
            raise ValueError(
                f"freeze backbone: {self.network} has trainable norms, so its backbone cannot be frozen. Give "
                "--freeze-backbone none and an --lr-backbone above 0, or --recipe scenes."
            )
        for name in ("train", "val", "storage"):
            value = getattr(self, name)
            if value is not None:  # workers have another working directory
                object.__setattr__(self, name, join_uri(*split_uri(value)))

    def _check_learned_positions(self) -> None:
        """Refuse pictures that have more cells than the positions: some would stop the training later."""
        begun = self.network_config()
        assert begun is not None, "a model that is fine-tuned has its own positions"
        most = (LEARNED_CELLS - 1) * begun.backbone.stride  # a resized picture exceeds `longest` by a few pixels
        longest = {"longest": self.longest or begun.longest}
        if self.recipe.augmentation != "none":
            sized = self.recipe.for_model(self.shorter or begun.shorter, longest["longest"])
            longest = {"train longest": sized.longest, **longest}
        for name, side in longest.items():
            if side > most:
                raise ValueError(
                    f"{name}: {side} pixels are too many for learned positions, which cover {most} with "
                    f"{self.network}. Give --{name.replace(' ', '-')} {most} or less, or --position-embedding sine."
                )

    @property
    def run_uri(self) -> str:
        """URI of the run's directory."""
        return self.storage.rstrip("/") + "/" + self.name

    def places(self) -> tuple[str, ...]:
        """Return all URIs that workers read or write."""
        return (self.run_uri, self.train, *(() if self.val is None else (self.val,)))

    def network_config(self) -> DetrConfig | None:
        """Return the configuration of a new network, or None if a model is fine-tuned."""
        return None if self.network is None else NETWORKS[self.network]

    def resume_identity(self) -> dict[str, Any]:
        """Return the options that determine the weights, for the run's record. Others may change on resuming."""
        recipe = self.recipe.as_json()
        recipe["train_longest"] = recipe.pop("longest")  # the name of its option; the network's field has another name
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
        as_json: dict[str, Any] = json.loads(json.dumps(values))  # as read from the record: lists instead of tuples
        return as_json
