"""Any detector behind our interface, on upright pixels: what `model` compares with the pipeline of `transformers`."""

from pathlib import Path
from typing import Any

from pipelines.benchmarks.agreement import save_found
from pipelines.benchmarks.model_subjects import THRESHOLD, batches_of, drawn_pixels
from pipelines.benchmarks.timing import Phases, keep_freed_memory_as_actors, result, steady


def detect(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time uint8 pixels of the upright picture to detections: preparing, the network, reading its output."""
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr.detectors import load_detector
    torch.set_num_threads(settings["threads"])
    with phases.phase("load"):
        detector = load_detector(
            settings["model"],
            device=settings["device"],
            precision="fp32",
            threshold=THRESHOLD,
            batch_size=settings["batch"],
        )
    keep_freed_memory_as_actors(settings["device"])

    def run(batch: Any) -> Any:
        return detector.detect([detector.prepare(image) for image in batch])

    batches = batches_of(drawn_pixels(settings), settings["batch"])
    kept: list[Any] = []
    spent = steady(run, batches, device=settings["device"], seconds=settings["seconds"], phases=phases, kept=kept)
    found = [detections for batch in kept for detections in batch]
    indices = {category.id: index for index, category in enumerate(detector.categories)}
    save_found(
        folder / settings["found"],
        [([indices[one] for one in image.category_ids.tolist()], image.scores, image.boxes_xyxy) for image in found],
        [tuple(settings["shape"])] * len(found),
    )
    return result(phases, spent)
