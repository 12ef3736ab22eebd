"""Copy the rows of a detection table to Parquet, or to the formats of other tools.

ray-detr export --table s3://lake/detections --latest --out detections.parquet
ray-detr export --table s3://lake/detections --out s3://exchange/detections --to jsonl
ray-detr export --table s3://lake/detections --out instances.json --to coco-dataset

The current row of an image is its newest `ok` row or permanent error; if it has neither, its newest transient error.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from jobs.exits import run_process
from jobs.options import add_options, check_stays, count, make_config
from jobs.parser import CommandParser
from pipelines.store import S3, StoreOptions

FORMATS = ("parquet", "jsonl", "csv", "coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector", "iceberg")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, print."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table")
    parser.add_argument(
        "--out",
        required=True,
        metavar="URI",
        help="a local file ending in .parquet, .jsonl, .csv or .json, or a new or empty folder at any URI; yolo, voc "
        "and coco are always folders; NAMESPACE.TABLE for iceberg",
    )
    parser.add_argument("--latest", action="store_true", help="only the current row of each image (all rows)")
    parser.add_argument("--model", metavar="NAME", help="only rows of this model, named as in the column `model` (all)")
    parser.add_argument(
        "--settings", metavar="TEXT", help="only rows with these settings, as in the column `settings` (all)"
    )
    parser.add_argument(
        "--to",
        "--format",
        dest="format",
        choices=FORMATS,
        help="what to write (what the suffix of --out says; parquet for a folder): csv has a line a box, coco is "
        "results files with their images, coco-dataset is for CVAT and FiftyOne",
    )
    parser.add_argument(
        "--file-images",
        type=count,
        metavar="N",
        help="most images in each file of a folder (labelstudio: 1000; otherwise files of about 64 MB)",
    )
    parser.add_argument(
        "--keep-repeats",
        action="store_true",
        help="also detections that a mark of `ray-detr repeats` covers (they are left out and counted)",
    )
    parser.add_argument(
        "--catalog",
        default="default",
        metavar="NAME",
        help="of iceberg: a catalog that pyiceberg's configuration names (%(default)s)",
    )
    add_options(parser, StoreOptions, only=S3)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    if args.format != "iceberg":
        check_stays(parser, "--out", args.out)

    from jobs.progress import Drawing, shown
    from pipelines.exports.export import ExportConfig, export

    try:
        config = ExportConfig(
            table=args.table,
            out=args.out,
            latest=args.latest,
            model=args.model,
            settings=args.settings,
            format=args.format,
            file_images=args.file_images,
            keep_repeats=args.keep_repeats,
            catalog=args.catalog,
            options=make_config(parser, StoreOptions, args),
        )
    except ValueError as error:
        parser.error(str(error))

    drawing: Drawing[tuple[int, int]] = Drawing(
        is_running=lambda _: True,
        line=lambda rows: f"  export  {rows[0]:,} of {rows[1]:,} rows",
        done=lambda rows: rows,
    )
    with shown(sys.stderr, drawing) as on_progress:
        summary = export(config, show=lambda rows, total: on_progress((rows, total)))

    if len(summary.settings) > 1:
        found = "; ".join(f"{count:,} with {settings}" for settings, count in summary.settings.items())
        if config.latest or config.is_of_images:
            print(f"note: the current rows have several settings ({found}). --settings chooses one.", file=sys.stderr)
        elif config.kind == "csv":
            print(
                f"note: the rows have several settings ({found}), which a CSV does not tell apart. --settings chooses "
                "one, --latest the current row of each image.",
                file=sys.stderr,
            )
    if config.kind == "iceberg" and summary.marks:
        print(
            f"note: whole files are registered, with the repeats of {summary.marks:,} marks. `ray-detr query` tells "
            "them apart by the column `repeat`.",
            file=sys.stderr,
        )
    if summary.repeats_left_out:
        print(
            f"note: left out {summary.repeats_left_out:,} detections that repeat at one place, as marked by `ray-detr "
            "repeats`. --keep-repeats keeps them.",
            file=sys.stderr,
        )
    if args.json:
        of_marks = () if summary.marks else ("marks", "repeats_left_out")
        print(json.dumps({key: value for key, value in asdict(summary).items() if key not in of_marks}, indent=2))
        return
    files = f"{summary.files:,} file" + ("" if summary.files == 1 else "s")
    print(f"exported: {summary.rows:,} of {summary.rows_total:,} rows, {files}: {summary.out}")


if __name__ == "__main__":
    run_process(main)
