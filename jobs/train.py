r"""Train or fine-tune a DETR on training shards.

ray-detr train --train s3://data/shards/train --val s3://data/shards/val --storage s3://runs --name first \
  --recipe finetune --finetune facebook/detr-resnet-50

Uses all machines of the Ray cluster. Run the same command again to resume from the newest checkpoint.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from jobs._evaluation_report import shown_figure
from jobs._notifications import notifying
from jobs.exits import run_process
from jobs.label import duration
from jobs.options import (
    CommandParser,
    actor_range,
    add_cap_options,
    add_metrics_option,
    add_s3_options,
    check_stays,
    count,
)
from jobs.recipe_options import add_recipe_options, recipe_values

if TYPE_CHECKING:
    from pipelines.training.run_status import TrainProgress
    from pipelines.training.train import TrainSummary

NO_WEIGHTS = "none"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    parser = CommandParser("train", __doc__)
    _add_options(parser)
    add_recipe_options(parser)
    args = parser.parse_args(argv)
    check_stays(parser, "--storage", args.storage)

    from jobs.train_progress import shown_training
    from pipelines.caps import Caps
    from pipelines.run_metrics import RunMetrics
    from pipelines.store import without_secrets
    from pipelines.training.config import TrainConfig
    from pipelines.training.recipe import RECIPES
    from pipelines.training.train import train

    network = args.network or ("scenes" if args.recipe == "scenes" else "detr-resnet-50")
    try:
        config = TrainConfig(
            train=args.train,
            val=args.val,
            storage=args.storage,
            name=args.name,
            recipe=replace(RECIPES[args.recipe], **recipe_values(args)),
            recipe_name=args.recipe,
            finetune=args.finetune,
            network=args.network if args.finetune else network,
            backbone_weights=_backbone_weights(args, network),
            queries=args.num_queries,
            position_embedding=args.position_embedding,
            shorter=args.shorter,
            longest=args.longest,
            least_workers=args.num_workers[0],
            most_workers=args.num_workers[1],
            device=args.device,
            ingest=args.ingest,
            threads=args.threads,
            prefetch_steps=args.prefetch_steps,
            evaluate_epochs=args.evaluate_epochs,
            keep=args.keep,
            checkpoint_minutes=args.checkpoint_minutes,
            log_steps=args.log_steps,
            trackers=tuple(args.log_to),
            fused=args.fused,
            tf32=args.tf32,
            compiled=args.compile,
            gradient_checkpointing=args.gradient_checkpointing,
            restarts=args.restarts,
            collective_seconds=args.collective_seconds,
            shared_folders=args.shared_folders,
            endpoint=args.endpoint,
            region=args.region,
            profile=args.profile,
            caps=Caps(args.max_minutes, args.max_cost, args.price_per_hour),
            verbose=args.verbose,
        )
    except ValueError as error:
        parser.error(str(error))

    metrics = RunMetrics("train") if args.metrics else None
    with notifying("train", without_secrets(config.run_uri)) as details, shown_training(sys.stderr) as (show, say):

        def on_progress(progress: "TrainProgress") -> None:
            show(progress)
            if metrics is not None and progress.stage in ("train", "evaluate"):
                metrics.training(progress.step, progress.images_per_second, progress.figures, progress.AP)

        summary = train(config, on_progress=on_progress, say=say)
        details |= {"epochs": summary.epochs, "steps": summary.steps, "AP": (summary.metrics or {}).get("AP")}
    print(json.dumps(asdict(summary), indent=2) if args.json else report(summary))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", required=True, metavar="URI", help="training shards, written by `ray-detr shard`")
    parser.add_argument("--val", metavar="URI", help="shards for evaluation (none)")
    parser.add_argument("--storage", required=True, metavar="URI", help="folder of all runs, for checkpoints and logs")
    parser.add_argument("--name", required=True, help="name of the run; an existing run of this name is resumed")
    parser.add_argument(
        "--finetune",
        metavar="REF",
        help="start from this DETR or Table Transformer, with any classes: a hub id, a directory, a .pth or .ckpt, "
        "a URI, or scenes",
    )
    parser.add_argument("--network", metavar="NAME",
                        help="start from random weights: detr-resnet-50[-dc5], -101[-dc5] or scenes")  # fmt: skip
    parser.add_argument(
        "--backbone-weights",
        metavar="REF",
        help="ImageNet weights of the backbone: a file or URI in torchvision's format, a name such as resnet50, or "
        "none (torchvision's weights of the same backbone)",
    )
    parser.add_argument(
        "--num-queries", type=count, metavar="N", help="queries: the largest number of objects in an image (100)"
    )
    parser.add_argument(
        "--position-embedding", choices=("sine", "learned"), help="position embedding of a new network (sine)"
    )
    parser.add_argument("--shorter", type=count, metavar="PIXELS",
                        help="shorter image side in evaluation and use (the network's, 800)")  # fmt: skip
    parser.add_argument("--longest", type=count, metavar="PIXELS",
                        help="limit of the longer side in evaluation and use (the network's, 1333)")  # fmt: skip
    parser.add_argument(
        "--num-workers",
        type=actor_range,
        default=(None, None),
        metavar="MIN:MAX",
        help="number of workers, one for each GPU or core (1 to as many as fit into the cluster)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto uses GPUs if the cluster has any (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--ingest",
        choices=("direct", "ray-data"),
        default="direct",
        help="decode and augment in the workers (direct), or on any CPUs of the cluster (ray-data) (%(default)s)",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="decoding threads of each worker (its CPUs)")
    parser.add_argument(
        "--prefetch-steps", type=count, default=2, metavar="N", help="steps to prepare in advance (%(default)s)"
    )
    parser.add_argument("--evaluate-epochs", type=int, default=1, metavar="N",
                        help="evaluate every N epochs and at the end; 0: only at the end (%(default)s)")  # fmt: skip
    parser.add_argument("--keep", type=count, default=3, metavar="N",
                        help="number of newest checkpoints to keep, in addition to the best (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="minutes between checkpoints; there is also one after each epoch (%(default)s)",
    )
    parser.add_argument(
        "--log-steps", type=count, default=10, metavar="N", help="write a log line every N steps (%(default)s)"
    )
    parser.add_argument(
        "--log-to",
        nargs="+",
        choices=("mlflow", "wandb"),
        default=[],
        help="also log to these, in addition to TensorBoard",
    )
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True,
                        help="run AdamW as one kernel (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute float32 on GPUs in TensorFloat-32, with 10 bits of mantissa (%(default)s)",
    )
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="save memory: compute activations again in the backward pass")  # fmt: skip
    parser.add_argument(
        "--restarts",
        type=count,
        default=5,
        metavar="N",
        help="give up after the workers were started N times without a new checkpoint (%(default)s)",
    )
    parser.add_argument("--collective-seconds", type=count, default=600, metavar="N",
                        help="seconds without an answer after which a worker counts as lost (%(default)s)")  # fmt: skip
    parser.add_argument("--shared-folders", action="store_true",
                        help="local paths are shared by all nodes, as with NFS")  # fmt: skip
    add_cap_options(parser, on_stop="the step in progress is finished and a checkpoint written")
    add_metrics_option(parser)
    add_s3_options(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own messages")


def _backbone_weights(args: argparse.Namespace, network: str) -> str | None:
    """Return what fills the backbone: the paper begins with ImageNet's weights, the small network with none."""
    if args.backbone_weights == NO_WEIGHTS:
        return None
    if args.backbone_weights is not None or args.finetune or network == "scenes":
        return None if args.backbone_weights is None else str(args.backbone_weights)
    return "resnet101" if "101" in network else "resnet50"


def report(summary: "TrainSummary") -> str:
    """Return the summary as text."""
    passed = f"{summary.epochs:,} epochs, {summary.steps:,} steps"
    if summary.was_finished:
        lines = [f"nothing to do: {summary.run} is finished, {passed}"]
    else:
        lines = [f"done: {passed} in {duration(summary.seconds)}{' (resumed)' if summary.resumed else ''}"]
    if len(summary.starts) > 1:
        lines.append(f"workers were started {len(summary.starts)} times, at steps {_listed(summary.starts)}")
    if summary.metrics is not None:
        numbers = {name: value for name, value in summary.metrics.items() if name.startswith(("AP", "AR"))}
        lines.append("  ".join(f"{name} {shown_figure(value)}" for name, value in list(numbers.items())[:6]))
    lines += [
        f"model: {summary.model}, checkpoint {summary.checkpoint}",
        f"label: ray-detr label --model {summary.model} --images URI --table URI",
    ]
    return "\n".join(lines)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)


if __name__ == "__main__":
    run_process(main)
