import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.process_memory import keep_freed_memory

ROOT = Path(__file__).parents[2]

PAGES = """
import resource, sys, threading
from pipelines.process_memory import keep_freed_memory

def fill():
    blocks = [bytearray(54_000_000) for _ in range(3)]  # the largest feature maps of an image of 800 x 1066 pixels

def work():
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(how: str) -> int:
    """Return the page faults of memory that a thread has allocated and freed before, in a process of its own."""
    command = [sys.executable, "-c", PAGES, how]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these settings")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 50
    assert page_faults("default") > 50  # else this test shows nothing


def test_nothing_is_changed_on_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)  # fails when it is called

    assert keep_freed_memory() is False
