"""Masks of single detections: from the mask head's logits to COCO's run-length code."""

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

PIXELS_AT_ONCE = 2**24
"""Mask pixels that are enlarged at a time, in float32."""


def binary_masks(
    logits: Tensor, *, resized: tuple[int, int], image: tuple[int, int], padded: tuple[int, int] | None = None
) -> Tensor:
    """Return bool masks `(N, height, width)` over the image, equal to the original's `PostProcessSegm`.

    Logits are enlarged (bilinear) to the size that the network saw, thresholded at probability 0.5, and resized to the
    image (nearest neighbour).

    Args:
        logits: `(N, h, w)` of `PanopticDetr.mask_logits`.
        resized: (height, width) of the image as the network saw it, without padding.
        image: (height, width) of the image.
        padded: the (height, width) that `logits` cover; None is `resized`, as for an image alone.
    """
    enlarged = F.interpolate(logits[:, None].float(), size=padded or resized, mode="bilinear", align_corners=False)[
        :, 0
    ]
    real = enlarged[:, : resized[0], : resized[1]] > 0
    return F.interpolate(real[:, None].to(torch.uint8), size=image, mode="nearest")[:, 0].bool()


def encoded_masks(logits: Tensor, *, resized: tuple[int, int], image: tuple[int, int]) -> tuple[str, ...]:
    """Return `run_lengths` of `binary_masks`, with at most `PIXELS_AT_ONCE` or one mask in memory."""
    pixels = max(resized[0] * resized[1], image[0] * image[1])
    found: list[str] = []
    for some in torch.split(logits, max(1, PIXELS_AT_ONCE // pixels)):
        found += run_lengths(binary_masks(some, resized=resized, image=image).cpu())
    return tuple(found)


def run_lengths(masks: Tensor) -> tuple[str, ...]:
    """Return the compressed counts of bool masks `(N, height, width)` on the CPU, as COCO's tools write them."""
    columns = np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8))
    encoded: Sequence[dict[str, bytes]] = coco_mask.encode(columns)
    return tuple(one["counts"].decode("ascii") for one in encoded)
