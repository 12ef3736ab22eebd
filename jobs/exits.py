"""Exit codes of the commands for shells and schedulers. docs/operations.md has the same list."""

import atexit
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, TextIO

from jobs._interrupts import Interrupts
from pipelines.errors import BudgetExceeded, CapReached, LeaseHeld, RayDetrError, UsageError

DONE = 0
SYSTEM_FAILURE = 1  # store, credentials, disk or cluster; the same command resumes
WRONG_USE = 2  # argparse's own
BUDGET_EXCEEDED = 3  # more error rows or unusable images than a limit allows, or figures that a gate refuses
TABLE_BUSY = 4  # another process is writing the table
CAP_REACHED = 5  # stopped by --max-minutes or --max-cost; the same command resumes
INTERRUPTED = 130  # Ctrl-C, as in shells
TERMINATED = 143  # SIGTERM: `ray job stop`, `kubectl delete`, a schedule's time limit


def print_stopped(reached: CapReached, about: Mapping[str, object], file: TextIO | None = None) -> None:
    """Print, for `--json`, why a command stopped at a limit, and what it worked on.

    Args:
        reached: the error.
        about: what the command worked on, such as the table.
        file: destination; None is standard output.
    """
    print(json.dumps({"stopped": str(reached), **about, **reached.details}, indent=2), file=file, flush=True)


class _Sigterm:
    """The handler of SIGTERM. It remembers the signal, because Ray replaces an exit during `ray.get` by its own."""

    def __init__(self) -> None:
        self.has_arrived = False

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.has_arrived = True
        raise SystemExit(TERMINATED)


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Call a command and exit with its code.

    A system failure, also a path that may not be used, is printed as one sentence on standard error; a bug with its
    traceback. Ctrl-C is `jobs._interrupts`.
    """
    for stream in (sys.stdout, sys.stderr):
        _escape_what_it_cannot_encode(stream)
    sigterm = _Sigterm()
    before = signal.signal(signal.SIGTERM, sigterm)
    interrupts = Interrupts(INTERRUPTED)
    try:
        main(argv)
        sys.stdout.flush()  # flush here, where a closed pipe can still be handled
    except RayDetrError as error:
        print(f"{'stopped' if isinstance(error, CapReached) else 'error'}: {error}", file=sys.stderr)
        for note in _notes(error):
            print(f"note: {note}", file=sys.stderr)
        sys.exit(_exit_code(error))
    except KeyboardInterrupt as stopped:
        print(f"interrupted: {_next_step(stopped)}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as left:
        # the number of the signal: after Ray is imported, its handler replaces ours and exits with this code
        if not sigterm.has_arrived and left.code != int(signal.SIGTERM):
            raise
        print(f"terminated: {_next_step(left)}", file=sys.stderr)
        sys.exit(TERMINATED)
    except BrokenPipeError:
        # the reader of our output has ended (`| head`): exit without a second error from the flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SYSTEM_FAILURE)
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            print(f"error: {os.fsdecode(error.filename)}: permission denied.", file=sys.stderr)
        elif _is_store_error(error):
            print(f"error: {error}", file=sys.stderr)
        else:
            raise
        sys.exit(SYSTEM_FAILURE)
    finally:
        signal.signal(signal.SIGTERM, before)
        interrupts.restore()


def run_process(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call a command like `run`, and end the process without finalising the interpreter.

    Python's other steps at exit are done: wait for threads, call functions of `atexit`, flush output. Without
    finalisation, threads of C++ libraries cannot use a destroyed interpreter: a thread of pyarrow that releases a
    Python buffer at that moment aborts the process with exit code 134 (59 of 1,000 runs on a busy machine, pyarrow 26).
    """
    code: object = DONE
    try:
        run(main, argv)
    except SystemExit as left:
        code = left.code
    except BaseException:  # noqa: BLE001 - a bug, whose traceback is printed as Python prints it
        sys.excepthook(*sys.exc_info())
        code = SYSTEM_FAILURE
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    # as in the standard library's own processes (multiprocessing.process, multiprocessing.popen_fork)
    with suppress(KeyboardInterrupt):
        threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001
    with suppress(KeyboardInterrupt):
        atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os._exit(code if isinstance(code, int) else DONE if code is None else SYSTEM_FAILURE)


def _next_step(stopped: BaseException) -> str:
    """Return what to do after a command was stopped."""
    return " ".join(_notes(stopped)) or "run the same command again to resume."


def _notes(error: BaseException | None) -> list[str]:
    """Return the notes of an error and of its causes (`pipelines.errors.note_incomplete`)."""
    notes: list[str] = []
    while error is not None:
        notes += getattr(error, "__notes__", [])
        error = error.__cause__
    return notes


def _exit_code(error: RayDetrError) -> int:
    codes: dict[type[RayDetrError], int] = {
        UsageError: WRONG_USE,
        BudgetExceeded: BUDGET_EXCEEDED,
        LeaseHeld: TABLE_BUSY,
        CapReached: CAP_REACHED,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), SYSTEM_FAILURE)


def _flush(stream: TextIO | None) -> None:
    """Flush the buffer, unless the stream is closed or its reader has ended."""
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()


def _is_store_error(error: Exception) -> bool:
    """Return whether an object store refused, without importing its clients."""
    interface = sys.modules.get("pipelines.store.interface")
    return interface is not None and isinstance(error, interface.StoreError)


def _escape_what_it_cannot_encode(stream: object) -> None:
    """Make output escape characters that the terminal's encoding lacks, and names that are not UTF-8."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")
