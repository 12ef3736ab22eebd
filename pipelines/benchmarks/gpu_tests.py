"""Run the tests marked `gpu` with pytest within a time limit; a later call resumes them."""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.benchmarks.machine import installed
from pipelines.benchmarks.process_tree import run_measured
from pipelines.benchmarks.rounds import python_path

FOLDER = "tests/gpu"
REHEARSAL = "GPU_TESTS_DEVICE"  # of tests/gpu/conftest.py
OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b", re.MULTILINE)
OUTPUT_KEPT = 6000


@dataclass(slots=True)
class TestRun:
    """Outcomes of the GPU tests so far.

    Attributes:
        root: folder of the checkout, which contains `tests/gpu`.
        device: "cuda", or "cpu" in a rehearsal.
        outcomes: by test.
    """

    __test__ = False  # for pytest: this is not a test class

    root: Path
    device: str
    outcomes: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, limit_s: float) -> dict[str, Any]:
        """Run the tests that have no outcome yet, without those that need Ray, and return counts and failures.

        `tests/conftest.py` is not used: it needs libraries that a GPU machine may not have. Warnings are not errors,
        because they depend on the version of torch.

        Args:
            folder: receives pytest's output.
            limit_s: wall seconds until pytest is killed.
        """
        if not (self.root / FOLDER).is_dir():
            return {"state": "skipped", "reason": f"there is no {FOLDER}"}
        if installed("pytest") is None:
            return {"state": "skipped", "reason": "pytest is not installed"}
        output = folder / f"tests_{len(list(folder.glob('tests_*.txt'))) + 1}.txt"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-m",
            "gpu and not ray",
            "-W",
            "default",
            "--tb=short",
            "-rfEs",
        ]
        command += ["-p", "no:cacheprovider", f"--confcutdir={self.root / FOLDER}", "--continue-on-collection-errors"]
        command += [f"--deselect={test}" for test in self.outcomes]
        environment = {name: value for name, value in os.environ.items() if name != REHEARSAL}
        if self.device == "cpu":
            environment[REHEARSAL] = "cpu"
        use = run_measured(
            [*command, FOLDER],
            environment={**environment, "PYTHONPATH": python_path(self.root), "PYTHONUNBUFFERED": "1"},
            folder=self.root,
            output=output,
            timeout_s=limit_s,
        )
        text = output.read_text(errors="replace")
        found = dict(OUTCOME.findall(text))
        self.outcomes |= found
        counts = {outcome.lower(): list(found.values()).count(outcome) for outcome in sorted(set(found.values()))}
        failed = [test for test, outcome in found.items() if outcome in ("FAILED", "ERROR")]
        state = "not finished" if use.timed_out else "failed" if failed or use.exit_code not in (0, 5) else "done"
        more = {"output": text[-OUTPUT_KEPT:]} if state == "failed" or not found else {}
        if state == "done" and set((found or self.outcomes).values()) <= {"SKIPPED"}:
            state, more = "skipped", {"reason": "every test was skipped", "output": text[-OUTPUT_KEPT:]}
        return {"state": state, "seconds": round(use.wall_s, 1), "counts": counts, "failed": failed, **more}
