"""Print what `ray-detr label` would do, without writing rows.

ray-detr plan --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

Shards are counted as on GPUs, 2,048 images each (256 with --tiles), unless --shard-images is given. With --model it
takes the options of `ray-detr label`, and refuses what that refuses: a threshold, classes or a precision that the table
has no rows of.

Without --trial nothing is written. --trial writes a temporary folder below the table and deletes it again.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from detr.precision import family_precision
from jobs.exits import run_process
from jobs.options import above_zero, add_options, check_no_file, count, make_config
from jobs.parser import CommandParser
from pipelines.labelling.config import PlanConfig

if TYPE_CHECKING:
    from pipelines.labelling.plan import PlanSummary
    from pipelines.labelling.trial import Prediction
    from pipelines.models import ModelInfo

# Options that need --model: with them, rows of one model differ.
SETTINGS = ("threshold", "classes", "precision", "masks", "tiles", "overlap", "relabel")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, list, print."""
    parser = CommandParser("plan", __doc__)
    add_options(parser, PlanConfig)
    parser.add_argument(
        "--trial",
        type=count,
        metavar="N",
        help="label N random images into a temporary folder below the table, and predict the speed and the hours "
        "of the whole plan; needs --model (none)",
    )
    parser.add_argument(
        "--price-per-hour",
        type=above_zero,
        metavar="P",
        help="with --trial: price of one node for an hour, to predict the price (none)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_no_file(parser, "--table", args.table)
    given = [name for name in SETTINGS if getattr(args, name) != parser.get_default(name)]
    if args.model is None and given:
        parser.error(f"--{given[0]} needs --model")
    if args.trial is not None and (args.model is None or args.max_images or args.sample):
        parser.error("--trial needs --model, and draws from all images: omit --max-images and --sample")
    if args.price_per_hour is not None and args.trial is None:
        parser.error("--price-per-hour needs --trial")

    config = make_config(parser, PlanConfig, args)

    from pipelines.labelling.plan import summarise_plan, usual_shard_images

    model = None
    if config.model is not None:
        info = _identified(config)
        model = info.id
        if not info.is_native:
            config = replace(config, precision=family_precision(config.precision))
    summary = summarise_plan(config, model=model)
    shard_images = config.shard_images or usual_shard_images(gpus=True, tiled=config.tiling is not None)
    prediction = None
    if args.trial is not None and summary.images:
        prediction = _predict(config, summary.images, trial=args.trial, price_per_hour=args.price_per_hour)

    if args.json:
        record = {**asdict(summary), "model": model, "shard_images": shard_images}
        if prediction is not None:
            record["prediction"] = asdict(prediction)
        print(json.dumps(record, indent=2))
    else:
        print(
            report(
                summary,
                model=None if config.skip_labelled == "any" else model,
                shard_images=shard_images,
            )
        )
        if prediction is not None:
            print(predicted(prediction))


def _identified(config: PlanConfig) -> "ModelInfo":
    """Read the model. Its id is its name in rows."""
    from pipelines.labelling.model_names import with_recorded_name
    from pipelines.models import check_classes, check_masks, identify_model
    from pipelines.store import open_store

    assert config.model is not None
    model = identify_model(config.model, config.table_options)
    check_classes(model, [name for name, _ in config.classes or ()], reference=config.model)
    if config.masks:
        check_masks(model, reference=config.model)
    return with_recorded_name(open_store(config.table, config.table_options), model)


def _predict(config: PlanConfig, images: int, *, trial: int, price_per_hour: float | None) -> "Prediction":
    """Label `trial` random images, and predict a run of `images`."""
    from jobs.progress import shown_progress
    from pipelines.caps import Caps
    from pipelines.labelling.config import LabelConfig
    from pipelines.labelling.trial import predict

    options: dict[str, Any] = {one.name: getattr(config, one.name) for one in fields(config)}
    options |= {"sample": trial, "shard_images": None, "max_error_rate": 1.0, "retry_errors": "transient"}
    drawn = LabelConfig(**options, caps=Caps(price_per_hour=price_per_hour))
    with redirect_stdout(sys.stderr), shown_progress(sys.stderr) as on_progress:
        return predict(drawn, images=images, on_progress=on_progress)


def predicted(prediction: "Prediction") -> str:
    """Return a prediction as text, with the interval of each figure."""
    low, high = prediction.hours_interval
    slow, fast = prediction.images_per_second_interval
    nodes = f"{prediction.nodes:,} node{'' if prediction.nodes == 1 else 's'}"
    lines = [
        f"trial:      {prediction.trial_images:,} images: {prediction.images_per_second:,.2f} images/s "
        f"({slow:,.2f} to {fast:,.2f}) on {nodes}",
        f"predicted:  {prediction.hours:,.2f} hours ({low:,.2f} to {high:,.2f})",
    ]
    if prediction.price is not None and prediction.price_interval is not None:
        least, most = prediction.price_interval
        lines.append(f"price:      {prediction.price:,.2f} ({least:,.2f} to {most:,.2f})")
    return "\n".join(lines)


def report(summary: "PlanSummary", *, model: str | None, shard_images: int) -> str:
    """Return the summary as text."""
    some = f"{summary.shards:,} shard{'' if summary.shards == 1 else 's'}"
    shards = f"{some} of {shard_images:,} images at most"
    unknown = f" and {summary.unknown_sizes:,} of unknown size" if summary.unknown_sizes else ""
    lines = [f"to label:   {summary.images:,} images, {size(summary.size_bytes)}{unknown}, {shards}"]
    if summary.labelled:
        lines.append(f"labelled:   {summary.labelled:,} images have rows of {model or 'some model'}")
    if summary.duplicates:
        lines.append(f"duplicates: {summary.duplicates:,} further mentions of the same images")
    if summary.skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.skipped.items())
        lines.append(f"left out:   {reasons}")
    if summary.unfinished_run is not None:
        lines.append(
            f"unfinished: run {summary.unfinished_run} is resumed first; it has labelled "
            f"{summary.unfinished_done:,} of the {summary.unfinished_images:,} images that it has planned"
        )
    return "\n".join(lines)


def size(size_bytes: int) -> str:
    """Return a number of bytes with a suitable unit: `391.2 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes} bytes"


if __name__ == "__main__":
    run_process(main)
