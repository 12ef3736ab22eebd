"""Detect objects in images and write one table row for each image.

ray-detr label --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

Unreadable images get a row with the reason. Run the same command again to resume a stopped run, or to label what is
new or changed since the last one.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._notifications import notifying
from jobs.exits import print_stopped, run_process
from jobs.options import (
    add_metrics_option,
    add_options,
    check_can_be_written,
    check_no_file,
    check_stays,
    local_path,
    make_config,
    note_on_model,
)
from jobs.parser import CommandParser
from pipelines.errors import BudgetExceeded, CapReached, RayDetrError
from pipelines.labelling.config import LabelConfig

if TYPE_CHECKING:
    from pipelines.labelling.label import LabelSummary
    from pipelines.labelling.outcome import ShardReport
    from pipelines.labelling.progress import Progress
    from pipelines.run_metrics import RunMetrics


NOT_WRITTEN = "report: not written, because no image was labelled; an earlier page stays as it is"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, label, print."""
    parser = CommandParser("label", __doc__)
    add_options(parser, LabelConfig)
    parser.add_argument(
        "--report",
        type=local_path,
        metavar="FILE",
        help="afterwards, write an HTML page about this run, as `ray-detr report` does; where no image was labelled, "
        "an earlier page stays (none)",
    )
    add_metrics_option(parser)
    parser.add_argument(
        "--log-json", action="store_true", help="write one JSON line to standard error for each shard that is done"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--table", args.table)
    check_no_file(parser, "--table", args.table)
    check_stays(parser, "--report", None if args.report is None else str(args.report))
    check_can_be_written(parser, "--report", args.report)

    config = make_config(parser, LabelConfig, args)

    from jobs.progress import shown_progress
    from pipelines.labelling.label import label
    from pipelines.run_metrics import RunMetrics
    from pipelines.store import without_secrets

    metrics = RunMetrics("label") if args.metrics else None
    note_on_model(args.model)
    result = sys.stdout
    # until it has ended, Ray reports dead workers on standard output, where a result is expected
    with (
        notifying("label", without_secrets(config.table)) as details,
        redirect_stdout(sys.stderr),
        ExitStack() as afterwards,  # ends a local Ray after the summary: it takes seconds
        nullcontext() if metrics is None else metrics.exporting(),
    ):
        with shown_progress(sys.stderr) as show:
            try:
                summary = label(
                    config,
                    on_progress=show if metrics is None else _both(show, metrics),
                    afterwards=afterwards,
                    on_shard=_on_shard(metrics, log_json=args.log_json),
                )
            except CapReached as reached:
                if args.json:
                    print_stopped(reached, {"table": without_secrets(config.table)}, file=result)
                raise
        details |= {"run_id": summary.run_id, "images": summary.images, "errors": sum(summary.errors.values())}
        print(
            json.dumps(asdict(summary), indent=2)
            if args.json
            else report(summary, config.threshold, relabel=config.relabel, any_model=config.skip_labelled == "any"),
            file=result,
            flush=True,
        )
        if args.report is not None and not summary.images:
            print(NOT_WRITTEN, file=sys.stderr if args.json else result, flush=True)
        elif args.report is not None:
            try:
                page = _write_page(config, args.report, summary.run_id)
            except RayDetrError as error:
                if summary.within_budget:
                    raise
                # without hiding that there are too many errors: the next attempt finds nothing to label and ends with 0
                print(f"note: {error}", file=sys.stderr)
            else:
                print(f"report: {page}", file=sys.stderr if args.json else result, flush=True)
        if not summary.within_budget:
            before = summary.repeated_errors
            repeated = f", without {before:,} that had the same error before" if before else ""
            raise BudgetExceeded(
                f"{summary.new_errors:,} of {summary.images - before:,} images have errors{repeated}: a share of "
                f"{summary.new_error_rate:.3g}, but --max-error-rate allows {config.max_error_rate:.3g}. The table is "
                "complete; the column `error` has the reason for each image."
            )


def _write_page(config: LabelConfig, out: Path, run_id: str | None) -> Path:
    """Write the page about a run, and return its path."""
    from pipelines.report.config import ReportConfig
    from pipelines.report.report import write_report  # deferred: it takes half a second

    page = ReportConfig(
        table=config.table,
        out=out,
        run_id=run_id,
        options=config.table_options,
        picture_options=config.image_options,
    )
    return write_report(page).out


def _both(show: "Callable[[Progress], None]", metrics: "RunMetrics") -> "Callable[[Progress], None]":
    def on_progress(progress: "Progress") -> None:
        show(progress)
        metrics.labelling(progress)

    return on_progress


def _on_shard(metrics: "RunMetrics | None", *, log_json: bool) -> "Callable[[str, ShardReport], None]":
    def on_shard(run_id: str, report: "ShardReport") -> None:
        if metrics is not None:
            metrics.shard(report)
        if log_json:
            write_shard(run_id, report)

    return on_shard


def write_shard(run_id: str, report: "ShardReport") -> None:
    """Write one JSON line with the outcome of a shard to standard error."""
    figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(report).items()}
    record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "shard", "run_id": run_id}
    print(json.dumps({**record, **figures, "errors": dict(report.errors)}), file=sys.stderr, flush=True)


