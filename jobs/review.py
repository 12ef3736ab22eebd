r"""Export images of a table for correction, and make training shards of the corrections.

ray-detr review --table s3://lake/detections --export least-certain --count 50 --out batch
ray-detr review --table s3://lake/detections --import corrected.json --out s3://shards/corrected
ray-detr train --train s3://shards/corrected --finetune MODEL ...

Images are written for Label Studio, or as a COCO json for CVAT and others, with the detections drawn in advance. Both
come back: JSON and JSON-MIN of Label Studio, and COCO. docs/review.md has an example.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, check_stays, make_config, refuse_given
from jobs.parser import CommandParser
from pipelines.review.config import CHOICES, CorrectionsConfig, ReviewConfig

if TYPE_CHECKING:
    from pipelines.review.corrected_shards import CorrectionsSummary
    from pipelines.review.export import ReviewSummary
    from pipelines.shards.sharding import ShardProgress

SHARED = frozenset({"table", "out", "classes_of", "options"})
ONLY_EXPORT = frozenset({"count", "to", "threshold", "run", "against", "seed", "image_urls"})
ONLY_IMPORT = frozenset({"add_classes", "max_missing", "max_unusable"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export or import, print."""
    parser = CommandParser("review", __doc__)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--export",
        choices=CHOICES,
        help="choose images: with most scores near 0.5; at random; equally many of each class; with most boxes that "
        "changed since the run --against. Images that were exported before are left out",
    )
    direction.add_argument(
        "--import",
        dest="files",
        nargs="+",
        metavar="FILE",
        help="make training shards of these corrections: JSON or JSON-MIN of Label Studio, or COCO json, "
        "also in a ZIP; paths or URIs",
    )
    add_options(parser, ReviewConfig, only=SHARED)
    exported = parser.add_argument_group("with --export")
    add_options(exported, ReviewConfig, only=ONLY_EXPORT)
    imported = parser.add_argument_group("with --import")
    add_options(imported, CorrectionsConfig, only=ONLY_IMPORT)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", args.out)
    _check_direction(parser, args)
    if args.export is not None:
        _export(parser, args)
    else:
        _import(parser, args)


def _check_direction(parser: CommandParser, args: argparse.Namespace) -> None:
    """Exit with code 2 if an option of the other direction is given."""
    unfit, name = (ONLY_IMPORT, "--import") if args.export is not None else (ONLY_EXPORT, "--export")
    refuse_given(parser, args, unfit, name)


def _export(parser: CommandParser, args: argparse.Namespace) -> None:
    config = make_config(parser, ReviewConfig, args, choice=args.export)

    from jobs.progress import Drawing, shown
    from pipelines.review.export import export_review

    drawing: Drawing[int] = Drawing(
        is_running=lambda _: True, line=lambda rows: f"  review  {rows:,} rows", done=lambda rows: (rows, 0)
    )
    with shown(sys.stderr, drawing) as on_progress:
        summary = export_review(config, show=on_progress)
    print(json.dumps(asdict(summary), indent=2) if args.json else exported_report(summary, config))


def _import(parser: CommandParser, args: argparse.Namespace) -> None:
    config = make_config(parser, CorrectionsConfig, args, files=tuple(args.files))

    from jobs.progress import Drawing, shown
    from jobs.shard import line
    from pipelines.review.corrected_shards import shard_corrections

    drawing: Drawing[ShardProgress] = Drawing(
        is_running=lambda progress: progress.stage == "shard",
        line=lambda progress: line(progress, time.monotonic() - progress.began),
        done=lambda progress: (progress.images, progress.images_planned),
    )
    with shown(sys.stderr, drawing) as on_progress:
        summary = shard_corrections(config, on_progress=on_progress)
    print(json.dumps(asdict(summary), indent=2) if args.json else imported_report(summary))


def exported_report(summary: "ReviewSummary", config: ReviewConfig) -> str:
    """Return the chosen images, their location, and the next step."""
    fewer = "" if summary.images == summary.asked else f" (of {summary.asked:,} asked for)"
    before = f", {summary.exported_before:,} exported before" if summary.exported_before else ""
    files = ", ".join(summary.files)
    lines = [
        f"batch {summary.batch}: {summary.images:,} images{fewer} with {summary.boxes:,} boxes, {config.choice}, of "
        f"{summary.available:,} that could be chosen{before}",
        f"classes, {len(summary.classes):,}: {', '.join(summary.classes)}",
    ]
    if config.classes_of is None:
        lines[-1] += " (those that the rows have; --classes-of MODEL gives all classes of a model)"
    if config.to == "labelstudio":
        lines.append(f"correct: in Label Studio, with the labelling interface interface.xml, import {files}")
    else:
        lines.append(f"correct: {files}, as in CVAT (COCO 1.0)")
    lines += [
        f"files: {summary.out}",
        f"then: ray-detr review --table {shlex.quote(config.table)} --import FILE --out SHARDS",
    ]
    return "\n".join(lines)


def imported_report(summary: "CorrectionsSummary") -> str:
    """Return the result of the import, findings in the images, and the next step."""
    from jobs.shard import report

    batches = f"batch {summary.batches[0]}" if len(summary.batches) == 1 else f"batches {_listed(summary.batches)}"
    lines = [
        f"{batches}: {summary.reviewed:,} images reviewed, {summary.boxes:,} boxes, {summary.without_boxes:,} images "
        f"without boxes; {summary.skipped:,} skipped, {summary.not_reviewed:,} not reviewed"
    ]
    if summary.repeated:
        lines.append(f"found: further answers for reviewed images: {summary.repeated:,}, the newest one is used")
    if summary.unmatched:
        lines.append(f"found: tasks or images that belong to no batch of this table: {summary.unmatched:,}, left out")
    if summary.other_size:
        lines.append(
            f"found: images whose proportions differ in the tool: {len(summary.other_size):,}, left out "
            f"({summary.other_size[0]})"
        )
    lines += [
        report(summary.shards),
        f"train: ray-detr train --train {shlex.quote(summary.shards.out)} --recipe finetune --finetune MODEL "
        "--storage URI --name NAME",
    ]
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    run_process(main)
