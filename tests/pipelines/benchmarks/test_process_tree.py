import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.benchmarks.process_tree import MEMORY_EVERY, TreeUse, run_measured

COMMON = """
import os, time
def burn(seconds):
    while time.process_time() < seconds:
        sum(range(1000))
def say_and_wait(word):
    print(word, flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


def run(tmp_path: Path, code: str, *, timeout_s: float = 60.0, watch: Callable[[float], None] | None = None) -> TreeUse:
    return run_measured(
        [sys.executable, "-c", COMMON + code],
        environment=dict(os.environ),
        folder=tmp_path,
        output=tmp_path / "output.txt",
        timeout_s=timeout_s,
        watch=watch,
    )


def release_after(samples: int, folder: Path) -> Callable[[float], None]:
    """Return a watch that ends `say_and_wait` once so many samples were taken since a word was said."""
    calls = 0

    def watch(_: float) -> None:
        nonlocal calls
        if "\n" in (folder / "output.txt").read_text():
            calls += 1
        if calls > samples:  # the sample before the first of these calls may have been taken before the word
            (folder / "go").touch()

    return watch


def test_cpu_seconds_of_a_child_and_of_a_grandchild_are_counted(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys
inner = {COMMON!r} + "burn(0.4); say_and_wait('burnt')"
outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', " + repr(inner) + "])"
burn(0.2)
subprocess.run([sys.executable, "-c", outer])
"""
    use = run(tmp_path, code, watch=release_after(1, tmp_path))

    assert use.exit_code == 0
    assert 0.6 <= use.cpu_s < 1.5
    assert use.processes == 3


def test_cpu_seconds_of_a_child_that_nobody_waits_for_are_counted(tmp_path: Path) -> None:
    # the kernel adds a child's time to its parent only where the parent collects it: not where SIGCHLD is ignored
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {COMMON!r} + "burn(0.6); say_and_wait('burnt')"]).wait()
"""
    use = run(tmp_path, code, watch=release_after(1, tmp_path))

    assert use.exit_code == 0
    assert use.cpu_s >= 0.5


def test_memory_of_all_processes_is_added_up(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys
held = bytearray(60_000_000)
subprocess.run([sys.executable, "-c", {COMMON!r} + "held = bytearray(60_000_000); say_and_wait('held')"])
"""
    use = run(tmp_path, code, watch=release_after(MEMORY_EVERY, tmp_path))

    assert 120e6 <= use.peak_bytes < 300e6


def until_it_has_written(folder: Path) -> Callable[[float], None]:
    """Return a watch that first waits for a line of the command's output."""

    def wait(_: float) -> None:
        while "\n" not in (folder / "output.txt").read_text():
            time.sleep(0.01)

    return wait


def has_ended(pid: int) -> bool:
    """Return whether a process that nobody waits for is gone, or dead and not yet collected by the system."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_a_process_past_its_time_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, flush=True)
child.wait()
"""
    use = run(tmp_path, code, timeout_s=1.5, watch=until_it_has_written(tmp_path))

    assert use.timed_out
    assert use.exit_code == -9
    assert use.wall_s < 30
    assert has_ended(int((tmp_path / "output.txt").read_text()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_measurement_leaves_no_process(tmp_path: Path, error: type[BaseException]) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(os.getpid(), child.pid, flush=True)
child.wait()
"""

    def interrupt(_: float) -> None:
        if "\n" in (tmp_path / "output.txt").read_text():
            raise error

    with pytest.raises(error):
        run(tmp_path, code, watch=interrupt)
    assert all(has_ended(int(pid)) for pid in (tmp_path / "output.txt").read_text().split())


def test_a_process_that_is_started_while_the_others_are_killed_is_killed_too(tmp_path: Path) -> None:
    code = """
import fcntl, os
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)  # every child holds it too
for number in range(400):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    if number == 3:
        print("started", flush=True)
    time.sleep(0.003)
"""
    use = run(tmp_path, code, timeout_s=0, watch=until_it_has_written(tmp_path))

    assert use.timed_out
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a process holds it


def test_the_exit_code_and_the_output_are_kept(tmp_path: Path) -> None:
    use = run(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")

    assert use.exit_code == 7
    assert sorted((tmp_path / "output.txt").read_text().split()) == ["err", "out"]


def test_the_watch_is_called_while_the_command_runs(tmp_path: Path) -> None:
    seen: list[float] = []

    def watch(elapsed: float) -> None:
        seen.append(elapsed)
        if len(seen) == 2:
            (tmp_path / "go").touch()

    use = run(tmp_path, "say_and_wait('begun')", watch=watch)

    assert use.exit_code == 0
    assert len(seen) > 1
    assert seen == sorted(seen)
