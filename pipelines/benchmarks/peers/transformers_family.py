"""Any object detector of `transformers`: its pipeline, and its network alone."""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline

from pipelines.benchmarks.model_subjects import THRESHOLD, batches_of, drawn_pixels, save_rows
from pipelines.benchmarks.timing import Phases, result, steady


def whole(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time `pipeline("object-detection")` on pictures in memory."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    with phases.phase("load"):
        detect = _pipeline(settings)
    batches = batches_of(_pictures(settings), settings["batch"])
    kept: list[Any] = []
    spent = steady(detect, batches, device=settings["device"], seconds=settings["seconds"], phases=phases, kept=kept)
    _save(settings, folder, kept)
    return result(phases, spent)


def reference(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Save the pipeline's detections of each picture, one at a time; not timed, so each is computed once."""
    torch.set_num_threads(settings["threads"])
    detect = _pipeline(settings)
    _save(settings, folder, [detect([picture]) for picture in _pictures(settings)])
    return {}


def network(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the network alone, on pixels that its image processor has prepared."""
    phases = Phases()
    torch.set_num_threads(settings["threads"])
    transformers.utils.logging.disable_progress_bar()
    device, (height, width) = settings["device"], settings["shape"]
    with phases.phase("load"):
        model = AutoModelForObjectDetection.from_pretrained(settings["model"], dtype=torch.float32).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(settings["model"])
    groups = batches_of(drawn_pixels(settings), settings["batch"])
    batches = [_Inputs(processor(images=group, return_tensors="pt").to(device)) for group in groups]

    def run(inputs: "_Inputs") -> Any:
        with torch.no_grad():
            return model(**inputs.values)

    kept: list[Any] = []
    spent = steady(run, batches, device=device, seconds=settings["seconds"], phases=phases, kept=kept)
    rows = []
    for inputs, output in zip(batches, kept, strict=True):
        sizes = torch.tensor([(height, width)] * len(inputs), device=device)
        found = processor.post_process_object_detection(output, threshold=THRESHOLD, target_sizes=sizes)
        rows += [(one["labels"].cpu(), one["scores"].cpu(), one["boxes"].cpu()) for one in found]
    save_rows(folder / settings["found"], rows, (height, width))
    return result(phases, spent)


class _Inputs:
    """The arguments of a network, and their number of images."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values["pixel_values"])


def _pipeline(settings: dict[str, Any]) -> Any:
    """Return a function from a list of pictures to the pipeline's detections of each."""
    transformers.utils.logging.disable_progress_bar()
    detect = pipeline("object-detection", model=settings["model"], device=settings["device"], dtype=torch.float32)
    detect._get_bounding_box = lambda box: box.tolist()  # noqa: SLF001 - to compare boxes before they are cut to whole pixels

    def run(pictures: Any) -> Any:
        return detect(pictures, threshold=THRESHOLD, batch_size=len(pictures))

    return run


def _pictures(settings: dict[str, Any]) -> list[Image.Image]:
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in drawn_pixels(settings)]


def _save(settings: dict[str, Any], folder: Path, found: Any) -> None:
    names = AutoConfig.from_pretrained(settings["model"]).id2label
    indices = {name: index for index, name in names.items()}
    height, width = settings["shape"]
    save_rows(folder / settings["found"], [_row(one, indices) for batch in found for one in batch], (height, width))


def _row(found: Any, indices: Any) -> tuple[Any, Any, Any]:
    classes = torch.tensor([indices[one["label"]] for one in found], dtype=torch.int64)
    scores = torch.tensor([one["score"] for one in found])
    return classes, scores, torch.tensor([one["box"] for one in found]).reshape(-1, 4)
