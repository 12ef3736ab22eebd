"""Write one HTML page about a detection table: figures, errors, and pictures with their boxes.

python -m jobs.report --table s3://lake/detections --out report.html

The page holds everything that it shows, loads nothing, and opens from a file.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs.exits import run
from jobs.options import CommandParser, add_s3_options, check_stays, count


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write, print."""
    parser = CommandParser("report", __doc__)
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page; replaced (%(default)s)"
    )
    parser.add_argument("--run", metavar="ID", help="only the rows of this run (the current row of each image)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="SCORE", help="least score at first; hundredths (%(default)s)"
    )
    parser.add_argument("--pictures", type=count, default=12, metavar="N", help="pictures of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random pictures (%(default)s)")
    parser.add_argument(
        "--price-per-hour", type=float, metavar="USD", help="of all machines of a run together: adds the cost"
    )
    add_s3_options(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", str(args.out))

    from jobs.progress import Drawing, shown
    from pipelines.report.report import ReportConfig, write_report
    from pipelines.store import StoreOptions

    try:
        config = ReportConfig(
            table=args.table,
            out=args.out,
            run_id=args.run,
            threshold=args.threshold,
            pictures=args.pictures,
            seed=args.seed,
            price_per_hour=args.price_per_hour,
            options=StoreOptions(endpoint=args.endpoint, region=args.region, profile=args.profile),
        )
    except ValueError as error:
        parser.error(str(error))

    drawing: Drawing[int] = Drawing(
        is_running=lambda _: True, line=lambda rows: f"  report  {rows:,} rows", done=lambda rows: (rows, 0)
    )
    with shown(sys.stderr, drawing) as on_progress:
        summary = write_report(config, show=on_progress)

    if args.json:
        print(json.dumps({**asdict(summary), "out": str(summary.out)}, indent=2))
        return
    print(
        f"report: {summary.images:,} images, {summary.pictures:,} pictures, {summary.bytes / 1e6:.1f} MB: {summary.out}"
    )
    if summary.unreadable:
        print(f"{summary.unreadable:,} of the pictures are gone, changed or unreadable; the page says why.")


if __name__ == "__main__":
    run(main)
