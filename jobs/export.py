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
from jobs.options import add_options, check_stays, make_config
from jobs.parser import CommandParser
from pipelines.exports.config import TASKS_PER_FILE, ExportConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, print."""
    parser = CommandParser("export", __doc__)
    add_options(parser, ExportConfig)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    if args.to != "iceberg":
        check_stays(parser, "--out", args.out)

    config = make_config(parser, ExportConfig, args)

    from jobs.progress import Drawing, shown
    from pipelines.exports.export import export

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
                f"note: the rows have several settings ({found}), which a CSV file does not distinguish. --settings "
                "chooses one, --latest the current row of each image.",
                file=sys.stderr,
            )
    if config.kind == "iceberg" and summary.marks:
        print(
            f"note: whole files are registered, including the detections that {summary.marks:,} marks cover. In "
            "`ray-detr query`, the column `repeat` shows these.",
            file=sys.stderr,
        )
    if summary.repeats_left_out:
        print(
            f"note: left out {summary.repeats_left_out:,} detections that repeat at one place, as marked by `ray-detr "
            "repeats`. --keep-repeats keeps them.",
            file=sys.stderr,
        )
    tasks = summary.rows - summary.errors
    if config.kind == "labelstudio" and config.is_file and tasks > TASKS_PER_FILE:
        print(
            f"note: {tasks:,} tasks in one file, which Label Studio may not import in time. Name a folder with --out: "
            f"its files have {TASKS_PER_FILE:,} tasks each (--file-images).",
            file=sys.stderr,
        )
    if args.json:
        omitted = ("errors",) if summary.marks else ("errors", "marks", "repeats_left_out")
        print(json.dumps({key: value for key, value in asdict(summary).items() if key not in omitted}, indent=2))
        return
    files = f"{summary.files:,} file" + ("" if summary.files == 1 else "s")
    print(f"exported: {summary.rows:,} of {summary.rows_total:,} rows, {files}: {summary.out}")


if __name__ == "__main__":
    run_process(main)
