"""Convert COCO annotations and their images to training shards.

ray-detr shard --annotations s3://coco/instances_train2017.json --images s3://coco/train2017/ --out s3://coco/shards/train

A shard is a Parquet file of image bytes and annotations. Everything in the json is kept; what training cannot use is
kept apart and reported. Run the same command again to resume a stopped one.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, check_stays, make_config
from jobs.parser import CommandParser
from jobs.plan import size
from pipelines.shards.config import ShardConfig

if TYPE_CHECKING:
    from pipelines.shards.sharding import ShardProgress, ShardSummary

SHOWN_EXAMPLES = 3

# findings in the order of printing, and their treatment
FINDINGS: Mapping[str, tuple[str, str]] = {
    "left_out_missing": ("images that do not exist", "left out"),
    "left_out_changed": ("images that have changed since they were labelled", "left out"),
    "left_out_denied": ("images that these credentials may not read", "left out"),
    "left_out_archived": ("images in an archive class", "left out"),
    "left_out_unreadable": ("images that cannot be decoded", "left out"),
    "left_out_too_extreme": ("images too narrow for training: a side would have 0 pixels", "left out"),
    "left_out_other_size": ("images whose size differs from the json", "left out"),
    "left_out_repeated_id": ("images with the id of an earlier one", "left out"),
    "left_out_outside_folder": ("images whose names lead outside the folder", "left out"),
    "annotations_left_out": ("annotations of images that are left out", "left out with them"),
    "annotations_of_no_image": ("annotations of images that the json does not declare", "left out"),
    "categories_left_out": ("unused categories without a unique name", "left out"),
    "images_numbered": ("images whose ids are not numbers", "numbered 1, 2, ...; the ids are kept"),
    "images_respelled": ("images whose file names are spelled differently in the json", "matched"),
    "images_without_size": ("images without height and width in the json", "read from the picture"),
    "numbers_as_text": ("annotations with numbers written as text", "read as numbers"),
    "duplicate_pictures": ("images with the same bytes as another one", "kept"),
    "objects_not_named": ("objects in the folder that are not in the json", "not read"),
    "images_turned_upright": ("images annotated upright, after EXIF rotation", "training will turn them"),
    "images_of_ambiguous_turn": (
        "images rotated by EXIF whose size does not show how they were annotated",
        "treated as --ambiguous-exif says",
    ),
    "images_without_annotations": ("images without annotations", "kept"),
    "crowds": ("annotations of crowds", "kept, training will ignore them"),
    "undeclared_categories": ("annotations of a category that is not declared", "kept, training will ignore them"),
    "boxes_missing": ("annotations without a box of four numbers", "kept, training will ignore them"),
    "boxes_not_finite": ("boxes with a side that is not a finite number", "kept, training will ignore them"),
    "boxes_without_area": ("boxes without area", "kept, training will ignore them"),
    "boxes_outside": ("boxes outside of their image", "kept, training will ignore them"),
    "boxes_over_the_edge": ("boxes over the edge of their image", "kept, training will clip them"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, shard, print."""
    parser = CommandParser("shard", __doc__)
    add_options(parser, ShardConfig)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", args.out)

    config = make_config(parser, ShardConfig, args)

    from jobs.progress import Drawing, shown
    from pipelines.shards.sharding import shard

    drawing: Drawing[ShardProgress] = Drawing(
        is_running=lambda progress: progress.stage == "shard",
        line=lambda progress: line(progress, time.monotonic() - progress.began),
        done=lambda progress: (progress.images, progress.images_planned),
    )
    with shown(sys.stderr, drawing) as on_progress:
        summary = shard(config, on_progress=on_progress)

    print(json.dumps(asdict(summary), indent=2) if args.json else report(summary))


def report(summary: "ShardSummary") -> str:
    """Return the findings and their treatment."""
    files = f"{summary.files:,} file" + ("" if summary.files == 1 else "s")
    if summary.was_done:
        return f"nothing to do: {summary.out} has all {summary.images:,} images, {size(summary.size_bytes)} in {files}"
    lines = [
        f"found: {what}: {summary.report[kind]:,}, {done}{_some(summary.examples.get(kind, ()))}"
        for kind, (what, done) in FINDINGS.items()
        if summary.report.get(kind)
    ]
    others = summary.report.keys() - FINDINGS.keys() - {"images", "annotations", "usable_annotations"}
    lines += [f"found: {kind.replace('_', ' ')}: {summary.report[kind]:,}" for kind in sorted(others)]
    rate = summary.images / summary.seconds
    lines += [
        f"done: {summary.images:,} images with {summary.annotations:,} annotations in {duration(summary.seconds)} "
        f"({rate:,.1f} images/s)",
        f"shards: {summary.out}, {size(summary.size_bytes)} in {files}",
    ]
    return "\n".join(lines)


def line(progress: "ShardProgress", seconds: float) -> str:
    """Return one line of figures, `seconds` after the first shard began."""
    if progress.stage != "shard":
        return f"  {progress.stage}"
    share_done = f"{progress.images / progress.images_planned:.1%}  " if progress.images_planned else ""
    rate = f"  {progress.images / seconds:,.1f} images/s" if progress.images and seconds > 0 else ""
    return f"  shard  {share_done}{progress.images:,} of {progress.images_planned:,} images{rate}"


def _some(examples: Sequence[str]) -> str:
    return f" ({'; '.join(examples[:SHOWN_EXAMPLES])})" if examples else ""


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `48 min 51 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


if __name__ == "__main__":
    run_process(main)
