"""Exit codes: what the commands' outcomes are to a shell or a scheduler. docs/operations.md has the same list."""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from jobs._interrupts import Interrupts

DONE = 0
SYSTEM_FAILURE = 1  # store, credentials, disk or cluster; the same command resumes
WRONG_USE = 2  # argparse's own
BUDGET_EXCEEDED = 3  # finished, but not well enough: more error rows than allowed, or figures that a gate refuses
TABLE_BUSY = 4  # another process is writing the table
CAP_REACHED = 5  # stopped by --max-minutes or --max-cost; the same command resumes
INTERRUPTED = 130  # Ctrl-C, as shells say it
TERMINATED = 143  # SIGTERM: `ray job stop`, `kubectl delete`, a schedule's time limit


class BudgetExceeded(Exception):
    """A run finished, but more of its images are errors than was allowed."""


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Call a command and leave the process with its exit code.

    A system failure is one sentence on standard error; a bug keeps its traceback. Ctrl-C is `jobs._interrupts`.
    """
    # imported here so that `--help` needs nothing heavy; both modules are light
    from pipelines.errors import CapReached, LeaseHeld, RayDetrError, UsageError

    for stream in (sys.stdout, sys.stderr):
        _escape_what_it_cannot_encode(stream)
    before = signal.signal(signal.SIGTERM, _terminated)
    interrupts = Interrupts(INTERRUPTED)
    try:
        main(argv)
        sys.stdout.flush()  # here, where a reader that is gone is still ours to deal with
    except CapReached as reached:
        print(f"stopped: {reached}", file=sys.stderr)
        sys.exit(CAP_REACHED)
    except RayDetrError as stopped:
        print(f"error: {stopped}", file=sys.stderr)
        if isinstance(stopped, LeaseHeld):
            sys.exit(TABLE_BUSY)
        sys.exit(WRONG_USE if isinstance(stopped, UsageError) else SYSTEM_FAILURE)
    except BudgetExceeded as exceeded:
        print(f"error: {exceeded}", file=sys.stderr)
        sys.exit(BUDGET_EXCEEDED)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as left:
        # the number of the signal: once Ray is imported, its handler stands in place of ours and leaves with it
        if left.code not in (TERMINATED, int(signal.SIGTERM)):
            raise
        print("terminated: run the same command again to resume.", file=sys.stderr)
        sys.exit(TERMINATED)
    except BrokenPipeError:
        # the reader of our output is gone (`| head`): leave without a second error from the flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SYSTEM_FAILURE)
    finally:
        signal.signal(signal.SIGTERM, before)
        interrupts.restore()


def _escape_what_it_cannot_encode(stream: object) -> None:
    """Print letters that a terminal's encoding lacks, and names that are not UTF-8, as escapes."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)
