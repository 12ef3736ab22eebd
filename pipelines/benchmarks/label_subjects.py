"""Whole commands, and the network alone on the same photographs: subjects of the `label` and `start` benchmarks."""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

from pipelines.benchmarks.timing import Phases, result, steady


def command(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Run one of the commands in this process as `python -m` does; return its exit code.

    Args:
        settings: `module`, such as "jobs.label", and `arguments`, a list of strings.
        _folder: the benchmark's working folder, which the arguments name where they need it.
    """
    sys.argv = [settings["module"], *settings["arguments"]]
    code: Any = 0
    try:
        runpy.run_module(settings["module"], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code or 0
    return {"exit_code": code if isinstance(code, int) else 1}


def imports(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Import the module that `settings` names, and nothing else."""
    phases = Phases()
    with phases.phase("import"):
        module = importlib.import_module(settings["module"])
    return {"phases": phases.cpu_s, "exit_code": 0, "file": module.__file__}


def network_alone(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Time `Detector.detect` on the photographs decoded and resized before, in the batches that a shard has."""
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr.batching import order_batches
        from detr.detector import Detector
        from detr.images import decode
    torch.set_num_threads(settings["threads"])
    with phases.phase("load"):
        detector = Detector(settings["model"], device=settings["device"], precision=settings["precision"])
    prepared = [detector.prepare(decode(Path(file).read_bytes())) for file in settings["files"]]
    shapes = [(int(image.pixels.shape[1]), int(image.pixels.shape[2])) for image in prepared]
    batches = order_batches(shapes, batch_size=detector.batch_size, grid=detector.grid)

    def run(indices: Any) -> None:
        chosen = [prepared[index] for index in indices]
        height = max(shapes[index][0] for index in indices)
        width = max(shapes[index][1] for index in indices)
        step = detector.grid
        detector.detect(chosen, shape=(-(-height // step) * step, -(-width // step) * step))

    spent = steady(
        run,
        [batch.indices for batch in batches],
        device=settings["device"],
        seconds=settings["seconds"],
        phases=phases,
    )
    return result(phases, spent)
