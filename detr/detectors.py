"""A function that loads any detector: DETR's own, or one of `transformers`."""

import os
from collections.abc import Mapping

from detr.checkpoints.references import locate
from detr.detector import Detector
from detr.detector_like import DetectorLike
from detr.families import NATIVE, model_family
from detr.precision import Precision


def load_detector(
    ref: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Precision = "auto",
    threshold: float = 0.05,
    classes: Mapping[str, float | None] | None = None,
    batch_size: int | None = None,
    name: str | None = None,
) -> DetectorLike:
    """Return the detector of a model: a `Detector` for DETR and Table Transformer, else one of `transformers`.

    Args:
        ref: what `detr.load` takes, or a model directory or hub id of a type of `detr.families.FAMILIES`.
        device: as for `Detector`.
        precision: as for `Detector`; for models of `transformers`, "auto" is fp32 on every device.
        threshold: the minimum score to keep.
        classes: names of the classes to keep, each with its own threshold or None; None keeps all.
        batch_size: largest number of images in a batch.
        name: name of the model in error messages; None is `ref`.

    Raises:
        CheckpointError: the model cannot be loaded, or does not detect boxes.
        ValueError: as `Detector` raises it.
    """
    source = os.fspath(ref)
    path = locate(ref)
    family = model_family(path, source=source)
    if family == NATIVE:
        return Detector(
            source,
            device=device,
            precision=precision,
            threshold=threshold,
            classes=classes,
            batch_size=batch_size,
            name=name,
        )
    from detr.transformers_detector import TransformersDetector
    from detr.transformers_model import load_transformers_model

    return TransformersDetector(
        load_transformers_model(path, family, source=source),
        device=device,
        precision=precision,
        threshold=threshold,
        classes=classes,
        batch_size=batch_size,
        name=name,
    )
