"""The process in which cases run, and which they may kill.

`python -m tests.faults.fuzzing.child SUITE SEED FIRST STOP` says of every case when it begins and how it ended, each in
a line of JSON. Memory beyond what the process has when it begins is bounded, and so is the CPU time of each case: by
the default action of SIGPROF, which ends a process in whatever C code it is.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU_SECONDS = float(os.environ.get("FUZZ_CPU_SECONDS", "20"))  # of one case
MORE_BYTES = 384 * 1024**2  # beyond what the process has when it begins; suites' limits are chosen by it


def main() -> None:
    """Run the cases FIRST to STOP of a suite."""
    suite_name, seed, first, stop = sys.argv[1], *map(int, sys.argv[2:5])
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    module = importlib.import_module(f"tests.faults.fuzzing.{suite_name}_suite")
    suite = module.SUITE(seed)
    suite.outcome(-1)  # the whole, undamaged case: imports and caches are no memory of a damaged one
    warnings.simplefilter("error")
    limit = _data_bytes() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, stop):
        _say(answers, begins=number)
        with _cpu_limited():
            try:
                found = {"outcome": suite.outcome(number)}
            except BaseException:  # noqa: BLE001 - every one is a finding, told to the parent
                found = {"finding": traceback.format_exc()}
        _say(answers, ends=number, **found)


def _say(answers: int, **fields: object) -> None:
    os.write(answers, json.dumps(fields).encode() + b"\n")


@contextmanager
def _cpu_limited() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _data_bytes() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmData"].split()[0]) * 1024


if __name__ == "__main__":
    main()
