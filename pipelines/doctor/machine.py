"""Checks of one machine: disk, shared memory, open files, clock. Runs on every node of a cluster."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.doctor.findings import Finding, Level

PACKAGES = ("ray-detr", "ray", "torch", "pillow-heif")
GB = 1e9
FULL_SHARE = 0.95  # share of a disk, above which Ray creates no objects
LEAST_FREE = 2 * GB  # for a model's copy, logs and what Ray spills
LEAST_SHARED = 0.2 * GB  # for Ray's object store and the pinned batches
LEAST_FILES, FEW_FILES = 1_024, 8_192  # open files: below the first, Ray fails under load


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Resources and versions of a machine.

    Attributes:
        host: its name.
        versions: of Python and the packages; "none" where one is missing.
        disk_free: bytes in the folder for temporary files.
        disk_total: bytes there.
        shared_free: free bytes of /dev/shm; None if the machine has no /dev/shm.
        open_files: largest number for a process.
        time: of its clock, seconds since 1970.
    """

    host: str
    versions: dict[str, str]
    disk_free: int
    disk_total: int
    shared_free: int | None
    open_files: int
    time: float


def machine_facts() -> MachineFacts:
    """Return the facts of this machine."""
    disk = shutil.disk_usage(tempfile.gettempdir())
    shared = Path("/dev/shm")  # noqa: S108 - shared memory, not a file of ours
    return MachineFacts(
        host=socket.gethostname(),
        versions={"Python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        disk_free=disk.free,
        disk_total=disk.total,
        shared_free=shutil.disk_usage(shared).free if shared.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        time=time.time(),
    )


def check_machine(facts: MachineFacts, *, where: str = "") -> list[Finding]:
    """Return findings about disk, shared memory and open files.

    Args:
        facts: of the machine.
        where: prefix of each text, such as `node 10.0.0.7: `.
    """
    return [_disk(facts, where), _shared(facts, where), _open_files(facts, where)]


def check_versions(own: MachineFacts, others: dict[str, MachineFacts]) -> Finding:
    """Return a finding on whether all nodes have the versions of this process.

    Another release of torch is a warning: numbers may differ in the last digits. A node that lacks pillow-heif, which
    this process has, would give HEIC images permanent errors; other differences of it are a warning.
    """
    fails, warns = list[str](), list[str]()
    for node, facts in others.items():
        for name, version in own.versions.items():
            found = facts.versions.get(name, "none")
            if found != version:
                is_minor = found != "none" and name in ("torch", "pillow-heif")
                (warns if is_minor else fails).append(f"node {node} has {name} {found}, this process {version}")
    if not fails and not warns:
        shown = ", ".join(f"{name} {version}" for name, version in own.versions.items())
        return Finding("versions", "ok", f"{shown}; {len(others)} node{'' if len(others) == 1 else 's'} compared")
    return Finding(
        "versions", "fail" if fails else "warn", "; ".join(fails + warns), "Install the same versions on every node."
    )


def _disk(facts: MachineFacts, where: str) -> Finding:
    text = f"{where}{facts.disk_free / GB:.1f} of {facts.disk_total / GB:.0f} GB free for temporary files"
    is_full = facts.disk_free < (1 - FULL_SHARE) * facts.disk_total
    level: Level = "fail" if is_full else "warn" if facts.disk_free < LEAST_FREE else "ok"
    return Finding(
        "disk", level, text, "" if level == "ok" else "Free some space, or set TMPDIR to a folder with more of it."
    )


def _shared(facts: MachineFacts, where: str) -> Finding:
    if facts.shared_free is None:
        return Finding("shared memory", "ok", f"{where}this system has no /dev/shm")
    level: Level = "warn" if facts.shared_free < LEAST_SHARED else "ok"
    remedy = "Give the container more: docker run --shm-size=2g, or an emptyDir with medium Memory at /dev/shm."
    text = f"{where}{facts.shared_free / GB:.2f} GB free in /dev/shm"
    return Finding("shared memory", level, text, remedy if level == "warn" else "")


def _open_files(facts: MachineFacts, where: str) -> Finding:
    level: Level = "fail" if facts.open_files < LEAST_FILES else "warn" if facts.open_files < FEW_FILES else "ok"
    text = f"{where}a process may have {facts.open_files:,} open files"
    return Finding("open files", level, text, "" if level == "ok" else "Run `ulimit -n 65536` before `ray start`.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
