"""Another user of the machine reaches the local Ray of a run, and runs nothing there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

HOLDER = """
import os, sys
import ray
from pipelines.cluster import connected

with connected():
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""
GUEST = """
import sys
import ray

ray.init(address=sys.argv[1], logging_level="ERROR")
print(ray.get(ray.remote(lambda: "ran").remote()))
"""


def test_who_does_not_have_the_token_runs_nothing_on_a_local_ray(tmp_path: Path) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    outside |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=ROOT, env=outside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        address, token = holder.stdout.readline().split()
        credentials = {
            "the owner": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            "no token": {"RAY_AUTH_MODE": "disabled"},
            "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]},
        }
        guests = {
            name: subprocess.Popen(
                [sys.executable, "-c", GUEST, address],
                # else it takes loopback for the machine's outward address, where nothing listens
                env={**outside, **shown, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for name, shown in credentials.items()
        }  # fmt: skip
        try:
            ended = {name: (*guest.communicate(timeout=180), guest.returncode) for name, guest in guests.items()}
        finally:
            for guest in guests.values():
                guest.kill()
            holder.stdin.close()

    assert ended["the owner"][0] == "ran\n", ended["the owner"][1]
    for name in ("no token", "another token"):
        said, failure, code = ended[name]
        assert (said, code) == ("", 1)
        assert "uthentication" in failure or "token-auth" in failure, failure
