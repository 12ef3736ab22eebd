"""Losses that only training from scratch needs: they lead a small DETR off the plateau of average boxes.

The value path of a DETR never sees a position: positions are added to queries and keys only, and the decoder starts
from zeros, yet the box head must give absolute coordinates. A pretrained backbone and hundreds of epochs hide this; a
network from scratch on two cores does not get there. Two more terms on the encoder's output do it, in training only:
the checkpoint stays a plain DETR. They are no part of the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.training.matcher import PaddedTargets

CENTRE_SHARE = 0.42  # of a box's width and height: tokens nearer to its centre than this learn the box
LEAST_BOX_TOKENS = 1.2  # a narrower box counts as this wide, so that it has a token between any two (0.42 * 1.2 > 1/2)
NO_OBJECT_WEIGHT = 0.25


def token_centres(height: int, width: int, *, stride: int = 16, device: torch.device | None = None) -> Tensor:
    """Where the encoder's tokens look in an unpadded `height` x `width` image: `(D, 2)` normalised (x, y), row by row.

    With the usual paddings of a residual network the receptive field of token i is centred on pixel `stride` * i (its
    continuous coordinate is half a pixel more), not on the middle of the i-th cell of the grid: half a token apart.
    """
    y = (torch.arange(-(-height // stride), device=device) * stride + 0.5) / height
    x = (torch.arange(-(-width // stride), device=device) * stride + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x.flatten(), grid_y.flatten()), dim=1)


def assign_tokens(centres: Tensor, targets: PaddedTargets, cell: tuple[float, float]) -> Tensor:
    """The index of the target of its image that each token learns, or -1: `(B, D)` int64.

    A token belongs to a box when it lies within `CENTRE_SHARE` of the box's width and height from its centre; to the
    nearest one, in units of the boxes' own sizes, when there are several.

    Args:
        centres: `(D, 2)` normalised (x, y) of the tokens.
        targets: the objects of the images, on the same device.
        cell: width and height of one token, normalised.
    """
    centre, size = targets.boxes_cxcywh[..., :2], targets.boxes_cxcywh[..., 2:]
    # each side apart, by numbers of Python: a tensor of both would have to be copied to the device
    sides = [side.clamp(min=LEAST_BOX_TOKENS * least) for side, least in zip(size.unbind(-1), cell, strict=True)]
    offset = ((centres[:, None] - centre[:, None]) / torch.stack(sides, dim=-1)[:, None]).abs()  # (B, D, M, 2)
    is_none = torch.arange(size.shape[1], device=size.device) >= targets.numbers[:, None]
    is_far = (offset > CENTRE_SHARE).any(-1) | is_none[:, None]
    nearest = offset.square().sum(-1).masked_fill(is_far, torch.inf).min(-1)
    return torch.where(nearest.values.isfinite(), nearest.indices, -1)


def dense_loss(
    logits: Tensor, boxes_cxcywh: Tensor, targets: PaddedTargets, height: int, width: int, *, stride: int = 16
) -> dict[str, Tensor]:
    """The losses of the model's own heads on every token of the encoder, unweighted, as if each token were a query.

    Everything stays on the device, and no shape depends on values: the host never waits.

    Args:
        logits: `(B, D, K + 1)`, the class head on the normalised memory.
        boxes_cxcywh: `(B, D, 4)`, the box head on it, after the sigmoid.
        targets: of the B images, on the same device.
        height: of the unpadded batch, in pixels.
        width: of the unpadded batch, in pixels.
        stride: pixels from token to token.

    Returns:
        `dense_ce`, a weighted mean over all tokens; `dense_bbox` (L1) and `dense_giou`, means over tokens of objects.
    """
    centres = token_centres(height, width, stride=stride, device=logits.device)
    owners = assign_tokens(centres, targets, (stride / width, stride / height))
    is_owned = owners >= 0
    index = owners.clamp(min=0)

    no_object_class = logits.shape[-1] - 1
    classes = torch.where(is_owned, targets.labels.gather(1, index), no_object_class)
    class_weights = logits.new_ones(no_object_class + 1)
    class_weights[no_object_class].fill_(NO_OBJECT_WEIGHT)  # an assignment would copy the number to the device

    # a token without an object compares one box with itself, which costs exactly nothing
    boxes = torch.where(is_owned[..., None], targets.boxes_cxcywh.gather(1, index[..., None].expand(-1, -1, 4)), 0.5)
    predicted = torch.where(is_owned[..., None], boxes_cxcywh, 0.5)
    overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(boxes))
    positives = is_owned.sum().clamp(min=1)
    return {
        "dense_ce": F.cross_entropy(logits.transpose(1, 2), classes, weight=class_weights),
        "dense_bbox": (predicted - boxes).abs().sum() / positives,
        "dense_giou": (1 - overlap).sum() / positives,
    }


def position_loss(guesses: Tensor, height: int, width: int, *, stride: int = 16) -> Tensor:
    """Mean absolute error of `(B, D, 2)` guessed normalised (x, y), one per token, against where the tokens look."""
    return (guesses - token_centres(height, width, stride=stride, device=guesses.device)).abs().mean()
