"""Write one HTML page about a table or a training run: figures, and pictures with their boxes.

ray-detr report --table s3://lake/detections --out report.html
ray-detr report --table s3://lake/detections --run NEW --against OLD --max-drift 0.1
ray-detr report --training s3://runs/first --out training.html

The page holds everything that it shows, loads nothing, and opens from a file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, check_can_be_written, check_stays, make_config, refuse_given, share
from jobs.parser import CommandParser
from pipelines.errors import BudgetExceeded
from pipelines.evaluation.explanations import shown_figure
from pipelines.report.config import ReportConfig, TrainingReportConfig

if TYPE_CHECKING:
    from pipelines.report.report import ReportProgress, ReportSummary
    from pipelines.report.training import TrainingReportSummary

TABLE_ONLY = (
    "run", "settings", "against", "max_drift", "annotations", "match_classes", "seed", "price_per_hour", "keep_repeats",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write, print."""
    parser = CommandParser("report", __doc__)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--table", metavar="URI", help="the detection table")
    subject.add_argument(
        "--training",
        metavar="URI",
        help="the folder of a training run; the page shows losses, learning rates, AP, and validation "
        "pictures with detections",
    )
    add_options(parser, ReportConfig)
    parser.add_argument(
        "--max-drift",
        type=share,
        metavar="SHARE",
        help="with --against: exit code 3 when a larger share of the boxes appeared, vanished or moved, or a larger "
        "share of the images that both runs have is an error only now (no limit)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", str(args.out))
    check_can_be_written(parser, "--out", args.out)
    if args.max_drift is not None and args.against is None:
        parser.error("--max-drift needs --against")
    if args.training is not None:
        report_training(parser, args)
        return

    config = make_config(parser, ReportConfig, args, table=args.table)

    from jobs.progress import Drawing, shown
    from pipelines.report.report import write_report

    drawing: Drawing[ReportProgress] = Drawing(is_running=lambda _: True, line=progress_line, done=progress_done)
    with shown(sys.stderr, drawing) as on_progress:
        summary = write_report(config, show=on_progress)

    if len(summary.settings) > 1:
        found = "; ".join(f"{count:,} with {settings}" for settings, count in summary.settings.items())
        print(f"note: the rows have several settings ({found}). --settings chooses one.", file=sys.stderr)
    if args.json:
        fields = {**asdict(summary), "out": str(summary.out)}
        if not summary.repeats_left_out:  # as for tables without marks
            del fields["repeats_left_out"]
        print(json.dumps(fields, indent=2))
    else:
        print(sentences(summary))
    if args.max_drift is not None:
        check_drift(summary, args.max_drift)


def progress_line(progress: "ReportProgress") -> str:
    """Return one line of progress: rows, then pictures."""
    if not progress.pictures_planned:
        return f"  report  {progress.rows:,} rows"
    return f"  report  {progress.rows:,} rows, picture {progress.pictures:,} of {progress.pictures_planned:,}"


def progress_done(progress: "ReportProgress") -> tuple[int, int]:
    """Return the finished and the total amount; the number of rows is unknown before all are read."""
    return (progress.pictures, progress.pictures_planned) if progress.pictures_planned else (progress.rows, 0)


def report_training(parser: CommandParser, args: argparse.Namespace) -> None:
    """Write the page of a training run, and print what was written."""
    refuse_given(parser, args, TABLE_ONLY, "--table, not for --training")
    config = make_config(parser, TrainingReportConfig, args, run=args.training)

    from pipelines.report.training import write_training_report

    summary = write_training_report(config)
    print(
        json.dumps({**asdict(summary), "out": str(summary.out)}, indent=2) if args.json else training_sentence(summary)
    )


def training_sentence(summary: "TrainingReportSummary") -> str:
    """Return the summary of the page of a training run."""
    size = f"{summary.bytes / 1e6:.1f} MB"
    done = f"{summary.epochs:,} epochs, {summary.steps:,} steps, {summary.pictures:,} pictures"
    note = "" if summary.problem is None else f"\nno pictures: {summary.problem}"
    return f"report: {done}, {size}: {summary.out}{note}"


def sentences(summary: "ReportSummary") -> str:
    """Return the summary of the page."""
    size = f"{summary.bytes / 1e6:.1f} MB"
    lines = [f"report: {summary.images:,} images, {summary.pictures:,} pictures, {size}: {summary.out}"]
    if summary.repeats_left_out:
        lines.append(
            f"left out: {summary.repeats_left_out:,} detections that repeat at one place, as marked by `ray-detr "
            "repeats` (--keep-repeats keeps them)"
        )
    if summary.drift is not None:
        lines += [
            f"drift: {100 * summary.drift:.1f} % of the boxes changed, over {summary.compared:,} images",
            f"of {summary.in_both:,} images in both: new errors {summary.new_errors:,}, changed pictures "
            f"{summary.changed_pictures:,} (not compared); images only in this report {summary.only_here:,}, only in "
            f"the earlier run {summary.only_before:,}",
        ]
    if summary.AP is not None:
        lines += [f"AP: {shown_figure(summary.AP)}", *summary.AP_notes]
    if summary.unreadable:
        lines.append(f"{summary.unreadable:,} of the pictures are gone, changed or unreadable; the page says why.")
    return "\n".join(lines)


def check_drift(summary: "ReportSummary", most: float) -> None:
    """Exit with code 3 if more changed than allowed, more images are new errors, or nothing could be compared."""
    if not summary.in_both:
        raise BudgetExceeded("--max-drift: the two runs have no image in common, so nothing was compared.")
    assert summary.drift is not None
    assert summary.new_errors is not None
    failed = summary.new_errors / summary.in_both
    allowed = f"but --max-drift allows {100 * most:g} %. {summary.out} shows"
    if failed > most:
        raise BudgetExceeded(
            f"{_percent_above(failed, most)} % of the images that both runs have are errors only now "
            f"({summary.new_errors:,} of {summary.in_both:,}), {allowed} these errors."
        )
    if not summary.compared:
        raise BudgetExceeded(
            "--max-drift: no image that both runs have could be compared: each is an error in one of them, or its "
            "picture changed."
        )
    if summary.drift > most:
        raise BudgetExceeded(
            f"{_percent_above(summary.drift, most)} % of the boxes appeared, vanished or moved, {allowed} these boxes."
        )


def _percent_above(share: float, most: float) -> str:
    """Return a share in percent, with as many decimals as it takes to be above a limit; at least one."""
    texts = (f"{100 * share:.{decimals}f}" for decimals in range(1, 9))
    return next((text for text in texts if float(text) > 100 * most), repr(100 * share))


if __name__ == "__main__":
    run_process(main)
