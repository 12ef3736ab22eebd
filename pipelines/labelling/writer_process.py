"""The process that writes a table, in the form by which other processes of its machine recognise it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.strict_json import Count

_UNKNOWN: Final = "unknown"  # when a process was started that exists, but of which /proc says nothing


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a machine. `started` and `boot` distinguish it from a later process with the same number.

    `boot` and `namespace` identify the machine. They are empty where they are unknown, as without /proc on macOS.
    """

    host: str
    boot: str
    namespace: str
    pid: Count
    started: str


def this_process() -> Process:
    """Return this process in the form by which other processes of this machine recognise it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path: the kernel's number
    except OSError:  # macOS has no /proc, and some containers hide these files
        boot = namespace = ""
    return Process(socket.gethostname(), boot, namespace, os.getpid(), _started(os.getpid()) or "")


def is_dead(process: Process, here: Process) -> bool:
    """Return whether a process is known to have ended: it ran on this machine and does not exist any more.

    Machines without an identity (empty `boot`) are never the same: there only the age of the heartbeat tells.
    """
    is_neighbour = (process.boot, process.namespace) == (here.boot, here.namespace)
    return is_neighbour and here.boot != "" and _started(process.pid) not in (process.started, _UNKNOWN)


def _started(pid: int) -> str | None:
    """Return when a process of this machine was started, in the kernel's ticks; None if it has ended."""
    try:
        # after the name, which may contain anything, comes field 3, the state; field 22 is the time of its start
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return _UNKNOWN if _exists(pid) else None


def _exists(pid: int) -> bool:
    """Return whether a process exists: mounted with `hidepid`, /proc hides those of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True
