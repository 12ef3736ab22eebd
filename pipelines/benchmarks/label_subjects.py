"""Whole commands, and the network alone on the same photographs: subjects of the `label` and `start` benchmarks."""

import importlib
import sys
from pathlib import Path
from typing import Any

from pipelines.benchmarks.timing import Phases, keep_freed_memory_as_actors, result, steady


def command(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Run one of the commands in this process, without ending it; return the exit code.

    Args:
        settings: `module`, such as "jobs.label", and `arguments`, a list of strings, which set the number of threads.
        _folder: the benchmark's working folder, which the arguments contain if necessary.
    """
    sys.argv = [settings["module"], *settings["arguments"]]
    main, run = importlib.import_module(settings["module"]).main, importlib.import_module("jobs.exits").run
    code: Any = 0
    try:
        run(main, settings["arguments"])
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
    """Time the detector on photographs that are decoded, resized and padded, in the batches that a shard has.

    A batch is started before waiting for the previous one, as in the labelling job.
    """
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr import batching
        from detr.detector import Detector
        from detr.images.decoding import decode
    torch.set_num_threads(settings["threads"])
    with phases.phase("load"):
        detector = Detector(settings["model"], device=settings["device"], precision=settings["precision"])
    keep_freed_memory_as_actors(settings["device"])
    prepared = [detector.prepare(decode(Path(file).read_bytes())) for file in settings["files"]]
    shapes = [(int(image.pixels.shape[1]), int(image.pixels.shape[2])) for image in prepared]
    if hasattr(detector, "batches"):
        batches = detector.batches(shapes)
    else:  # earlier checkouts
        order: Any = batching.order_batches
        batches = order(shapes, batch_size=detector.batch_size, grid=detector.grid)  # type: ignore[attr-defined]

    hosts: dict[tuple[int, ...], Any] = {}
    pending: list[Any] = []
    for batch in batches:
        chosen = [prepared[index] for index in batch.indices]
        if not hasattr(detector, "submit"):  # checkouts that cannot start a batch before the last is done
            hosts[batch.indices] = chosen
            continue
        host = detector.host_batch(len(chosen), batch.height, batch.width)
        for place, image in enumerate(chosen):
            host.write(place, image)
        hosts[batch.indices] = host

    def run(indices: Any) -> None:
        if not hasattr(detector, "submit"):
            detector.detect(hosts[indices])
            return
        pending.append(detector.submit(hosts[indices]))
        if len(pending) > 1:
            pending.pop(0).result()

    spent = steady(
        run,
        [batch.indices for batch in batches],
        device=settings["device"],
        seconds=settings["seconds"],
        phases=phases,
    )
    return result(phases, spent)
