"""Detections with a mask each."""

from dataclasses import dataclass

from detr.postprocess import Detections


@dataclass(frozen=True, slots=True)
class MaskedDetections(Detections):
    """Detections with their masks.

    Attributes:
        masks: of each detection the `counts` of COCO's compressed run-length code, over the pixels of the upright
            image; its `size` is the image's (height, width).
    """

    masks: tuple[str, ...]
