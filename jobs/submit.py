"""Submit a command to a Ray cluster, once for each slot of a schedule, and exit with its exit code.

ray-detr submit --address http://HEAD:8265 --slot 2026-11-28 -- label --images s3://lake/ --table s3://tables/detections

A second call with the same slot follows the job that the first one submitted, or reports how it ended; after a failure
it submits the job again. With RAY_DETR_NOTIFY_URL in its environment it posts that the job failed, or could not be
submitted or followed, if the job has not posted that itself.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence

from jobs.cli import commands
from jobs.exits import SYSTEM_FAILURE, WRONG_USE, run_process
from jobs.parser import CommandParser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, submit, follow."""
    parser = CommandParser("submit", __doc__, usage="--slot NAME [OPTION ...] -- COMMAND [OPTION ...]")
    parser.add_argument("--slot", required=True, metavar="NAME", help="scheduled time, such as 2026-11-28T02:00")
    parser.add_argument(
        "--job",
        metavar="NAME",
        help="name of the job, needed to run one command several times in a slot (the name of the command)",
    )
    parser.add_argument(
        "--address", metavar="URL", help="dashboard of the cluster (RAY_ADDRESS, else http://127.0.0.1:8265)"
    )
    parser.add_argument(
        "--ok",
        type=_exit_codes,
        default=frozenset(),
        metavar="CODES",
        help="exit codes of the job that count as success, separated by commas, such as 3 if error rows are acceptable",
    )
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="folder or URI to send to the cluster as the working directory of the job",
    )
    parser.add_argument(
        "--env",
        nargs="+",
        type=_name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="environment variables of the job; Ray's dashboard shows them, so no secrets",
    )
    parser.add_argument("--no-wait", action="store_true", help="submit the job and exit without following it")
    parser.add_argument(
        "command",
        nargs="+",
        metavar="COMMAND",
        help="after --: the command of ray-detr to run, with its options",
    )
    args = parser.parse_args(argv)
    command, *arguments = args.command
    known = [name.replace("_", "-") for name in commands() if name != "submit"]
    if command not in known:
        near = difflib.get_close_matches(command, known, n=1)
        parser.error(
            f"{command!r} is not a command. "
            + (f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(known)}")
        )

    from jobs._notifications import SubmittedJob
    from pipelines.errors import RayDetrError
    from pipelines.submission import SlotTaken, connect, follow, submission_id, submit_once

    job = args.job or command
    try:
        first_id = submission_id(job, args.slot)
    except ValueError as error:
        parser.error(str(error))
    notified = SubmittedJob(job, first_id)

    def write(piece: str) -> None:
        notified.read(piece)
        _print_now(piece)

    try:
        client = connect(args.address)
        submission = submit_once(
            client,
            ["python", "-m", f"jobs.{command.replace('-', '_')}", *arguments],
            job=job,
            slot=args.slot,
            finished_codes=args.ok,
            working_dir=args.working_dir,
            environment=dict(args.env),
        )
        print(f"{'submitted' if submission.is_new else 'found'} job {submission.id}", file=sys.stderr)
        if args.no_wait:
            return
        try:
            end = follow(client, submission.id, write)
        except (KeyboardInterrupt, SystemExit):
            print(
                f"job {submission.id} continues without this command. `ray job stop {submission.id}` stops it.",
                file=sys.stderr,
            )
            raise
    except SlotTaken as taken:
        notified.failed(WRONG_USE, str(taken))
        parser.error(str(taken))
    except RayDetrError as error:
        notified.failed(SYSTEM_FAILURE, str(error))
        raise
    if end.exit_code in args.ok:
        print(f"job {submission.id}: exit code {end.exit_code} counts as success (--ok)", file=sys.stderr)
    elif end.exit_code:
        print(f"error: job {submission.id}: {end.message}", file=sys.stderr)
        # Ray's message goes on with the end of the log
        reason = end.message.partition(", last available logs")[0].partition("\n")[0]
        notified.failed(end.exit_code, f"job {submission.id}: {reason}")
        sys.exit(end.exit_code)


def _exit_codes(text: str) -> frozenset[int]:
    if not all(part.isdecimal() and int(part) < 256 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of exit codes such as 3,4")
    return frozenset(int(part) for part in text.split(","))


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _print_now(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    run_process(main)
