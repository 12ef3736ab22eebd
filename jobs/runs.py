"""List, verify or abandon the runs of a detection table.

ray-detr runs --table s3://lake/detections --last 7
ray-detr runs --table s3://lake/detections --verify --max-minutes 30
ray-detr runs --table s3://lake/detections --watch
ray-detr runs --table s3://lake/detections --abandon
"""

import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, count, make_config, minutes
from jobs.parser import CommandParser
from pipelines.store import S3, StoreOptions

if TYPE_CHECKING:
    from pipelines.labelling.abandon import Abandoned
    from pipelines.labelling.attempts import Attempt, Spent
    from pipelines.labelling.lease import Holder
    from pipelines.labelling.run_summaries import RunSummary
    from pipelines.labelling.verify import Verification
    from pipelines.labelling.watch import Watched
    from pipelines.store import Store

LISTED = 20  # runs that are listed for people; a table of nightly runs has a thousand after three years


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run one of the four actions, print."""
    parser = CommandParser("runs", __doc__)
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table")
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="RUN",
        help="read every published file of all runs or one, and compare it with its plan; exit code 1 if any is wrong",
    )
    one.add_argument(
        "--abandon",
        nargs="?",
        const="",
        metavar="RUN",
        help="seal the unfinished run: published rows stay, and the next command starts a new run",
    )
    one.add_argument(
        "--watch",
        action="store_true",
        help="show how far the unfinished or next run is, whichever process works on it, until it ends; exit code 1 if "
        "no process works on it any more and it has not finished",
    )
    parser.add_argument(
        "--max-minutes",
        type=minutes,
        metavar="N",
        help="stop verifying after N minutes; the next --verify with --max-minutes continues from there (verify all)",
    )
    parser.add_argument(
        "--last", type=count, metavar="N", help=f"list only the newest N runs ({LISTED}; all with --json)"
    )
    add_options(parser, StoreOptions, only=S3)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    args = parser.parse_args(argv)
    if args.max_minutes is not None and args.verify is None:
        parser.error("--max-minutes needs --verify.")
    if args.last is not None and not (args.verify is None and args.abandon is None):
        parser.error("--last is for the list of runs, which --verify and --abandon do not print.")
    last = LISTED if args.last is None and not args.json else args.last

    from pipelines.errors import RayDetrError
    from pipelines.store import StoreError, open_store, without_secrets

    try:
        options = make_config(parser, StoreOptions, args)
    except ValueError as error:
        parser.error(str(error))
    try:
        table = open_store(args.table, options)
        if args.verify is not None:
            verify(table, args.verify or None, args.max_minutes, as_json=args.json)
        elif args.watch:
            watch(table, last, as_json=args.json)
        elif args.abandon is not None:
            abandon(table, args.abandon or None, as_json=args.json)
        else:
            show(table, last, as_json=args.json)
    except StoreError as error:
        raise RayDetrError(f"table {without_secrets(args.table)}: {error}") from error


def show(table: "Store", last: int | None, *, as_json: bool, must_exist: bool = True) -> None:
    """Print the newest `last` runs, or all, and the process that is writing the table."""
    from pipelines.clock import SystemClock
    from pipelines.labelling.lease import is_free, last_holder
    from pipelines.labelling.run_summaries import summarise_last_runs, summarise_runs
    from pipelines.labelling.writer_process import this_process

    now = SystemClock().now()
    last_process = last_holder(table)
    holder = None if last_process is None or is_free(last_process, this_process(), now) else last_process
    runs, older = (list(summarise_runs(table)), 0) if last is None else summarise_last_runs(table, last)
    if must_exist and not runs and holder is None:
        _check_is_table(table)
    if as_json:
        held_by = None if holder is None else asdict(holder)
        record = {"table": table.uri, "holder": held_by, "older_runs": older, "runs": [asdict(one) for one in runs]}
        print(json.dumps(record, indent=2, default=datetime.isoformat))
    else:
        print(report(table.uri, runs, holder, now, older=older, last_process=last_process))


def watch(table: "Store", last: int | None, *, as_json: bool) -> None:
    """Show the progress of the table's run until it ends, then print how it ended and the newest `last` runs.

    Returns immediately if no run is unfinished and no process is writing the table.

    Raises:
        RayDetrError: the run was sealed, or is unfinished and no process works on it.
    """
    from jobs.progress import Drawing, line, shown
    from pipelines.clock import SystemClock
    from pipelines.errors import RayDetrError
    from pipelines.labelling.lease import current_holder
    from pipelines.labelling.progress import Progress
    from pipelines.labelling.watch import watch_run
    from pipelines.labelling.writer_process import this_process

    drawing: Drawing[Progress] = Drawing(
        is_running=lambda progress: progress.stage == "label",
        # parts are not read, so the number of errors is unknown
        line=lambda progress: line(progress, time.monotonic() - progress.began).replace("  0 errors", "", 1),
        done=lambda progress: (progress.images, progress.images_planned),
    )
    here, clock = this_process(), SystemClock()
    if current_holder(table, here, clock.now()) is None:
        _check_is_table(table)  # a process that writes a new table may not have begun its first run yet
    with shown(sys.stderr, drawing) as on_progress:
        watched = watch_run(table, here=here, clock=clock, show=on_progress)
    is_well = watched.run is None or (watched.end is not None and watched.end.state == "finished")
    if is_well:
        print(watch_result(table.uri, watched), file=sys.stderr if as_json else sys.stdout)
    show(table, last, as_json=as_json, must_exist=False)
    if not is_well:
        raise RayDetrError(watch_result(table.uri, watched))


def verify(table: "Store", run_id: str | None, max_minutes: float | None, *, as_json: bool) -> None:
    """Verify, and print the findings and the verified share."""
    from jobs.progress import Drawing, shown
    from pipelines.clock import SystemClock
    from pipelines.errors import RayDetrError
    from pipelines.labelling.verify import Verification, verify_table

    drawing: Drawing[Verification] = Drawing(
        is_running=lambda _: True,
        line=lambda done: f"  verify  {share(done)}",
        done=lambda done: (done.images, done.images_total),
    )
    _check_is_table(table)
    seconds = None if max_minutes is None else 60 * max_minutes
    with shown(sys.stderr, drawing) as on_progress:
        found = verify_table(table, run_id=run_id, max_seconds=seconds, clock=SystemClock(), show=on_progress)
    if as_json:
        print(json.dumps({"table": table.uri, "run_id": run_id, **asdict(found)}, indent=2))
    else:
        print("\n".join([*found.findings, outcome(found)]))
    if found.findings:
        raise RayDetrError(f"verification of table {table.uri} failed: {_findings(len(found.findings))}.")


def abandon(table: "Store", run_id: str | None, *, as_json: bool) -> None:
    """Abandon the unfinished run, and print the result."""
    from pipelines.clock import SystemClock
    from pipelines.labelling.abandon import abandon_run

    done = abandon_run(table, run_id, token=secrets.token_hex(16), clock=SystemClock())
    if as_json:
        record = {"table": table.uri, "abandoned": None if done is None else asdict(done)}
        print(json.dumps(record, indent=2, default=datetime.isoformat))
    else:
        is_table = done is not None or _is_table(table)
        print(abandon_message(table.uri, run_id, done) if is_table else f"nothing to abandon: {_no_table(table)}")


def share(done: "Verification") -> str:
    """Return the verified share of a table."""
    part = f" ({done.images / done.images_total:.1%})" if done.images_total else ""
    return f"{done.files:,} of {done.files_total:,} files, {done.images:,} of {done.images_total:,} images{part}"


def outcome(found: "Verification") -> str:
    """Return the last line of a verification."""
    before = ""
    if found.findings_before:
        before = f"; earlier parts of this verification had {_findings(found.findings_before)}"
    if not found.is_complete:
        rest = "from there" if found.files < found.files_total else "with the search for duplicate rows"
        return f"verified: {share(found)}{before}. The next --verify with --max-minutes continues {rest}"
    return f"verified: {share(found)}: {_findings(len(found.findings))}{before}"


def abandon_message(table: str, run_id: str | None, done: "Abandoned | None") -> str:
    """Return the result of abandoning a run."""
    if done is None:
        whose = f"run {run_id} of table {table} has ended" if run_id else f"table {table} has no unfinished run"
        return f"nothing to abandon: {whose}"
    if done.end.state == "finished":
        return f"nothing to abandon: run {done.run_id} of table {table} finished at the same moment"
    return (
        f"abandoned: run {done.run_id} of table {table} is sealed. Published rows stay, the other images are "
        "labelled by the next run"
    )


def watch_result(table: str, watched: "Watched") -> str:
    """Return in one line how a watched run ended."""
    run, end, holder = watched.run, watched.end, watched.holder
    if run is None:
        if holder is None:
            return f"no run of table {table} is unfinished, and no process is writing it"
        return (
            f"host {holder.process.host}, pid {holder.process.pid} has ended without beginning a run of table {table}: "
            "it had nothing to label or failed, which its own output says"
        )
    if end is None:
        how = how_attempts_ended(watched.attempts, holder)
        return (
            f"no process works on run {run.run_id} of table {table}, which is unfinished: {how}. The same command "
            "resumes it."
        )
    if end.state == "sealed":
        return (
            f"run {run.run_id} of table {table} was sealed at {_time(end.ended_at)}. Published rows stay, the other "
            "images are labelled by the next run."
        )
    return f"run {run.run_id} finished at {_time(end.ended_at)}"


def how_attempts_ended(attempts: "Sequence[Attempt]", last_process: "Holder | None", *, is_held: bool = False) -> str:
    """Return how the attempts of an unfinished run ended.

    Args:
        attempts: its recorded attempts.
        last_process: the process that held the table's lease last, which may have left no record.
        is_held: whether that process still holds it.
    """
    if not attempts:
        silent = "the last process ended without saying why"
        return silent if last_process is not None else f"{silent}, or is still working"
    last = attempts[-1]
    how = {
        "max_minutes": "was stopped by --max-minutes",
        "max_cost": "was stopped by --max-cost",
        "interrupted": "was interrupted by Ctrl-C",
        "terminated": "was terminated by SIGTERM",
    }.get(last.reason, "ended with an error")
    which = "1 attempt, which" if len(attempts) == 1 else f"{len(attempts):,} attempts, of which the last"
    why = f" ({last.message.rstrip('.')})" if last.reason == "error" else ""
    later = ""
    if last_process is not None and last_process.acquired_at > last.started_at:
        later = "; a process is working on it" if is_held else "; a later process ended without saying why"
    return f"{which} {how} at {_time(last.ended_at)}{why}{later}"


def spent(total: "Spent") -> str:
    """Return what the recorded attempts of a run did and cost."""
    work = total.work
    cost = "" if total.cost is None else f", cost {total.cost:.2f}"
    busy = "" if work.busy_share is None else f", devices busy {100 * work.busy_share:.0f} %"
    hours = f", {total.node_hours:.3g} node hours" if total.node_hours else ""
    return (
        f"{total.attempts:,} recorded attempt{'' if total.attempts == 1 else 's'}: {total.images:,} images in "
        f"{total.seconds / 3600:.3g} h, {work.requests:,} requests, {work.size_bytes / 1e6:,.1f} MB{busy}{hours}{cost}"
    )


def report(
    table: str,
    runs: "Sequence[RunSummary]",
    holder: "Holder | None",
    now: datetime,
    *,
    older: int = 0,
    last_process: "Holder | None" = None,
) -> str:
    """Return the list of runs as text.

    Args:
        table: the table.
        runs: the runs.
        holder: the process that is writing it.
        now: the time.
        older: number of runs of the table that are not among them.
        last_process: the holder, or the process that wrote the table last.
    """
    total = len(runs) + older
    lines = [f"table {table}: {total:,} run{'' if total == 1 else 's'}, {_writer(holder, now)}"]
    if older:
        lines.append(f"{older:,} older run{' is' if older == 1 else 's are'} not listed; --last {total} lists all")
    for one in runs:
        ended = f" to {_time(one.ended_at)}" if one.ended_at is not None else ""
        errors = sum(one.errors.values())
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(one.errors.items(), key=lambda item: -item[1]))
        lines.append(f"{one.run_id}  {one.state}  {_time(one.started_at)}{ended}  {one.model}  {one.settings}")
        lines.append(
            f"  {one.rows:,} of {one.images_planned:,} planned images are published, {one.detections:,} detections"
            + (f", {errors:,} error{'' if errors == 1 else 's'}: {kinds}" if errors else "")
        )
        if one.ended_at is None and (one.attempts or holder is None):
            lines.append(f"  {how_attempts_ended(one.attempts, last_process, is_held=holder is not None)}")
        if one.spent is not None and (one.spent.attempts > 1 or one.spent.cost is not None):
            lines.append(f"  {spent(one.spent)}")
    return "\n".join(lines)


def _check_is_table(table: "Store") -> None:
    from pipelines.errors import UsageError

    if not _is_table(table):
        raise UsageError(_no_table(table))


def _is_table(table: "Store") -> bool:
    return any(next(iter(table.list(prefix)), None) is not None for prefix in ("_runs/", "data/"))


def _no_table(table: "Store") -> str:
    return f"there is no table at {table.uri}: it has neither runs nor rows. Check the address."


def _findings(count: int) -> str:
    return f"{count:,} finding{'' if count == 1 else 's'}" if count else "no findings"


def _writer(holder: "Holder | None", now: datetime) -> str:
    if holder is None:
        return "no process is writing it"
    ago = max(0.0, (now - holder.heartbeat_at).total_seconds())
    return f"being written by host {holder.process.host}, pid {holder.process.pid} (heartbeat {ago:.0f} s ago)"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


if __name__ == "__main__":
    run_process(main)
