"""Label photographs with a DETR: one row per photograph in a Parquet table, the unreadable ones with the reason.

python -m jobs.label --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

The same command resumes a run that was stopped, and labels only what is new or changed when it is run again.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import BudgetExceeded, run
from jobs.options import (
    CommandParser,
    actor_range,
    add_batch_size_option,
    add_model_options,
    add_retry_option,
    add_source_options,
    check_stays,
    class_threshold,
    share,
)

if TYPE_CHECKING:
    from pipelines.labelling.label import LabelSummary


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, label, print."""
    parser = CommandParser(prog="jobs.label", description=__doc__)
    add_source_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        type=class_threshold,
        metavar="NAME[=THRESHOLD]",
        help="keep these classes only, each from its own threshold on where one is given (all classes)",
    )
    parser.add_argument("--run-id", metavar="ID", help="the run's name (made of the time)")
    parser.add_argument(
        "--new-run", action="store_true", help="seal the table's unfinished run and plan afresh instead of resuming it"
    )
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="label images again that the table has with another threshold, classes or precision: both rows stay, told "
        "apart by the column settings (refuse)",
    )
    parser.add_argument(
        "--actors",
        type=actor_range,
        default=(None, None),
        metavar="MIN:MAX",
        help="detectors that run at once, one a GPU or core (1 to as many as the cluster holds)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s: GPUs where there are any)")
    add_batch_size_option(parser)
    parser.add_argument(
        "--max-error-rate",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="exit code 3 when more than this share of the images are errors (%(default)s)",
    )
    add_retry_option(parser)
    parser.add_argument(
        "--wait-minutes",
        type=float,
        default=0.0,
        metavar="N",
        help="how long another start that writes the table is waited for before the exit code is 4 (%(default)g)",
    )
    parser.add_argument(
        "--decode-seconds",
        type=float,
        default=120.0,
        metavar="N",
        help="CPU time after which decoding an image is given up: a decode_timeout row (%(default)g)",
    )
    parser.add_argument(
        "--stall-minutes",
        type=float,
        default=60.0,
        metavar="N",
        help="stop, resumable, when no shard has come back for N minutes, waiting for nodes included (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--verbose", action="store_true", help="let Ray's own messages through")
    args = parser.parse_args(argv)
    check_stays(parser, "--table", args.table)

    from jobs.progress import shown_progress
    from pipelines.labelling.label import LabelConfig, label

    try:
        config = LabelConfig(
            images=tuple(args.images),
            table=args.table,
            model=args.model,
            threshold=args.threshold,
            classes=None if args.classes is None else tuple(args.classes),
            precision=args.precision,
            device=args.device,
            batch_size=args.batch_size,
            run_id=args.run_id,
            new_run=args.new_run,
            relabel=args.relabel,
            least_actors=args.actors[0],
            most_actors=args.actors[1],
            shard_images=args.shard_images,
            max_error_rate=args.max_error_rate,
            max_images=args.max_images,
            sample=args.sample,
            seed=args.seed,
            keep=tuple(args.keep),
            via=args.via,
            anonymous=args.anonymous,
            endpoint=args.endpoint,
            region=args.region,
            profile=args.profile,
            request_payer=args.request_payer,
            table_endpoint=args.table_endpoint,
            table_region=args.table_region,
            table_profile=args.table_profile,
            retry_errors=args.retry_errors,
            wait_minutes=args.wait_minutes,
            decode_seconds=args.decode_seconds,
            stall_minutes=args.stall_minutes,
            verbose=args.verbose,
        )
    except ValueError as error:
        parser.error(str(error))

    result = sys.stdout
    # Ray tells of dead workers on standard output, where a result is expected, until it has ended
    with redirect_stdout(sys.stderr), ExitStack() as afterwards:  # ends a local Ray after the summary: it takes seconds
        with shown_progress(sys.stderr) as on_progress:
            summary = label(config, on_progress=on_progress, afterwards=afterwards)
        print(json.dumps(asdict(summary), indent=2) if args.json else report(summary), file=result, flush=True)
    if not summary.within_budget:
        raise BudgetExceeded(
            f"{sum(summary.errors.values()):,} of {summary.images:,} images are errors, a share of "
            f"{summary.error_rate:.3g}, and --max-error-rate allows {config.max_error_rate:.3g}. "
            "The table is complete; its rows say what each error is."
        )


def report(summary: "LabelSummary") -> str:
    """Return what a person wants to know at the end."""
    if summary.images == 0:
        return f"nothing to do: all {summary.already_labelled:,} images are labelled by {summary.model}"
    rate = summary.images_this_start / summary.seconds
    lines = [
        f"done: {summary.images:,} images in {duration(summary.seconds)} ({rate:,.1f} images/s), "
        f"{summary.detections:,} detections",
    ]
    errors = sum(summary.errors.values())
    if errors:
        kinds = ", ".join(
            f"{kind} {count:,}" for kind, count in sorted(summary.errors.items(), key=lambda item: -item[1])
        )
        lines.append(f"errors: {errors:,} ({100 * summary.error_rate:.3g} %): {kinds}")
    if summary.changed_this_start:
        lines.append(
            f"changed: {summary.changed_this_start:,} images were another version than was listed when they were "
            "read, and are labelled as they were read"
        )
    if summary.resumed:
        lines.append(
            f"resumed: {summary.images_this_start:,} images were left of run {summary.run_id}. "
            "Images added since it was planned are labelled by the next start"
        )
    if summary.already_labelled:
        lines.append(f"before: {summary.already_labelled:,} images were labelled already")
    if summary.skipped:
        lines.append("left out: " + ", ".join(f"{reason} {count:,}" for reason, count in summary.skipped.items()))
    files = f"{summary.files:,} file" + ("" if summary.files == 1 else "s")
    lines += [f"table:  {summary.table}, {files} of run {summary.run_id}", f"query:  {summary.query}"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return the two largest units: `48 min 51 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


if __name__ == "__main__":
    run(main)
