"""Print what `ray-detr label` would do, without writing anything.

ray-detr plan --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

Shards are counted as on GPUs, 2,048 images each, unless --shard-images is given. With --model it takes the options of
`ray-detr label`, and refuses what that refuses: a threshold, classes or a precision that the table has no rows of.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from jobs.exits import run_process
from jobs.options import (
    CommandParser,
    above_zero,
    add_classes_option,
    add_relabel_option,
    add_retry_option,
    add_settings_options,
    add_source_options,
    count,
)

if TYPE_CHECKING:
    from pipelines.labelling.plan import PlanConfig, PlanSummary
    from pipelines.labelling.trial import Prediction

SETTINGS = ("threshold", "classes", "precision", "relabel")  # what tells rows of one model apart


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, list, print."""
    parser = CommandParser("plan", __doc__)
    add_source_options(parser)
    parser.add_argument(
        "--model",
        metavar="REF",
        help="the model of the run, which is read to find its rows; without it, rows of any model count as labelled",
    )
    add_settings_options(parser)
    add_classes_option(parser)
    add_relabel_option(parser)
    add_retry_option(parser)
    parser.add_argument(
        "--trial",
        type=count,
        metavar="N",
        help="label N images drawn at random into a temporary place below the table, and predict speed and hours of "
        "the whole plan; needs --model (none)",
    )
    parser.add_argument(
        "--price-per-hour",
        type=above_zero,
        metavar="P",
        help="with --trial: price of one node for an hour, to predict the price (none)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    given = [name for name in SETTINGS if getattr(args, name) != parser.get_default(name)]
    if args.model is None and given:
        parser.error(f"--{given[0]} goes with --model, whose rows it tells apart")
    if args.trial is not None and (args.model is None or args.max_images or args.sample):
        parser.error("--trial needs --model, and draws from all images: omit --max-images and --sample")
    if args.price_per_hour is not None and args.trial is None:
        parser.error("--price-per-hour goes with --trial")

    from pipelines.caps import Caps
    from pipelines.labelling.plan import GPU_SHARD_IMAGES, PlanConfig, summarise_plan
    from pipelines.store import StoreOptions

    try:
        options = StoreOptions(
            via=args.via,
            anonymous=args.anonymous,
            endpoint=args.endpoint,
            region=args.region,
            profile=args.profile,
            request_payer=args.request_payer,
        )
        table_options = options.of_table(
            endpoint=args.table_endpoint, region=args.table_region, profile=args.table_profile
        )
        config = PlanConfig(
            images=tuple(args.images),
            table=args.table,
            shard_images=args.shard_images or GPU_SHARD_IMAGES,
            max_images=args.max_images,
            sample=args.sample,
            seed=args.seed,
            keep=tuple(args.keep),
            image_column=args.image_column,
            retry_errors=args.retry_errors,
            options=options,
            table_options=table_options,
        )
    except ValueError as error:
        parser.error(str(error))
    if args.model is not None:
        from pipelines.labelling.model_names import with_recorded_name
        from pipelines.models import check_classes, identify_model
        from pipelines.store import open_store

        model = identify_model(args.model, table_options)
        check_classes(model, [name for name, _ in args.classes or ()], reference=args.model)
        config = replace(
            config,
            model=with_recorded_name(open_store(args.table, table_options), model).id,
            configuration={
                "threshold": args.threshold,
                "classes": args.classes,
                "precision": args.precision,
            },
            relabel=args.relabel,
        )

    summary = summarise_plan(config)
    prediction = None
    if args.trial is not None and summary.images:
        from jobs.progress import shown_progress
        from pipelines.labelling.config import LabelConfig
        from pipelines.labelling.trial import predict

        trial = LabelConfig(
            images=config.images,
            table=config.table,
            model=args.model,
            threshold=args.threshold,
            classes=None if args.classes is None else tuple(args.classes),
            precision=args.precision,
            sample=args.trial,
            seed=args.seed,
            keep=config.keep,
            image_column=config.image_column,
            max_error_rate=1.0,
            caps=Caps(price_per_hour=args.price_per_hour),
            **_store_options(args),
        )
        with redirect_stdout(sys.stderr), shown_progress(sys.stderr) as on_progress:
            prediction = predict(trial, images=summary.images, on_progress=on_progress)

    if args.json:
        record = {**asdict(summary), "model": config.model, "shard_images": config.shard_images}
        if prediction is not None:
            record["prediction"] = asdict(prediction)
        print(json.dumps(record, indent=2))
    else:
        print(report(summary, config))
        if prediction is not None:
            print(predicted(prediction))


def predicted(prediction: "Prediction") -> str:
    """Return a prediction as text, each figure with its interval."""
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


def _store_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("via", "anonymous", "endpoint", "region", "profile", "request_payer")
    return {name: getattr(args, name) for name in (*names, "table_endpoint", "table_region", "table_profile")}


def report(summary: "PlanSummary", config: "PlanConfig") -> str:
    """Return the summary as text."""
    some = f"{summary.shards:,} shard{'' if summary.shards == 1 else 's'}"
    shards = f"{some} of {config.shard_images:,} images at most"
    unknown = f" and {summary.unknown_sizes:,} of unknown size" if summary.unknown_sizes else ""
    lines = [f"to label:   {summary.images:,} images, {size(summary.size_bytes)}{unknown}, {shards}"]
    if summary.labelled:
        lines.append(f"labelled:   {summary.labelled:,} images have rows of {config.model or 'some model'}")
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
    """Return a number of bytes in the unit that suits it: `391.2 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes} bytes"


if __name__ == "__main__":
    run_process(main)
