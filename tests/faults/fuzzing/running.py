"""Cases of a suite run in child processes: one that dies, hangs or raises is a finding, and the others go on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from pipelines.labelling.process_time import Stopwatch

ROOT = Path(__file__).parents[3]
SILENT_SECONDS = 180.0  # computing or asleep, without a word; the CPU time of a case is bounded much tighter
KEPT = ROOT / "build" / "fuzzing"  # where the files of findings go


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that ended as none may, what is known of it, and how it is run again."""

    suite: str
    seed: int
    number: int
    evidence: str
    file: Path

    def __str__(self) -> str:
        return (
            f"{self.suite} case {self.number} of seed {self.seed}: {self.evidence}\n  its file: {self.file}\n"
            f"  again: python -m tests.faults.fuzzing.child {self.suite} {self.seed} {self.number} {self.number + 1}"
        )


@dataclass
class Fuzzed:
    """What became of the cases of a suite."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many were run."""
        return self.outcomes.total() + len(self.findings)


def fuzz(suite: str, *, seed: int, cases: int, first: int = 0, processes: int = 2) -> Fuzzed:
    """Run cases of a suite and return what became of each; the bytes of findings are kept in a file each."""
    share = -(-cases // processes)
    ranges = [(start, min(start + share, first + cases)) for start in range(first, first + cases, share)]
    result = Fuzzed()
    with ThreadPoolExecutor(processes) as pool:
        for answers in pool.map(lambda bounds: list(_run(suite, seed, *bounds)), ranges):
            for number, outcome, evidence in answers:
                if evidence is None:
                    result.outcomes[outcome] += 1
                else:
                    result.findings.append(_keep(suite, seed, number, evidence))
    return result


def _run(suite: str, seed: int, first: int, stop: int) -> Iterator[tuple[int, str, str | None]]:
    """Yield number, outcome and evidence of each case; a child that dies is followed by another, one case further."""
    while first < stop:
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fuzzing.child", suite, str(seed), str(first), str(stop)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            begun = None
            for line in _lines(process):
                answer = json.loads(line)
                if "begins" in answer:
                    begun = answer["begins"]
                    continue
                yield answer["ends"], answer.get("outcome", ""), answer.get("finding")
                begun, first = None, answer["ends"] + 1
            code = process.wait()
            errors.seek(max(0, errors.tell() - 4000))
            said = errors.read().decode(errors="replace").strip()
        if first >= stop:
            return
        assert begun is not None, f"the child process of {suite} does not start: {said}"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        yield begun, "", f"its process died ({name}): {said}"
        first = begun + 1


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what the child says; it is killed when it is silent for too long. Waiting for a core does not count."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    silence = Stopwatch(process.pid)
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            spent = silence.read()
            if spent.computing + spent.asleep > SILENT_SECONDS:
                process.kill()
            continue
        if line is None:
            reader.join()
            return
        yield line
        silence = Stopwatch(process.pid)


def _keep(suite: str, seed: int, number: int, evidence: str) -> Finding:
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{suite}-{seed}-{number}"
    file.write_bytes(import_module(f"tests.faults.fuzzing.{suite}_suite").SUITE(seed).data(number))
    return Finding(suite, seed, number, evidence, file)
