"""Run variants in alternating rounds, every measurement in a fresh process."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.benchmarks.process_tree import TreeUse, run_measured

Item = TypeVar("Item")

OURS = Path(__file__).parents[2]  # the folder that contains detr, pipelines and jobs
CHILD = Path(__file__).parent / "child.py"
OUTPUT_SHOWN = 1500  # characters of a failed subject's output


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the compared variants.

    Attributes:
        name: in tables; variants of one case have different names.
        subject: `module:function` below `pipelines.benchmarks`.
        settings: arguments of the function; `threads` of each of its processes that compute, if it is not one.
        version: of the measured library.
        baseline: name of the variant in the denominator of this one's ratio.
        code: the checkout whose `detr`, `pipelines` and `jobs` are measured.
        note: a note for readers of this row.
        actors: processes that compute at the same time; None for as many as the machine has cores for.
    """

    name: str
    subject: str
    settings: Mapping[str, Any]
    version: str = ""
    baseline: str = "ours"
    code: Path = OURS
    note: str = ""
    actors: int | None = 1

    @property
    def threads(self) -> int:
        """Number of threads of each process that computes."""
        return int(self.settings.get("threads", 1))

    def cores(self, machine: int) -> int:
        """Return how many of a machine's cores compute: the threads of all actors."""
        return machine if self.actors is None else min(machine, self.threads * self.actors)


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: a variant, in one round, at one size.

    Attributes:
        variant: its name.
        round: from 0 on.
        size: number of images if a case has several sizes; else 0.
        use: of the process tree.
        returned: result of the subject; None if it failed.
        load_average: of the machine when the trial began, over one minute.
        seen: events recorded by the watch, by name: seconds since the start.
        error: why it failed.
    """

    variant: str
    round: int
    size: int
    use: TreeUse
    returned: dict[str, Any] | None
    load_average: float
    seen: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs subjects in separate processes.

    Attributes:
        folder: folder of models, inputs and outputs of the benchmark.
        timeout_s: wall seconds until a subject is killed.
        on_trial: called after every measurement, for progress and for writing partial results.
    """

    folder: Path
    timeout_s: float
    on_trial: Callable[[Trial], None]

    def run(
        self,
        variant: Variant,
        *,
        number: int = 0,
        size: int = 0,
        settings: Mapping[str, Any] | None = None,
        watch: Callable[[float], Mapping[str, float]] | None = None,
    ) -> Trial:
        """Run a variant once.

        Args:
            variant: what to run.
            number: of the round.
            size: number of images, passed to the subject as `size` in its settings.
            settings: additional settings.
            watch: called with the seconds since the start while it runs; returns its records so far.
        """
        spec, returned_file = self.folder / "spec.json", self.folder / "returned.json"
        output = self.folder / "output.txt"
        given = {**variant.settings, **(settings or {}), "size": size}
        spec.write_text(json.dumps({"subject": variant.subject, "settings": given, "folder": str(self.folder)}))
        returned_file.unlink(missing_ok=True)
        load = os.getloadavg()[0]
        seen: dict[str, float] = {}
        use = run_measured(
            [sys.executable, str(CHILD), str(variant.code), str(spec), str(returned_file)],
            environment={**os.environ, "PYTHONPATH": python_path(variant.code), "PYTHONWARNINGS": "ignore"},
            folder=self.folder,
            output=output,
            timeout_s=self.timeout_s,
            watch=None if watch is None else lambda elapsed: seen.update(watch(elapsed)),
        )
        returned = json.loads(returned_file.read_text()) if returned_file.exists() else None
        trial = Trial(
            variant.name, number, size, use, returned, load, seen, _error(use, returned, output, self.timeout_s)
        )
        self.on_trial(trial)
        return trial


def python_path(code: Path) -> str:
    """Return the PYTHONPATH of a subject: its checkout, then this process's own."""
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and Path(entry) != OURS]
    return os.pathsep.join([str(code), *others])


def order(count: int, number: int) -> list[int]:
    """Return the order of `count` variants in a round: A B C in even rounds, C B A in odd ones."""
    return list(range(count)) if number % 2 == 0 else list(reversed(range(count)))


def alternate(items: Sequence[Item], rounds: int) -> list[tuple[int, Item]]:
    """Return (round, item) for all rounds, in alternating order."""
    return [(number, items[index]) for number in range(rounds) for index in order(len(items), number)]


def _error(use: TreeUse, returned: dict[str, Any] | None, output: Path, timeout_s: float) -> str | None:
    if use.timed_out:
        return f"not finished after {timeout_s:.0f} s"
    if use.exit_code == 0 and returned is not None and returned.get("exit_code", 0) == 0:
        return None
    tail = output.read_text(errors="replace").strip()[-OUTPUT_SHOWN:]
    code = use.exit_code or (returned or {}).get("exit_code", "none")
    return f"exit code {code}: {tail or 'no output'}"
