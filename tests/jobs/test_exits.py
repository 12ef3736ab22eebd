import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs import exits
from jobs.cli import commands
from jobs.exits import run
from pipelines.errors import BudgetExceeded, CapReached, LeaseHeld, RayDetrError, UsageError, note_incomplete
from pipelines.store import StoreDown


def raising(error: BaseException) -> Callable[[Sequence[str] | None], None]:
    def main(argv: Sequence[str] | None = None) -> None:
        raise error

    return main


def test_the_codes_are_those_that_are_documented() -> None:
    codes = {name: value for name, value in vars(exits).items() if name.isupper()}
    assert codes == {
        "DONE": 0,
        "SYSTEM_FAILURE": 1,
        "WRONG_USE": 2,
        "BUDGET_EXCEEDED": 3,
        "TABLE_BUSY": 4,
        "CAP_REACHED": 5,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = page.partition("## Exit codes")[2].partition("## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(codes.values())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RayDetrError("s3://lake does not answer."), 1, "error: s3://lake does not answer.\n"),
        (UsageError("there is nothing at s3://lake."), 2, "error: there is nothing at s3://lake.\n"),
        (StoreDown("s3://lake: no answer."), 1, "error: s3://lake: no answer.\n"),
        (BudgetExceeded("6 % of the images are errors."), 3, "error: 6 % of the images are errors.\n"),
        (LeaseHeld("host b writes the table."), 4, "error: host b writes the table.\n"),
        (CapReached("the limit of 3 minutes is reached."), 5, "stopped: the limit of 3 minutes is reached.\n"),
        (PermissionError(13, "Permission denied", "root/x"), 1, "error: root/x: permission denied.\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume.\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(143), 143, ""),  # of a job that was stopped, whose code `submit` leaves with
        (SystemExit(15), 143, "terminated: run the same command again to resume.\n"),  # Ray's own handler of SIGTERM
    ],
)
def test_each_outcome_has_its_code_and_its_sentence_on_standard_error(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        run(raising(error))

    assert left.value.code == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "interrupted: the folder out is incomplete. Delete it, and run the command again.\n"),
        (SystemExit(15), "terminated: the folder out is incomplete. Delete it, and run the command again.\n"),
        (
            RayDetrError("no space left."),
            "error: no space left.\nnote: the folder out is incomplete. Delete it, and run the command again.\n",
        ),
    ],
)
def test_a_command_that_does_not_resume_says_what_to_do_instead(
    capsys: pytest.CaptureFixture[str], error: BaseException, said: str
) -> None:
    note_incomplete(error, "out")

    with pytest.raises(SystemExit):
        run(raising(error))

    assert capsys.readouterr().err == said


def test_a_note_on_the_cause_of_an_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cause, error = OSError(), RayDetrError("no answer.")
    note_incomplete(cause, "out")
    error.__cause__ = cause

    with pytest.raises(SystemExit):
        run(raising(error))

    assert "note: the folder out is incomplete" in capsys.readouterr().err


def test_a_command_that_is_done_leaves_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Sequence[str] | None] = []

    run(given.append, ["--out", "x"])

    assert given == [["--out", "x"]]
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


ENDS = """
import atexit, os, sys, threading, time
from jobs.exits import run_process
from pipelines.errors import UsageError

class AfterPython:
    def __del__(self):
        os.abort()  # as a thread of C++ does that meets an interpreter that is gone

last = AfterPython()
atexit.register(lambda: print("atexit", flush=False))
has_printed = threading.Event()
def work():
    has_printed.wait()
    time.sleep(0.2)  # the process has to wait for it
    print("thread")
def main(argv):
    threading.Thread(target=work).start()
    print("main")
    has_printed.set()
    {end}
run_process(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise UsageError('no.')", 2, "error: no.\n"),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no.')", 1, "no.\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_process_ends_after_threads_atexit_and_output_and_before_the_interpreter_is_finalised(
    end: str, code: int, said: str
) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS.format(end=end)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (code, "main\nthread\natexit\n")
    assert done.stderr.splitlines(keepends=True)[-1:] == ([said] if said else [])


def test_every_command_ends_its_process_so() -> None:
    folder = Path(__file__).parents[2] / "jobs"
    for command in commands():
        assert (folder / f"{command}.py").read_text().endswith('if __name__ == "__main__":\n    run_process(main)\n')
    assert "\ndef main() -> NoReturn:" in (folder / "cli.py").read_text()


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_ends_does_not_cause_a_second_error(flush: bool) -> None:
    script = f"from jobs.exits import run\nrun(lambda argv: print('stays in the buffer', flush={flush}))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, env=buffered, check=False
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (1, b"")


def test_sigterm_ends_with_143_and_a_sentence() -> None:
    script = "import os, signal\nfrom jobs.exits import run\nrun(lambda argv: os.kill(os.getpid(), signal.SIGTERM))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (143, "terminated: run the same command again to resume.\n")


IN_RAY_GET = """
    import ray, threading
    with connected():
        @ray.remote(num_cpus=0)
        def wait():
            time.sleep(60)
        waiting = wait.remote()
        threading.Timer(0.5, print, ("there",), {"flush": True}).start()
        ray.get(waiting)  # raises SystemExit(1) instead of what the handler raises