def report(summary: "LabelSummary", threshold: float = 0.0, *, relabel: bool = False, any_model: bool = False) -> str:
    """Return the summary as text.

    It has hints if a table with this `threshold` is not suitable for an evaluation, or if images have several rows.
    With `any_model`, images with rows of any model were skipped.
    """
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in summary.skipped.items())
    if summary.images == 0:
        whose = "" if any_model else f" of {summary.model}"
        labelled = f"all {summary.already_labelled:,} images have rows{whose} already"
        if not left_out:
            return f"nothing to do: {labelled}"
        return f"nothing to do: {f'{labelled}; ' if summary.already_labelled else ''}left out: {left_out}"
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
        repeated = f"; {summary.repeated_errors:,} had the same error before" if summary.repeated_errors else ""
        lines.append(f"errors: {errors:,} ({100 * summary.error_rate:.3g} %): {kinds}{repeated}")
    if summary.work.requests:
        lines.append(f"work:   {work(summary)}")
    if summary.changed_this_start:
        lines.append(
            f"changed: {summary.changed_this_start:,} images changed between listing and reading; their rows "
            "describe the version that was read"
        )
    if summary.resumed:
        lines.append(
            f"resumed: run {summary.run_id} had {summary.images_this_start:,} images left. Run the command "
            "again to label images that were added after it was planned"
        )
    if summary.already_labelled:
        lines.append(f"skipped: {summary.already_labelled:,} images have rows already")
    if left_out:
        lines.append(f"left out: {left_out}")
    files = f"{summary.files:,} file" + ("" if summary.files == 1 else "s")
    lines += [f"table:  {summary.table}, {files} of run {summary.run_id}", f"query:  {summary.query}"]
    if threshold > 0:
        lines.append(
            f"note:   detections below {threshold:g} are not kept. For AP (ray-detr evaluate), label into another "
            "table with --threshold 0"
        )
    if relabel:
        lines.append(
            "note:   images that had rows with other settings have several rows now. The query counts the newest row "
            "of each image, which is also what ray-detr export --latest copies"
        )
    return "\n".join(lines)


def work(summary: "LabelSummary") -> str:
    """Return the resources of this attempt: seconds over all threads, busy share, requests, bytes, cost."""
    spent = summary.work
    busy = "" if spent.busy_share is None else f"; devices busy {100 * spent.busy_share:.0f} %"
    cost = "" if summary.cost is None else f", cost {summary.cost:.2f} for {summary.node_hours:.3g} node hours"
    return (
        f"reading {duration(spent.fetch_seconds)}, decoding {duration(spent.decode_seconds)}, network "
        f"{duration(spent.network_seconds)} over all threads{busy}; {spent.requests:,} requests, "
        f"{spent.size_bytes / 1e6:,.1f} MB{cost}"
    )


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `48 min 51 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


if __name__ == "__main__":
    run_process(main)
