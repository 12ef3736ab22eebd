"""Run a SQL query on a detection table.

ray-detr query --table s3://lake/detections "SELECT label, count(*) FROM detections GROUP BY ALL"
ray-detr query --table s3://lake/detections "FROM images WHERE status = 'error'" --out errors.csv

The query can use four tables: detections (one row for each detected object), images (the current row of each image),
rows (all published rows) and repeats (the marks of `ray-detr repeats`). It is DuckDB's SQL; install it with
pip install 'ray-detr[query]'.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, check_stays, make_config
from jobs.parser import CommandParser
from pipelines.exports.config import QueryConfig

if TYPE_CHECKING:
    from pipelines.exports.query import QueryResult

WIDEST = 120  # characters of a value in the printed table


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, query, print."""
    parser = CommandParser("query", __doc__)
    parser.add_argument("sql", metavar="SQL", help="the query")
    add_options(parser, QueryConfig)
    args = parser.parse_args(argv)
    check_stays(parser, "--out", None if args.out is None else str(args.out))

    config = make_config(parser, QueryConfig, args, sql=args.sql)

    from pipelines.exports.query import query_table

    result = query_table(config)
    if args.out is not None:
        print(f"wrote: {args.out}")
    else:
        print(report(result))
    if result.is_cut:
        print(
            f"note: only the first {config.most_rows:,} rows are printed. --max-rows N prints more, --out FILE writes "
            "all.",
            file=sys.stderr,
        )


def report(result: "QueryResult") -> str:
    """Return the result as a text table: numbers right-aligned, long values truncated with `...`."""
    columns, *rows = [[_shown(value) for value in row] for row in (result.columns, *result.rows)]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(line, widths, result.is_number, strict=True)
        ).rstrip()
        for line in lines
    )


def _shown(value: str | None) -> str:
    if value is None:
        return "NULL"
    # characters that cannot be seen, such as escape codes of terminals, are replaced
    line = "".join(one if one.isprintable() else "\ufffd" for one in " ".join(value.split("\n")))
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3]}..."


if __name__ == "__main__":
    run_process(main)
