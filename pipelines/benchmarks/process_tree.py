"""Measure CPU time, memory and wall time of a command and its descendants (Linux, through /proc)."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.05  # least seconds between two samples
SAMPLING_SHARE = 0.05  # largest share of a core: a sample takes longer on a machine with more processes
MEMORY_EVERY = 6  # samples between two readings of memory, which takes the kernel longer than reading CPU time
LONGEST_PAUSE = 0.5  # seconds between two samples
LINGER_SECONDS = 10.0  # seconds for processes of the tree that outlive its root
STOP_SECONDS = 20.0  # longest wait until the processes of a tree have stopped, before they are killed
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class TreeUse:
    """Resources used by a process and its descendants.

    Attributes:
        exit_code: of the root process; negative is the signal that ended it.
        timed_out: the root exceeded its time limit and was killed with its descendants.
        wall_s: from its start to its end.
        cpu_s: user and system CPU seconds of all processes. It is the larger of two lower bounds: the kernel's sum for
            processes that were waited for, and the samples of every process while it ran.
        peak_bytes: the largest sampled sum of the processes' memory; shared pages count once if the kernel reports
            proportional set sizes. A peak shorter than the time between two readings (0.3 s, up to 3 s on a machine
            with many processes) may be missed.
        processes: number of sampled processes.
    """

    exit_code: int
    timed_out: bool
    wall_s: float
    cpu_s: float
    peak_bytes: int
    processes: int


@dataclass(slots=True)
class ProcessTree:
    """The sampled processes of a tree: CPU seconds so far, by process id and start time."""

    root: int
    cpu: dict[tuple[int, int], float] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes up to the last sample of each."""
        return sum(list(self.cpu.values()))  # a copy: another thread may sample

    def sample(self, *, with_memory: bool) -> set[int]:
        """Read /proc once; return the ids of the running processes of the tree."""
        table = _processes()
        children: dict[int, list[int]] = {}
        for pid, process in table.items():
            children.setdefault(process.parent, []).append(pid)
        # processes of earlier samples remain in the tree: their parent may have ended
        pending = [pid for pid, process in table.items() if pid == self.root or (pid, process.started) in self.cpu]
        living: set[int] = set()
        while pending:
            pid = pending.pop()
            if pid not in living:
                living.add(pid)
                pending += children.get(pid, [])
        for pid in living:
            process = table[pid]
            self.cpu[pid, process.started] = process.cpu_s
        if with_memory:
            together = sum(_memory_bytes(pid) for pid in living)
            self.peak_bytes = max(self.peak_bytes, together, _peak_bytes(self.root))
        return {pid for pid in living if not table[pid].is_zombie}


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    started: int
    cpu_s: float
    is_zombie: bool


def run_measured(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    output: Path,
    timeout_s: float,
    watch: Callable[[float], None] | None = None,
) -> TreeUse:
    """Run a command to its end and return what it and its descendants used.

    Descendants that outlive the command are killed after ten seconds, so that they do not affect the next measurement.
    An exception, such as that of Ctrl-C, kills all of them.

    Args:
        command: program and arguments.
        environment: all of the command's environment variables.
        folder: its working directory.
        output: the file that receives its standard output and standard error.
        timeout_s: wall seconds until it is killed.
        watch: called with the seconds since the start, up to twenty times a second while it runs.
    """
    began = time.monotonic()
    with output.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - the commands are ours
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    tree, timed_out, samples = ProcessTree(process.pid), False, 0
    try:
        waited, code, usage = os.wait4(process.pid, os.WNOHANG)
        while not waited:
            sampling = time.thread_time()
            tree.sample(with_memory=samples % MEMORY_EVERY == 0)
            samples += 1
            elapsed = time.monotonic() - began
            if watch is not None:
                watch(elapsed)
            if elapsed > timeout_s and not timed_out:
                timed_out = True
                _kill(tree)
            time.sleep(min(max(SAMPLE_SECONDS, (time.thread_time() - sampling) / SAMPLING_SHARE), LONGEST_PAUSE))
            waited, code, usage = os.wait4(process.pid, os.WNOHANG)
        exit_code = os.waitstatus_to_exitcode(code)
        process.returncode = exit_code  # otherwise Popen would wait for a process id that may be reused
        wall_s = time.monotonic() - began
        tree.root = 0  # its id may be another process's from now on
        _wait_for_rest(tree)
    except BaseException:  # Ctrl-C, or an error of `watch`
        _kill(tree)
        process.wait()
        tree.root = 0
        _wait_for_rest(tree)
        raise
    return TreeUse(
        exit_code=exit_code,
        timed_out=timed_out,
        wall_s=wall_s,
        cpu_s=max(sum(tree.cpu.values()), usage.ru_utime + usage.ru_stime),
        peak_bytes=tree.peak_bytes,
        processes=len(tree.cpu),
    )


def _wait_for_rest(tree: ProcessTree) -> None:
    deadline = time.monotonic() + LINGER_SECONDS
    while tree.sample(with_memory=False):
        if time.monotonic() > deadline:
            _kill(tree)
        time.sleep(SAMPLE_SECONDS)


def _kill(tree: ProcessTree) -> None:
    """Kill all processes of a tree, also those that are started meanwhile.

    A child is found through its parent, so all are stopped before the first is killed: a stopped process starts no
    child, while one that was told to stop may still complete a fork.
    """
    deadline = time.monotonic() + STOP_SECONDS  # a process does not stop while it waits for its vfork, or for a disk
    stopping: set[int] = set()
    living: set[int] = set()
    try:
        while True:
            all_stopped = all(_is_stopped(pid) for pid in stopping)
            living = tree.sample(with_memory=False)
            if (all_stopped and living <= stopping) or time.monotonic() > deadline:
                break
            _send(signal.SIGSTOP, living)
            stopping = living
            time.sleep(SAMPLE_SECONDS)
    finally:  # also after a second Ctrl-C: stopped processes would keep their memory
        # children first: the end of a parent may continue its stopped children
        youngest_first = sorted(tree.cpu, key=lambda process: process[1], reverse=True)
        _send(signal.SIGKILL, [pid for pid, _ in youngest_first if pid in living])


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it has already ended


def _is_stopped(pid: int) -> bool:
    """Return whether every thread of a process is stopped or has ended."""
    try:
        stats = [file.read_bytes() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread or the process has just ended
    return all(stat[stat.rindex(b")") + 2 :].split()[0] in (b"T", b"t", b"Z", b"X") for stat in stats)


def _processes() -> dict[int, _Process]:
    """Return every readable process of this machine by its id."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a path object for each process takes ten times as long
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - as above
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        # the name, in parentheses, may contain spaces and parentheses
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
        found[int(name)] = _Process(int(fields[1]), int(fields[19]), cpu_s, is_zombie=fields[0] in (b"Z", b"X"))
    return found


def _peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, or 0 if the kernel does not report it.

    `wait4` also reports it, but includes the memory of the process that forked it.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return 0


def _memory_bytes(pid: int) -> int:
    """Return a process's proportional set size, or its resident set size if the kernel does not report the former."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # ended, another user's, or a kernel without this file
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0
