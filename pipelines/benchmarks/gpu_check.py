"""Check one GPU within a few minutes: the most important figures first, each saved immediately.

Every stage is a separate process with a time limit, so that a stage that fails, hangs or crashes loses only its own
figures. Needs torch, torchvision, numpy and Pillow; compares with `transformers` if it is installed.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.benchmarks.gpu_tests import TestRun
from pipelines.benchmarks.machine import machine_facts
from pipelines.benchmarks.process_tree import run_measured
from pipelines.benchmarks.rounds import CHILD, OURS, python_path

FIGURES = "figures.jsonl"
DOCUMENT = "gpu-check.json"
OUTPUT_KEPT = 3000


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the check.

    Attributes:
        name: in the document.
        subject: function of `pipelines.benchmarks.gpu_stages`; None runs tests.
        limit_s: wall seconds until it is killed.
        least_s: remaining time that it needs to begin.
    """

    name: str
    subject: str | None
    limit_s: float
    least_s: float


STAGES = (
    Stage("model", "write_model", 60, 10),
    Stage("ceilings", "ceilings", 45, 20),
    Stage("core tests", None, 90, 30),
    Stage("parity", "parity", 60, 20),
    Stage("network", "network", 110, 30),
    Stage("label", "label", 90, 30),
    Stage("train", "train", 75, 30),
    Stage("compiled", "compiled", 150, 60),
    Stage("kernels", "kernels", 30, 15),
    Stage("rest of the tests", None, 600, 20),
)


def gpu_check(out: Path, *, minutes: float, smoke: bool, command: str, on_progress: Callable[[str], None]) -> Path:
    """Run all stages that fit into the time, and return the document with their figures.

    Args:
        out: folder of `gpu-check.json`, which is written after each figure, and of the stages' output.
        minutes: wall time of all stages.
        smoke: rehearse on the CPU with small sizes; every stage runs without a time limit.
        command: for the document.
        on_progress: called with a line for each stage and figure.

    Raises:
        OSError: `out` is not writable.
    """
    began = time.monotonic()
    folder = out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).write_text("")
    document: dict[str, Any] = {
        "command": command,
        "smoke": smoke,
        "machine": machine_facts(),
        "stages": {},
        "figures": {},
    }
    tests = TestRun(OURS, device="cpu" if smoke else "cuda")
    for stage in STAGES:
        left = minutes * 60 - (time.monotonic() - began)
        if left < stage.least_s and not smoke:
            document["stages"][stage.name] = {"state": "skipped", "reason": f"{left:.0f} s were left"}
            continue
        limit = max(stage.limit_s, 600.0) if smoke else min(stage.limit_s, left)
        on_progress(f"[{time.monotonic() - began:5.0f} s] {stage.name}")
        document["stages"][stage.name] = (
            tests.run(folder, limit)
            if stage.subject is None
            else _run(stage, folder, limit, smoke, document, on_progress)
        )
        _write(folder, document)
    document["seconds"] = time.monotonic() - began
    _write(folder, document)
    return folder / DOCUMENT


def _run(
    stage: Stage,
    folder: Path,
    limit_s: float,
    smoke: bool,
    document: dict[str, Any],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    name = stage.name.replace(" ", "_")
    spec, returned, output = folder / "spec.json", folder / "returned.json", folder / f"{name}.txt"
    settings = {"smoke": smoke, "stage": stage.name, "figures": str(folder / FIGURES), "limit_s": limit_s}
    spec.write_text(json.dumps({"subject": f"gpu_stages:{stage.subject}", "settings": settings, "folder": str(folder)}))
    known = 0

    def watch(_: float) -> None:
        nonlocal known
        lines = _lines(folder / FIGURES)
        for line in lines[known:]:
            document["figures"].setdefault(line["stage"], {})[line["name"]] = line["value"]
            on_progress(f"    {line['name']}: {json.dumps(line['value'])[:300]}")
        if len(lines) > known:
            known = len(lines)
            _write(folder, document)

    known = len(_lines(folder / FIGURES))
    use = run_measured(
        [sys.executable, str(CHILD), str(OURS), str(spec), str(returned)],
        environment={**os.environ, "PYTHONPATH": python_path(OURS), "PYTHONWARNINGS": "ignore"},
        folder=folder,
        output=output,
        timeout_s=limit_s,
        watch=watch,
    )
    watch(0)
    for file in (spec, returned):
        file.unlink(missing_ok=True)
    state: dict[str, Any] = {"state": "done", "seconds": round(use.wall_s, 1)}
    if use.timed_out or use.exit_code != 0:
        reason = f"not finished after {limit_s:.0f} s" if use.timed_out else f"exit code {use.exit_code}"
        tail = output.read_text(errors="replace")[-OUTPUT_KEPT:]
        state = {"state": "failed", "seconds": round(use.wall_s, 1), "reason": reason, "output": tail}
        on_progress(f"    failed: {reason}")
    return state


def put(settings: Mapping[str, Any], name: str, value: Any) -> None:
    """Append a figure of a stage; the check copies it to its document immediately."""
    with Path(settings["figures"]).open("a") as file:
        file.write(json.dumps({"stage": settings["stage"], "name": name, "value": value}) + "\n")


def _lines(file: Path) -> Sequence[dict[str, Any]]:
    text = file.read_text()
    complete = text[: text.rfind("\n") + 1]  # the last line may be half written
    return [json.loads(line) for line in complete.splitlines()]


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    partial = folder / f"{DOCUMENT}.part"
    partial.write_text(json.dumps(document, indent=1))
    partial.replace(folder / DOCUMENT)
