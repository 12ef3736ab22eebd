r"""Train or fine-tune a DETR on training shards.

ray-detr train --train s3://data/shards/train --val s3://data/shards/val --storage s3://runs --name first \
  --recipe finetune --finetune facebook/detr-resnet-50

Uses all machines of the Ray cluster. Run the same command again to resume from the newest checkpoint.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TextIO

from jobs._notifications import notifying
from jobs.exits import print_stopped, run_process
from jobs.label import duration
from jobs.options import (
    add_metrics_option,
    add_options,
    check_can_be_written,
    check_stays,
    local_path,
    make_config,
    option_values,
)
from jobs.parser import CommandParser
from pipelines.errors import CapReached
from pipelines.evaluation.explanations import shown_figure
from pipelines.training.config import TrainConfig
from pipelines.training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from pipelines.training.run_status import TrainProgress
    from pipelines.training.train import TrainSummary

NO_WEIGHTS = "none"
_SIZES = ("scale_phases", "crop_scales", "crop_range", "longest")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    parser = CommandParser("train", __doc__)
    add_options(parser, TrainConfig)
    parser.add_argument(
        "--report",
        type=local_path,
        metavar="FILE",
        help="afterwards, write an HTML page about this run, as `ray-detr report --training` does (none)",
    )
    add_metrics_option(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_recipe_options(parser)
    args = parser.parse_args(argv)
    check_stays(parser, "--storage", args.storage)
    check_stays(parser, "--report", None if args.report is None else str(args.report))
    check_can_be_written(parser, "--report", args.report)
    network = args.network or ("scenes" if args.recipe == "scenes" else "detr-resnet-50")
    try:
        recipe = replace(RECIPES[args.recipe], **recipe_values(args))
    except ValueError as error:
        parser.error(str(error))
    config = make_config(
        parser,
        TrainConfig,
        args,
        recipe=recipe,
        recipe_name=args.recipe,
        network=args.network if args.finetune else network,
        backbone_weights=_backbone_weights(args, network),
    )

    from pipelines.run_metrics import RunMetrics
    from pipelines.store import without_secrets
    from pipelines.training.train import train

    metrics = RunMetrics("train") if args.metrics else None
    with (
        notifying("train", without_secrets(config.run_uri)) as details,
        shown_training(sys.stderr) as (show, say),
        nullcontext() if metrics is None else metrics.exporting(),
    ):

        def on_progress(progress: "TrainProgress") -> None:
            show(progress)
            if metrics is not None:
                metrics.training(progress)

        try:
            summary = train(config, on_progress=on_progress, say=say)
        except CapReached as reached:
            if args.json:
                print_stopped(reached, {"run": without_secrets(config.run_uri)})
            raise
        details |= {"epochs": summary.epochs, "steps": summary.steps, "AP": (summary.metrics or {}).get("AP")}
    print(json.dumps(asdict(summary), indent=2) if args.json else report(summary), flush=True)
    if args.report is not None:
        from jobs.report import training_sentence
        from pipelines.report.config import TrainingReportConfig
        from pipelines.report.training import write_training_report

        page = write_training_report(TrainingReportConfig(config.run_uri, args.report, options=config.options))
        print(training_sentence(page), file=sys.stderr if args.json else sys.stdout, flush=True)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and an option for each of its values, whose defaults are the preset's."""
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="paper-300",
        help="preset of the options below: as in the paper, as for the released weights, for fine-tuning "
        "on a few hundred images, or as for the model `scenes` (%(default)s)",
    )
    group = parser.add_argument_group("recipe", "The preset gives the defaults.")
    add_options(group, Recipe, use_defaults=False)


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe's fields from the command line; given sizes are not scaled."""
    values = {name: value for name, value in option_values(args, Recipe).items() if value is not None}
    if "scale_phases" in values and all(until == 1.0 for until, _ in values["scale_phases"]):
        values["scale_phases"] = ((1.0, tuple(side for _, sides in values["scale_phases"] for side in sides)),)
    return ({} if values.keys().isdisjoint(_SIZES) else {"sized_for": 0}) | values


def _backbone_weights(args: argparse.Namespace, network: str) -> str | None:
    """Return the backbone's initial weights: ImageNet's as in the paper, or none for the small network."""
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
    if summary.cost is not None:
        lines.append(f"cost: {summary.cost:.2f} for {summary.node_hours:.3g} node hours")
    if len(summary.starts) > 1:
        lines.append(f"workers were started {len(summary.starts)} times, at steps {_listed(summary.starts)}")
    if summary.metrics is not None:
        numbers = {name: value for name, value in summary.metrics.items() if name.startswith(("AP", "AR"))}
        lines.append("  ".join(f"{name} {shown_figure(value)}" for name, value in list(numbers.items())[:6]))
    lines += [
        f"model: {summary.model}, checkpoint {summary.checkpoint}",
        f"label: ray-detr label --model {shlex.quote(summary.model)} --images URI --table URI",
    ]
    return "\n".join(lines)


@contextmanager
def shown_training(stream: TextIO) -> Iterator[tuple[Callable[["TrainProgress"], None], Callable[[str], None]]]:
    """Provide a function that shows a `TrainProgress`, and one for messages; clean up at the end."""
    from jobs.progress import Drawing, own_stream, shown

    drawing = Drawing(is_running=_is_running, line=progress_line, done=_done)
    with own_stream(stream) as own, shown(own, drawing) as show:

        def say(sentence: str) -> None:
            print(f"note: {sentence}", file=own, flush=True)

        yield show, say


def progress_line(progress: "TrainProgress") -> str:
    """Return one line of figures."""
    if not _is_running(progress):
        return f"  {progress.stage}"
    parts = [
        f"epoch {progress.epoch + 1:,} of {progress.epochs:,}",
        f"step {progress.steps_done:,} of {progress.steps:,}",
        f"{progress.images_per_second:,.1f} images/s",
        *(f"{name} {value:.3f}" for name, value in progress.losses.items()),
    ]
    if progress.AP is not None and progress.best is not None:
        parts.append(f"AP {shown_figure(progress.AP)} (best {shown_figure(progress.best)})")
    parts.append(f"{progress.workers:,} worker{'' if progress.workers == 1 else 's'}")
    return f"  {progress.stage}  " + "  ".join(parts)


def _is_running(progress: "TrainProgress") -> bool:
    return progress.stage == "train" and progress.steps > 0


def _done(progress: "TrainProgress") -> tuple[int, int]:
    return progress.epoch * progress.steps + progress.steps_done, progress.epochs * progress.steps


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)


if __name__ == "__main__":
    run_process(main)
