"""List the runs of a detection table, oldest first, and say who writes it now.

python -m jobs.runs --table s3://lake/detections
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from jobs.exits import run
from jobs.options import CommandParser

if TYPE_CHECKING:
    from pipelines.labelling.history import RunSummary
    from pipelines.labelling.lease import Holder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, look, print."""
    parser = CommandParser(prog="jobs.runs", description=__doc__)
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table")
    parser.add_argument("--endpoint", metavar="URL", help="the S3 server's address (AWS_ENDPOINT_URL)")
    parser.add_argument("--region", metavar="NAME", help="the S3 region (AWS_REGION)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    args = parser.parse_args(argv)

    from pipelines.clock import SystemClock
    from pipelines.labelling.history import summarise_runs
    from pipelines.labelling.lease import current_holder, this_process
    from pipelines.stopped import RunStopped
    from pipelines.store import StoreError, StoreOptions, open_store, without_secrets

    now = SystemClock().now()
    try:
        table = open_store(args.table, StoreOptions(endpoint=args.endpoint, region=args.region))
        holder = current_holder(table, this_process(), now)
        runs = list(summarise_runs(table))
    except StoreError as error:
        raise RunStopped(f"cannot read the table {without_secrets(args.table)}: {error}") from error

    if args.json:
        record = {
            "table": without_secrets(args.table),
            "holder": None if holder is None else asdict(holder),
            "runs": [asdict(one) for one in runs],
        }
        print(json.dumps(record, indent=2, default=datetime.isoformat))
    else:
        print(report(without_secrets(args.table), runs, holder, now))


def report(table: str, runs: "Sequence[RunSummary]", holder: "Holder | None", now: datetime) -> str:
    """Return what a person wants to know of the runs."""
    lines = [f"table {table}: {len(runs):,} run{'' if len(runs) == 1 else 's'}, {_writer(holder, now)}"]
    for one in runs:
        ended = f" to {_time(one.ended_at)}" if one.ended_at is not None else ""
        errors = sum(one.errors.values())
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(one.errors.items(), key=lambda item: -item[1]))
        lines.append(f"{one.run_id}  {one.state}  {_time(one.started_at)}{ended}  {one.model}")
        lines.append(
            f"  {one.rows:,} of {one.images_planned:,} planned images are published, {one.detections:,} detections"
            + (f", {errors:,} error{'' if errors == 1 else 's'}: {kinds}" if errors else "")
        )
    return "\n".join(lines)


def _writer(holder: "Holder | None", now: datetime) -> str:
    if holder is None:
        return "nobody writes it now"
    ago = max(0.0, (now - holder.heartbeat_at).total_seconds())
    return f"being written by host {holder.process.host}, pid {holder.process.pid} (heartbeat {ago:.0f} s ago)"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    run(main)
