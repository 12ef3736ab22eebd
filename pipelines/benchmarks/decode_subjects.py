"""Encoded photographs to resized pixels, by us and by Pillow: subjects of the `decode` benchmark."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmarks.timing import Phases, result, steady

KEPT = 8  # number of images whose pixels are compared
Pixels = NDArray[np.uint8]


def photographs(settings: dict[str, Any]) -> list[bytes]:
    """Return the encoded bytes of the benchmark's images."""
    return [Path(file).read_bytes() for file in settings["files"]]


def measure(
    settings: dict[str, Any],
    folder: Path,
    phases: Phases,
    decode: Callable[[bytes], Any],
    pixels: Callable[[Any], Pixels],
) -> dict[str, Any]:
    """Time `decode` over all images; save its results for the first eight for the comparison.

    Args:
        settings: of the subject.
        folder: the benchmark's working folder.
        phases: of the process so far.
        decode: encoded bytes to a resized image.
        pixels: that image as `(h, w, 3)` uint8.
    """
    files = photographs(settings)

    def run(batch: Sequence[bytes]) -> None:
        for data in batch:
            decode(data)

    spent = steady(run, [files], device="cpu", seconds=settings["seconds"], phases=phases)
    arrays = {str(index): pixels(decode(data)) for index, data in enumerate(files[:KEPT])}
    np.savez(folder / settings["found"], **arrays)  # type: ignore[arg-type]  # numpy takes any names
    return result(phases, spent)


def ours(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time the decoding and resizing that the labelling job does, on one thread."""
    phases = Phases()
    with phases.phase("import"):
        import torch

        from detr.images.decoding import decode, resize, resize_shape
    torch.set_num_threads(1)
    shorter, longest = settings["shorter"], settings["longest"]

    def run(data: bytes) -> Any:
        image = decode(data)
        return resize(image, *resize_shape(image.shape[1], image.shape[2], shorter=shorter, longest=longest))

    return measure(settings, folder, phases, run, lambda image: np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def pillow(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time Pillow: open, turn upright, convert to RGB, resize bilinearly."""
    phases = Phases()
    with phases.phase("import"):
        import io

        from PIL import Image, ImageOps

        from detr.images.decoding import resize_shape
    shorter, longest = settings["shorter"], settings["longest"]

    def run(data: bytes) -> Image.Image:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        height, width = resize_shape(image.height, image.width, shorter=shorter, longest=longest)
        return image.resize((width, height), Image.Resampling.BILINEAR)

    return measure(settings, folder, phases, run, np.asarray)