"""
WHILE_CONNECTED = """
    with connected():
        print("there", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(4)  # Ray would abort the process after 3
"""
AFTERWARDS = """
    try:
        with connected():
            pass
        print("there", flush=True)
        time.sleep(60)
    finally:
        sys.stderr.write("given up\\n")
"""
CONNECTED_BY_ANOTHER_THREAD = """
    import threading
    is_connected, is_over = threading.Event(), threading.Event()
    def connect():
        with connected():
            is_connected.set()
            is_over.wait()
    thread = threading.Thread(target=connect)
    thread.start()
    is_connected.wait()
    try:
        print("there", flush=True)
        time.sleep(60)
    finally:
        is_over.set()
        thread.join()
        sys.stderr.write("given up\\n")
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "said"),
    [
        (IN_RAY_GET, ""),
        (WHILE_CONNECTED, ""),
        (AFTERWARDS, "given up\n"),
        (CONNECTED_BY_ANOTHER_THREAD, "given up\n"),
    ],
)
def test_sigterm_is_ours_while_ray_is_connected_and_afterwards(when: str, said: str) -> None:
    imports = "import sys, time\nfrom jobs.exits import run\nfrom pipelines.cluster import connected\n"
    script = f"{imports}\ndef main(argv):{when}\nrun(main)\n"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=outside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.terminate()
        _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (143, f"{said}terminated: run the same command again to resume.\n")


WORK = """
import os, signal, sys, time
from pathlib import Path
from jobs.exits import run

def main(argv):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("clearing up", flush=True)
        while not Path(f"{sys.argv[1]}-may-end").exists():
            time.sleep(0.02)
        Path(sys.argv[1]).touch()

run(main)
"""


@pytest.mark.parametrize("times", [1, 2, 3])
def test_ctrl_c_ends_in_order_a_second_one_changes_nothing_and_a_third_ends_at_once(tmp_path: Path, times: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path / "cleared")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # what runs in the background of a shell is started with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping, this may take some seconds\n"
    assert process.stdout.readline() == "clearing up\n"
    for number in range(1, times):
        process.send_signal(signal.SIGINT)
        if number == 1:
            assert process.stderr.readline().startswith("still stopping; a third Ctrl-C ends")
    if times < 3:
        (tmp_path / "cleared-may-end").touch()
    _, rest = process.communicate(timeout=60)

    assert process.returncode == 130
    assert rest == ("" if times == 3 else "interrupted: run the same command again to resume.\n")
    assert (tmp_path / "cleared").exists() == (times < 3)


SWALLOWS = """
import time
from jobs.exits import run

def main(argv):
    for turn in range(100):
        try:
            if turn == 0:
                print("working", flush=True)
            time.sleep(0.1)
        except OSError:  # such as of a connection, which is tried again
            pass

run(main)
"""


FORGETS = """
import sys, time
from jobs.exits import run_process

def main(argv):
    try:
        print("working", flush=True)
        time.sleep(60)
    except BaseException:  # as callbacks of C libraries do
        pass
    try:
        print("forgotten", flush=True)
        time.sleep(60)
    finally:
        try:
            raise OSError
        except OSError:
            print("clearing up", flush=True)
            time.sleep(float(sys.argv[1]))

run_process(main)
"""


@pytest.mark.parametrize("times", [2, 3])
def test_ctrl_c_that_was_forgotten_can_be_repeated(times: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORGETS, "0" if times == 2 else "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in ["working\n", "forgotten\n", "clearing up\n"][:times]:
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    stopping = "stopping, this may take some seconds\n"
    assert process.returncode == 130
    assert err == 2 * stopping + ("interrupted: run the same command again to resume.\n" if times == 2 else "")


def test_ctrl_c_ends_a_command_whose_standard_error_has_no_reader_any_more() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWS],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(writer)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    os.close(reader)  # as the Ctrl-C ends `tee` of `2>&1 | tee log`
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)

    assert process.returncode != 0


def test_a_command_runs_with_standard_error_closed() -> None:
    script = "import sys\nfrom jobs.exits import run\nrun(lambda argv: print('done'))"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_letters_that_the_terminal_lacks_are_escaped(stream: str) -> None:
    script = f"import sys\nfrom jobs.exits import run\nrun(lambda argv: print('gr\\xfcn \\udcff', file=sys.{stream}))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert getattr(done, stream) == "gr\\xfcn \\udcff\n"
